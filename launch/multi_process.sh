#!/usr/bin/env bash
# A run by several processes of this machine, as on several hosts: `bash launch/multi_process.sh 2 --config FILE ...`.
# To try it, or a process a GPU. On CPU the numbers are those of one process with as many devices.
# Two processes on two busy CPU cores, configs/quickstart.py: under four minutes, val accuracy 0.9950. Not tried on GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
count="$1"
shift
port="$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
processes=()
trap 'kill -TERM "${processes[@]}" 2> /dev/null || true' TERM INT
for ((i = count - 1; i >= 0; i--)); do
    JAX_LOCAL_DEVICE_IDS="$i" .venv/bin/python -m tltrain.main "$@" \
        --coordinator="localhost:$port" --num_processes="$count" --process_id="$i" &
    processes+=($!)
done
# once all have met, they end by themselves where one does; before that the others would wait for it
code=0 patience=30
while ((${#processes[@]})); do
    sleep 1
    running=()
    for process in "${processes[@]}"; do
        if kill -0 "$process" 2> /dev/null; then
            running+=("$process")
        else
            wait "$process" || code=$((code ? code : $?))
        fi
    done
    processes=("${running[@]}")
    if ((code && !patience--)); then
        echo "a process ended with exit code $code; the others are ended" >&2
        kill -TERM "${processes[@]}" 2> /dev/null || true
    fi
done
exit "$code"

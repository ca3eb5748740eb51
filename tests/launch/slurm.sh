#!/usr/bin/env bash
# A Slurm of two nodes, one core each, on this machine: `bash tests/launch/slurm.sh FOLDER < PIPE`, as root or any user.
# It says "ready" when jobs are taken (SLURM_CONF=FOLDER/slurm.conf), and stops all it started once its input ends,
# which it also does where the process that holds the other end is killed. Its files are in FOLDER. It needs
# apt-get install --no-install-recommends slurm-wlm slurmd slurmctld slurm-client munge
set -euo pipefail
root="$1"
nodes=(127.0.0.1 127.0.0.2) # jax takes the address of process 0 from the name of a node: these need no /etc/hosts
mkdir -p "$root"/{state,spool}
cd "$root"
root="$PWD"
export SLURM_CONF="$root/slurm.conf"
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

head -c 1024 /dev/urandom > munge.key
chmod 400 munge.key
# cred_expire: a job that is requeued begins after as many seconds, and not after two minutes; 5 is the least
cat > slurm.conf << CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$root/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
InactiveLimit=0
CONF
for node in "${nodes[@]}"; do
    echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=$node Port=$(port) CPUs=1 State=UNKNOWN" >> slurm.conf
done
echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >> slurm.conf
# slurmd loads the plugin of the machine's cgroups whatever tracks its processes
if [ -d /sys/fs/cgroup/freezer ]; then
    echo "CgroupPlugin=cgroup/v1" > cgroup.conf
else
    printf 'CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n' > cgroup.conf
fi

started=()
start() {
    "$@" > "$(basename "$1")_${#started[@]}.log" 2>&1 < /dev/null &
    started+=($!)
}
is_over() { # within so many tenths of a second
    for _ in $(seq "$1"); do
        "${@:2}" && return
        sleep 0.1
    done
    return 1
}
stop() {
    trap '' TERM INT
    scancel --user="$(id -un)" || true
    is_over 150 no_jobs || true
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        kill "${started[$i]}" 2> /dev/null || true
        is_over 50 is_gone "${started[$i]}" || kill -9 "${started[$i]}"
    done
}
no_jobs() { [ -z "$(squeue --noheader 2> /dev/null)" ]; }
is_gone() { ! kill -0 "$1" 2> /dev/null; }
are_idle() { [ "$(sinfo --noheader --states=idle --format=%D 2> /dev/null)" = "${#nodes[@]}" ]; }
trap stop EXIT
trap 'exit 143' TERM INT

start /usr/sbin/munged --foreground --force --key-file="$root/munge.key" --socket="$root/munge.sock" \
    --pid-file="$root/munged.pid" --seed-file="$root/munge.seed" --log-file="$root/munged.log"
is_over 50 test -S munge.sock
start /usr/sbin/slurmctld -D -c
for node in "${nodes[@]}"; do
    mkdir -p "spool/$node"
    start /usr/sbin/slurmd -D -N "$node"
done
is_over 200 are_idle || { tail -n 20 ./*.log >&2; exit 1; }
echo ready
cat > /dev/null

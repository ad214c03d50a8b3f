# Sourced by quickstart.sh and test.sh: leaves the shell in the repository root with `.venv` made, filled and first in PATH.
# The locked packages are installed again only when requirements.lock has changed since.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_supported() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
        if [[ -n "${PYTHON:-}" && "$candidate" == "$PYTHON" ]]; then
            echo "error: PYTHON=$PYTHON is not a Python 3.11 to 3.13 with venv and pip" >&2
            return 1
        fi
    done
    echo "error: no Python 3.11 to 3.13 with venv and pip found; install one, or name it with PYTHON=/path/to/python" >&2
    return 1
}

if [[ ! -x .venv/bin/python ]] || ! is_supported .venv/bin/python; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

stamp=$(cat requirements.lock pyproject.toml | cksum)
if [[ ! -f .venv/installed ]] || [[ "$(cat .venv/installed)" != "$stamp $PWD" ]]; then
    echo "installing the versions of requirements.lock into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
    echo "$stamp $PWD" >.venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"

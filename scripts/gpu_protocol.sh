#!/usr/bin/env bash
# What a GPU that is at hand for a quarter of an hour should run, in order of worth; see scripts/gpu_protocol.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [[ -z "${PYTHON:-}" && -x .venv/bin/python ]]; then python=.venv/bin/python; fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
exec "$python" scripts/gpu_protocol.py "$@"

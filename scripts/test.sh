#!/usr/bin/env bash
# Sets up .venv and runs the tests; more arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

exec python -m pytest "$@"

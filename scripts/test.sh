#!/usr/bin/env bash
# Sets up .venv, checks style and runs the tests in two processes; more arguments go to pytest (`-n 8` where there are more cores).
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

ruff check --quiet .
ruff format --check --quiet .
exec python -m pytest -n 2 --dist worksteal "$@"

#!/usr/bin/env bash
# Sets up .venv and trains configs/digits.py on the bundled digits; more arguments go to `mosaic-jax train`.
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"

python -m mosaic_jax train --config configs/digits.py --run-dir runs/quickstart "$@"

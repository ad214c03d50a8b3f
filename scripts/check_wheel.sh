#!/usr/bin/env bash
# Builds the sdist and the wheel, installs the wheel alone in a fresh virtual environment (the locked versions of what it needs), and
# trains a tiny run of the bundled digits there, from Python and from the shell, far from this repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
ls "$work/dist"

"$python" -m venv "$work/venv"
grep -v '^#' requirements.lock >"$work/lock.txt"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$work/lock.txt" "$work"/dist/*.whl

cd "$work"
cat >tiny.py <<'CONFIG'
from mosaic_jax.config import Config
from mosaic_jax.config_io import with_values


def get_config() -> Config:
    return with_values(Config(), {
        "partition.num_clients": 3, "partition.alpha": 1.0, "model.name": "cnn", "model.width": 2, "warmup.num_rounds": 2,
        "warmup.num_local_steps": 2, "warmup.batch_size": 8, "generator.num_steps": 4, "generator.batch_size": 8,
        "generator.width": 2, "prototypes.per_class": 2, "meta.num_steps": 4, "meta.feed_forward_size": 16, "distill.num_steps": 4,
        "distill.samples_per_client": 4, "finetune.num_rounds": 1,
    })
CONFIG
"$work/venv/bin/mosaic-jax" train --config tiny.py --run-dir run
"$work/venv/bin/python" - <<'CODE'
import mosaic_jax as mj
import numpy as np

run = mj.open_run("run")
assert mj.__file__.startswith(__import__("sys").prefix), mj.__file__
print("final model:", run.final_model, "logits of a grey image:", run.predict(np.zeros((1, 8, 8), np.uint8)).shape)
CODE
echo "the wheel works"

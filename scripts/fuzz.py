#!/usr/bin/env python
"""Trains random configurations, valid each setting by itself, at tiny sizes: each must end, or be refused before it trains.

Command: python scripts/fuzz.py [--minutes N] [--seed N] [--first I]

All methods, networks, widths, failures, partitions and variants of every stage are drawn together. A run of a draw is a process of
its own; it is right if it ends with its table (exit status 0), with a loss that is not finite (3), or with one line (2) and no step
trained. Whatever else happens is printed with the command line that shows it. The I-th draw of a seed is always the same one.
Exit status: 0 where all were right, 1 where not.
"""

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mosaic_jax.config import Config
from mosaic_jax.registry import FEDERATIONS, having
from mosaic_jax.settings import settings, show

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/digits.py"
HANGS_AFTER = 600.0  # seconds
OUTCOMES = {0: "ended", 2: "refused", 3: "not finite"}

# Sizes at which a run takes seconds, laid over the file's; each may be drawn anew below.
TINY = {
    "partition.num_clients": 3, "partition.alpha": 1.0, "model.width": 2, "warmup.num_rounds": 2, "warmup.num_local_steps": 2,
    "warmup.batch_size": 8, "generator.width": 2, "generator.num_steps": 2, "generator.batch_size": 8, "generator.latent_size": 8,
    "prototypes.num_rounds": 1, "prototypes.per_class": 2, "prototypes.kmeans_steps": 2, "meta.num_steps": 2, "meta.batch_size": 8,
    "meta.feed_forward_size": 8, "meta.expansion": 1, "distill.num_steps": 2, "distill.samples_per_client": 2,
    "finetune.num_rounds": 1,
}  # fmt: skip
# What is drawn of settings without choices.
POOLS: dict[str, tuple] = {
    "seed": tuple(range(5)),
    "data.validation_fraction": (0.0, 0.05, 0.1, 0.5),
    "data.mean": ((0.1, 0.5, 0.9),),
    "data.std": ((0.2, 0.3, 0.4), (0.0, 0.0, 0.0), (0.0, 0.5, 0.5)),
    "partition.alpha": (0.05, 0.5, 1.0, 100.0),
    "partition.num_clients": (1, 2, 3, 4, 5, 7),
    "partition.min_samples": (1, 10, 50),
    "partition.max_draws": (1, 50),
    "partition.shards_per_client": (1, 2, 9),
    "partition.feature_rotation": (0.0, 0.0, 45.0),
    "partition.feature_noise": (0.0, 0.0, 0.1),
    "model.width": (1, 2, 3),
    "clients.rho": (0, 1, 3, 9),
    "clients.dropout_rate": (0.0, 0.2, 0.5, 1.0),
    "clients.straggler_rate": (0.0, 0.2, 0.5),
    "warmup.num_rounds": (1, 2, 3),
    "warmup.num_local_steps": (1, 2, 3),
    "warmup.batch_size": (1, 2, 8, 200),
    "warmup.client_learning_rate": (0.0, 0.01, 0.1),
    "warmup.weight_decay": (0.0, 1e-4),
    "warmup.clients_per_round": (0, 1, 2, 3, 5),
    "generator.num_steps": (0, 1, 2, 3),
    "generator.num_epochs": (0, 0, 1),
    "generator.batch_size": (2, 3, 8, 200),
    "generator.width": (1, 2, 3),
    "generator.latent_size": (1, 8),
    "generator.learning_rate": (0.0, 1e-3),
    "generator.beta1": (0.0, 0.5, 0.9),
    "generator.beta2": (0.0, 0.9, 0.999),
    "generator.classifier_num_epochs": (0, 1),
    "generator.classifier_learning_rate": (0.0, 0.01),
    "generator.entropy_weight": (0.0, 1.0),
    "generator.diversity_weight": (0.0, 5.0),
    "generator.inversion_weight": (0.0, 1.0),
    "generator.inversion_threshold": (0, 100, 5000),
    "generator.real_target": (0.5, 0.9, 1.0),
    "generator.ema": (0.0, 0.9),
    "prototypes.num_rounds": (0, 1, 2, 3, 9),
    "prototypes.per_class": (1, 2, 3),
    "prototypes.kmeans_steps": (1, 2),
    "prototypes.keep_per_class": (0, 1, 2, 9),
    "meta.num_steps": (0, 1, 2, 3),
    "meta.batch_size": (1, 8, 500),
    "meta.samples_per_client": (1, 2, 5),
    "meta.batches_per_epoch": (0, 1, 3),
    "meta.learning_rate": (0.0, 1e-3),
    "meta.ema": (0.0, 0.9),
    "meta.expansion": (1, 2),
    "meta.feed_forward_size": (1, 8),
    "meta.dropout_rate": (0.0, 0.2, 0.9),
    "distill.num_steps": (0, 1, 2, 3),
    "distill.samples_per_client": (1, 2, 5),
    "distill.label_prior": ((0.0,), (1.0,), (0.0, 0.5, 1.0), (0.5, 0.5)),
    "distill.label_prior_eps": (1e-6, 1e-3, 1.0),
    "distill.learning_rate": (0.0, 1e-3),
    "distill.temperature": (0.5, 1.0, 4.0),
    "distill.kl_weight": (0.0, 0.8),
    "distill.ce_weight": (0.0, 0.2),
    "distill.js_weight": (0.0, 1.0),
    "distill.ema": (0.0, 0.9),
    "distill.evaluate_every": (1, 2, 25),
    "finetune.num_rounds": (0, 1, 2),
    "finetune.client_learning_rate": (0.0, 1e-3),
    "fedprox.mu": (0.0, 0.01, 1.0),
    "fedrs.alpha": (0.0, 0.5, 1.0),
    "fedavgm.server_learning_rate": (0.0, 0.5, 1.0),
    "fedavgm.momentum": (0.0, 0.9),
    "fedadam.server_learning_rate": (0.0, 0.01),
    "fedadam.beta1": (0.0, 0.9),
    "fedadam.beta2": (0.0, 0.99),
    "fedadam.tau": (1e-3, 1.0),
    "scaffold.server_learning_rate": (0.0, 0.5, 1.0),
    "checkpoint.every_rounds": (1, 10),
    "checkpoint.every_steps": (1, 2, 200),
    "checkpoint.keep": (1, 2),
    "mapping.client_chunk": (0, 1, 2, 9),
    "mapping.num_devices": (0, 1, 2),
    "mapping.expert_chunk": (0, 1, 3, 99),
    "mapping.segment_steps": (1, 2, 50),
    "memory.limit_gib": (0.0, 0.0, 0.0, 1e-3),
    "evaluation.batch_size": (1, 77, 500),
    "evaluation.every_rounds": (1, 5),
}
# Of settings with choices fewer than there are: larger networks compile for minutes, and a table is a file.
NARROWED: dict[str, tuple] = {
    "model.name": ("cnn", "cnn", "cnn", "resnet18"),
    "partition.kind": ("iid", "dirichlet_unbalanced", "dirichlet_balanced", "shards", "quantity_skew"),
}
# Drawn more often than others.
OFTEN = ("method", "warmup.method", "experts", "partition.kind")
# What needs files, what a machine may lack, what only slows a CPU down; and what is drawn below, by the number of clients.
LEFT_ALONE = (
    "data.source", "data.dir", "data.image_size", "partition.table", "precision", "mapping.convolution",
    "clients.models", "clients.rates", "generator.name", "meta.name",
)  # fmt: skip


def drawn(seed: int, index: int) -> dict[str, str]:
    """NAME -> VALUE of the settings of one draw, as `--set` reads them: a function of its arguments alone."""
    dice = random.Random(f"{seed}/{index}")
    values: dict[str, Any] = dict(TINY)
    for setting in settings(Config()):
        choices = (False, True) if isinstance(setting.value, bool) else setting.field.metadata["choices"]
        often = 0.6 if setting.name in OFTEN else 0.2
        if setting.name not in LEFT_ALONE and dice.random() < often:
            values[setting.name] = dice.choice(tuple(NARROWED.get(setting.name, choices) or POOLS[setting.name]))
    num = values["partition.num_clients"]
    if dice.random() < 0.3:
        values["clients.models"] = tuple(f"{_network(dice)}:{dice.randint(1, 3)}" for _ in range(dice.randint(1, 3)))
    if dice.random() < 0.3:
        values["clients.rates"] = tuple(dice.choice((1.0, 0.5, 0.1)) for _ in range(dice.choice((num, num, num, num + 1))))
        # Most methods refuse them.
        values[dice.choice(("method", "warmup.method"))] = dice.choice(having(FEDERATIONS, "narrower"))
    return {name: show(value) for name, value in values.items()}


def _network(dice: random.Random) -> str:
    return dice.choice(NARROWED["model.name"])


def fault(command: list[str], run_dir: Path, environment: dict[str, str]) -> tuple[int | None, str]:
    """The exit status of a run, None where it hangs, and what is wrong with it, nothing if all is right."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=HANGS_AFTER, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"has not ended after {HANGS_AFTER:g} s"
    said = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    last = said[-1] if said else "nothing on standard error"
    if done.returncode == 0 and (run_dir / "results.json").exists():
        return 0, "" if not said else f"ended and said {last}"
    if done.returncode == 2 and len(said) == 1 and last.startswith("error: "):
        return 2, f"trained before it was refused: {last}" if (run_dir / "metrics.jsonl").exists() else ""
    if done.returncode == 3 and len(said) == 1:
        return 3, ""
    return done.returncode, last


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train random valid configurations at tiny sizes; each must end or be refused.")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="no run begins after so long (default 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="the draw to begin with (default 0)")
    options = parser.parse_args(arguments)
    ends = time.monotonic() + 60 * options.minutes
    counts: Counter[str] = Counter()
    index = options.first
    with tempfile.TemporaryDirectory(prefix="mosaic-jax-fuzz-") as work:
        # Compiling takes most of the time: little is optimized, and what draws have in common is kept.
        environment = {"JAX_COMPILATION_CACHE_DIR": f"{work}/xla", "XLA_FLAGS": "--xla_backend_optimization_level=0"} | os.environ
        while time.monotonic() < ends:
            assignments = [f"{name}={value}" for name, value in drawn(options.seed, index).items()]
            train = ["train", "--config", CONFIG, "--set", *assignments]
            run_dir = Path(work) / str(index)
            started = time.monotonic()
            command = [sys.executable, "-m", "mosaic_jax", *train, "--run-dir", str(run_dir)]
            status, wrong = fault(command, run_dir, environment)
            shutil.rmtree(run_dir, ignore_errors=True)
            kind = "wrong" if wrong else OUTCOMES[status]
            counts[kind] += 1
            print(f"draw {index} of seed {options.seed}: {kind} after {time.monotonic() - started:.1f} s", flush=True)
            if wrong:
                print(f"  {wrong}\n  mosaic-jax {shlex.join(train)} --run-dir runs/fuzz-{options.seed}-{index}", flush=True)
            index += 1
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

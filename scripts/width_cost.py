#!/usr/bin/env python
"""What a narrow client costs: a round of 10 clients of rate 1/16 beside one of networks that are so narrow by themselves.

Both run by turns on scikit-learn's digits, 10 local steps of 32 images at each client; medians of 5 rounds, compilation apart.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from mosaic_jax.config import Config
from mosaic_jax.config_io import with_values
from mosaic_jax.devices import create_cpu_devices
from mosaic_jax.driving import Drive
from mosaic_jax.io import native_library
from mosaic_jax.io.datasets import load
from mosaic_jax.io.run_directory import hardware
from mosaic_jax.methods import stages_of
from mosaic_jax.stages.problem import build_problem

COMMON = {"data.source": "digits", "partition.kind": "iid", "warmup.num_local_steps": 10, "warmup.batch_size": 32}
RATE = 1 / 16
NETWORKS = (("cnn", 16), ("resnet18", 64))
REPEATS = 5


def compiled_round(values: dict[str, Any]) -> Callable[[], float]:
    """A function that runs one more round of a configuration and returns its seconds."""
    problem = build_problem(with_values(Config(), COMMON | values), load("digits", 32))
    (stage,) = stages_of(problem)
    drive = Drive(problem, stage, ())

    def one() -> float:
        started = time.perf_counter()
        drive.advance(0, 1)
        jax.block_until_ready(drive.state)
        return time.perf_counter() - started

    one()
    return one


def main() -> None:
    argparse.ArgumentParser(description="Measure what a client of rate 1/16 costs beside so narrow a network.").parse_args()
    create_cpu_devices(Config().mapping, Config().partition.num_clients)
    native_library.set_lowering("auto", lambda text: print(text, file=sys.stderr))
    print(f"{'network':<16} {'rate 1/16, s':>13} {'so narrow, s':>13} {'ratio':>6}")
    for name, width in NETWORKS:
        whole = {"model.name": name, "model.width": width, "method": "heterofl", "clients.rates": (RATE,) * 10}
        by_itself = {"model.name": name, "model.width": round(width * RATE), "method": "fedavg"}
        sides = [compiled_round(whole), compiled_round(by_itself)]
        passes = [[side() for side in sides] for _ in range(REPEATS)]
        ours, narrow = map(statistics.median, zip(*passes, strict=True))
        print(f"{f'{name} width {width}':<16} {ours:>13.3f} {narrow:>13.3f} {ours / narrow:>6.2f}", flush=True)
    print(f"medians of {REPEATS} rounds of 10 clients x 10 steps x 32 images; {hardware()}")


if __name__ == "__main__":
    main()

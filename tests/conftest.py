"""A run small enough for tests, a console that stops it, and one finished run that many tests share."""

import atexit
import contextlib
import copy
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before JAX is imported anywhere: the same tiny programs are compiled by many runs, also in child processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mosaic-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Decoded images and C++ kernels of tests are not kept among the user's; workers share what the first process made.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mosaic-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # clients are shared among them, as among cores
# These programs are compiled longer than they run: no optimisation, one LLVM module, and the older way to make fusions, which takes
# half the time. XLA ends the process over a flag it does not know, so other versions get the first alone.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from mosaic_jax.config import Config
from mosaic_jax.config_io import with_values
from mosaic_jax.io.console import Console, StageProgress

TINY: dict[str, Any] = {
    "data.validation_fraction": 0.1, "partition.kind": "iid", "partition.num_clients": 3,
    "model.name": "cnn", "model.width": 2,
    "warmup.num_rounds": 3, "warmup.num_local_steps": 2, "warmup.batch_size": 8,
    "generator.width": 2, "generator.num_steps": 4, "generator.batch_size": 8, "generator.latent_size": 8,
    "prototypes.per_class": 2, "prototypes.kmeans_steps": 2,
    "meta.num_steps": 4, "meta.batch_size": 16, "meta.feed_forward_size": 16, "meta.expansion": 2,
    "distill.num_steps": 4, "distill.samples_per_client": 4, "distill.evaluate_every": 2,
    "finetune.num_rounds": 2,
    "checkpoint.every_rounds": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 2,
    "mapping.segment_steps": 2, "evaluation.every_rounds": 1,
}  # fmt: skip


def tiny(**sections: Any) -> Config:
    """The tiny configuration with other values: tiny(seed=1, generator={"num_steps": 0})."""
    values = dict(TINY)
    for name, value in sections.items():
        values |= {f"{name}.{leaf}": inner for leaf, inner in value.items()} if isinstance(value, dict) else {name: value}
    return with_values(Config(), values)


@pytest.fixture(scope="session")
def tiny_arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `mosaic-jax train` and `partition` need for the tiny run; more NAME=VALUE may follow."""
    file = tmp_path_factory.mktemp("configs") / "tiny.py"
    file.write_text("from mosaic_jax.config import Config\n\nget_config = Config\n")
    return ["--config", str(file), "--set", *(f"{name}={value}" for name, value in TINY.items())]


class StoppingConsole(Console):
    """A quiet console that sends this process a signal as soon as a stage begins to move: each run does one segment."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(quiet=True)
        self._number = number

    @contextlib.contextmanager
    def progress(self, stage: str, total: int, done: int = 0) -> Iterator[StageProgress]:
        signal.raise_signal(self._number)
        with super().progress(stage, total, done) as progress:
            yield progress


def train(config: Config, run_dir: Path, *, stop_after: str | None = None, console: Console | None = None) -> int:
    """runner.train, quiet unless another console is given."""
    from mosaic_jax import runner

    return runner.train(config, run_dir, stop_after=stop_after, tensorboard=False, console=console or Console(quiet=True))


# What `work_done_once` keeps: the stages of a problem, and the evaluation of a run's outputs.
MADE: dict[tuple, Any] = {}
JUDGED: dict[tuple, Any] = {}


@contextlib.contextmanager
def for_interpreted_kernels() -> Iterator[None]:
    """Around GPU kernels that a CPU interprets: no optimisation, which takes far longer than they run, and strict dtypes."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("strict"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def programs_are_few() -> Iterator[None]:
    """Forget compiled programs before the kernel refuses more: each has memory maps of its own, of which Linux gives a process
    65,530, and XLA ends the process without one."""
    import jax

    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        MADE.clear()
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def work_done_once() -> Iterator[None]:
    """Equal problems get the same stages, whose programs are traced and compiled once in a process and not in every run.

    Models that are equal to the last bit are judged once: a program for it would be traced every time.
    """
    import jax

    from mosaic_jax import driving, results
    from mosaic_jax.methods import METHODS
    from mosaic_jax.stages.federation import Federation
    from mosaic_jax.stages.problem import Problem
    from mosaic_jax.stages.stage import Outputs, Stage

    made, judged = MADE, JUDGED

    def once(method: Callable[..., tuple[Stage, ...]]) -> Callable[..., tuple[Stage, ...]]:
        def stages(problem: Problem, federation: Federation) -> tuple[Stage, ...]:
            key = (method, *what_stages_depend_on(problem))
            if key not in made:
                made[key] = method(problem, federation)
            return made[key]

        return stages

    def judged_once(problem: Problem, outputs: Outputs, stages: tuple[Stage, ...]) -> Any:
        key = (*what_stages_depend_on(problem), bits_of(outputs))
        if key not in judged:
            judged[key] = evaluate_models(problem, outputs, stages)
        return copy.deepcopy(judged[key])

    def compiled_once(function: Callable, arguments: tuple, **options: Any) -> Callable:
        where = [(np.shape(leaf), leaf.dtype, getattr(leaf, "sharding", None)) for leaf in jax.tree.leaves(arguments)]
        key = (function, str(jax.tree.structure(arguments)), str(where), str(options))
        if key not in made:
            made[key] = compiled(function, arguments, **options)
        return made[key]

    rows, evaluate_models, compiled = dict(METHODS), results.evaluate_models, driving.compiled
    driving.compiled = compiled_once
    METHODS.update({name: once(method) for name, method in rows.items()})
    results.evaluate_models = judged_once
    yield
    METHODS.update(rows)
    results.evaluate_models, driving.compiled = evaluate_models, compiled


def bits_of(tree: Any) -> str:
    """SHA-256 over the structure and the arrays of a tree."""
    import jax

    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    whole = hashlib.sha256(str(structure).encode())
    for leaf in map(np.ascontiguousarray, leaves):
        whole.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return whole.hexdigest()


def what_stages_depend_on(problem: Any) -> tuple:
    """Configuration, mapping, lowering, data and networks (by the names of their functions, for a test may put in its own)."""
    from mosaic_jax.io.data_digests import digests
    from mosaic_jax.ops.lowering import chosen_lowering

    of_clients = [group.classifier for group in problem.groups]
    functions = [part for network in (problem.classifier, *of_clients, problem.generator, problem.meta_model) for part in network]
    networks = [part.__qualname__ if callable(part) else part for part in functions]
    data = digests(problem.dataset, problem.splits)
    data["test images of clients"] = hashlib.sha256(problem.client_test_images).hexdigest()
    return problem.config, problem.client_plan, problem.expert_plan, chosen_lowering(), *networks, *data.values()


def fingerprints(run_dir: Path) -> dict[str, str]:
    """{stage: SHA-256 over its final state}, as its newest checkpoint records it."""
    found = {}
    for stage in sorted((run_dir / "checkpoints").iterdir()):
        steps = [step for step in stage.iterdir() if step.name.isdigit()]
        if not steps:
            continue
        newest = max(steps, key=lambda step: int(step.name))
        record = json.loads((newest / "record" / "metadata").read_text())
        assert record["stage"] == stage.name
        assert record["step"] == int(newest.name)
        found[stage.name] = record["fingerprint"]
    return found


def series(run_dir: Path) -> list[tuple[str, int, str, float]]:
    """What a run recorded, clocks left out: (stage, step, name, value), sorted."""
    from mosaic_jax.io.metrics import read

    clocks = ("elapsed_seconds", "compile_seconds")
    return sorted((r["stage"], r["step"], r["name"], r["value"]) for r in read(run_dir) if r["name"] not in clocks)


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Final states of all stages bitwise equal, equal records, equal results."""
    assert fingerprints(run_dir) == fingerprints(other)
    assert series(run_dir) == series(other)
    one, two = (json.loads((directory / "results.json").read_text()) for directory in (run_dir, other))
    assert [one[key] for key in ("models", "confusion", "bytes")] == [two[key] for key in ("models", "confusion", "bytes")]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished, unbroken run of `tiny()`; read it, or copy it to change it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train(tiny(), run_dir) == 0
    return run_dir

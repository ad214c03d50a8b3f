"""Clocks and memory: contestants timed in turns, the matrix-multiply rate of the machine, the peak memory of a process."""

import contextlib
import gc
import importlib.util
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Budget(NamedTuple):
    """How often and how long to measure.

    repeats: timed passes of each side; ends: the second of time.monotonic after which nothing more is begun; say: hears of every
    pass, which takes minutes on a slow machine.
    """

    repeats: int
    ends: float = math.inf
    say: Callable[[str], None] = lambda text: None

    @property
    def is_spent(self) -> bool:
        return time.monotonic() > self.ends


UNLIMITED = Budget(1)


def alternate(
    contestants: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter,
    budget: Budget = UNLIMITED,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of `repeats` calls of each contestant, taken in turns so that a slow minute of the machine meets all of them.

    budget: after which no further turn is begun, but for the first one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats):
        if turn and budget.is_spent:
            break
        for name, run in contestants.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
            budget.say(f"pass {turn + 1} of {repeats}: {name} {seconds[name][-1]:.1f} s")
    return seconds


def matmul_rate(precision: str = "float32", tries: int = 5) -> float:
    """Operations per second of this machine's best matrix product, by JAX or by torch where it is installed.

    precision: float32 or bf16, as of a run; on a GPU float32 factors are rounded to TF32 by both, as in their convolutions.
    """
    import jax
    import jax.numpy as jnp

    # Random factors: on zeros and ones a GPU draws less power and clocks higher.
    size = 2048 if jax.default_backend() == "cpu" else 8192
    ours = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16 if precision == "bf16" else jnp.float32)
    product = jax.jit(lambda a: a @ a)
    contestants: dict[str, Callable[[], Any]] = {"jax": lambda: product(ours).block_until_ready()}
    if has_torch():
        import torch

        cuda = torch.cuda.is_available()
        theirs = torch.randn(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if precision == "bf16" else None)
        contestants["torch"] = lambda: (theirs @ theirs, torch.cuda.synchronize() if cuda else None)
    alternate(contestants, 1)
    return 2.0 * size**3 / min(min(seconds) for seconds in alternate(contestants, tries).values())


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def peak_memory(side: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Peak bytes of a pass of `side(*arguments)` in a fresh process: all of that process, or of its GPU where it uses one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_a_pass, (side, arguments))


def _peak_of_a_pass(side: Callable[..., Callable[[], Any]], arguments: tuple) -> int:
    run = side(*arguments)
    gc.collect()
    with contextlib.suppress(OSError):  # Linux: what building took and gave back is forgotten
        Path("/proc/self/clear_refs").write_text("5")
    run()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "jax" in sys.modules and (statistics := sys.modules["jax"].local_devices()[0].memory_stats()):
        return statistics["peak_bytes_in_use"]
    return peak_of_this_process()


def peak_of_this_process() -> int:
    """Bytes; from Linux where it tells, as `getrusage` also counts the process that this one was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

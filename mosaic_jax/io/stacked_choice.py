"""What convolutions over stacked weights are on the GPU at hand (`mapping.convolution=stacked`): the fastest of what is right.

`python -m mosaic_jax.io.stacked_choice bf16` prints what each takes, or why it is left out, a JSON object a line as soon as it is
known, and keeps it in the user's cache. A run asks such a process once for each kind of device; on a CPU nothing is measured.
"""

import contextlib
import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mosaic_jax import ops, processes
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.io.cache_directory import cache_directory
from mosaic_jax.io.whole_files import read_json, write_json
from mosaic_jax.json_file import NUMBER, TEXT, Form, Value
from mosaic_jax.mapping import for_each_client
from mosaic_jax.models import DTYPES
from mosaic_jax.ops import gpu_kernels
from mosaic_jax.ops.lowering import STACKED, complaints, set_stacked_form, stacked_form
from mosaic_jax.plain_text import say
from mosaic_jax.python_files import one_line

RECORD = "convolution.json"  # in a run directory
TIMINGS = {str: Value("a number or a text", lambda value: NUMBER.holds(value) or TEXT.holds(value))}
CHOICE = {"device": TEXT, "form": TEXT, "milliseconds": TIMINGS}
COMMAND = (sys.executable, "-m", "mosaic_jax.io.stacked_choice")
SECONDS = 20  # for all, with starting JAX and compiling
PASSES = 20
TOLERANCE = 0.02  # of the largest number; sums in another order, rounded to bfloat16, differ by 0.004
ORDER = ("grouped", "triton", "mosaic_gpu", "map")  # the first is what others are compared with, the last the least likely

Timings = Mapping[str, float | str]  # milliseconds of a pass, or why it is left out
Candidate = Callable[[], tuple[list[np.ndarray], Callable[[], float]]]  # -> what it computes, and what measures its milliseconds


class _Layer(NamedTuple):
    """A convolution of stacked clients."""

    clients: int
    batch: int
    length: int
    inputs: int
    outputs: int
    stride: int


LAYER = _Layer(10, 64, 16, 128, 128, 1)  # ResNet-18 of width 64, its second group, ten clients x 64 images
ODD = _Layer(3, 2, 7, 20, 24, 2)  # sizes that fill no tile: compared, not timed


def settle(config: Config, run_dir: Path | None, message: Callable[[str], None]) -> dict[str, Any]:
    """Choose `stacked_form` for a run, and say so in one line, where convolutions over stacked weights are `stacked` on a GPU.

    What `run_dir` recorded on such a device is kept. Returns what is to be recorded, empty where there is no choice. All processes
    call it; the first one measures.
    """
    set_stacked_form("")
    wanted, backend = config.mapping.convolution, jax.default_backend()
    if ops.chosen_lowering() != "stacked" or backend != "gpu":
        if gpu_kernels.triton is None and (wanted == "stacked" or (wanted == "auto" and backend == "gpu")):
            message("convolutions over stacked weights: grouped, for this JAX has no Triton")
        return {}
    dtype = np.dtype(DTYPES[config.precision])
    device = _device(config.precision)
    record, how = _read(run_dir / RECORD, CHOICE) if run_dir else {}, "as this run began"
    if record.get("device") != device or complaints(dtype).get(str(record.get("form")), "unknown"):
        found, how = _known(device, config.precision) if processes.is_first() else ({}, "")
        record = {"device": device, "form": choice(found), "milliseconds": found}
    place = int(processes.of_the_first(np.int32(("", *STACKED).index(record["form"]))))
    set_stacked_form(("", *STACKED)[place])
    message(f"convolutions over stacked weights: {described(stacked_form(dtype), record.get('milliseconds', {}))}, {how}")
    return record


def choice(timings: Timings) -> str:
    """The fastest of those that were measured; empty where none was."""
    measured = {name: value for name, value in timings.items() if not isinstance(value, str)}
    return min(measured, key=lambda name: measured[name], default="")


def described(form: str, timings: Timings) -> str:
    """`triton (milliseconds a pass: triton 1.93, grouped 9.90; mosaic_gpu left out: ...)`."""
    measured = [f"{name} {value:.3g}" for name, value in timings.items() if not isinstance(value, str)]
    left_out = [f"{name} left out: {value}" for name, value in timings.items() if isinstance(value, str)]
    if measured:
        left_out.insert(0, f"milliseconds a pass: {', '.join(measured)}")
    return f"{form} ({'; '.join(left_out)})"


def _device(precision: str) -> str:
    """What timings hold for."""
    return f"{jax.local_devices()[0].device_kind}, jax {jax.__version__}, {precision}"


def _known(device: str, precision: str) -> tuple[dict[str, float | str], str]:
    """The timings kept for this device, or new ones, and which of the two, in words."""
    path = _kept_at(device)
    if path and choice(kept := _read(path, TIMINGS)):
        return kept, f"as kept in {path}"
    found = timings(precision)
    _keep(device, found)
    return found, "measured now"


def _kept_at(device: str) -> Path | None:
    """Where the user's cache has the timings of a device and of these kernels; None without a home directory."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(ops.__file__).parent.glob("*.py")))
    with contextlib.suppress(RuntimeError):
        return cache_directory("stacked") / f"{hashlib.sha256(f'{device} {sources}'.encode()).hexdigest()[:16]}.json"


def _keep(device: str, found: dict[str, float | str]) -> None:
    """Keep timings, where any were measured; where that is not possible the next run measures again."""
    if choice(found) and (path := _kept_at(device)):
        with contextlib.suppress(OSError):
            write_json(path, found)


def _read(path: Path, form: Form) -> dict[str, Any]:
    """A JSON object of a form, empty where there is none, or none that can be read: what it says can be measured again."""
    try:
        return read_json(path, "", form) or {}
    except ConfigError:
        return {}


def timings(precision: str, command: Sequence[str] = COMMAND, limit: float = SECONDS) -> dict[str, float | str]:
    """Milliseconds of a pass of each of STACKED, or why it is left out, measured by a process of its own within `limit` seconds.

    A kernel that hangs, or breaks what a process has of the GPU, takes neither a run nor the others' timings with it.
    """
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the run has most of the memory already
    try:
        done = subprocess.run(
            [*command, precision], capture_output=True, text=True, errors="replace", timeout=limit, env=environment, check=False,
            start_new_session=True,  # an interrupt of the run is not a kernel's failure, to be kept
        )  # fmt: skip
        said, ended = done.stdout, f"its process ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:  # what was said before is bytes
        said, ended = (error.stdout or b"").decode(errors="replace"), f"was not done within {limit} s"
    found: dict[str, float | str] = {}
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            found.update(json.loads(line) if line.startswith("{") else {})
    return {name: found.get(name, ended) for name in ORDER}


def measured(candidates: Mapping[str, Candidate]) -> Iterator[tuple[str, float | str]]:
    """Milliseconds of each candidate, or why it is left out: it fails, or computes other numbers than the first one."""
    expected: list[np.ndarray] | None = None
    for name, candidate in candidates.items():
        try:
            found, milliseconds = candidate()
            expected = found if expected is None else expected
            off = np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in zip(found, expected, strict=True)])
            # What is not a number is not at most the tolerance.
            outcome = milliseconds() if off <= TOLERANCE else f"computes other numbers ({off:.0%} of the largest off)"
        except Exception as error:  # whatever a compiler or a GPU has to say
            outcome = f"fails ({one_line(error)[:120]})"
        yield name, outcome


def _prepared(form: str, dtype: np.dtype) -> tuple[list[np.ndarray], Callable[[], float]]:
    """The results of one form for LAYER and ODD, outputs and both gradients, and what times LAYER."""
    set_stacked_form(form)
    programs, found = [], []
    for layer in (LAYER, ODD):
        images = (layer.clients, layer.batch, layer.length, layer.length, layer.inputs)
        kernels = (layer.clients, 3, 3, layer.inputs, layer.outputs)
        arrays = [jax.random.normal(jax.random.key(seed), shape, dtype) for seed, shape in enumerate((images, kernels))]
        convolution = functools.partial(ops.conv2d, stride=layer.stride, padding=1)

        def of_client(x: jax.Array, k: jax.Array, convolution: Callable[..., jax.Array] = convolution) -> tuple[jax.Array, ...]:
            out, pullback = jax.vjp(convolution, x, k)
            return out, *pullback(out)

        with ops.lowering("stacked"):
            traced = jax.jit(lambda *arrays, of_client=of_client: for_each_client(of_client, arrays)).lower(*arrays)
        program = functools.partial(traced.compile(), *arrays)
        found += [np.asarray(each, np.float32) for each in program()]
        programs.append(program)

    def milliseconds() -> float:
        seconds = []
        for _ in range(PASSES):
            started = time.perf_counter()
            jax.block_until_ready(programs[0]())
            seconds.append(time.perf_counter() - started)
        return 1e3 * statistics.median(seconds)

    return found, milliseconds


def main(precision: str = "bf16", *_: str) -> None:
    """Print and keep what each form takes on this GPU; ends with status 2 without one, and for another precision."""
    if precision not in DTYPES or jax.default_backend() != "gpu":
        say("error", f"{precision} on a {jax.default_backend()}: must be one of {', '.join(DTYPES)}, on a GPU")
        sys.exit(2)
    dtype = np.dtype(DTYPES[precision])
    found: dict[str, float | str] = {name: reason for name, reason in complaints(dtype).items() if reason}
    print(json.dumps(found), flush=True)
    for name, outcome in measured({name: functools.partial(_prepared, name, dtype) for name in ORDER if name not in found}):
        found[name] = outcome
        print(json.dumps({name: outcome}), flush=True)
    _keep(_device(precision), found)


if __name__ == "__main__":
    main(*sys.argv[1:])

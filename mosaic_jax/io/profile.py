"""JAX traces of a training: one segment of each stage, for TensorBoard, XProf or Perfetto."""

import csv
import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from mosaic_jax.config import ConfigError
from mosaic_jax.io.whole_files import write_text

SHOWN_KERNELS = 40


class Profile:
    """Writes DIR/STAGE/plugins/profile/TIME/ for one segment of each stage; a whole run's trace would be too large to open.

    DIR/STAGE/kernels.csv beside it is the trace as a table of kernels and times.
    """

    def __init__(self, directory: Path, warning: Callable[[str], None]) -> None:
        """Raises ConfigError for a directory that cannot be written."""
        self._directory, self._warning = directory, warning
        self._segments: Counter[str] = Counter()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise ConfigError(f"--profile {directory}: cannot be written ({error.strerror}); name another directory") from error

    @contextmanager
    def segment(self, stage: str, last: bool) -> Iterator[None]:
        """Around each segment of a stage, compiled before: traces the second, or the first where it is also the `last`.

        The first one also loads libraries and starts threads. A trace is written however its block ends; one that cannot be
        taken or written is a warning, for the training does not need it.
        """
        self._segments[stage] += 1
        if self._segments[stage] != 2 and not (self._segments[stage] == 1 and last):
            yield
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # a segment is one program: Python's frames would only make the file large
        try:
            jax.profiler.start_trace(self._directory / stage, profiler_options=options)
        except Exception as error:  # the profiler raises what its backend raises
            self._warn(stage, error)
            yield
            return
        try:
            yield
        finally:
            try:
                jax.profiler.stop_trace()
                if times := kernel_times(self._directory / stage):
                    write_text(self._directory / stage / "kernels.csv", kernel_table(times))
            except Exception as error:
                self._warn(stage, error)

    def _warn(self, stage: str, error: Exception) -> None:
        self._warning(f"--profile: no trace of {stage} ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def kernel_times(directory: Path) -> dict[str, tuple[int, float]]:
    """Of all traces below a directory each kernel's number of calls and seconds, the longest first.

    Kernels are what accelerators ran, or, where there is none, what XLA's threads on the host did.
    """
    traces = (jax.profiler.ProfileData.from_file(str(path)) for path in directory.rglob("*.xplane.pb"))
    planes = [plane for trace in traces for plane in trace.planes]
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices for line in plane.lines if line.name.startswith("Stream")]
    if not lines:
        lines = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines if line.name.startswith("tf_XLA")]
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for line in lines:
        for event in line.events:
            if event.duration_ns > 0 and not event.name.startswith("ThreadpoolListener"):
                count, seconds = found[event.name]
                found[event.name] = count + 1, seconds + event.duration_ns * 1e-9
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def kernel_table(times: dict[str, tuple[int, float]]) -> str:
    """`kernel_times` as CSV, the SHOWN_KERNELS longest and a line for all others: kernel, calls, seconds, share of all seconds."""
    total = sum(seconds for _, seconds in times.values())
    shown, rest = list(times.items())[:SHOWN_KERNELS], list(times.items())[SHOWN_KERNELS:]
    if rest:
        shown.append((f"{len(rest)} others", (sum(count for _, (count, _) in rest), sum(seconds for _, (_, seconds) in rest))))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kernel", "calls", "seconds", "share"])
    writer.writerows([name, count, f"{seconds:.6f}", f"{seconds / total:.4f}"] for name, (count, seconds) in shown)
    return text.getvalue()

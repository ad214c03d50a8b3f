"""JAX traces of a training: one segment of each stage, for TensorBoard, XProf or Perfetto."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from mosaic_jax.config import ConfigError


class Profile:
    """Writes DIR/STAGE/plugins/profile/TIME/ for one segment of each stage; a whole run's trace would be too large to open."""

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
            except Exception as error:
                self._warn(stage, error)

    def _warn(self, stage: str, error: Exception) -> None:
        self._warning(f"--profile: no trace of {stage} ({type(error).__name__}: {' '.join(str(error).split())[:200]})")

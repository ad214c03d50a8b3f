"""How long a stage works, and how long JAX traces and compiles for it, whichever of its programs that is."""

import time

import jax

# What JAX tells of: tracing (also of functions inside others), lowering, and compiling or fetching what was compiled before.
EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Spans:
    """The length of the union of spans of time that are told when they end: each disjoint from, or around, earlier ones."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, start: float, end: float) -> None:
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((start, end))

    def total(self) -> float:
        return sum(end - start for start, end in self._spans)


_compiling = Spans()


def _hear(event: str, duration: float, **_: object) -> None:
    if event in EVENTS:
        now = time.perf_counter()
        _compiling.add(now - duration, now)


jax.monitoring.register_event_duration_secs_listener(_hear)


class StageClock:
    """Runs from its creation."""

    def __init__(self) -> None:
        self._started, self._compiled = time.perf_counter(), _compiling.total()

    def read(self) -> dict[str, float]:
        """elapsed_seconds without compiling, and compile_seconds."""
        compiling = _compiling.total() - self._compiled
        return {"elapsed_seconds": time.perf_counter() - self._started - compiling, "compile_seconds": compiling}

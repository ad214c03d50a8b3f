"""Where what can be made again is kept between runs: XLA's programs, our kernels, their timings, decoded images."""

import hashlib
import os
import platform
from pathlib import Path

COMPILED = ("xla", "native")


def cache_directory(kind: str) -> Path:
    """`$XDG_CACHE_HOME`, where that is an absolute path, or ~/.cache, then mosaic_jax/KIND: xla, native, stacked or data.

    What is compiled has one folder there for each kind of processor: a home directory is shared by machines, and a program compiled
    for one processor may stop another at an unknown instruction. Raises RuntimeError without a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    directory = (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "mosaic_jax" / kind
    return directory / hashlib.sha256(_processor().encode()).hexdigest()[:12] if kind in COMPILED else directory


def _processor() -> str:
    """What this processor is and can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    known = dict(line.split(":", 1) for line in lines if line.startswith(wanted) and ":" in line)
    return f"{platform.machine()} {platform.processor()} {sorted(known.items())}"

"""Where what can be made again is kept between runs: the user's cache directory."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME`, where that is an absolute path, or ~/.cache, then mosaic_jax. Raises RuntimeError without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "mosaic_jax"

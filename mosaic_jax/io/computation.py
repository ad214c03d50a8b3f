"""What a run is computed with: computation.json in its directory, a record for its start and one for every change since."""

from collections.abc import Callable
from pathlib import Path

import jax

from mosaic_jax import jax_settings, ops
from mosaic_jax.config import ConfigError
from mosaic_jax.io import native_library
from mosaic_jax.io.whole_files import read_json, write_json
from mosaic_jax.json_file import TEXT
from mosaic_jax.ops.lowering import stacked_form

NAME = "computation.json"
RECORDS = {"records": [{str: TEXT}]}


def computation() -> dict[str, str]:
    """What the last bits of a run's numbers depend on in this process, by name."""
    how = ops.chosen_lowering()
    return {
        "device": jax.default_backend(),
        "mapping.convolution": f"stacked ({stacked_form()})" if how == "stacked" else how,
        "build of native": native_library.build() if how == "native" else "",
        "jax": jax.__version__,
        **jax_settings.rounding(),
    }


def record(run_dir: Path, warning: Callable[[str], None]) -> None:
    """Writes down what a run begins or goes on with; warning: is told, in one line, what is other than it was last."""
    before, now = read(run_dir), computation()
    if before and before[-1] == now:
        return
    if before:
        changes = [f"{name}={now.get(name)}, not {before[-1].get(name)}" for name in now if now[name] != before[-1].get(name)]
        warning(f"{run_dir} goes on with {'; '.join(changes)}: it ends as it would have ended unbroken to rounding only")
    write_json(run_dir / NAME, {"records": [*before, now]})


def read(run_dir: Path) -> list[dict[str, str]]:
    """The records of a run, oldest first; none where an older version began it or the file is damaged."""
    try:
        return (read_json(run_dir / NAME, "", RECORDS) or {}).get("records", [])
    except ConfigError:
        return []

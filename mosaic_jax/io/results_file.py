"""results.json of a run directory: what a run's models reached, and whether it has come to its end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mosaic_jax.config import ConfigError
from mosaic_jax.io.json_forms import RESULTS, wrong_results
from mosaic_jax.io.whole_files import read_json, write_json

FILE = "results.json"


def write_results(run_dir: Path, results: Mapping[str, Any]) -> None:
    """results.json, whole or not at all."""
    write_json(run_dir / FILE, results)


def read_results(run_dir: Path) -> dict[str, Any] | None:
    """results.json, None before a run has written it; raises ConfigError where it is damaged."""
    return read_json(run_dir / FILE, "`mosaic-jax evaluate` makes it again from the checkpoints", RESULTS, wrong_results)


def readable_results(run_dir: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """results.json for one who is about to make it again: a damaged one is said through `warn`, and None."""
    try:
        return read_json(run_dir / FILE, "it is made again from the checkpoints", RESULTS, wrong_results)
    except ConfigError as error:
        warn(str(error))
        return None


def finished(run_dir: Path, warn: Callable[[str], None] = lambda warning: None) -> dict[str, Any] | None:
    """The results of a run all of whose stages are done, else None: also where they are damaged, since `train` makes them again."""
    results = readable_results(run_dir, warn)
    return results if results and results.get("stages") and results.get("stages_done") == results["stages"] else None

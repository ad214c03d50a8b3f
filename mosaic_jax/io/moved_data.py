"""Data of a run that are no longer where they were when it began: found by what they hold."""

from pathlib import Path

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import with_values
from mosaic_jax.io import run_directory
from mosaic_jax.io.console import Console
from mosaic_jax.io.data_digests import check_data, digests_of_images
from mosaic_jax.io.datasets import dataset_of, is_there, places
from mosaic_jax.sources import absolute


def located(config: Config, run_dir: Path, console: Console) -> Config:
    """`config` with data.source, and partition.table, as they are where a run's data are now.

    Looked for where data.source says, in data.dir and where they were last; of several that are there, those that data.json knows
    are taken. The table of a partition is read from the run's own partition.csv where it is gone. Unchanged where nothing fits.
    """
    table = run_dir / "partition.csv"
    if config.partition.kind == "table" and not absolute(config.partition.table).exists() and table.exists():
        config = with_values(config, {"partition.table": str(table.absolute())})
    source, directory = config.data.source, config.data.dir
    named = places(source, directory)
    if not named:
        return config
    if (run_dir / "config.json").exists():
        named += places(run_directory.read_config(run_dir).data.source, directory)
    known = (run_dir / "data.json").exists()
    there = [place for place in dict.fromkeys(named) if is_there(place)]
    if not there and known and directory and absolute(directory).is_dir():  # under another name
        kind = source.partition(":")[0]
        there = [place for inner in sorted(absolute(directory).iterdir()) if is_there(place := f"{kind}:{inner}")]
        there = [place for place in there if _holds(place, config, run_dir)]
    elif known and len(there) > 1:
        there = [place for place in there if _holds(place, config, run_dir)] or there
    if not there or there[0] == places(source, "")[0]:
        return config
    console.message(f"data.source={source}: found at {there[0]}")
    return with_values(config, {"data.source": there[0]})


def _holds(source: str, config: Config, run_dir: Path) -> bool:
    """Whether a source holds the data that a run began with."""
    try:
        moved = with_values(config, {"data.source": source})
        check_data(run_dir, source, digests_of_images(dataset_of(moved, Console(silent=True))))
    except ConfigError:
        return False
    return True

"""What `mosaic-jax report` makes: report.html of a directory that holds a run, the runs of several seeds, or a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic_jax.argument_checks import check_run_dir
from mosaic_jax.io.console import Console


def write_directory_report(directory: Path, console: Console) -> None:
    """Writes DIRECTORY/report.html and says where it is; where it cannot be written the table is shown before the OSError."""
    # JAX is loaded for several runs only.
    if not (directory / "config.json").exists() and any(directory.glob("seed*/config.json")):
        from mosaic_jax.io.seeds_directory import read_summary as read
        from mosaic_jax.io.seeds_directory import write_index as write

        show = console.seeds_table
    elif (directory / "comparison.json").exists():
        from mosaic_jax.io.comparison_directory import read_summary as read
        from mosaic_jax.io.comparison_directory import write_index as write
        from mosaic_jax.io.comparison_table import as_text

        def show(summary: Mapping[str, Any]) -> None:
            for line in as_text(summary).splitlines():
                console.message(line)
    else:
        check_run_dir(directory, checkpoints=False)
        from mosaic_jax.io.report import write_report as write
        from mosaic_jax.io.results_file import read_results as read

        show = console.result_table
    try:
        path = write(directory)
    except OSError:
        if values := read(directory):
            show(values)
        raise
    console.message(f"report: {path}")

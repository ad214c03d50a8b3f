"""What `mosaic-jax partition` shows: the table of label counts, and on request pictures and a CSV file."""

import time
from pathlib import Path

import numpy as np

from mosaic_jax import jax_settings
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.data.feature_skew import skew
from mosaic_jax.data.partition import describe, partition
from mosaic_jax.data.splits import label_counts
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import dataset_of
from mosaic_jax.io.heat_map import heat_map
from mosaic_jax.io.label_counts import as_csv, read_table, summary, table
from mosaic_jax.io.redraws import shown_redraws
from mosaic_jax.io.samples import answering_for, image_grid, save_grid
from mosaic_jax.io.whole_files import write_text
from mosaic_jax.sources import absolute
from mosaic_jax.types import Dataset, Partition

SHOWN_CLIENTS, SHOWN_IMAGES = 10, 12


@jax_settings.fixed()
def show_partition(config: Config, out: Path | None, console: Console) -> None:
    """Says on the console how the training images are dealt; out: where a heat map goes, the CSV file beside it, or None.

    Under feature skew, images of up to ten clients as they see them go beside it as well, to `.images.png`. Raises ConfigError
    where the partition cannot be made, and where the CSV file would be written over the table it is made of.
    """
    file = config.partition.table if config.partition.kind == "table" else ""
    if out is not None and file and out.with_suffix(".csv").resolve() == absolute(file).resolve():
        raise ConfigError(f"--out {out}: would write over partition.table={file}; name another file")
    dataset = dataset_of(config, console)
    prescribed = read_table(config.partition, dataset.class_names)
    started = time.perf_counter()
    with shown_redraws(config.partition, console) as rejected:
        settings = config.section_of(config.partition.kind)
        dealt = partition(dataset.train_labels, config.partition, config.seed, prescribed, rejected, settings)
    seconds = time.perf_counter() - started
    counts = label_counts(dealt.client_indices, dataset.train_labels, len(dataset.class_names))
    title = f"{config.data.source}: {describe(config.partition)}, seed {config.seed}"
    for line in (title, *table(counts, dataset.class_names).split("\n"), summary(counts, len(dataset.train_labels))):
        console.message(line)
    console.message(f"dealt in {seconds:.2f} s")
    if out is not None:
        with answering_for(out):
            written = _write(config, out, dataset, dealt, counts, title)
        console.message(f"written: {', '.join(map(str, written))}")


def _write(config: Config, out: Path, dataset: Dataset, dealt: Partition, counts: np.ndarray, title: str) -> list[Path]:
    """The files that are written for `--out`."""
    files = [out, out.with_suffix(".csv")]
    save_grid(out, heat_map(counts, dataset.class_names, title))
    write_text(files[1], as_csv(counts, dataset.class_names))
    if config.partition.has_feature_skew:
        seen = skew(dataset.train_images, dealt.client_indices, config.partition, config.seed, "train")
        shown = np.unique(np.linspace(0, config.partition.num_clients - 1, SHOWN_CLIENTS).astype(int))
        rows = np.stack([seen[np.resize(dealt.client_indices[client], SHOWN_IMAGES)] for client in shown])
        files.append(out.with_suffix(".images.png"))
        save_grid(files[-1], image_grid(rows, [f"client {client}" for client in shown]))
    return files

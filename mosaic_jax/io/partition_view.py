"""What `mosaic-jax partition` shows: the table of label counts, and on request its picture and its CSV file."""

from pathlib import Path

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.data.partition import describe, partition
from mosaic_jax.data.splits import label_counts
from mosaic_jax.io.datasets import load
from mosaic_jax.io.heat_map import heat_map
from mosaic_jax.io.label_counts import read_table, summary, table, write_csv
from mosaic_jax.io.samples import save_grid


def show_partition(config: Config, out: Path | None) -> None:
    """Prints how the training images are dealt; out: where a heat map goes, and the CSV file beside it, or None.

    Raises ConfigError where the partition cannot be made, and where the CSV file would be written over the table it is made of.
    """
    prescribed = config.partition.table if config.partition.kind == "table" else ""
    if out is not None and prescribed and out.with_suffix(".csv").resolve() == Path(prescribed).expanduser().resolve():
        raise ConfigError(f"--out {out}: would write over partition.table={prescribed}; name another file")
    dataset = load(config.data.source, config.data.image_size)
    dealt = partition(dataset.train_labels, config.partition, config.seed, read_table(config.partition, dataset.class_names))
    counts = label_counts(dealt.client_indices, dataset.train_labels, len(dataset.class_names))
    title = f"{config.data.source}: {describe(config.partition)}, seed {config.seed}"
    print(title, table(counts, dataset.class_names), summary(counts, len(dataset.train_labels)), sep="\n")
    if out is not None:
        save_grid(out, heat_map(counts, dataset.class_names, title))
        write_csv(out.with_suffix(".csv"), counts, dataset.class_names)
        print(f"written: {out}, {out.with_suffix('.csv')}")

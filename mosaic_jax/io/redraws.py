"""Progress of a partition that is drawn again until every client has enough images."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

from mosaic_jax.config import PartitionConfig
from mosaic_jax.data.partition.dealing import Rejected
from mosaic_jax.io.console import Console

SHOWN_AFTER = 2.0  # seconds; most partitions are dealt by then


@contextmanager
def shown_redraws(config: PartitionConfig, console: Console) -> Iterator[Rejected]:
    """What `partition` tells of rejected draws; where it takes long the console shows how many of partition.max_draws are done."""
    started = monotonic()
    with ExitStack() as held:
        bar = None

        def rejected(draws: int, smallest: int) -> None:
            nonlocal bar
            if bar is not None:
                bar.advance(1, f"smallest client {smallest} of {config.min_samples} images")
            elif monotonic() - started > SHOWN_AFTER:
                bar = held.enter_context(console.progress("dealing", config.max_draws, draws, unit="draws"))

        yield rejected

"""Which client holds which training images, a file for each family of partitions. NumPy only, with its legacy generator."""

import numpy as np

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.data.partition.dealing import Rejected, unheard
from mosaic_jax.data.partition.dirichlet import dirichlet_balanced, dirichlet_unbalanced
from mosaic_jax.data.partition.fixed import fixed
from mosaic_jax.data.partition.shards import shards
from mosaic_jax.data.partition.sizes import iid, quantity_skew
from mosaic_jax.types import Partition

__all__ = ["describe", "dirichlet_balanced", "dirichlet_unbalanced", "fixed", "iid", "partition", "quantity_skew", "shards"]


def partition(
    labels: np.ndarray, config: PartitionConfig, seed: int, table: np.ndarray | None = None, rejected: Rejected = unheard
) -> Partition:
    """Deals the images out as config.kind says; errors as in the function that is called.

    labels: integers [N]; table: integers [C, K], the label counts of kind `table`, not looked at by the others;
    rejected: hears of draws that leave a client too small, as `first_large_enough` says.
    """
    clients, alpha, drawing = config.num_clients, config.alpha, (config.min_samples, config.max_draws, config.repair, rejected)
    match config.kind:
        case "iid":
            return iid(labels, clients, seed)
        case "dirichlet_unbalanced":
            return dirichlet_unbalanced(labels, clients, alpha, seed, *drawing)
        case "dirichlet_balanced":
            return dirichlet_balanced(labels, clients, alpha, seed)
        case "shards":
            return shards(labels, clients, config.shards_per_client, seed)
        case "quantity_skew":
            return quantity_skew(labels, clients, alpha, seed, *drawing)
        case "table" if table is not None:
            if len(table) != clients:
                raise ConfigError(
                    f"partition.num_clients={clients}: partition.table={config.table} has {len(table)} clients; "
                    f"set partition.num_clients={len(table)}"
                )
            return fixed(labels, table, seed)
    raise ValueError(f"partition.kind={config.kind!r} is no kind, or its table of label counts is not given")


def describe(config: PartitionConfig) -> str:
    """A partition in words, with the settings that its kind looks at: `10 clients, dirichlet_unbalanced, alpha 0.1`."""
    alpha = f", alpha {config.alpha:g}"
    repaired = f", repaired to at least {config.min_samples} images" if config.repair else ""
    of_kind = {
        "dirichlet_unbalanced": alpha + repaired,
        "dirichlet_balanced": alpha,
        "quantity_skew": alpha + repaired,
        "shards": f", {config.shards_per_client} a client",
        "table": f" {config.table}",
    }.get(config.kind, "")
    skew = f", rotated by up to {config.feature_rotation:g} degrees" if config.feature_rotation else ""
    skew += f", noise up to {config.feature_noise:g}" if config.feature_noise else ""
    return f"{config.num_clients} clients, {config.kind}{of_kind}{skew}"

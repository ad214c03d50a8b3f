"""Which client holds which training images, a file for each family of partitions. NumPy only, with its legacy generator."""

from typing import Any

import numpy as np

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.data.partition.dealing import Rejected, as_partition, unheard
from mosaic_jax.data.partition.dirichlet import dirichlet_balanced, dirichlet_unbalanced
from mosaic_jax.data.partition.fixed import fixed
from mosaic_jax.data.partition.shards import shards
from mosaic_jax.data.partition.sizes import iid, quantity_skew
from mosaic_jax.registry import PARTITIONS
from mosaic_jax.types import Partition

__all__ = ["describe", "dirichlet_balanced", "dirichlet_unbalanced", "fixed", "iid", "partition", "quantity_skew", "shards"]


def partition(
    labels: np.ndarray, config: PartitionConfig, seed: int, table: np.ndarray | None = None, rejected: Rejected = unheard,
    settings: Any = None,
) -> Partition:  # fmt: skip
    """Deals the images out as config.kind says; errors as in the function that is called.

    labels: integers [N]; table: integers [C, K], the label counts of kind `table`, not looked at by the others;
    rejected: hears of draws that leave a client too small, as `first_large_enough` says; settings: the section that was registered
    with the kind, if one was. Raises ConfigError where a registered kind deals otherwise than every image at most once.
    """
    deal, entry = PARTITIONS[config.kind], PARTITIONS.entry(config.kind)
    if entry.built_in:
        return deal(labels, config, seed, table=table, rejected=rejected)
    clients = [np.asarray(indices) for indices in deal(labels, config, seed, settings=settings)]
    dealt = np.concatenate([np.zeros(0, np.int64), *clients])
    whole = np.issubdtype(dealt.dtype, np.integer) and all(indices.ndim == 1 for indices in clients)
    inside = whole and (len(dealt) == 0 or 0 <= dealt.min() <= dealt.max() < len(labels))
    if len(clients) != config.num_clients or not inside or len(np.unique(dealt)) < len(dealt):
        raise ConfigError(
            f"partition.kind={config.kind}: deals {len(dealt)} images to {len(clients)} clients; it must give each of "
            f"partition.num_clients={config.num_clients} integers [n] from 0 to {len(labels) - 1}, every image at most once"
        )
    return as_partition(dealt, np.array([len(indices) for indices in clients]), labels)


def iid_partition(labels: np.ndarray, config: PartitionConfig, seed: int, **others: Any) -> Partition:
    """`iid` of a configuration."""
    return iid(labels, config.num_clients, seed)


def dirichlet_unbalanced_partition(
    labels: np.ndarray, config: PartitionConfig, seed: int, *, rejected: Rejected, **others: Any
) -> Partition:
    """`dirichlet_unbalanced` of a configuration."""
    drawing = (config.min_samples, config.max_draws, config.repair, rejected)
    return dirichlet_unbalanced(labels, config.num_clients, config.alpha, seed, *drawing)


def dirichlet_balanced_partition(labels: np.ndarray, config: PartitionConfig, seed: int, **others: Any) -> Partition:
    """`dirichlet_balanced` of a configuration."""
    return dirichlet_balanced(labels, config.num_clients, config.alpha, seed)


def shards_partition(labels: np.ndarray, config: PartitionConfig, seed: int, **others: Any) -> Partition:
    """`shards` of a configuration."""
    return shards(labels, config.num_clients, config.shards_per_client, seed)


def quantity_skew_partition(
    labels: np.ndarray, config: PartitionConfig, seed: int, *, rejected: Rejected, **others: Any
) -> Partition:
    """`quantity_skew` of a configuration."""
    drawing = (config.min_samples, config.max_draws, config.repair, rejected)
    return quantity_skew(labels, config.num_clients, config.alpha, seed, *drawing)


def table_partition(
    labels: np.ndarray, config: PartitionConfig, seed: int, *, table: np.ndarray | None, **others: Any
) -> Partition:
    """`fixed` by the table of a configuration; raises ConfigError where it has other clients."""
    if table is None:
        raise ValueError("partition.kind='table': its table of label counts is not given")
    if len(table) != config.num_clients:
        raise ConfigError(
            f"partition.num_clients={config.num_clients}: partition.table={config.table} has {len(table)} clients; "
            f"set partition.num_clients={len(table)}"
        )
    return fixed(labels, table, seed)


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

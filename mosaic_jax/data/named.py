"""The settings that a named data set brings with it."""

import dataclasses

from mosaic_jax.config import DataConfig
from mosaic_jax.sources import HALF, benchmark_of


def with_own_settings(config: DataConfig) -> DataConfig:
    """`config` with augment=auto and std=0,0,0 replaced by what its source is known to have; no augmentation and 0.5 for others."""
    benchmark = benchmark_of(config.source)
    if config.augment == "auto":
        config = dataclasses.replace(config, augment=benchmark.augment if benchmark else "none")
    if not any(config.std):
        mean, std = (benchmark.mean, benchmark.std) if benchmark else (HALF, HALF)
        config = dataclasses.replace(config, mean=mean, std=std)
    return config

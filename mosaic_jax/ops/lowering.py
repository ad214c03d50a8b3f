"""What the operations of this room become when they are traced: one choice for all of them."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mosaic_jax.config import ConfigError
from mosaic_jax.ops import gpu_kernels, native

LOWERINGS = ("auto", "grouped", "map", "native", "stacked")
_lowering = "auto"
_shared = True


def set_lowering(name: str) -> None:
    """Choose how operations are lowered from now on (config field `mapping.convolution`); compiled functions keep theirs.

    grouped: plain `lax.conv_general_dilated`, whose vmap over kernels is a grouped convolution. map: the forms of ops/canonical,
    one client after another. native: the C++ of ops/native for float32 on a CPU, map for the rest. stacked: XLA's for one client,
    the GPU kernels of ops/stacked over stacked weights (on a CPU interpreted: for tests). auto: on a CPU native where it is
    registered and map where not, on a GPU stacked where its kernels can run, grouped elsewhere, decided when a function is traced.
    Raises ConfigError for another name.
    """
    global _lowering
    if name not in LOWERINGS:
        raise ConfigError(f"mapping.convolution = {name!r} is unknown; choose one of {', '.join(LOWERINGS)}")
    _lowering = name


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """`set_lowering(name)` for the functions traced inside a `with` block."""
    before = _lowering
    set_lowering(name)
    try:
        yield
    finally:
        set_lowering(before)


def chosen_lowering() -> str:
    """grouped, map, native or stacked: what operations that are traced now become."""
    if _lowering != "auto":
        return _lowering
    if jax.default_backend() != "cpu":
        return "stacked" if gpu_kernels.is_available() else "grouped"
    return "native" if native.is_registered() else "map"


def lowering_of(*dtypes: jnp.dtype) -> str:
    """`chosen_lowering` for arrays of these dtypes: one that has kernels for them."""
    how = chosen_lowering()
    if how == "native" and any(dtype != jnp.float32 for dtype in dtypes):
        return "map"
    return "grouped" if how == "stacked" and any(dtype.itemsize > 4 for dtype in dtypes) else how


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Native operations traced inside a `with` block keep to their own core, for every core has such work of its own."""
    global _shared
    before, _shared = _shared, False
    try:
        yield
    finally:
        _shared = before


def is_shared() -> bool:
    """Whether native operations traced now share their work among the cores."""
    return _shared

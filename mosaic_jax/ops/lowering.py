"""What the operations of this room become when they are traced: one choice for all of them."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mosaic_jax.config import ConfigError
from mosaic_jax.ops import native

LOWERINGS = ("auto", "grouped", "map", "native")
_lowering = "auto"
_shared = True


def set_lowering(name: str) -> None:
    """Choose how operations are lowered from now on (config field `mapping.convolution`); compiled functions keep theirs.

    grouped: plain `lax.conv_general_dilated`, whose vmap over kernels is a grouped convolution. map: the forms of ops/canonical,
    one client after another. native: the C++ of ops/native for float32 on a CPU, map for the rest. auto: on a CPU native where it
    is registered and map where not, grouped elsewhere, decided when a function is traced.
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
    """grouped, map or native: what operations that are traced now become."""
    if _lowering != "auto":
        return _lowering
    if jax.default_backend() != "cpu":
        return "grouped"
    return "native" if native.is_registered() else "map"


def is_native(dtype: jnp.dtype) -> bool:
    """Whether operations on arrays of a dtype that are traced now are those of ops/native."""
    return dtype == jnp.float32 and chosen_lowering() == "native"


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

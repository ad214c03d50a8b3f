"""What the operations of this room become when they are traced: one choice for all of them."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mosaic_jax.config import ConfigError
from mosaic_jax.ops import gpu_kernels, hopper, native

LOWERINGS = ("auto", "grouped", "map", "native", "stacked")
# What convolutions become where `stacked` is chosen: kernels of ours (ops/stacked, ops/hopper), cuDNN's grouped convolution, its
# plain one for one client after another.
STACKED = ("triton", "mosaic_gpu", "grouped", "map")
_lowering = "auto"
_stacked = ""
_shared = True


def set_lowering(name: str) -> None:
    """Choose how operations are lowered from now on (config field `mapping.convolution`); compiled functions keep theirs.

    grouped: plain `lax.conv_general_dilated`, whose vmap over kernels is a grouped convolution. map: one client after
    another, on a CPU in the forms of ops/canonical. native: the C++ of ops/native for float32 on a CPU, map for the rest. stacked:
    XLA's for one client, `stacked_form` over stacked weights. auto: on a CPU native where it is registered and map where not, on a
    GPU stacked where kernels of ours can run, grouped elsewhere, decided when a function is traced. Raises ConfigError for another
    name.
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


def set_stacked_form(name: str) -> None:
    """Choose one of STACKED for functions traced from now on; empty: triton where it can run, or else grouped."""
    global _stacked
    _stacked = name


def stacked_form(dtype: jnp.dtype | None = None) -> str:
    """One of STACKED: what convolutions over stacked weights, of this dtype, become where `stacked` is chosen."""
    if _stacked and not (_stacked == "mosaic_gpu" and dtype is not None and not hopper.takes(dtype)):
        return _stacked
    return "grouped" if gpu_kernels.triton is None else "triton"


def complaints(dtype: jnp.dtype) -> dict[str, str]:
    """For each of STACKED why it cannot run on the GPU that JAX uses, in few words; empty where it can."""
    return {"triton": gpu_kernels.complaint(), "mosaic_gpu": hopper.complaint(dtype), "grouped": "", "map": ""}


def chosen_lowering() -> str:
    """grouped, map, native or stacked: what operations that are traced now become."""
    if _lowering != "auto":
        return _lowering
    if jax.default_backend() != "cpu":
        return "grouped" if gpu_kernels.complaint() and hopper.complaint() else "stacked"
    return "native" if native.is_registered() else "map"


def lowering_of(*dtypes: jnp.dtype) -> str:
    """grouped, map, native, triton or mosaic_gpu: `chosen_lowering` for arrays of these dtypes, one that has kernels for them."""
    how = chosen_lowering()
    if how == "native" and any(dtype != jnp.float32 for dtype in dtypes):
        return "map"
    if how == "stacked":
        return "grouped" if any(dtype.itemsize > 4 for dtype in dtypes) else stacked_form(dtypes[0])
    return how


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

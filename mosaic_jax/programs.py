"""Functions compiled so that what differs between seeds is in no program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Sharding

from mosaic_jax.mapping import place
from mosaic_jax.types import PyTree


class Compiled(NamedTuple):
    """What `compiled` returns: called with arguments like those that it was compiled for."""

    program: jax.stages.Compiled
    constants: list

    def __call__(self, first: PyTree, *rest: PyTree) -> PyTree:
        return self.program(first, rest, self.constants)

    def as_text(self) -> str:
        """The program that XLA made."""
        return self.program.as_text()


def compiled(
    function: Callable[..., PyTree], arguments: tuple, *, donate_first: bool = False, out_shardings: PyTree = None,
    constants_at: Sharding | None = None,
) -> Compiled:  # fmt: skip
    """`function` compiled for arguments of these shapes, the arrays that it closes over handed to it as arguments.

    Keys, label counts and numbers of images of a seed are then no part of the program: those of another seed with equal shapes
    are the same one, which JAX's compilation cache has. donate_first: whether the first argument's memory is the result's;
    out_shardings: as of jax.jit; constants_at: where the arrays live, None for anywhere.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    constants: list[Any] = [np.asarray(constant) for constant in traced.consts]
    if constants_at is not None:
        constants = place(constants, constants_at)

    def program(first: PyTree, rest: tuple, constants: list) -> PyTree:
        leaves = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*jax.tree.leaves((first, rest)))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    program.__name__ = function.__name__
    given = {} if out_shardings is None else {"out_shardings": out_shardings}
    made = jax.jit(program, donate_argnums=(0,) if donate_first else (), **given)
    first, *rest = arguments
    ready = made.lower(first, tuple(rest), constants).compile()
    return Compiled(ready, constants)

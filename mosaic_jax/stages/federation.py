"""What federated methods differ in: the hooks of a round."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mosaic_jax.steps.client_update import ClientLoss, plain_loss
from mosaic_jax.steps.submodels import Channels, Sizes
from mosaic_jax.trees import weighted_mean
from mosaic_jax.types import Variables


class Federation(NamedTuple):
    """FedAvg, and what another method has in the place of parts of it.

    loss: what a client minimizes.
    aggregate(models [C, ...], weights f32[C]) -> the server's new model, where clients hold whole networks.
    personal: of a model's variables, bool leaves in their places, True for those that stay on the client; None is none.
    channels(sizes, held sizes, round i32[], key of client and round) -> the channels of each space that a client holds in that
        round; None where clients hold whole networks only.
    heads_by_class: whether a class' column of the classifier layer is the mean over the clients that hold the class alone.
    static_batch_norm: whether the global model's BatchNorm statistics are taken anew, from the clients' images, whenever it is
        judged and at the end; otherwise they are the mean of the clients' running ones.
    """

    loss: ClientLoss = plain_loss
    aggregate: Callable[[Variables, jax.Array], Variables] = weighted_mean
    personal: Callable[[Variables], Variables] | None = None
    channels: Callable[[Sizes, Sizes, jax.Array, jax.Array], Channels] | None = None
    heads_by_class: bool = False
    static_batch_norm: bool = False


def personal_leaves(federation: Federation, variables: Variables) -> list[jax.Array]:
    """The leaves that stay on the client, of one client or stacked."""
    if federation.personal is None:
        return []
    own = jax.tree.leaves(federation.personal(variables))
    return [leaf for leaf, stays in zip(jax.tree.leaves(variables), own, strict=True) if stays]


def with_personal(federation: Federation, variables: Variables, kept: list[jax.Array]) -> Variables:
    """`variables` with the client's own leaves in the place of the received ones."""
    if federation.personal is None:
        return variables
    leaves, tree = jax.tree.flatten(variables)
    rest = iter(kept)
    own = jax.tree.leaves(federation.personal(variables))
    return tree.unflatten([next(rest) if stays else leaf for leaf, stays in zip(leaves, own, strict=True)])

"""What federated methods differ in: the hooks of a round."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from mosaic_jax.stages.groups import Group
from mosaic_jax.steps.client_update import ClientLoss, plain_loss
from mosaic_jax.steps.submodels import Channels, Sizes
from mosaic_jax.trees import num_bytes, weighted_mean
from mosaic_jax.types import PyTree, Variables


class LocalWork(NamedTuple):
    """One client's round, after its local steps.

    received, sent: the model that it began with and the one that it ends with; client_state: what it carries since the round
    before; server_message: what came down with the model; num_steps, learning_rate: of its SGD.
    """

    received: Variables
    sent: Variables
    client_state: PyTree
    server_message: PyTree
    num_steps: int
    learning_rate: float


class Uploads(NamedTuple):
    """What the clients of one group send in a round, stacked.

    clients: i32[M], their numbers; models: leaves [M, ...]; channels: i32[M, n] of each space, which ones these models have, {}
    where clients hold whole networks; messages: leaves [M, ...], what they send beside; total: f32[], the images of all clients
    of the architecture, whether they take part in the round or not.
    """

    clients: jax.Array
    models: Variables
    channels: Channels
    messages: PyTree
    total: jax.Array


# (server state, old model, what clients send up, weights f32[M]) -> (server state, new model)
Aggregate = Callable[[PyTree, Variables, Uploads, jax.Array], tuple[PyTree, Variables]]
# (server states and models of each architecture, groups, what each sends up, its weights f32[M], key) -> (states, models)
ServerStep = Callable[
    [tuple[PyTree, ...], tuple[Variables, ...], Sequence[Group], Sequence[Uploads], Sequence[jax.Array], jax.Array],
    tuple[tuple[PyTree, ...], tuple[Variables, ...]],
]


def mean_of_models(mean: Callable[[Variables, jax.Array], Variables]) -> Aggregate:
    """A server rule without a state, out of `mean(models [C, ...], weights f32[C]) -> the new model`."""
    return lambda state, old, sent, weights: (state, mean(sent.models, weights))


class Federation(NamedTuple):
    """FedAvg, and what another method has in the place of parts of it.

    loss: what a client minimizes.
    aggregate(state, old, sent, weights f32[M]) -> (the server's new state, its new model) of one architecture, where clients hold
        whole networks; weights: n[i], 0 for those whose work does not arrive; never called with all 0 for a result that counts.
    init_server(model) -> the state that the server keeps beside its first model of an architecture; () is none.
    server_step(states, models, groups, sent, weights, key) -> (states, models), after the mean, of all architectures at once; a
        data-free method trains its generator and distils here. None is nothing. Where no work arrives at all it changes nothing.
    server_message(state) -> what goes down to every client beside the model; () is nothing.
    init_client(model) -> what a client carries from round to round, before its first one, of a model of its shapes; () is nothing.
        As the server's state it begins anew with each stage.
    update_client(work) -> (what the client carries now, what it sends up beside its model); kept where its work arrives.
    personal: of a model's variables, bool leaves in their places, True for those that stay on the client; None is none.
    channels(sizes, held sizes, round i32[], key of client and round) -> the channels of each space that a client holds in that
        round; None where clients hold whole networks only.
    heads_by_class: whether a class' column of the classifier layer is the mean over the clients that hold the class alone.
    static_batch_norm: whether the global model's BatchNorm statistics are taken anew, from the clients' images, whenever it is
        judged and at the end; otherwise they are the mean of the clients' running ones.
    """

    loss: ClientLoss = plain_loss
    aggregate: Aggregate = mean_of_models(weighted_mean)
    init_server: Callable[[Variables], PyTree] = lambda model: ()
    server_step: ServerStep | None = None
    server_message: Callable[[PyTree], PyTree] = lambda state: ()
    init_client: Callable[[Variables], PyTree] = lambda model: ()
    update_client: Callable[[LocalWork], tuple[PyTree, PyTree]] = lambda work: (work.client_state, ())
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


def bytes_of_a_round(federation: Federation, whole: Variables, model: Variables) -> tuple[int, int]:
    """Bytes that one client sends and receives in a round. whole, model: shapes, at the server and at the client."""

    def messages(whole: Variables, model: Variables) -> tuple[PyTree, PyTree]:
        down = federation.server_message(federation.init_server(whole))
        return federation.update_client(LocalWork(model, model, federation.init_client(model), down, 1, 1.0))[1], down

    leaves = num_bytes(model) - num_bytes(personal_leaves(federation, model))
    up, down = jax.eval_shape(messages, whole, model)
    return leaves + num_bytes(up), leaves + num_bytes(down)

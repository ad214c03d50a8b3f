"""Local training of one client."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaic_jax.losses import cross_entropy
from mosaic_jax.types import Batch, Classifier, PyTree, Variables

Preprocess = Callable[[jax.Array, jax.Array], jax.Array]


class Local(NamedTuple):
    """What a client's loss may look at.

    logits: f32[B, K], labels: i32[B] and features: f32[B, D] of the batch; params: the client's; received: those that it began the
    round with; label_counts: f32[K], the client's images of each class; client_state: what the client carries from round to round,
    server_message: what came down with the model, both () unless the method has them.
    """

    logits: jax.Array
    labels: jax.Array
    params: PyTree
    received: PyTree
    label_counts: jax.Array
    features: jax.Array
    client_state: PyTree = ()
    server_message: PyTree = ()


ClientLoss = Callable[[Local], jax.Array]


class ClientInfo(NamedTuple):
    """loss: f32[T], the training loss of each local step."""

    loss: jax.Array


def plain_loss(local: Local) -> jax.Array:
    """Cross-entropy and nothing else -> f32[]."""
    return cross_entropy(local.logits, local.labels)


def client_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD without momentum; weight decay enters the gradient as L2, as in PyTorch's SGD."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


def sgd_step(
    classifier: Classifier,
    variables: Variables,
    opt_state: PyTree,
    batch: Batch,
    optimizer: optax.GradientTransformation,
    loss: Callable[[jax.Array, PyTree, jax.Array], jax.Array] | None = None,
) -> tuple[Variables, PyTree, jax.Array]:
    """One step of training with BatchNorm in train mode -> (variables, optimizer state, loss f32[]).

    loss(logits f32[B, K], params, features f32[B, D]) -> f32[]; None is the batch's cross-entropy.
    """

    def loss_fn(params: PyTree) -> tuple[jax.Array, PyTree]:
        variables_now = Variables(params, variables.batch_stats)
        features, batch_stats = classifier.features(variables_now, batch.images, True)
        logits = classifier.head(variables_now, features)
        return cross_entropy(logits, batch.labels) if loss is None else loss(logits, params, features), batch_stats

    (value, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables.params)
    updates, opt_state = optimizer.update(gradients, opt_state, variables.params)
    return Variables(optax.apply_updates(variables.params, updates), batch_stats), opt_state, value


def client_update(
    classifier: Classifier,
    variables: Variables,
    batches: Batch,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    label_counts: jax.Array,
    loss: ClientLoss = plain_loss,
    client_state: PyTree = (),
    server_message: PyTree = (),
) -> tuple[Variables, ClientInfo]:
    """T local steps from the received variables: theta <- theta - lr (grad loss + wd theta), one scan.

    batches: images u8[T, B, 32, 32, 3] and labels i32[T, B]; preprocess(key, images u8[B, ...]) -> f32[B, ...];
    label_counts: f32[K] of the client, client_state, server_message: for the losses that look at them.
    Returns the client's variables (BatchNorm statistics moved) and the losses. Source: paper's warm-up, FedAvg.
    """

    def step(carry: tuple[Variables, PyTree], scanned: tuple[Batch, jax.Array]) -> tuple[tuple[Variables, PyTree], jax.Array]:
        batch, index = scanned
        batch = Batch(preprocess(jax.random.fold_in(key, index), batch.images), batch.labels)

        def of_batch(logits: jax.Array, params: PyTree, features: jax.Array) -> jax.Array:
            received = variables.params
            return loss(Local(logits, batch.labels, params, received, label_counts, features, client_state, server_message))

        moved, opt_state, value = sgd_step(classifier, *carry, batch, optimizer, of_batch)
        return (moved, opt_state), value

    num_steps = batches.labels.shape[0]
    start = (variables, optimizer.init(variables.params))
    (variables_after, _), losses = jax.lax.scan(step, start, (batches, jnp.arange(num_steps)))
    return variables_after, ClientInfo(losses)

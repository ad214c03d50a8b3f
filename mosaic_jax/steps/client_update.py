"""Local training of one client."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaic_jax.losses import cross_entropy
from mosaic_jax.types import Batch, Classifier, PyTree, Variables

Preprocess = Callable[[jax.Array, jax.Array], jax.Array]


class ClientInfo(NamedTuple):
    """loss: f32[T], the training loss of each local step."""

    loss: jax.Array


def client_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD without momentum; weight decay enters the gradient as L2, as in PyTorch's SGD."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


def sgd_step(
    classifier: Classifier, variables: Variables, opt_state: PyTree, batch: Batch, optimizer: optax.GradientTransformation
) -> tuple[Variables, PyTree, jax.Array]:
    """One step of cross-entropy training with BatchNorm in train mode -> (variables, optimizer state, loss f32[])."""

    def loss_fn(params: PyTree) -> tuple[jax.Array, PyTree]:
        logits, batch_stats = classifier.apply(Variables(params, variables.batch_stats), batch.images, True)
        return cross_entropy(logits, batch.labels), batch_stats

    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables.params)
    updates, opt_state = optimizer.update(gradients, opt_state, variables.params)
    return Variables(optax.apply_updates(variables.params, updates), batch_stats), opt_state, loss


def client_update(
    classifier: Classifier,
    variables: Variables,
    batches: Batch,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
) -> tuple[Variables, ClientInfo]:
    """T local steps from the received variables: theta <- theta - lr (grad CE + wd theta), one scan.

    batches: images u8[T, B, 32, 32, 3] and labels i32[T, B]; preprocess(key, images u8[B, ...]) -> f32[B, ...].
    Returns the client's variables (BatchNorm statistics moved) and the losses. Source: paper's warm-up, FedAvg.
    """

    def step(carry: tuple[Variables, PyTree], scanned: tuple[Batch, jax.Array]) -> tuple[tuple[Variables, PyTree], jax.Array]:
        batch, index = scanned
        images = preprocess(jax.random.fold_in(key, index), batch.images)
        moved, opt_state, loss = sgd_step(classifier, *carry, Batch(images, batch.labels), optimizer)
        return (moved, opt_state), loss

    num_steps = batches.labels.shape[0]
    start = (variables, optimizer.init(variables.params))
    (variables, _), losses = jax.lax.scan(step, start, (batches, jnp.arange(num_steps)))
    return variables, ClientInfo(losses)

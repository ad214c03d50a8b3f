"""SCAFFOLD (Karimireddy et al. 2020): control variates take the clients' drift out of their local steps."""

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation, LocalWork, Uploads
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import ClientLoss, Local, plain_loss
from mosaic_jax.trees import weighted_mean
from mosaic_jax.types import PyTree, Variables


def corrected(loss: ClientLoss) -> ClientLoss:
    """A client's loss with the same value, and c - c_i added to its gradient."""

    def with_correction(local: Local) -> jax.Array:
        def product(params: jax.Array, control: jax.Array, own: jax.Array) -> jax.Array:
            return jnp.sum((control - own) * (params - jax.lax.stop_gradient(params)))

        products = jax.tree.map(product, local.params, local.server_message, local.client_state)
        return loss(local) + sum(jax.tree.leaves(products))

    return with_correction


def new_control(work: LocalWork) -> tuple[PyTree, PyTree]:
    """c_i+ = c_i - c + (received - sent) / (K eta_l), the mean gradient of the K steps (option II) -> (c_i+, c_i+ - c_i)."""
    length = work.num_steps * work.learning_rate

    def step(own: jax.Array, control: jax.Array, received: jax.Array, sent: jax.Array) -> jax.Array:
        return own - control + (received - sent) / length

    new = jax.tree.map(step, work.client_state, work.server_message, work.received.params, work.sent.params)
    return new, jax.tree.map(jnp.subtract, new, work.client_state)


def scaffold_step(
    control: PyTree, old: Variables, sent: Uploads, weights: jax.Array, *, learning_rate: float
) -> tuple[PyTree, Variables]:
    """new = old + eta_g (mean - old), of parameters; c <- c + sum_i weights_i (c_i+ - c_i) / total -> (c, new).

    c stays sum_i n[i] c_i / total, the mean of all clients as the objective weights them; with equal weights it moves by |S| / N
    times the mean change, as in the paper. BatchNorm statistics are the mean.
    """
    mean = weighted_mean(sent.models, weights)
    params = jax.tree.map(lambda new, before: new - (1.0 - learning_rate) * (new - before), mean.params, old.params)
    share = jnp.sum(weights) / sent.total
    control = jax.tree.map(lambda leaf, change: leaf + share * change, control, weighted_mean(sent.messages, weights))
    return control, mean._replace(params=params)


def scaffold(problem: Problem) -> Federation:
    """Controls begin as 0 and are as large as the parameters; both ways of a round carry them beside the model."""
    rate = problem.config.scaffold.server_learning_rate

    def zeros(model: Variables) -> PyTree:
        return jax.tree.map(jnp.zeros_like, model.params)

    return Federation(
        loss=corrected(plain_loss),
        aggregate=lambda control, old, sent, weights: scaffold_step(control, old, sent, weights, learning_rate=rate),
        init_server=zeros, server_message=lambda control: control, init_client=zeros, update_client=new_control,
    )  # fmt: skip

"""Client-side generators: every client trains its own GAN on its own images."""

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.data.augment import translate
from mosaic_jax.data.sampling import batch_indices
from mosaic_jax.mapping import SHARDED, for_each_client
from mosaic_jax.models import judge_of
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.groups import Group, in_client_order
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Outputs, Stage
from mosaic_jax.steps.client_update import client_optimizer, sgd_step
from mosaic_jax.steps.generator_step import GanLosses, GanState, generator_step, init_gan, inversion_weights, uploaded
from mosaic_jax.steps.submodels import extract
from mosaic_jax.trees import broadcast, num_bytes
from mosaic_jax.types import Batch, Discriminator, PyTree, Series, Variables


def needs_classifier(problem: Problem) -> bool:
    """Whether any term of L_G looks at the auxiliary classifier."""
    config = problem.config.generator
    return max(config.entropy_weight, config.diversity_weight, config.inversion_weight) > 0.0


def real_indices(problem: Problem) -> tuple[np.ndarray, ...]:
    """Each client's real images: all, or the public code's all-but-class-0 (a client with nothing else keeps them)."""
    if problem.config.generator.real_classes == "all":
        return problem.splits.train
    others = tuple(indices[problem.dataset.train_labels[indices] != 0] for indices in problem.splits.train)
    return tuple(kept if len(kept) else every for kept, every in zip(others, problem.splits.train, strict=True))


def steps_per_client(num_images: np.ndarray, num_epochs: int, batch_size: int, num_steps: int = 0) -> np.ndarray:
    """i32[C]: num_epochs passes of ceil(n / B) batches, or num_steps for everyone where num_epochs is 0."""
    passes = num_epochs * -(-num_images // batch_size)
    return np.where(num_epochs > 0, passes, num_steps).astype(np.int32)


def trainers(problem: Problem) -> tuple[Group, ...]:
    """The groups without the clients that never took part; all in one where training looks at no network of theirs."""
    if not needs_classifier(problem) and problem.config.generator.discriminator == "separate":
        return (problem.groups[0]._replace(clients=problem.participants),)
    own = (group._replace(clients=np.intersect1d(group.clients, problem.participants)) for group in problem.groups)
    return tuple(group for group in own if len(group.clients))


def _models_of(problem: Problem, group: Group, outputs: Outputs, which: str) -> Variables:
    """leaves [C_g, ...]: each client's last model, or what it holds of the server's."""
    place = [own.architecture == group.architecture and own.rate == group.rate for own in problem.groups].index(True)
    rows = np.searchsorted(problem.groups[place].clients, group.clients)
    warmup = outputs["warmup"]
    if which == "client":
        return jax.tree.map(lambda leaf: leaf[rows], warmup.clients[place])
    server, held = warmup.servers[group.architecture], warmup.held[place]
    if not held:
        return broadcast(server, len(rows))
    axes = problem.architectures[group.architecture].axes
    return for_each_client(lambda own, whole: extract(whole, axes, own), (jax.tree.map(lambda leaf: leaf[rows], held),), (server,))


def auxiliary_stage(problem: Problem) -> Stage:
    """The public code's auxiliary classifiers: one network per client, trained on that client alone from a fresh start.

    State and output: of each group of `trainers`, leaves [C_g, ...].
    """
    config, groups = problem.config, trainers(problem)
    batch_size, segment = config.warmup.batch_size, config.mapping.segment_steps
    optimizer = client_optimizer(config.generator.classifier_learning_rate, config.warmup.weight_decay)
    num_steps = steps_per_client(problem.num_samples, config.generator.classifier_num_epochs, batch_size)

    def init(inputs: PyTree) -> tuple[Variables, ...]:
        key = key_at(problem.root, "auxiliary")
        return tuple(
            for_each_client(lambda client, own=group: own.classifier.init(client_key(key, client)), (group.clients,))
            for group in groups
        )

    def host(inputs: PyTree, start: int) -> tuple[np.ndarray, ...]:
        return _batches(problem, problem.splits.train, groups, "auxiliary", start, batch_size)

    def run(
        state: tuple[Variables, ...], inputs: PyTree, data: tuple, indices: tuple, start: jax.Array, stop: jax.Array
    ) -> tuple[tuple[Variables, ...], Series]:
        def of_group(group: Group, state: Variables, indices: jax.Array) -> tuple[Variables, dict[str, jax.Array]]:
            def one(variables: Variables, indices: jax.Array, client: jax.Array, own_steps: jax.Array, *data: jax.Array) -> tuple:
                images, labels = data

                def step(t: jax.Array, carry: tuple) -> tuple:
                    variables, opt_state, losses = carry
                    chosen = indices[t - start]
                    key = client_key(key_at(problem.root, "auxiliary", t), client)
                    batch = Batch(problem.preprocess(key, images[chosen]), labels[chosen])
                    variables, opt_state, loss = sgd_step(group.classifier, variables, opt_state, batch, optimizer)
                    return variables, opt_state, losses.at[t - start].set(loss)

                carry = (variables, optimizer.init(variables.params), jnp.zeros(segment))
                variables, _, losses = jax.lax.fori_loop(start, jnp.minimum(stop, own_steps), step, carry)
                return variables, {"loss": losses}

            own_steps = jnp.asarray(num_steps[group.clients])
            unequal = own_steps if config.generator.classifier_num_epochs else None
            return for_each_client(one, (state, indices, group.clients, own_steps), data, problem.client_plan, unequal)

        results = [of_group(*each) for each in zip(groups, state, indices, strict=True)]
        return _of_all(groups, results, num_steps, start + jnp.arange(segment))

    return Stage(
        name="auxiliary", unit="step", num_steps=int(num_steps.max()), segment=segment, save_every=config.checkpoint.every_steps,
        sharding=SHARDED, inputs=lambda outputs: (), init=init, host=host, data=problem.train_arrays(), run=run, watch=None,
        watch_every=0, output=lambda state, inputs: state, traffic=lambda state: {"up": 0, "down": 0},
    )  # fmt: skip


def generators_stage(problem: Problem, *, discriminator: Discriminator | None = None, losses: GanLosses | None = None) -> Stage:
    """Every client's GAN for its own number of steps, the clients mapped; the output is what they upload, Variables [C, ...].

    discriminator, losses: None is what the configuration names.

    A client that never took part has none: rows are those of `Problem.participants`. State: a GanState of each group of
    `trainers`, leaves [C_g, ...].
    """
    config, gan, groups = problem.config, problem.config.generator, trainers(problem)
    separate = discriminator is not None or gan.discriminator == "separate"
    real = real_indices(problem)
    num_steps = steps_per_client(np.array([len(r) for r in real]), gan.num_epochs, gan.batch_size, gan.num_steps)
    segment = config.mapping.segment_steps
    weights = inversion_weights(jnp.asarray(problem.num_samples), gan)

    def judge(group: Group) -> Discriminator:
        return discriminator or judge_of(gan, group.classifier, config.precision, config.data.image_size)

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        return translate(key, images) if gan.augment == "translate" else images

    def inputs_of(outputs: Outputs) -> dict[str, tuple]:
        """clients: of each group the models that are discriminators; classifier: those that generators are held against."""
        looks = needs_classifier(problem)
        own = tuple(() if separate else _models_of(problem, group, outputs, "client") for group in groups)
        if gan.classifier == "local" and looks:
            return {"clients": own, "classifier": outputs["auxiliary"]}
        return {
            "clients": own,
            "classifier": tuple(_models_of(problem, group, outputs, gan.classifier) if looks else () for group in groups),
        }

    def init(inputs: dict[str, tuple]) -> tuple[GanState, ...]:
        def of_group(group: Group, own_models: PyTree) -> GanState:
            def one(client: jax.Array, own_model: PyTree) -> GanState:
                keys = jax.random.split(client_key(key_at(problem.root, "gan"), client))
                return init_gan(problem.generator.init(keys[0]), judge(group).init(keys[1]) if separate else own_model, gan)

            return for_each_client(one, (group.clients, own_models))

        return tuple(of_group(*each) for each in zip(groups, inputs["clients"], strict=True))

    def host(inputs: PyTree, start: int) -> tuple[np.ndarray, ...]:
        return _batches(problem, real, groups, "generators", start, gan.batch_size)

    def run(
        state: tuple[GanState, ...], inputs: dict[str, tuple], data: tuple, indices: tuple, start: jax.Array, stop: jax.Array
    ) -> tuple[tuple[GanState, ...], Series]:
        def of_group(group: Group, state: GanState, classifiers: PyTree, indices: jax.Array) -> tuple[GanState, PyTree]:
            def one(
                state: GanState, classifier: PyTree, indices: jax.Array, client: jax.Array, own_steps: jax.Array,
                inversion_weight: jax.Array, images: jax.Array,
            ) -> tuple[GanState, dict[str, jax.Array]]:  # fmt: skip
                def step(t: jax.Array, carry: tuple) -> tuple:
                    state, d_losses, g_losses = carry
                    keys = jax.random.split(client_key(key_at(problem.root, "generators", t), client), 4)
                    noise = jax.random.normal(keys[0], (gan.batch_size, problem.generator.latent_size))
                    state, info = generator_step(
                        problem.generator, judge(group), group.classifier, state, classifier,
                        problem.decode(images[indices[t - start]]), noise, keys[1:], augment, inversion_weight, gan, losses,
                    )  # fmt: skip
                    place = t - start
                    return state, d_losses.at[place].set(info.discriminator_loss), g_losses.at[place].set(info.generator_loss)

                carry = (state, jnp.zeros(segment), jnp.zeros(segment))
                state, d_losses, g_losses = jax.lax.fori_loop(start, jnp.minimum(stop, own_steps), step, carry)
                return state, {"discriminator_loss": d_losses, "generator_loss": g_losses}

            ids, own_steps = group.clients, jnp.asarray(num_steps[group.clients])
            mapped = (state, classifiers, indices, ids, own_steps, weights[ids])
            return for_each_client(one, mapped, data[:1], problem.client_plan, own_steps if gan.num_epochs else None)

        parts = zip(groups, state, inputs["classifier"], indices, strict=True)
        return _of_all(groups, [of_group(*each) for each in parts], num_steps, start + jnp.arange(segment))

    def uploads(state: tuple[GanState, ...]) -> Variables:
        return in_client_order(groups, [uploaded(own) for own in state])

    return Stage(
        name="generators", unit="step", num_steps=int(num_steps[problem.participants].max()), segment=segment,
        save_every=config.checkpoint.every_steps, sharding=SHARDED, inputs=inputs_of, init=init, host=host,
        data=problem.train_arrays(), run=run, watch=None, watch_every=0, output=lambda state, inputs: uploads(state),
        traffic=lambda state: {"up": sum(num_bytes(uploaded(own)) for own in state), "down": 0},
    )  # fmt: skip


def _batches(
    problem: Problem, indices: tuple[np.ndarray, ...], groups: tuple[Group, ...], stage: str, start: int, batch_size: int
) -> tuple[np.ndarray, ...]:
    """The images of a segment's steps, of each group i32[C_g, T, B]."""
    return tuple(
        batch_indices(
            [indices[client] for client in group.clients], client_ids=group.clients, seed=problem.config.seed, stage=stage,
            start=start, num_steps=problem.config.mapping.segment_steps, batch_size=batch_size,
        )
        for group in groups
    )  # fmt: skip


def _of_all(groups: tuple[Group, ...], results: list[tuple], num_steps: np.ndarray, steps: jax.Array) -> tuple[tuple, Series]:
    """The groups' new states, and their losses [C_g, T] as a Series [C, T]; num_steps: i32[C], of each client; steps: i32[T]."""
    states, losses = zip(*results, strict=True)
    places = [group.clients for group in groups]

    def of_clients(*parts: jax.Array) -> jax.Array:
        found = jnp.zeros((len(num_steps), len(steps)), parts[0].dtype)
        for clients, part in zip(places, parts, strict=True):
            found = found.at[clients].set(part)
        return found

    done = of_clients(*(jnp.asarray(num_steps[clients])[:, None] > steps for clients in places))
    return states, Series(jax.tree.map(of_clients, *losses), done)

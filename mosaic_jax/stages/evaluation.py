"""Judging models: federated validation during training, and every model of the result table at the end."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import bring_here, for_each_client
from mosaic_jax.stages.groups import Group, in_client_order
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Outputs, Stage
from mosaic_jax.steps.evaluate import Predict, accuracy, confusion_matrix
from mosaic_jax.types import Classifier, PyTree, Variables

EvalBatches = tuple[np.ndarray, np.ndarray, np.ndarray]


def index_batches(indices: np.ndarray, batch_size: int, num_batches: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The chosen images i32[N, B] by batches, the last one padded by repeats of image 0, and valid bool[N, B]."""
    batch_size = min(batch_size, max(len(indices), 1)) if num_batches == 0 else batch_size
    num_batches = num_batches or -(-max(len(indices), 1) // batch_size)
    padded = np.zeros(num_batches * batch_size, np.int32)
    padded[: len(indices)] = indices
    valid = np.arange(len(padded)) < len(indices)
    shape = (num_batches, batch_size)
    return padded.reshape(shape), valid.reshape(shape)


def eval_batches(images: np.ndarray, labels: np.ndarray, indices: np.ndarray, batch_size: int) -> EvalBatches:
    """images u8[N, B, ...], labels i32[N, B], valid bool[N, B] of the chosen images."""
    chosen, valid = index_batches(indices, batch_size)
    return images[chosen], labels[chosen].astype(np.int32), valid


def federated_validation(problem: Problem, classifier: Classifier) -> Callable[[Variables], jax.Array]:
    """Accuracy of one model over all clients' validation images: what the clients would report, weighted by their counts.

    Returns variables -> f32[]; compiled once.
    """
    indices = np.concatenate(problem.splits.validation)
    batches = jax.device_put(
        eval_batches(problem.dataset.train_images, problem.dataset.train_labels, indices, problem.config.evaluation.batch_size)
    )

    @jax.jit
    def validate(variables: Variables, batches: PyTree) -> jax.Array:
        counts = confusion_matrix(_predict(problem, classifier, variables), batches, problem.num_classes)
        return accuracy(counts).astype(jnp.float32)

    return lambda variables: validate(bring_here(variables), batches)


def _predict(problem: Problem, classifier: Classifier, variables: Variables) -> Predict:
    return lambda images: classifier.apply(variables, problem.decode(images), False)[0]


def _summary(validation: np.ndarray | None, test: np.ndarray) -> dict[str, Any]:
    totals = test.sum(axis=1)
    per_class = [float(test[c, c] / totals[c]) if totals[c] else None for c in range(len(totals))]
    has_validation = validation is not None and validation.sum() > 0
    return {
        "validation": float(accuracy(validation)) if has_validation else None,
        "test": float(accuracy(test)),
        "test_per_class": per_class,
    }


def _client_summary(validation: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Mean over clients of each one's accuracy on its own share; clients without images are left out."""
    held, tested = (counts.sum(axis=(1, 2)) > 0 for counts in (validation, test))
    summary = _summary(None, test.sum(axis=0))
    summary["test"] = float(np.mean(accuracy(test)[tested])) if tested.any() else None
    summary["validation"] = float(np.mean(accuracy(validation)[held])) if held.any() else None
    return summary


def evaluate_clients(problem: Problem, clients: tuple[Variables, ...]) -> dict[str, Any]:
    """The model of every client that took part, on its own validation and test share. clients: of each group, leaves [C_g, ...]."""
    dataset, size = problem.dataset, problem.config.evaluation.batch_size
    plan = problem.client_plan._replace(devices=())

    def counts(images: np.ndarray, labels: np.ndarray, shares: Sequence[np.ndarray]) -> np.ndarray:
        longest = max(max(len(share) for share in shares), 1)
        batch = min(size, longest)
        stacked = [index_batches(share, batch, -(-longest // batch)) for share in shares]
        chosen, valid = (np.stack(arrays) for arrays in zip(*stacked, strict=True))
        batches = (chosen, labels[chosen].astype(np.int32), valid)

        @jax.jit
        def of_groups(clients: tuple[Variables, ...], batches: PyTree, images: jax.Array) -> jax.Array:
            def of_group(group: Group, models: Variables) -> jax.Array:
                # Images are looked up batch by batch: those of all clients at once, as many as the longest has, may not fit.
                def one(variables: Variables, own: PyTree, images: jax.Array) -> jax.Array:
                    predict = _predict(problem, group.classifier, variables)
                    return confusion_matrix(lambda indices: predict(images[indices]), own, problem.num_classes)

                own = jax.tree.map(lambda leaf: leaf[group.clients], batches)
                return for_each_client(one, (models, own), (images,), plan)

            found = [of_group(*each) for each in zip(problem.groups, clients, strict=True)]
            return in_client_order(problem.groups, found)

        return np.asarray(of_groups(clients, batches, images))[problem.participants]

    validation = counts(dataset.train_images, dataset.train_labels, problem.splits.validation)
    return _client_summary(validation, counts(problem.client_test_images, dataset.test_labels, problem.splits.test))


def evaluate_models(problem: Problem, outputs: Outputs, stages: Sequence[Stage]) -> tuple[dict[str, Any], list[list[int]], str]:
    """Every model by which the finished stages want to be judged, on validation and the whole test set.

    Returns {name: {validation, test, test_per_class}} in the order of the stages (accuracies in 0..1), the confusion matrix [K][K]
    of the model that the method hands over, or would so far, and that model's name.
    """
    dataset, size = problem.dataset, problem.config.evaluation.batch_size
    done = [stage for stage in stages if stage.name in outputs]
    source = {name: stage for stage in done if stage.judged is not None for name in stage.judged.names}
    judged_by = [stage.judged for stage in done if any(stage is each for each in source.values())]
    final = next(stage.hands_over for stage in reversed(done) if stage.hands_over)

    @jax.jit
    def counts(outputs: Outputs, batches: PyTree) -> dict[str, jax.Array]:
        def predictions(images: jax.Array) -> dict[str, jax.Array]:
            decoded = problem.decode(images)
            return {name: logits for judged in judged_by for name, logits in judged.predict(outputs, decoded).items()}

        return confusion_matrix(predictions, batches, problem.num_classes)

    def judged(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, counts(dict(outputs), eval_batches(images, labels, chosen, size)))

    held = np.concatenate(problem.splits.validation)
    test = judged(dataset.test_images, dataset.test_labels, np.arange(len(dataset.test_labels)))
    validation = judged(dataset.train_images, dataset.train_labels, held) if len(held) else {}
    table: dict[str, Any] = {}
    for stage in done:
        names = stage.judged.names if stage.judged is not None else ()
        table |= {name: _summary(validation.get(name), test[name]) for name in names}
        if stage.judge_clients is not None:
            table["clients"] = stage.judge_clients(outputs)
    return table, test[final].tolist(), final

"""Judging models: federated validation during training, and every model of the result table at the end."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import bring_here, for_each_client
from mosaic_jax.stages.experts import Experts, predict_experts
from mosaic_jax.stages.groups import Group, in_client_order
from mosaic_jax.stages.problem import Outputs, Problem
from mosaic_jax.steps.evaluate import Predict, accuracy, confusion_matrix
from mosaic_jax.steps.experts import expert_sum
from mosaic_jax.steps.meta_step import mixture_logits
from mosaic_jax.types import Classifier, PyTree, Variables

EvalBatches = tuple[np.ndarray, np.ndarray, np.ndarray]
MODELS = ("global", "clients", "expert_sum", "mixture", "student", "finetuned")


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


def evaluate_models(problem: Problem, outputs: Outputs) -> tuple[dict[str, Any], list[list[int]]]:
    """Every model that the finished stages give, on validation and the whole test set, and the last one's confusion matrix.

    Returns {name: {validation, test, test_per_class}} in the order of MODELS (accuracies in 0..1), and counts [K][K]. `global` and
    `finetuned` are the server's models of the student's network, or of the first where no client has it; those of others have it
    in their names.
    """
    dataset, config = problem.dataset, problem.config

    def predictions(models: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        decoded = problem.decode(images)
        logits = {name: classifier.apply(models[name], decoded, False)[0] for name, classifier in classifiers.items()}
        if "experts" in models:
            expert_logits = predict_experts(problem, models["experts"], decoded)
            logits["expert_sum"] = expert_sum(expert_logits)
            if "meta" in models:
                logits["mixture"] = mixture_logits(problem.meta_model, models["meta"], expert_logits)
        return logits

    @jax.jit
    def counts(models: dict[str, Any], batches: PyTree) -> dict[str, jax.Array]:
        return confusion_matrix(lambda images: predictions(models, images), batches, problem.num_classes)

    models: dict[str, Any] = {}
    classifiers: dict[str, Classifier] = {}
    for stage, name in (("warmup", "global"), ("finetune", "finetuned")):
        if stage in outputs:  # Mosaic fine-tunes the student's network alone, which is the first
            for kind, (architecture, server) in enumerate(zip(problem.architectures, outputs[stage].servers, strict=False)):
                own = name if kind == 0 else f"{name} {architecture.name}"
                models[own], classifiers[own] = server, architecture.classifier
    if "experts" in outputs:
        experts: Experts = outputs["experts"]
        models["experts"] = experts
    for stage, name in (("meta", "meta"), ("distill", "student")):
        if stage in outputs:
            models[name] = outputs[stage]
    if "student" in models:
        classifiers["student"] = problem.classifier
    size = config.evaluation.batch_size
    held = np.concatenate(problem.splits.validation)
    test = counts(models, eval_batches(dataset.test_images, dataset.test_labels, np.arange(len(dataset.test_labels)), size))
    test = jax.tree.map(np.asarray, test)
    validation: dict[str, np.ndarray] = {}
    if len(held):
        validation = jax.tree.map(np.asarray, counts(models, eval_batches(dataset.train_images, dataset.train_labels, held, size)))
    table = {name: _summary(validation.get(name), test[name]) for name in test}
    if "warmup" in outputs and jax.tree.leaves(outputs["warmup"].clients):
        table["clients"] = evaluate_clients(problem, outputs["warmup"].clients)
    ordered = sorted(table, key=lambda name: MODELS.index(name.partition(" ")[0]))
    return {name: table[name] for name in ordered}, test[final_model(test)].tolist()


def final_model(models: Collection[str]) -> str:
    """Of models that were evaluated the one that the method hands over, or would so far."""
    return next(name for name in ("finetuned", "student", "global") if name in models)

"""Mosaic in JAX: data-free federated distillation through a mixture of class experts (arXiv 2505.19699).

>>> import mosaic_jax as mj
>>> config = mj.load_config("configs/digits.py", ["warmup.num_rounds=1", "method=fedavg", "finetune.num_rounds=0"])
>>> problem = mj.build_problem(config)
>>> outputs = mj.run(problem)
>>> sorted(mj.evaluate(problem, outputs))
['clients', 'global']

Importing this package imports no JAX: a name loads what it needs when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Every public name, by the module that has it.
_PLACES: dict[str, tuple[str, ...]] = {
    # configurations, problems, runs
    "settings": ("ConfigError", "setting"),
    "config": ("Config",),
    "api": ("Outputs", "Run", "build_problem", "evaluate", "load_config", "open_run", "run"),
    "driving": ("Drive", "NonFiniteLoss", "Segment"),
    "stages.problem": ("Problem",),
    "stages.stage": ("Judged", "Stage"),
    # methods and their parts
    "methods": ("FEDERATIONS", "METHODS", "stages_of"),
    "methods.mosaic": ("mosaic",),
    "stages.federation": ("Federation", "LocalWork", "Uploads", "mean_of_models"),
    "stages.federated": ("federated_stage",),
    "stages.generators": ("generators_stage",),
    "stages.experts": ("experts_stage",),
    "stages.meta": ("meta_stage",),
    "stages.distill": ("distill_stage",),
    # parts of one's own, by name
    "plugins": (
        "load_plugin", "register_federation", "register_generator", "register_meta_model", "register_method", "register_network",
        "register_partition", "register_source",
    ),
    # pure steps, for one client or one batch
    "steps.client_update": ("Local", "client_optimizer", "client_update", "plain_loss", "sgd_step"),
    "steps.generator_step": ("GanLosses", "GanState", "generator_step", "init_gan", "sample_images"),
    "steps.experts": ("class_experts", "class_weights", "expert_head_logits", "expert_logits", "expert_sum", "mix_client_logits"),
    "steps.prototypes": ("Prototypes", "class_prototypes"),
    "steps.meta_step": ("MetaState", "init_meta", "meta_step", "mixture_logits"),
    "steps.distill_step": ("StudentState", "distill_step", "init_student", "synthetic_images", "with_label_prior"),
    "losses": (
        "binary_cross_entropy", "cross_entropy", "discriminator_loss", "distillation_loss", "generator_loss", "jensen_shannon",
        "midpoint_divergence",
    ),
    # clients mapped, arithmetic on stacked trees, keys
    "mapping": ("Plan", "for_each_client"),
    "trees": ("broadcast", "moving_average", "stack", "weighted_mean"),
    "rng": ("client_key", "key_at", "key_of"),
    # data and networks
    "data.partition": ("partition",),
    "models": ("build_classifier", "build_discriminator", "build_generator", "build_meta_model", "flax_classifier"),
    "types": (
        "Batch", "Classifier", "Dataset", "Discriminator", "Generator", "MetaModel", "Partition", "Series", "Splits", "Variables",
    ),
}  # fmt: skip
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mosaic_jax' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"mosaic_jax.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)

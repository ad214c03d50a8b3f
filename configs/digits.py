"""Mosaic on scikit-learn's handwritten digits (1,797 real images, no network): the quickstart.

Command:  mosaic-jax train --config configs/digits.py
Time:     not measured yet
Hardware: not measured yet
Result:   not measured yet
"""

from mosaic_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    FinetuneConfig,
    GeneratorConfig,
    MetaConfig,
    ModelConfig,
    PartitionConfig,
    PrototypesConfig,
    WarmupConfig,
)


def get_config() -> Config:
    """A narrow ResNet-18 and quarter-width generators: small enough for two CPU cores."""
    return Config(
        data=DataConfig(source="digits"),
        partition=PartitionConfig(kind="dirichlet_unbalanced", alpha=0.1, num_clients=10),
        model=ModelConfig(name="resnet18", width=8),
        warmup=WarmupConfig(num_rounds=30, num_local_steps=10, batch_size=32),
        generator=GeneratorConfig(num_steps=1000, batch_size=32, width=16),
        prototypes=PrototypesConfig(per_class=10),
        meta=MetaConfig(num_steps=250),
        distill=DistillConfig(num_steps=200, samples_per_client=32),
        finetune=FinetuneConfig(num_rounds=8),
        evaluation=EvaluationConfig(every_rounds=5),
    )

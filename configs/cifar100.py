"""Mosaic on CIFAR-100 at the size of the public protocol; needs an accelerator.

Command:  mosaic-jax train --config configs/cifar100.py --data-dir DIR
          the public code's behaviour: --preset reference
Time:     not measured yet
Hardware: not measured yet
Result:   not measured yet
"""

from mosaic_jax.config import (
    Config,
    DataConfig,
    DistillConfig,
    FinetuneConfig,
    GeneratorConfig,
    MetaConfig,
    ModelConfig,
    PartitionConfig,
    PrototypesConfig,
    WarmupConfig,
)


def get_config() -> Config:
    """ResNet-18, 10 clients, alpha 0.1, 1000 rounds of 20 local steps, 60 prototypes a class, mean pooling, distilling at 1e-5."""
    return Config(
        data=DataConfig(
            source="cifar100",
            augment="crop_flip",
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
        ),
        partition=PartitionConfig(kind="dirichlet_unbalanced", alpha=0.1, num_clients=10),
        model=ModelConfig(name="resnet18", width=64),
        warmup=WarmupConfig(num_rounds=1000, num_local_steps=20, batch_size=64),
        generator=GeneratorConfig(num_steps=10_000, batch_size=64, width=64),
        prototypes=PrototypesConfig(per_class=60),
        meta=MetaConfig(num_steps=250, pooling="mean"),
        distill=DistillConfig(num_steps=2500, samples_per_client=32, learning_rate=1e-5),
        finetune=FinetuneConfig(num_rounds=39),
    )

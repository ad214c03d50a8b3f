"""Mosaic on CIFAR-10 at the size of the public protocol; needs an accelerator.

Command:  mosaic-jax train --config configs/cifar10.py --data-dir DIR --set precision=bf16
          other heterogeneity: --set partition.alpha=0.01 distill.num_steps=1500 meta.num_steps=150, or partition.alpha=1
          the public code's behaviour: --preset reference
Time:     about 4 minutes, from the rates of a few rounds and steps of each stage; not run whole yet
Hardware: one NVIDIA H200, jax 0.11.2
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
    """ResNet-18, 10 clients, alpha 0.1, 300 rounds of 10 local steps, 39 rounds of fine-tune."""
    return Config(
        data=DataConfig(
            source="cifar10",
            augment="crop_flip",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        partition=PartitionConfig(kind="dirichlet_unbalanced", alpha=0.1, num_clients=10),
        model=ModelConfig(name="resnet18", width=64),
        warmup=WarmupConfig(num_rounds=300, num_local_steps=10, batch_size=64),
        generator=GeneratorConfig(num_steps=10_000, batch_size=64, width=64),
        prototypes=PrototypesConfig(per_class=10),
        meta=MetaConfig(num_steps=250),
        distill=DistillConfig(num_steps=2500, samples_per_client=32),
        finetune=FinetuneConfig(num_rounds=39),
    )

"""Mosaic on CIFAR-10 with a narrow ResNet-18 and fewer rounds: made for two CPU cores and less than an hour.

Command:  mosaic-jax train --config configs/cifar10_small.py --set data.source=folder:PATH
          (PATH holds train/CLASS/*.jpg|png and test/CLASS/*.jpg|png; or --data-dir DIR after
          `mosaic-jax prepare cifar10 --data-dir DIR`)
Time:     17 minutes beside other work
Hardware: 2 cores of an AMD EPYC, jax 0.10.2 on CPU
Result:   seed 0, CIFAR-10 (JPEG copy), with distill.label_prior=0 finetune.keep=last; test:
          global 30.3, mixture 37.2, student 37.3, finetuned 35.2 %
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
    """ResNet-18 of width 16, 10 clients, alpha 0.1, 30 rounds, quarter-width generators."""
    return Config(
        data=DataConfig(
            source="cifar10",
            augment="crop_flip",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        partition=PartitionConfig(kind="dirichlet_unbalanced", alpha=0.1, num_clients=10),
        model=ModelConfig(name="resnet18", width=16),
        warmup=WarmupConfig(num_rounds=30, num_local_steps=10, batch_size=32, client_learning_rate=0.05),
        generator=GeneratorConfig(num_steps=800, batch_size=32, width=16, learning_rate=5e-4, ema=0.98),
        prototypes=PrototypesConfig(per_class=10),
        meta=MetaConfig(num_steps=250, feed_forward_size=256),
        distill=DistillConfig(num_steps=150, samples_per_client=8, learning_rate=3e-4, schedule="cosine"),
        finetune=FinetuneConfig(num_rounds=5, client_learning_rate=5e-4),
        evaluation=EvaluationConfig(every_rounds=10),
    )

"""The configuration: frozen, validated dataclasses; named settings are in presets, files and overrides in config_io.

Imports no JAX: the command line answers argument errors before JAX is loaded.
"""

import dataclasses
from typing import Any

from mosaic_jax.config_checks import check_together
from mosaic_jax.registry import (
    FEDERATIONS,
    GENERATORS,
    META_MODELS,
    METHODS,
    NETWORKS,
    PARTITIONS,
    SOURCES,
    Registry,
    sections,
)
from mosaic_jax.sections import (
    CheckpointConfig,
    ClientsConfig,
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    FedAdamConfig,
    FedAvgMConfig,
    FedProxConfig,
    FedRSConfig,
    FinetuneConfig,
    GeneratorConfig,
    MappingConfig,
    MemoryConfig,
    MetaConfig,
    ModelConfig,
    PartitionConfig,
    PrototypesConfig,
    ScaffoldConfig,
    WarmupConfig,
)
from mosaic_jax.settings import ConfigError, checked, setting, settings

__all__ = [
    "PLACEMENT",
    "CheckpointConfig",
    "ClientsConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DistillConfig",
    "EvaluationConfig",
    "FedAdamConfig",
    "FedAvgMConfig",
    "FedProxConfig",
    "FedRSConfig",
    "FinetuneConfig",
    "GeneratorConfig",
    "MappingConfig",
    "MemoryConfig",
    "MetaConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrototypesConfig",
    "ScaffoldConfig",
    "WarmupConfig",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, completely: the same Config gives the same result on the same machine."""

    seed: int = setting(0, "every random draw derives from it", low=0, high=2**31 - 1)
    method: str = setting(
        "mosaic",
        "mosaic; fedavg_finetune: its warm-up and low-rate rounds, nothing between; a federated method: warmup + finetune rounds "
        "of it, all at the warm-up rate",
        choices=METHODS,
    )
    experts: str = setting(
        "auto",
        "class experts as weighted averages of client parameters, or of client logits; auto: parameters where all "
        "clients have the same network, whole",
        choices=("auto", "parameters", "logits"),
    )
    precision: str = setting(
        "float32",
        "of the image networks' convolutions; bf16 keeps parameters, statistics and losses float32 (for GPU and TPU)",
        choices=("float32", "bf16"),
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    partition: PartitionConfig = dataclasses.field(default_factory=PartitionConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    clients: ClientsConfig = dataclasses.field(default_factory=ClientsConfig)
    warmup: WarmupConfig = dataclasses.field(default_factory=WarmupConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    prototypes: PrototypesConfig = dataclasses.field(default_factory=PrototypesConfig)
    meta: MetaConfig = dataclasses.field(default_factory=MetaConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    fedprox: FedProxConfig = dataclasses.field(default_factory=FedProxConfig)
    fedrs: FedRSConfig = dataclasses.field(default_factory=FedRSConfig)
    fedavgm: FedAvgMConfig = dataclasses.field(default_factory=FedAvgMConfig)
    fedadam: FedAdamConfig = dataclasses.field(default_factory=FedAdamConfig)
    scaffold: ScaffoldConfig = dataclasses.field(default_factory=ScaffoldConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mapping: MappingConfig = dataclasses.field(default_factory=MappingConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    # Sections that were registered with a method, a network or another part: (name, section); read as config.NAME.
    extra: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        given = dict(self.extra)
        object.__setattr__(self, "extra", tuple((name, given.get(name) or kind()) for name, kind in sections().items()))
        for each in settings(self):
            section, _, leaf = each.name.rpartition(".")
            object.__setattr__(getattr(self, section) if section else self, leaf, checked(each))
        check_together(self)

    def __getattr__(self, name: str) -> Any:
        for section, values in self.__dict__.get("extra", ()):
            if section == name:
                return values
        raise AttributeError(f"{type(self).__name__} has no setting or section {name!r}")

    def section_of(self, name: str) -> Any:
        """The section that was registered with a name; None where there is none."""
        return dict(self.extra).get(name)

    @property
    def named(self) -> tuple[tuple[Registry, str], ...]:
        """What this configuration names, and in which registry."""
        return (
            (METHODS, self.method), (FEDERATIONS, self.federated), (NETWORKS, self.model.name),
            *((NETWORKS, text.partition(":")[0]) for text in self.clients.models),
            (GENERATORS, self.generator.name), (META_MODELS, self.meta.name),
            (PARTITIONS, self.partition.kind), (SOURCES, self.data.source.partition(":")[0]),
        )  # fmt: skip

    @property
    def federated(self) -> str:
        """The federated method of the rounds."""
        return self.method if self.method in FEDERATIONS else self.warmup.method

    @property
    def client_models(self) -> tuple[ModelConfig, ...]:
        """The network of each client, at full width."""
        found = tuple(_network(text, self.model.norm) for text in self.clients.models) or (self.model,)
        return tuple(found[client % len(found)] for client in range(self.partition.num_clients))

    @property
    def client_rates(self) -> tuple[float, ...]:
        """The width rate of each client."""
        num, rho = self.partition.num_clients, self.clients.rho
        return self.clients.rates or tuple(0.5 ** min(4, rho * (client + 1) // num) for client in range(num))

    @property
    def expert_space(self) -> str:
        """`experts`, auto resolved."""
        whole = len(set(self.client_models)) == 1 and min(self.client_rates) == 1
        return {"auto": "parameters" if whole else "logits"}.get(self.experts, self.experts)

    @property
    def experts_share_features(self) -> bool:
        """Whether the heads of all experts read the features of one network."""
        return len(set(self.client_models)) == 1 and (self.expert_space == "parameters" or min(self.client_rates) == 1)

    @property
    def meta_source(self) -> str:
        """`meta.source`, auto resolved."""
        return {"auto": "prototypes" if self.experts_share_features else "generated"}.get(self.meta.source, self.meta.source)


# Where and how the work is done, not what is computed: a run goes on with others than it began with.
PLACEMENT = (
    "data.dir", "mapping.client_chunk", "mapping.num_devices", "mapping.expert_chunk", "mapping.convolution", "memory.limit_gib",
    "memory.experts",
)  # fmt: skip


def _network(text: str, norm: str) -> ModelConfig:
    """`cnn:16` -> the network of that name and width, and this norm."""
    name, _, width = text.partition(":")
    if name not in NETWORKS or not width.isdecimal() or int(width) < 1:
        raise ConfigError(f"clients.models={text}: must be NAME:WIDTH as in cnn:16, NAME one of {', '.join(NETWORKS)}")
    return ModelConfig(name, int(width), norm)

"""The configuration: frozen, validated dataclasses; named settings are in presets, files and overrides in config_io.

Imports no JAX: the command line answers argument errors before JAX is loaded.
"""

import dataclasses

from mosaic_jax.sections import (
    FEDERATED,
    NETWORKS,
    WHOLE,
    WIDTH_NETWORKS,
    WIDTHS,
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
from mosaic_jax.settings import ConfigError, checked, setting, settings, show
from mosaic_jax.sources import unknown_source

__all__ = [
    "FEDERATED",
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
        "mosaic; fedavg_finetune: its warm-up and low-rate rounds, nothing between; others: warmup + finetune rounds of that "
        "federated method, all at the warm-up rate",
        choices=("mosaic", "fedavg_finetune", *FEDERATED),
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

    def __post_init__(self) -> None:
        for each in settings(self):
            section, _, leaf = each.name.rpartition(".")
            object.__setattr__(getattr(self, section) if section else self, leaf, checked(each))
        check_together(self)

    @property
    def federated(self) -> str:
        """The federated method of the rounds."""
        return self.method if self.method in FEDERATED else self.warmup.method

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


def check_together(config: Config) -> None:
    """Raises ConfigError, one line with the field, the value and what is valid, for settings that do not go together."""
    if complaint := unknown_source(config.data.source):
        raise ConfigError(f"data.source={config.data.source}: {complaint}")
    if 0.0 in config.data.std and any(config.data.std):
        raise ConfigError(f"data.std={show(config.data.std)}: must be above 0 in all channels, or 0,0,0 for the data set's own")
    if config.partition.kind == "table" and not config.partition.table:
        raise ConfigError("partition.table=: partition.kind=table needs a CSV file; name it with partition.table=FILE.csv")
    cohort, num_clients = config.warmup.clients_per_round, config.partition.num_clients
    if cohort > num_clients:
        raise ConfigError(
            f"warmup.clients_per_round={cohort}: must be at most partition.num_clients={num_clients}; use 0 for all of them"
        )
    strengths = config.distill.label_prior
    if not strengths or len(set(strengths)) < len(strengths):
        raise ConfigError(f"distill.label_prior={show(strengths)}: must be different strengths; use 0 for no prior")
    _check_clients(config)


def _check_scaffold(config: Config) -> None:
    """Raises ConfigError for a stage of rounds whose clients would not move."""
    stages = ("warmup", "finetune") if config.method != config.federated and config.finetune.num_rounds else ("warmup",)
    for stage in stages:
        if config.federated == "scaffold" and getattr(config, stage).client_learning_rate == 0:
            raise ConfigError(
                f"{stage}.client_learning_rate=0: scaffold takes the clients' gradients from their moves divided by it; "
                "set it above 0"
            )


def _check_batch_norm(config: Config) -> None:
    """Raises ConfigError where a method or a loss reads BatchNorm of networks that have none."""
    without = next((model for model in config.client_models if not model.has_batch_norm), None)
    if without is None:
        return
    kind = f"{without.name} with model.norm={without.norm}" if without.name in WIDTH_NETWORKS else without.name
    if config.federated == "fedbn":
        raise ConfigError(f"method=fedbn: {kind} has no BatchNorm to keep at the clients; use fedavg")
    if config.method == "mosaic" and config.generator.inversion_weight > 0:
        raise ConfigError(
            f"generator.inversion_weight={config.generator.inversion_weight:g}: {kind} has no BatchNorm statistics to hold images "
            "against; set it to 0"
        )


def _check_clients(config: Config) -> None:
    """Raises ConfigError for clients that differ in a way that the method, or their number, has no place for."""
    clients, num = config.clients, config.partition.num_clients
    rates, models = show(clients.rates), show(clients.models)
    if clients.rates and clients.rho:
        raise ConfigError(f"clients.rho={clients.rho}: clients.rates gives rates already; use one of the two")
    if clients.rates and len(clients.rates) != num:
        raise ConfigError(f"clients.rates={rates}: {len(clients.rates)} rates for partition.num_clients={num}; give one for each")
    if len(clients.models) > num:
        raise ConfigError(f"clients.models={models}: more networks than partition.num_clients={num}; give at most one for each")
    several = len(set(config.client_models)) > 1
    whole = next((model.name for model in config.client_models if model.name not in WIDTH_NETWORKS), None)
    if config.federated in WIDTHS and whole is not None:
        raise ConfigError(
            f"method={config.federated}: {whole} has no narrower forms to give to clients; use one of "
            f"{', '.join(WIDTH_NETWORKS)}, or a method of {', '.join(WHOLE)}"
        )
    _check_batch_norm(config)
    _check_scaffold(config)
    if min(config.client_rates) < 1 and config.federated not in WIDTHS:
        field = "method" if config.method in FEDERATED else "warmup.method"
        given = f"clients.rho={clients.rho}" if clients.rho else f"clients.rates={rates}"
        raise ConfigError(
            f"{given}: {field}={config.federated} gives every client the whole network; set {field} to one of {', '.join(WIDTHS)}"
        )
    if several and config.experts == "parameters":
        raise ConfigError(f"experts=parameters: clients.models={models} have no parameters in common; use experts=logits")
    if config.meta.source == "prototypes" and not config.experts_share_features:
        raise ConfigError("meta.source=prototypes: these clients' experts read no features in common; use meta.source=generated")

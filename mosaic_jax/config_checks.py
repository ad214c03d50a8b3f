"""Which settings of a configuration go together; those that do not are refused in one line. config: a `Config`."""

from typing import Any

from mosaic_jax.registry import FEDERATIONS, NETWORKS, having
from mosaic_jax.settings import ConfigError, show
from mosaic_jax.sources import unknown_source


def check_together(config: Any) -> None:
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


def _check_scaffold(config: Any) -> None:
    """Raises ConfigError for a stage of rounds whose clients would not move."""
    stages = ("warmup", "finetune") if config.method != config.federated and config.finetune.num_rounds else ("warmup",)
    for stage in stages:
        if config.federated == "scaffold" and getattr(config, stage).client_learning_rate == 0:
            raise ConfigError(
                f"{stage}.client_learning_rate=0: scaffold takes the clients' gradients from their moves divided by it; "
                "set it above 0"
            )


def _check_batch_norm(config: Any) -> None:
    """Raises ConfigError where a method or a loss reads BatchNorm of networks that have none."""
    without = next((model for model in config.client_models if not model.has_batch_norm), None)
    if without is None:
        return
    kind = f"{without.name} with model.norm={without.norm}" if NETWORKS.entry(without.name).batch_norm else without.name
    if config.federated == "fedbn":
        raise ConfigError(f"method=fedbn: {kind} has no BatchNorm to keep at the clients; use fedavg")
    if config.method == "mosaic" and config.generator.inversion_weight > 0:
        raise ConfigError(
            f"generator.inversion_weight={config.generator.inversion_weight:g}: {kind} has no BatchNorm statistics to hold images "
            "against; set it to 0"
        )


def _check_clients(config: Any) -> None:
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
    whole = next((model.name for model in config.client_models if not NETWORKS.entry(model.name).narrower), None)
    widths = having(FEDERATIONS, "narrower")
    if config.federated in widths and whole is not None:
        raise ConfigError(
            f"method={config.federated}: {whole} has no narrower forms to give to clients; use one of "
            f"{', '.join(having(NETWORKS, 'narrower'))}, or a method of {', '.join(having(FEDERATIONS, 'narrower', False))}"
        )
    _check_batch_norm(config)
    _check_scaffold(config)
    if min(config.client_rates) < 1 and config.federated not in widths:
        field = "method" if config.method in FEDERATIONS else "warmup.method"
        given = f"clients.rho={clients.rho}" if clients.rho else f"clients.rates={rates}"
        raise ConfigError(
            f"{given}: {field}={config.federated} gives every client the whole network; set {field} to one of {', '.join(widths)}"
        )
    if several and config.experts == "parameters":
        raise ConfigError(f"experts=parameters: clients.models={models} have no parameters in common; use experts=logits")
    if config.meta.source == "prototypes" and not config.experts_share_features:
        raise ConfigError("meta.source=prototypes: these clients' experts read no features in common; use meta.source=generated")

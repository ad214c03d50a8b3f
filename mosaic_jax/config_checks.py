"""What settings must be together: values that are each valid and do not fit one another."""

from typing import TYPE_CHECKING

from mosaic_jax.names import FEDERATED, WIDTHS
from mosaic_jax.settings import ConfigError, show
from mosaic_jax.sources import unknown_source

if TYPE_CHECKING:
    from mosaic_jax.config import Config


def check_together(config: "Config") -> None:
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
    _check_clients(config)


def _check_clients(config: "Config") -> None:
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

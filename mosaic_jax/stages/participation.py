"""Who takes part in the rounds of a federated stage: a function of the configuration alone, known before anything runs."""

import dataclasses
from typing import NamedTuple

import numpy as np

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.data.participation import draw_arrivals, draw_cohort, shares_of_cohort
from mosaic_jax.stages.groups import Group


class Round(NamedTuple):
    """Of each group: clients: i64[M_g], ascending, those drawn; begins: bool[M_g], who has not dropped out; arrives: bool[M_g],
    whose work counts."""

    clients: tuple[np.ndarray, ...]
    begins: tuple[np.ndarray, ...]
    arrives: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Participation:
    """The cohorts of a stage of num_rounds rounds, the last num_full_rounds of them rounds of all clients of the groups."""

    config: Config
    groups: tuple[Group, ...]
    stage: str
    num_rounds: int
    num_full_rounds: int

    @property
    def num_clients(self) -> int:
        """Clients that there are to draw from."""
        return sum(len(group.clients) for group in self.groups)

    @property
    def cohort_size(self) -> int:
        """Clients of a round that is not one of all."""
        return min(self.config.warmup.clients_per_round or self.num_clients, self.num_clients)

    @property
    def some_are_missing(self) -> bool:
        """Whether a client can fail to send what it was asked for."""
        return max(self.config.clients.dropout_rate, self.config.clients.straggler_rate) > 0

    @property
    def keeps_clients(self) -> bool:
        """Whether the last model of each client is held beyond its round: only where some round has all of them."""
        return self.cohort_size == self.num_clients or self.num_full_rounds > 0

    def round(self, index: int) -> Round:
        """Who takes part in one round. Raises ConfigError for a cohort smaller than the number of groups."""
        seed, clients = self.config.seed, [group.clients for group in self.groups]
        if index < self.num_rounds - self.num_full_rounds and self.cohort_size < self.num_clients:
            sizes = [len(group) for group in clients]
            try:
                shares = shares_of_cohort(sizes, self.cohort_size)
            except ValueError as error:
                raise ConfigError(
                    f"warmup.clients_per_round={self.cohort_size}: fewer than the {len(sizes)} groups of equal clients; use at "
                    f"least {len(sizes)}, or 0 for all"
                ) from error
            # One group has the draw of the stage, several one each.
            names = [self.stage] if len(sizes) == 1 else [f"{self.stage}/{place}" for place in range(len(sizes))]
            clients = [
                group[draw_cohort(size, share, seed=seed, stage=name, round_=index)]
                for group, size, share, name in zip(clients, sizes, shares, names, strict=True)
            ]
        rates = (self.config.clients.dropout_rate, self.config.clients.straggler_rate)
        everyone = self.config.partition.num_clients
        begins, arrives = np.ones((2, everyone), bool)
        if self.some_are_missing:
            begins, arrives = draw_arrivals(everyone, *rates, seed=seed, stage=self.stage, round_=index)
        return Round(tuple(clients), tuple(begins[own] for own in clients), tuple(arrives[own] for own in clients))

    def took_part(self) -> np.ndarray:
        """The clients, ascending, whose work arrived in any round."""
        if not self.some_are_missing and self.keeps_clients:
            return np.sort(np.concatenate([group.clients for group in self.groups]))
        seen = np.zeros(self.config.partition.num_clients, bool)
        for index in range(self.num_rounds):
            round_ = self.round(index)
            for clients, arrives in zip(round_.clients, round_.arrives, strict=True):
                seen[clients[arrives]] = True
        return np.flatnonzero(seen)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each group, how many clients began and how many arrived, over all rounds: i64[G], i64[G]."""
        rounds = [self.round(index) for index in range(self.num_rounds)]
        begun = [[own.sum() for own in round_.begins] for round_ in rounds]
        arrived = [[own.sum() for own in round_.arrives] for round_ in rounds]
        return tuple(np.array(each, np.int64).reshape(-1, len(self.groups)).sum(axis=0) for each in (begun, arrived))

    def notices(self, first: int, stop: int) -> list[str]:
        """What is to be said of rounds first..stop-1: those in which no client's work arrives, for an architecture or at all."""
        return [
            f"{self.stage}: round {index}: the work of no client arrived; the global model stays as it was"
            for index in range(first, stop)
            if self.some_are_missing and not any(arrives.any() for arrives in self.round(index).arrives)
        ]

"""The rows of a comparison: each configuration with each method, the controls of Mosaic, and which of their stages are equal.

Imports no JAX, so that every argument error is answered at once.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import flatten, resolve_seeds, with_values
from mosaic_jax.registry import METHODS, sections

# What a fair table of Mosaic needs beside it: its federated method with the same extra rounds, the low-rate rounds alone, a teacher
# that is the uniform ensemble of the clients, experts without the meta model, and a teacher without the prior of an image's client.
CONTROLS: dict[str, dict[str, Any]] = {
    "rounds": {},  # the method that warmup.method names
    "fedavg_finetune": {"method": "fedavg_finetune"},
    "uniform": {"distill.teacher": "uniform"},
    "expert_sum": {"distill.teacher": "expert_sum"},
    "no_prior": {"distill.label_prior": (0.0,)},
}

# Settings that matter to the methods only as far as they declare it (`Entry.reads`): from the stage on that names them, or nowhere.
# All others matter to every stage, and to a method that declares nothing all do.
LATER = (
    "warmup.method", "fedprox", "fedrs", "fedavgm", "fedadam", "scaffold", "prototypes", "generator", "experts", "meta", "distill",
    "finetune",
)  # fmt: skip


class Row(NamedTuple):
    """One line of a comparison; label: its name and its directory's; control: a key of CONTROLS, empty for a row that was asked
    for; configs: one for each seed, ascending; protocol: the stem of the configuration file."""

    label: str
    control: str
    configs: tuple[Config, ...]
    protocol: str


def rows_of(
    config_files: Sequence[str], methods: Sequence[str], preset: str | None, assignments: Sequence[str], seeds: str, controls: bool
) -> tuple[Row, ...]:
    """Every configuration file with every method (its own where none is named), in the order given, then Mosaic's controls.

    methods: values of `method`, or `mosaic:NAME` for Mosaic whose warm-up is the method NAME. A control that equals a row, or
    another control, is left out. Raises ConfigError for what `resolve_seeds` refuses and for rows that would share a name.
    """
    named = next((assignment for assignment in assignments if assignment.startswith("method=")), None)
    if methods and named:
        raise ConfigError(f"--methods {' '.join(methods)} together with --set {named}: give one of the two")
    rows, bases = [], []
    for file in config_files:
        for method in methods or ("",):
            configs = _resolved(file, method, preset, assignments, seeds)
            stem, warmup = Path(file).stem, method.partition(":")[2]
            rows.append(Row("-".join(filter(None, (stem, method.replace(":", "-")))), "", configs, stem))
            bases.append("-".join(filter(None, (stem, warmup))))
    _check_labels(rows)
    if controls:
        for row, base in zip(tuple(rows), bases, strict=True):
            rows += _controls(row, base, rows) if row.configs[0].method == "mosaic" else ()
        _check_labels(rows)
    return tuple(rows)


def _resolved(file: str, method: str, preset: str | None, assignments: Sequence[str], seeds: str) -> tuple[Config, ...]:
    name, _, warmup = method.partition(":")
    chosen = [f"method={name}"] * bool(method) + [f"warmup.method={warmup}"] * (":" in method)
    try:
        return resolve_seeds(file, preset, [*assignments, *chosen], None, seeds)
    except ConfigError as error:
        asked = f"--methods {method}: " if str(error).startswith(("method", "warmup.method")) else ""
        raise ConfigError(f"{asked}{error}") from error


def _controls(row: Row, base: str, others: Sequence[Row]) -> list[Row]:
    """The controls of a row of Mosaic that are none of the others."""
    known = {identity(other.configs[0]) for other in others}
    found = []
    for name, values in CONTROLS.items():
        label = f"{base}-{name}"
        if name == "rounds":
            federated = row.configs[0].federated
            values, label = {"method": federated}, f"{base.removesuffix(f'-{federated}')}-{federated}"
        try:
            configs = tuple(with_values(config, values) for config in row.configs)
        except ConfigError as error:
            raise ConfigError(f"{row.label}: its control {name} is not possible: {error}; --no-controls leaves it out") from error
        if identity(configs[0]) not in known:
            found.append(Row(label, name, configs, row.protocol))
    return found


def _check_labels(rows: Sequence[Row]) -> None:
    labels = [row.label for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"--configs: two rows would be called {label}; name each file otherwise, and each method once")


def stage_settings(config: Config) -> dict[str, dict[str, Any]]:
    """Of each stage the method and every setting that it or a stage before it depends on, `auto` resolved, the seed among them.

    Empty for a method that does not say what its stages read: they are nobody else's.
    """
    reads = METHODS.entry(config.method).reads or {}
    values, found = flatten(config) | {"experts": config.expert_space, "meta.source": config.meta_source}, {}
    # A section of a plugin's that no stage names matters to all.
    later = {*LATER, *(name for names in reads.values() for name in names if name.partition(".")[0] in sections())}
    counted = {name: value for name, value in values.items() if not _of(name, later)}
    for stage, names in reads.items():
        names = (*names, config.federated)  # and the section of the federated method, where it has one
        counted = counted | {name: value for name, value in values.items() if _of(name, names)}
        found[stage] = counted
    return found


def stage_keys(config: Config) -> dict[str, str]:
    """A hash for each stage over its settings: equal keys, equal stages."""
    return {stage: _hash(values) for stage, values in stage_settings(config).items()}


def settings_that_count(config: Config) -> dict[str, Any]:
    """Every setting that the result of a run depends on."""
    return next(reversed(stage_settings(config).values()), flatten(config))


def identity(config: Config) -> str:
    """Equal for configurations that compute the same."""
    return _hash(settings_that_count(config))


def _of(name: str, names: Collection[str]) -> bool:
    """Whether a setting is one of `names`, or of a section that is."""
    return name in names or name.partition(".")[0] in names


def _hash(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

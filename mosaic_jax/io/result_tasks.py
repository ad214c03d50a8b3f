"""Result files of runs, put together: runs of one task side by side, runs that differ in nothing but their seeds in one row.

A task is what all its rows share: data set, digest of the images and labels, protocol, alpha, and the settings of TASK.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mosaic_jax.config import PLACEMENT, Config, ConfigError
from mosaic_jax.config_io import with_values
from mosaic_jax.data.named import with_own_settings
from mosaic_jax.io import run_record
from mosaic_jax.presets import PRESETS
from mosaic_jax.rows import settings_that_count
from mosaic_jax.settings import show

FILES = "*-seed*.json"
TASK = ("data.image_size", "data.validation_fraction", "partition", "clients", "model")
# Of these a result does not depend, or the digest of the data says it; the seed tells the runs of a row apart.
NOT_COUNTED = {*PLACEMENT, "seed", "data.source", "checkpoint", "mapping.segment_steps"}
# What the same run has again, wherever it is done.
RESULTS = ("final_test", "student_test", "teacher_test", "validation", "bytes_up", "bytes_down")

Values = Mapping[str, Any]


class Row(NamedTuple):
    """Runs that differ in their seeds alone; label: the row's name and, beside others of that name, what sets it apart."""

    label: str
    name: str
    runs: dict[int, Values]


class Task(NamedTuple):
    """The rows that may be compared; title: its names and, beside others of those names, what sets it apart."""

    title: str
    rows: list[Row]


class _Run(NamedTuple):
    path: Path
    record: Values
    task: Values
    row: Values


def read_tasks(places: Iterable[Path]) -> list[Task]:
    """The tasks of all result files below some directories, by name, each with its rows by label.

    Raises ConfigError, one line, for a place that is no directory or that holds no result file, for a file that is none, and for
    two files of one run with different results.
    """
    tasks: dict[str, list[_Run]] = {}
    for path in files_below(places):
        run = _read(path)
        tasks.setdefault(_key(_names(run), run.task), []).append(run)
    runs = sorted(tasks.values(), key=lambda of: (_names(of[0]), _key(of[0].task)))
    titles = [_title(of[0].record) for of in runs]
    shared = [[other for other, title in zip(runs, titles, strict=True) if title == own] for own in titles]
    apart = [_apart({"data": of[0].record["data_digest"], **of[0].task},
                    [{"data": other[0].record["data_digest"], **other[0].task} for other in others])
             for of, others in zip(runs, shared, strict=True)]  # fmt: skip
    return [Task(_beside(title, what), _rows(of)) for title, what, of in zip(titles, apart, runs, strict=True)]


def files_below(places: Iterable[Path]) -> list[Path]:
    """The result files below some directories, each once."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"leaderboard {place}: is no directory; name one that holds result files of `mosaic-jax compare`")
        below = sorted(place.rglob(FILES))
        if not below:
            raise ConfigError(f"leaderboard {place}: holds no {FILES}; name a directory that `mosaic-jax compare` wrote results to")
        found |= {path.resolve(): path for path in below}
    return list(found.values())


def _read(path: Path) -> _Run:
    record = run_record.read(path)
    try:
        config = with_values(Config(), record["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; name files that this version of `mosaic-jax compare` wrote") from error
    values = _that_count(config)
    task = {name: value for name, value in values.items() if _of(name, TASK)}
    return _Run(path, record, task, {name: value for name, value in values.items() if name not in task})


def _that_count(config: Config) -> dict[str, Any]:
    """The settings that count, as a data set of that name sets them, but NOT_COUNTED."""
    named = with_values(config, {f"data.{name}": value for name, value in vars(with_own_settings(config.data)).items()})
    return {name: value for name, value in settings_that_count(named).items() if not _of(name, NOT_COUNTED)}


def _of(name: str, names: Iterable[str]) -> bool:
    return name in names or name.partition(".")[0] in names


def _names(run: _Run) -> tuple[Any, ...]:
    return tuple(run.record[name] for name in ("dataset", "protocol", "alpha", "data_digest"))


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _title(record: Values) -> str:
    names = dict.fromkeys((record["dataset"], record["protocol"]))
    return ", ".join([*names, f"alpha {record['alpha']:g}"])


def _beside(name: str, what: str) -> str:
    return f"{name} ({what})" if what else name


def _apart(own: Values, others: Sequence[Values]) -> str:
    """`name=value` of everything in which something differs from any of the others."""
    return ", ".join(
        f"{name}={show(value)}" for name, value in own.items() if any(other.get(name, value) != value for other in others)
    )


def _rows(runs: Sequence[_Run]) -> list[Row]:
    """The rows of a task by label: a row for each name and configuration."""
    found: dict[tuple[str, str], dict[int, _Run]] = {}
    for run in runs:
        of_row = found.setdefault((run.record["row"], _key(run.row)), {})
        of_row[run.record["seed"]] = _same(of_row.get(run.record["seed"], run), run)
    names: dict[str, list[dict[int, _Run]]] = {}
    for (name, _), of_row in found.items():
        names.setdefault(name, []).append(of_row)
    rows = [
        Row(label, name, {seed: of_row[seed].record for seed in sorted(of_row)})
        for name, variants in names.items()
        for label, of_row in zip(_labels(name, [next(iter(of.values())).row for of in variants]), variants, strict=True)
    ]
    return sorted(rows, key=lambda row: row.label)


def _same(known: _Run, run: _Run) -> _Run:
    """The first of two files of one run; raises ConfigError where their results differ."""
    differing = [f"{of}={known.record[of]}, not {run.record[of]}" for of in RESULTS if known.record[of] != run.record[of]]
    if differing:
        raise ConfigError(
            f"{known.path} and {run.path}: are of the same run, row {run.record['row']} and seed {run.record['seed']}, with other "
            f"results ({differing[0]}); leave one of them out"
        )
    return known


def _labels(name: str, variants: Sequence[Values]) -> list[str]:
    """What sets the configurations of one name apart: a preset where all of that holds for one of them alone, else settings."""
    if len(variants) == 1:
        return [name]
    presets = [_preset(of) for of in variants]
    presets = [preset if presets.count(preset) == 1 else "" for preset in presets]
    rest = [of for of, preset in zip(variants, presets, strict=True) if not preset]
    return [_beside(name, f"preset {preset}" if preset else _apart(of, rest)) for of, preset in zip(variants, presets, strict=True)]


def _preset(values: Values) -> str:
    """The preset with most settings that a configuration has all of, as far as they count for it; empty where it has none."""
    holding = [
        name for name, preset in PRESETS.items() if preset and all(values.get(each, of) == of for each, of in preset.items())
    ]
    return max(holding, key=lambda name: len(PRESETS[name]), default="")

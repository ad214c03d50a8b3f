"""Where a run's Config comes from and goes to: config files, presets, `--set` overrides, JSON, help.

Imports no JAX, so that every argument error is answered at once.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mosaic_jax import registry
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.json_file import read_json
from mosaic_jax.plugins import RECORDS, check_recorded, plugins_of, unused_sections
from mosaic_jax.presets import PRESETS
from mosaic_jax.python_files import run_file
from mosaic_jax.settings import Setting, item_types, settings, show, valid_values
from mosaic_jax.sources import absolute, path_of

# Settings that are no part of the hash at their default: configurations from before there were any keep theirs.
YOUNGER = {"generator.name": "dcgan", "meta.name": "attention"}


def load_config_file(path: str | Path) -> Config:
    """The Config that `get_config()` of a Python file returns; raises ConfigError naming the file if there is none.

    The file is run as Python runs a script: it may import its neighbours, plugins among them.
    """
    made = run_file(Path(path), "config file", "mosaic_jax_config", "get_config")
    if isinstance(made, types.ModuleType):
        raise ConfigError(f"config file {path}: has no get_config(); it must define `def get_config() -> Config:`")
    if not isinstance(made, Config):
        raise ConfigError(f"config file {path}: get_config() returned a {type(made).__name__}, not a mosaic_jax.config.Config")
    return made


def resolve(
    config_file: str | Path, preset: str | None = None, assignments: Iterable[str] = (), seed: str | int | None = None
) -> Config:
    """The Config of a run: the file, then the preset, then each `NAME=VALUE`, then the seed."""
    config = load_config_file(config_file)
    if preset is not None:
        config = apply_preset(config, preset)
    config = apply_overrides(config, assignments)
    return config if seed is None else apply_overrides(config, [f"seed={seed}"])


def resolve_seeds(
    config_file: str | Path, preset: str | None, assignments: Iterable[str], seed: str | None, seeds: str
) -> tuple[Config, ...]:
    """The Config of each seed of `--seeds 0,1,2`, ascending; raises ConfigError for a seed that is none or given twice."""
    assignments = list(assignments)
    other = f"--seed {seed}" if seed is not None else next((f"--set {a}" for a in assignments if a.startswith("seed=")), None)
    if other is not None:
        raise ConfigError(f"--seeds {seeds} together with {other}: give one of the two")
    config = resolve(config_file, preset, assignments)
    try:
        configs = [apply_overrides(config, [f"seed={part}"]) for part in seeds.split(",")]
    except ConfigError as error:
        raise ConfigError(f"--seeds {seeds}: {error}") from error
    numbers = [config.seed for config in configs]
    for number in numbers:
        if numbers.count(number) > 1:
            raise ConfigError(f"--seeds {seeds}: {number} is given more than once; name each seed once")
    return tuple(sorted(configs, key=lambda config: config.seed))


def apply_preset(config: Config, name: str) -> Config:
    """`config` with the settings of a preset; raises ConfigError for an unknown preset."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name}: must be one of {', '.join(PRESETS)}" + did_you_mean(name, PRESETS))
    return with_values(config, PRESETS[name])


def apply_overrides(config: Config, assignments: Iterable[str]) -> Config:
    """`config` after each `NAME=VALUE`, the value read by the field's type; later ones win."""
    known = _known(config)
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write NAME=VALUE, as in warmup.num_rounds=30")
        values[name] = parse(find(name, known), text)
    return with_values(config, values)


def find(name: str, known: Mapping[str, Setting]) -> Setting:
    """The setting called `name`; raises ConfigError with the nearest names if there is none."""
    if name in known:
        return known[name]
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        raise ConfigError(f"{name} is a section, no setting; its settings are {', '.join(inside)}")
    raise ConfigError(f"{name} is no setting" + (did_you_mean(name, known) or "; `mosaic-jax config` lists them"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`: names with the same last part, else the most similar one; empty if nothing is near."""
    known = list(known)
    near = [other for other in known if "." not in name and other.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, known, 1)
    if not near:
        leaves: dict[str, str] = {}
        for other in known:
            leaves.setdefault(other.rpartition(".")[2], other)
        near = [leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, 1)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def parse(setting: Setting, text: str) -> Any:
    """The value that `text` means for a setting; raises ConfigError when it has another type."""

    def scalar(kind: type, part: str) -> Any:
        if kind is str:
            return part
        if kind is bool:
            return {"true": True, "false": False}[part.strip().lower()]
        return kind(part)

    try:
        if not typing.get_args(setting.type):
            return scalar(setting.type, text)
        text = text.strip().strip("()[]")
        parts = [part.strip() for part in text.split(",")] if text else []
        return tuple(scalar(kind, part) for kind, part in zip(item_types(setting, len(parts)), parts, strict=True))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{setting.name}={text}: must be {valid_values(setting)}") from error


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with other values under dotted names; raises ConfigError for an unknown name or a value that is not valid."""
    known = _known(config)
    changes: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = find(name, known).name.rpartition(".")
        (sections.setdefault(section, {}) if section else changes)[leaf] = value
    fields = {field.name for field in dataclasses.fields(config)}
    registered = {name: kind() for name, kind in registry.sections().items()} | dict(config.extra)
    for section, inner in sections.items():
        of = changes if section in fields else registered
        of[section] = dataclasses.replace(getattr(config, section) if section in fields else registered[section], **inner)
    return dataclasses.replace(config, **changes, extra=tuple(registered.items()))


def _known(config: Config) -> dict[str, Setting]:
    """Every setting by name, those too that were registered after the configuration was made."""
    return {setting.name: setting for setting in settings(dataclasses.replace(config))}


def with_absolute_paths(config: Config) -> Config:
    """`config` with the paths of its data, and of partition.table, as they are from here."""
    values: dict[str, Any] = {}
    if (path := path_of(config.data.source)) is not None:
        values["data.source"] = f"{config.data.source.partition(':')[0]}:{path}"
    named = {"data.dir": config.data.dir, "partition.table": config.partition.table}
    return with_values(config, values | {name: str(absolute(value)) for name, value in named.items() if value})


def flatten(config: Config) -> dict[str, Any]:
    """Dotted names to values, in the order of declaration; without registered sections of what the configuration does not name."""
    unused = unused_sections(config)
    return {each.name: each.value for each in settings(config) if each.name.partition(".")[0] not in unused}


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries that JSON can hold; `from_dict` reads them back.

    What plugins bring is there where the configuration names it: their sections, and under "plugins" their files and digests.
    """
    values = dataclasses.asdict(config)
    unused = unused_sections(config)
    values |= {name: section for name, section in values.pop("extra") if name not in unused}
    if plugins := plugins_of(config):
        values["plugins"] = [plugin._asdict() for plugin in plugins]
    return json.loads(json.dumps(values))


def from_dict(values: Mapping[str, Any]) -> Config:
    """The Config of `to_dict`'s dictionaries; a missing name keeps its default, an unknown one raises ConfigError."""
    dotted: dict[str, Any] = {}
    for name, value in values.items():
        if name == "plugins":
            continue
        if isinstance(value, Mapping):
            dotted |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            dotted[name] = value
    return with_values(Config(), dotted)


def save_json(config: Config, path: Path) -> None:
    """Writes `config` to a JSON file."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


def load_json(path: Path) -> Config:
    """The Config of a run directory's config.json; raises ConfigError if the file cannot be read as one, or a plugin that it needs
    is missing or another one."""
    values = read_json(path, {"plugins?": RECORDS}, "restore the file, or name another run")
    try:
        check_recorded(values.get("plugins") or ())
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_hash(config: Config) -> str:
    """16 hexadecimal digits that change with any setting and with what a plugin's file holds, wherever that is."""
    values = to_dict(config)
    for name, default in YOUNGER.items():
        section, _, leaf = name.partition(".")
        if values[section][leaf] == default:
            del values[section][leaf]
    for plugin in values.get("plugins", ()):
        del plugin["path"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Config, new: Config, leave_out: Collection[str] = ()) -> list[str]:
    """`name=old, not new` for every setting, but those left out, in which two configurations differ."""
    one, other = ({each.name: each.value for each in settings(config)} for config in (old, new))
    names = [name for name in one if name in flatten(old) | flatten(new) and name not in leave_out]
    return [f"{name}={show(one[name])}, not {show(other[name])}" for name in names if one[name] != other[name]]

"""Methods, networks and other parts of a user's own: registered in a Python file, chosen by name like those that are built in.

A file says `mosaic_jax.register_method("mine", build, MySettings)`; it is named by `--plugin`, imported by the configuration file,
or found by the entry point group `mosaic_jax.plugins`. Imports no JAX.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import keyword
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.json_file import TEXT
from mosaic_jax.python_files import one_line, run_file
from mosaic_jax.registry import (
    FEDERATIONS,
    GENERATORS,
    META_MODELS,
    METHODS,
    NETWORKS,
    PARTITIONS,
    REGISTRIES,
    ROUNDS,
    SOURCES,
    Entry,
    Plugin,
    Reads,
    Registry,
    sections,
)
from mosaic_jax.settings import KINDS

GROUP = "mosaic_jax.plugins"
RECORDS = [{"path": TEXT, "digest": TEXT}]
Build = Callable[..., Any]


def register_method(name: str, build: Build, settings: type | None = None, *, reads: Reads | None = None) -> None:
    """A method: `build(problem, federation)` -> its stages, the last of which hands over a model.

    federation: the hooks of `warmup.method`. settings: a frozen dataclass of `mosaic_jax.setting`s, the section `name` of the
    configuration. reads: {stage: settings or sections that matter from it on}, so that comparisons share stages; None shares none.
    Raises ConfigError for a name that is taken and for settings that are none.
    """
    _register(METHODS, name, Entry(build, settings, _caller(), reads=reads))


def register_federation(name: str, build: Build, settings: type | None = None) -> None:
    """A federated method: `build(problem)` -> Federation, for `warmup.method` and, by its rounds alone, for `method`."""
    plugin = _caller()
    _register(FEDERATIONS, name, Entry(build, settings, plugin))
    _register(METHODS, name, dataclasses.replace(ROUNDS, plugin=plugin, built_in=False))


def register_network(name: str, build: Build, settings: type | None = None, *, batch_norm: bool = False) -> None:
    """A network of clients and student: `build(config.model, num_classes, *, image_size, precision, settings)` -> Classifier.

    batch_norm: whether it has BatchNorm, whose statistics its `input_statistics` gives.
    """
    _register(NETWORKS, name, Entry(build, settings, _caller(), batch_norm=batch_norm))


def register_generator(name: str, build: Build, settings: type | None = None) -> None:
    """A generator: `build(config.generator, *, image_size, precision, settings)` -> Generator."""
    _register(GENERATORS, name, Entry(build, settings, _caller()))


def register_meta_model(name: str, build: Build, settings: type | None = None) -> None:
    """A meta model: `build(config.meta, num_classes, num_experts, *, settings)` -> MetaModel."""
    _register(META_MODELS, name, Entry(build, settings, _caller()))


def register_partition(name: str, build: Build, settings: type | None = None) -> None:
    """A partition: `build(labels, config.partition, seed, *, settings)` -> the indices of each client's images, i64[n]."""
    _register(PARTITIONS, name, Entry(build, settings, _caller()))


def register_source(name: str, build: Build, settings: type | None = None) -> None:
    """A source of images: `build(image_size, *, settings)` -> Dataset of images u8[N, image_size, image_size, 3]."""
    _register(SOURCES, name, Entry(build, settings, _caller()))


def _caller() -> Plugin | None:
    """The file that called a function of this module; None for a line typed in."""
    path = Path(sys._getframe(2).f_globals.get("__file__") or "")
    return Plugin(str(path.absolute()), _digest(path)) if path.is_file() else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _register(registry: Registry, name: str, entry: Entry) -> None:
    """A new row; a file that is run again finds its own there, and one that has changed since replaces it."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise ConfigError(f"name {name!r}: must be a lower-case Python name, as in my_method")
    if name in registry:
        there = registry.entry(name)
        if there.built_in or (there.plugin and entry.plugin and there.plugin.path != entry.plugin.path):
            by = f"registered by {there.plugin.path}" if there.plugin else "built in"
            raise ConfigError(f"name {name}: is {by} already; choose another")
        if there.plugin and entry.plugin and there.plugin.digest == entry.plugin.digest:
            return
    if entry.settings is not None:
        _check_section(registry, name, entry.settings)
    registry.add(name, entry)


def _check_section(registry: Registry, name: str, kind: type) -> None:
    """Raises ConfigError where a class is no section of settings, or another section has its name."""
    others = [other.entry(name).settings for other in REGISTRIES if other is not registry and name in other]
    if name in {field.name for field in dataclasses.fields(Config)} or any(others):
        raise ConfigError(f"name {name}: is a section of the configuration already; choose another")
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"settings of {name}: must be a class under @dataclasses.dataclass(frozen=True)")
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        kinds = typing.get_args(types[field.name]) if typing.get_origin(types[field.name]) is tuple else (types[field.name],)
        if "help" not in field.metadata or not kinds or not set(kinds) - {...} <= KINDS.keys():
            raise ConfigError(
                f"settings of {name}: {field.name} must be a number, text, true or false, or a tuple of one of them, made by "
                "mosaic_jax.setting(default, help)"
            )


def load_plugin(path: str | Path) -> None:
    """Runs a file that registers parts, once; raises ConfigError naming it where that fails or nothing is registered."""
    path = Path(path)
    if path.is_file() and _digest(path) in {plugin.digest for plugin in _loaded()}:
        return
    run_file(path, "plugin", f"mosaic_jax_plugin_{path.stem}")
    if str(path.absolute()) not in {plugin.path for plugin in _loaded()}:
        raise ConfigError(f"plugin {path}: registers nothing; call mosaic_jax.register_method or another register function in it")


def load_plugins(paths: Iterable[str | Path] = ()) -> None:
    """Loads the plugins that are installed as entry points, and these files."""
    _load_installed()
    for path in paths:
        load_plugin(path)


@functools.cache
def _load_installed() -> None:
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # whatever an installed plugin raises is its error
            raise ConfigError(f"plugin {point.name} ({point.value}): {type(error).__name__}: {one_line(error)}") from error


def _loaded() -> set[Plugin]:
    rows = (registry.entry(name).plugin for registry in REGISTRIES for name in registry)
    return {plugin for plugin in rows if plugin is not None}


def plugins_of(config: Config) -> list[Plugin]:
    """The files that registered what a configuration names, by path."""
    found = {registry.entry(name).plugin for registry, name in config.named if name in registry}
    return sorted(plugin for plugin in found if plugin is not None)


def unused_sections(config: Config) -> set[str]:
    """Registered sections of parts that a configuration does not name: they matter to nothing that it does."""
    return set(sections()) - {name for _, name in config.named}


def check_recorded(records: Iterable[Mapping[str, str]]) -> None:
    """Raises ConfigError unless every recorded plugin, path and digest, is loaded and the same as then."""
    for record in records:
        path, loaded = Path(record["path"]), _loaded()
        if record["digest"] in {plugin.digest for plugin in loaded}:
            continue
        if any(path.name == Path(plugin.path).name for plugin in loaded):
            raise ConfigError(f"plugin {path} has changed since this run began; restore it, or name another run directory")
        gone = "" if path.is_file() else ", which is no longer there"
        raise ConfigError(f"needs the plugin {path}{gone}; name it by --plugin")

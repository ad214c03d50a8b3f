"""The registries: what a setting may name, built in or of a user's own file.

Imports no JAX: what is built in is imported when it is used.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

Reads = Mapping[str, tuple[str, ...]]


class Plugin(NamedTuple):
    """The file that registered something: its absolute path and the SHA-256 of its bytes."""

    path: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a registry.

    build: the function, or `module:name` of one that is built in. settings: the class of its own section of the configuration,
    whose name is the row's. plugin: the file that registered it, None where there is none. reads: of a method, which settings
    matter to it from which stage on, as `rows.stage_settings` has it; None: all matter to all stages. narrower: a federated method
    that gives narrower clients some channels, or a network that has such forms. batch_norm: a network with BatchNorm.
    """

    build: Callable[..., Any] | str
    settings: type | None = None
    plugin: Plugin | None = None
    reads: Reads | None = None
    narrower: bool = False
    batch_norm: bool = False
    built_in: bool = False


class Registry(MutableMapping[str, Callable[..., Any]]):
    """Name -> function, in the order of registration."""

    def __init__(self, rows: Mapping[str, Entry]) -> None:
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        build = self._rows[name].build
        if isinstance(build, str):
            module, _, function = build.partition(":")
            build = getattr(importlib.import_module(f"mosaic_jax.{module}"), function)
        return build

    def __setitem__(self, name: str, build: Callable[..., Any]) -> None:
        self._rows[name] = dataclasses.replace(self._rows.get(name, Entry(build)), build=build)

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def entry(self, name: str) -> Entry:
        """The row of a name."""
        return self._rows[name]

    def add(self, name: str, entry: Entry) -> None:
        """A new row, or another in the place of one."""
        self._rows[name] = entry


def _built_in(build: str, **declared: Any) -> Entry:
    return Entry(build, built_in=True, **declared)


def _federated(build: str, **declared: Any) -> Entry:
    return _built_in(f"methods.{build}:{build}", **declared)


# The hooks of a round: build(problem) -> Federation.
FEDERATIONS = Registry({
    "fedavg": _federated("fedavg"),
    "fedprox": _federated("fedprox"),
    "fedbn": _federated("fedbn"),
    "fedrs": _federated("fedrs"),
    "fedavgm": _federated("fedavgm"),
    "fedadam": _federated("fedadam"),
    "scaffold": _federated("scaffold"),
    "heterofl": _federated("heterofl", narrower=True),
    "fedrolex": _federated("fedrolex", narrower=True),
    "federated_dropout": _federated("federated_dropout", narrower=True),
})  # fmt: skip

# A federated method by itself is its rounds.
ROUNDS = _built_in("methods.rounds:rounds", reads={"warmup": ("finetune.num_rounds",)})

# The stages of a run: build(problem, federation of warmup.method) -> tuple[Stage, ...].
METHODS = Registry({
    "mosaic": _built_in("methods.mosaic:mosaic", reads={
        "warmup": ("warmup.method", "prototypes", "meta.source"), "auxiliary": ("generator",), "generators": (),
        "experts": ("experts",), "meta": ("meta",), "distill": ("distill",), "finetune": ("finetune",),
    }),
    "fedavg_finetune": _built_in(
        "methods.fedavg_finetune:fedavg_finetune", reads={"warmup": ("warmup.method",), "finetune": ("finetune",)}
    ),
    **dict.fromkeys(FEDERATIONS, ROUNDS),
})  # fmt: skip

_RESNET = _built_in("models:resnet_classifier", narrower=True, batch_norm=True)

# Of clients and student: build(config.model, num_classes, *, image_size, precision, settings) -> Classifier; one that has narrower
# forms takes rate and scaler too.
NETWORKS = Registry({
    "cnn": _built_in("models:cnn_classifier", narrower=True, batch_norm=True),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _RESNET),
    "vit": _built_in("models:vit_classifier"),
})  # fmt: skip

# build(config.generator, *, image_size, precision, settings) -> Generator.
GENERATORS = Registry({"dcgan": _built_in("models:dcgan_generator")})

# build(config.meta, num_classes, num_experts, *, settings) -> MetaModel.
META_MODELS = Registry({"attention": _built_in("models:attention_meta_model")})

# Who holds which images: build(labels, config.partition, seed, *, table, rejected, settings) -> Partition.
PARTITIONS = Registry({
    "iid": _built_in("data.partition:iid_partition"),
    "dirichlet_unbalanced": _built_in("data.partition:dirichlet_unbalanced_partition"),
    "dirichlet_balanced": _built_in("data.partition:dirichlet_balanced_partition"),
    "shards": _built_in("data.partition:shards_partition"),
    "quantity_skew": _built_in("data.partition:quantity_skew_partition"),
    "table": _built_in("data.partition:table_partition"),
})  # fmt: skip

# Images: build(config.data, *, settings) -> Dataset. `sources` has the built-in rows, of which some take a place behind the name.
SOURCES = Registry({})

REGISTRIES = (METHODS, FEDERATIONS, NETWORKS, GENERATORS, META_MODELS, PARTITIONS, SOURCES)


def sections() -> dict[str, type]:
    """The registered sections of the configuration, name -> class."""
    rows = ((name, registry.entry(name).settings) for registry in REGISTRIES for name in registry)
    return {name: settings for name, settings in rows if settings is not None}


def having(registry: Registry, trait: str, value: bool = True) -> tuple[str, ...]:
    """The names of a registry whose row has, or has not, `narrower` or `batch_norm`."""
    return tuple(name for name in registry if getattr(registry.entry(name), trait) == value)

"""What the benchmark measures: one row for each piece of work, as settings of a run. Loads neither JAX nor torch."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mosaic_jax.config import Config
from mosaic_jax.config_io import with_values

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One piece of work.

    what: the command's WHAT; name: what `--only` takes; stage: the stage of `mosaic_jax.stages` that does it.
    settings: dotted names and values, the defaults elsewhere; tolerance: of the losses against the twin's, relative;
    first_tolerance: the same of the very first step, where rounding has not met an optimizer yet.
    num_images: of the random training set; num_prototypes: what the meta model trains on.
    accelerator: whether the work is for a GPU or TPU; on a CPU it is measured only where `--only` names it.
    """

    what: str
    name: str
    title: str
    stage: str
    settings: dict[str, Any]
    tolerance: float = 1e-3
    first_tolerance: float = 1e-4
    num_images: int = 50_000
    num_prototypes: int = 1_000
    accelerator: bool = False

    @property
    def config(self) -> Config:
        """The run that this row is a piece of: clients with equal numbers of images, no validation."""
        fixed = {
            "partition.kind": "iid", "data.validation_fraction": 0.0, "distill.keep": "last", "distill.label_prior": (0.0,),
            "generator.augment": "none",
        }  # fmt: skip
        return with_values(Config(), fixed | self.settings)

    @property
    def clients(self) -> int:
        """Clients that work in a pass: all, or a cohort."""
        config = self.config
        return config.warmup.clients_per_round or config.partition.num_clients

    @property
    def steps(self) -> int:
        """Steps of one pass, which is one dispatch: local steps of each client in a round, or steps of the stage."""
        config = self.config
        return {
            "warmup": config.warmup.num_local_steps, "generators": config.mapping.segment_steps,
            "distill": config.distill.evaluate_every, "meta": config.mapping.segment_steps,
        }[self.stage]  # fmt: skip

    @property
    def images(self) -> int:
        """Images (prototypes, for the meta model) that one pass trains on."""
        config, clients = self.config, self.clients
        return self.steps * {
            "warmup": clients * config.warmup.batch_size, "generators": clients * config.generator.batch_size,
            "distill": clients * config.distill.samples_per_client, "meta": config.meta.batch_size,
        }[self.stage]  # fmt: skip


Weights = list[dict[str, np.ndarray]]


class Task(NamedTuple):
    """A row as NumPy arrays: what the twin starts from and works on. It needs no JAX to read.

    row: the row; weights: state_dicts by network, a list each (one, or one for each client or expert).
    images: u8[N, 32, 32, 3] and labels: i32[N]; sizes: i64[C], images of each client.
    indices: i32[C, T, B] into the images, or i32[T, B] into the prototypes; empty for distillation.
    noise: f32[T, C, B, Z], the generators'; logits: f32[N, E, K] and prototype_labels: i32[N], the meta model's.
    """

    row: Row
    weights: dict[str, Weights]
    images: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    indices: np.ndarray
    noise: np.ndarray
    logits: np.ndarray
    prototype_labels: np.ndarray


def _round(name: str, title: str, model: str, width: int, clients: int, batch: int, steps: int, what: str = "client-round") -> Row:
    settings = {
        "model.name": model, "model.width": width, "partition.num_clients": clients,
        "warmup.batch_size": batch, "warmup.num_local_steps": steps,
    }  # fmt: skip
    return Row(what, name, title, "warmup", settings)


# The cost of a client must not grow with their number.
SCALE = tuple(_round(f"scale-{n}", f"small CNN, {n:,} clients x 16", "cnn", 16, n, 16, 5, "scale") for n in (10, 100, 1_000))
_cohort = _round("scale-10000", "small CNN, 100 of 10,000 clients x 16", "cnn", 16, 10_000, 16, 5, "scale")
COHORT = dataclasses.replace(
    _cohort, settings=_cohort.settings | {"method": "fedavg", "warmup.clients_per_round": 100}, num_images=160_000
)


def _bf16(clients: int, steps: int) -> Row:
    row = _round(f"resnet18-64-bf16-{clients}", f"ResNet-18/64 bf16, {clients} clients x 64", "resnet18", 64, clients, 64, steps)
    # The twin's own bf16 and float32 come 2e-2 apart in five steps of width 16, ours and its 6e-2 in ten of width 64.
    return dataclasses.replace(row, settings=row.settings | {"precision": "bf16"}, accelerator=True, tolerance=0.15)


ROWS = (
    _round("resnet18-64", "ResNet-18 width 64, 10 clients x 64", "resnet18", 64, 10, 64, 2),
    _bf16(10, 10),
    _bf16(100, 2),
    _round("resnet18-16", "ResNet-18 width 16, 10 clients x 64", "resnet18", 16, 10, 64, 5),
    _round("cnn-100", "small CNN, 100 clients x 16", "cnn", 16, 100, 16, 10),
    Row(
        "generator-step", "dcgan", "DCGAN, 10 clients x 64", "generators",
        {"partition.num_clients": 10, "generator.batch_size": 64, "mapping.segment_steps": 3},
        # Adam's first steps go by the signs of gradients: the twin's own two memory formats come 7e-3 apart in six steps.
        tolerance=2e-2,
    ),
    Row(
        "distill-step", "distill", "10 experts width 16, 320 images", "distill",
        {"model.width": 16, "partition.num_clients": 10, "distill.samples_per_client": 32, "distill.evaluate_every": 6},
        num_images=100,
    ),
    Row("meta-step", "meta", "batch 128", "meta", {"meta.batch_size": 128, "mapping.segment_steps": 20}, num_images=100),
    *SCALE,
    COHORT,
)  # fmt: skip
WHATS = tuple(dict.fromkeys(row.what for row in ROWS))


def chosen(what: str, only: str | None) -> tuple[Row, ...]:
    """The rows of WHAT (or `all`), or the one of them called `only`; raises ValueError naming the choices for a stranger."""
    rows = tuple(row for row in ROWS if what in ("all", row.what))
    if only is None:
        return rows
    found = tuple(row for row in rows if row.name == only)
    if not found:
        raise ValueError(f"--only {only}: {what} has no such row; choose one of {', '.join(row.name for row in rows)}")
    return found

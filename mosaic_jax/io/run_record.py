"""One finished run as a small JSON file: what a table of results needs and nothing more.

Such files are kept in docs/results/DATASET; checkpoints and pictures are not.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import config_hash, flatten
from mosaic_jax.io.whole_files import read_json, write_json
from mosaic_jax.json_file import AMOUNT, ANYTHING, COUNT, NUMBER, SHARE, TEXT, or_null

# Names that stay as they are: whoever reads these files may count on them.
_OF_FIELDS = {
    "dataset": TEXT, "protocol": TEXT, "row": TEXT, "method": TEXT, "alpha": NUMBER, "seed": COUNT, "commit": TEXT,
    "hardware": TEXT, "seconds": AMOUNT, "bytes_up": AMOUNT, "bytes_down": AMOUNT, "final_test": or_null(SHARE),
    "student_test": or_null(SHARE), "teacher_test": or_null(SHARE), "validation": or_null(SHARE),
}  # fmt: skip
FIELDS = tuple(_OF_FIELDS)
RECORD = {**_OF_FIELDS, "stages": {str: {"steps?": COUNT, "seconds?": AMOUNT}}, "config": {str: ANYTHING}}


def dataset_name(source: str) -> str:
    """`cifar10` of cifar10 and tfds:cifar10, else the last part of a path without its ending: of folder:some/cifar10_jpeg
    `cifar10_jpeg`."""
    kind, separator, place = source.partition(":")
    if not separator:
        return kind
    return place.partition("/")[0] if kind == "tfds" else Path(place).absolute().stem


def row_name(config: Config, control: str) -> str:
    """The row of a table that a run belongs to: its method, `mosaic:NAME` on another method than FedAvg, `mosaic-NAME` where it is
    a control of Mosaic with another setting."""
    name = config.method if config.federated in (config.method, "fedavg") else f"{config.method}:{config.federated}"
    return f"{name}-{control}" if control and config.method == "mosaic" else name


def record(config: Config, protocol: str, control: str, results: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """What the file of a run holds, its FIELDS first: accuracies are shares in 0..1 or None, seconds those of all stages without
    compiling, bytes of all clients together.

    protocol: the stem of the configuration file; control: as in `Row`; results: of results.json; digests: of data.json.
    """
    models, costs = results["models"], results["bytes"]

    def test(*names: str) -> float | None:
        return next((models[name]["test"] for name in names if name in models), None)

    images = hashlib.sha256("".join(digests[name] for name in sorted(digests) if name != "shares of clients").encode())
    fields = {
        "dataset": dataset_name(config.data.source), "protocol": protocol, "row": row_name(config, control),
        "method": config.method, "alpha": config.partition.alpha, "seed": config.seed, "commit": results["commit"],
        "hardware": results["hardware"], "seconds": sum(results["seconds"].values()),
        "bytes_up": sum(of["up"] for of in costs.values()), "bytes_down": sum(of["down"] for of in costs.values()),
        "final_test": test(results["final"]), "student_test": test("student"), "teacher_test": test("mixture", "expert_sum"),
        "validation": models[results["final"]]["validation"],
    }  # fmt: skip
    return fields | {
        "final": results["final"],
        "compile_seconds": sum(results["compile_seconds"].values()),
        "models": models,
        "stages": {
            stage: {
                "steps": results["steps"][stage], "seconds": results["seconds"].get(stage),
                "compile_seconds": results["compile_seconds"].get(stage), **costs[stage],
            }
            for stage in costs
        },
        "class_names": results["class_names"],
        "versions": results["versions"],
        "data_digest": images.hexdigest()[:16],
        "config_hash": config_hash(config),
        "config": flatten(config),
    }  # fmt: skip


def file_name(values: Mapping[str, Any]) -> str:
    """PROTOCOL-ROW-alphaA-seedN.json."""
    row = values["row"].replace(":", "-")
    return f"{values['protocol']}-{row}-alpha{values['alpha']:g}-seed{values['seed']}.json"


def write(directory: Path, values: Mapping[str, Any]) -> Path:
    """Writes DIRECTORY/DATASET/<file_name>, whole or not at all; returns its path."""
    path = directory / values["dataset"] / file_name(values)
    write_json(path, dict(values))
    return path


def read(path: Path) -> dict[str, Any]:
    """The record in a file; raises ConfigError where it is none."""
    remedy = "name files that `mosaic-jax compare` wrote"
    values = read_json(path, remedy, RECORD)
    if values is None:
        raise ConfigError(f"{path}: cannot be read: it is not there; {remedy}")
    return values

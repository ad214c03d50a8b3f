"""What the stages of a run should take, from the seconds of earlier runs of the same work."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mosaic_jax.config import Config
from mosaic_jax.config_io import with_values
from mosaic_jax.io import run_record
from mosaic_jax.registry import METHODS
from mosaic_jax.rows import stage_settings

# Settings that change how often a step is done, or with which numbers, but not what it costs.
FREE_NAMES = ("seed", "partition.alpha", "data.source", "data.dir", "distill.keep", "distill.label_prior_eps")
FREE_SECTIONS = ("checkpoint", "memory")
FREE_ENDINGS = ("num_rounds", "num_steps", "learning_rate", "weight_decay", "ema", "mu", "beta1", "beta2")


class Rate(NamedTuple):
    """seconds of one round or step of a stage, compiling apart, on which hardware and by which commit."""

    seconds: float
    hardware: str
    commit: str


def measured(config: Config, directories: Iterable[Path]) -> dict[str, Rate]:
    """Of each stage that some run did before the rate of the newest file, among the JSON files of runs below `directories`.

    A stage is the same work where all settings that it depends on are equal but those that cost nothing. Runs of other methods are
    passed over, of plugins that are not loaded among them. Raises ConfigError for a
    file that is none of a run.
    """
    wanted = _work(config)
    found: dict[str, Rate] = {}
    files = sorted((file for place in directories for file in place.rglob("*-seed*.json")), key=lambda file: file.stat().st_mtime)
    for record in map(run_record.read, files):
        if record["config"].get("method", config.method) not in METHODS:
            continue
        work = _work(with_values(Config(), record["config"]))
        for stage, spent in record["stages"].items():
            if spent.get("steps") and spent["seconds"] and work.get(stage) == wanted.get(stage, ""):
                found[stage] = Rate(spent["seconds"] / spent["steps"], record["hardware"], record["commit"])
    return found


def _work(config: Config) -> dict[str, dict[str, object]]:
    """Of each stage the settings that its steps' cost depends on."""

    def costs(name: str) -> bool:
        return not (name in FREE_NAMES or name.partition(".")[0] in FREE_SECTIONS or name.endswith(FREE_ENDINGS))

    return {stage: {name: value for name, value in of.items() if costs(name)} for stage, of in stage_settings(config).items()}

"""The metrics of a run: RUN_DIR/metrics.jsonl, one JSON object a line, and TensorBoard events beside it."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic_jax.config import ConfigError
from mosaic_jax.io.whole_files import naming, write_text
from mosaic_jax.json_file import COUNT, NUMBER, TEXT, or_null, parse_json

FILE = "metrics.jsonl"
RECORD = {"stage": TEXT, "step": COUNT, "round?": COUNT, "name": TEXT, "value": or_null(NUMBER), "seconds?": NUMBER}


class MetricsLog:
    """Appends records {stage, step, round, name, value, seconds} to RUN_DIR/metrics.jsonl; `seconds` of the run, pauses left out.

    Raises ConfigError when TensorBoard events are asked for and no writer is installed.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = False) -> None:
        self._path = run_dir / FILE
        self._events = event_writer(run_dir / "tensorboard") if tensorboard else None
        run_dir.mkdir(parents=True, exist_ok=True)
        self._rewrite(read(run_dir))

    def write(self, stage: str, step: int, values: Mapping[str, float], *, round: int | None = None) -> None:
        """A record for each of `values` (name to number), on disk when this returns; a number that is not finite becomes null."""
        seconds = round_to_milliseconds(time.monotonic() - self._opened)
        lines = []
        for name, value in values.items():
            number = float(value)
            record = {
                "stage": stage,
                "step": int(step),
                "round": None if round is None else int(round),
                "name": name,
                "value": number if math.isfinite(number) else None,
                "seconds": seconds,
            }
            lines.append(json.dumps(record) + "\n")
            if self._events is not None:
                self._events.add_scalar(f"{stage}/{name}", number, int(step))
        with naming(self._path):
            self._file.write("".join(lines))
            self._file.flush()

    def truncate(self, stage_order: Sequence[str], stage: str, step: int) -> None:
        """Drops what a resumed run will write again: later stages, `stage` beyond `step`, and a last line cut short by a kill."""
        later = set(stage_order[list(stage_order).index(stage) + 1 :])
        self._file.close()
        self._rewrite(
            [
                record
                for record in read(self._path.parent)
                if record["stage"] not in later and not (record["stage"] == stage and record["step"] > step)
            ]
        )

    def replace(self, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Makes the records of a stage exactly these."""
        self._file.close()
        self._rewrite([*(record for record in read(self._path.parent) if record["stage"] != stage), *records])

    def _rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Makes the file hold exactly `records`, at once, and opens it for more."""
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = self._path.open("a", encoding="utf-8")
        self._opened = time.monotonic() - (records[-1].get("seconds") or 0.0 if records else 0.0)

    def close(self) -> None:
        """Closes the file and the event file."""
        with naming(self._path):
            self._file.close()
        if self._events is not None:
            self._events.close()


class NoMetrics(MetricsLog):
    """The log of a process that leaves writing to another."""

    def __init__(self) -> None:
        pass

    def write(self, stage: str, step: int, values: Mapping[str, float], *, round: int | None = None) -> None:
        """Nothing is written."""

    def truncate(self, stage_order: Sequence[str], stage: str, step: int) -> None:
        """Nothing is dropped."""

    def replace(self, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing is replaced."""

    def close(self) -> None:
        """Nothing was opened."""


def round_to_milliseconds(seconds: float) -> float:
    """Seconds with three decimals (in `write` the name `round` is the federated round)."""
    return round(seconds, 3)


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Every record of a run's metrics.jsonl in order; lines that are no records are left out, as `complaints` says."""
    return _read(run_dir)[0]


def complaints(run_dir: Path, stages: Iterable[str]) -> list[str]:
    """What metrics.jsonl lacks: lines that are no records, but for a last one cut short by a kill, and the records of `stages`,
    which have all written some."""
    records, damaged = _read(run_dir)
    absent = [stage for stage in stages if stage not in {record["stage"] for record in records}]
    found = [f"damaged lines, left out: {damaged}"] if damaged else []
    if absent:
        found.append(f"the records of {', '.join(absent)} are gone (curves, seconds, bytes); restore the file")
    return found


def _read(run_dir: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and how many other lines there are."""
    path = run_dir / FILE
    if not path.is_file():
        return [], 0
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records, damaged = [], 0
    for place, line in enumerate([*lines, last]):
        try:
            records.append(parse_json(line, RECORD))
        except ValueError:
            damaged += place < len(lines)
    return records, damaged


def event_writer(directory: Path) -> Any:
    """A TensorBoard SummaryWriter; raises ConfigError if the `tensorboard` extra is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard: tensorboardX is not installed; pip install 'mosaic-jax[tensorboard]'") from error
    return SummaryWriter(str(directory))

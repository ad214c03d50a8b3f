"""What a GPU that is at hand for a quarter of an hour should run, in order of worth.

Command: bash scripts/gpu_protocol.sh [OUT] [--minutes 13] [--show] [--tiny]

(a) what convolutions over stacked weights cost in each form, and benchmark.py client-round for ResNet-18/64 in bf16 with 10 and
with 100 clients; (b) compare on the whole of configs/cifar10.py in bf16, alpha 0.1, then 0.01 with its own step counts, then 1, of
each the next seed that docs/results/ does not have; (c) a profile of one segment of each stage, as tables of kernels. Once (a) has
one result, (b) comes before the rest of it. Each step has a time limit, and its result is in OUT at once: OUT/results has files as
docs/results/ keeps them (copy them there and commit them), OUT/results.tar.gz the same in one file, and OUT/programs.tar.gz the
compiled programs: in data_cache/ they spare the next run their compilation.

CIFAR-10 is read from data_cache/cifar10_jpeg (train/CLASS/*, test/CLASS/*) or unpacked from data_cache/cifar10_jpeg.tar.xz. Needs
no tensorflow-datasets. --show says what would be done and ends; --tiny is the same at a size for a CPU: a dry run.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mosaic_jax.config import ConfigError
from mosaic_jax.io import run_record
from mosaic_jax.rows import rows_of

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "results"
CACHE = ROOT / "data_cache"
RESERVE = 20  # seconds kept for packing
GRACE = 30  # seconds that a step has for saving once it is told to stop
# Fewer rounds and steps than the protocol, with the same programs: two segments of each stage.
SHORT = ["warmup.num_rounds=3", "generator.num_steps=100", "meta.num_steps=100", "distill.num_steps=50", "finetune.num_rounds=2"]
TINY = [
    "partition.num_clients=3", "model.width=2", "generator.width=2", "generator.num_steps=2", "generator.batch_size=8",
    "warmup.num_rounds=2", "warmup.num_local_steps=1", "warmup.batch_size=8", "prototypes.num_rounds=1", "prototypes.per_class=2",
    "meta.num_steps=2", "meta.feed_forward_size=16", "distill.num_steps=2", "distill.samples_per_client=4", "finetune.num_rounds=1",
]  # fmt: skip


class Step(NamedTuple):
    """One piece of work. limit, expected, least: seconds that it may take, should take, and below which it is not begun; result:
    what it leaves, found in docs/results/ or OUT/results; collect: brings its result there, called however the step ended."""

    name: str
    command: list[str]
    limit: float
    expected: float
    least: float
    results: list[Path]
    collect: Callable[[], None]


class Protocol:
    """The steps, their results and the clock; out: OUT; work: a folder for what does not come back."""

    def __init__(self, out: Path, tiny: bool) -> None:
        self.out, self.tiny = out, tiny
        self.results, self.work = out / "results", out / "work"
        self.programs, self.cache = self.work / "programs", self.work / "cache"
        self.config = "configs/digits.py" if tiny else "configs/cifar10.py"
        self.source = [] if tiny else [f"data.source=folder:{CACHE / 'cifar10_jpeg'}", "precision=bf16"]
        self.rare = ["checkpoint.every_rounds=100", "checkpoint.every_steps=1000"]

    def has(self, result: Path) -> bool:
        """Whether a result is there, from this run or an earlier one."""
        return (self.results / result).exists() or (not self.tiny and (KEPT / result).exists())

    def steps(self) -> list[Step]:
        """All steps that have no result yet, in order of worth."""
        first, *others = self.benchmarks()
        if self.tiny:
            order = [first, self.compare(0.1, []), self.profile()]
        else:
            few = ["distill.num_steps=1500", "meta.num_steps=150"]  # the public code's counts for alpha 0.01
            order = [self.kernels(), first, self.compare(0.1, []), *others, self.compare(0.01, few), self.compare(1.0, [])]
            order.append(self.profile())
        return [step for step in order if not all(map(self.has, step.results))]

    def kernels(self) -> Step:
        """The candidates for convolutions over stacked weights, timed: what the runs after it choose from."""
        result = Path("benchmark") / "stacked-bf16.jsonl"
        log = self.work / result.name
        (self.results / result.parent).mkdir(parents=True, exist_ok=True)
        code = f"import sys; sys.stdout = open({str(log)!r}, 'w'); from mosaic_jax.io.stacked_choice import main; main('bf16')"

        def collect() -> None:
            if log.exists() and log.stat().st_size:
                shutil.copyfile(log, self.results / result)

        return Step("stacked kernels", ["-c", code], 75, 40, 40, [result], collect)

    def benchmarks(self) -> list[Step]:
        rows = {"cnn-100": 60} if self.tiny else {"resnet18-64-bf16-10": 170, "resnet18-64-bf16-100": 190}
        alone = [] if importlib.util.find_spec("torch") else ["--ours-only"]

        def step(name: str, limit: float) -> Step:
            result = Path("benchmark") / f"client-round-{name}.json"
            (self.results / result.parent).mkdir(parents=True, exist_ok=True)
            file = str(self.results / result)
            command = ["scripts/benchmark.py", "client-round", "--only", name, "--repeats", "3", "--json", file, *alone]

            def collect() -> None:
                """Ours alone is kept, but is no result: the next run measures both sides."""
                file = self.results / result
                if file.exists() and not alone and not all(row["ratio"] for row in json.loads(file.read_text())["rows"]):
                    file.rename(file.with_suffix(".ours.json"))

            return Step(f"benchmark {name}", command, limit, limit / 2, 40, [result], collect)

        return [step(name, limit) for name, limit in rows.items()]

    def compare(self, alpha: float, settings: list[str]) -> Step:
        """The rows of one alpha and of the next seed that lacks one of them."""
        values = [*self.source, f"partition.alpha={alpha:g}", *self.rare, *settings, *(TINY if self.tiny else [])]
        seed, files = 0, self.files(values, 0)
        while all(map(self.has, files)):
            seed += 1
            files = self.files(values, seed)
        place = self.work / f"alpha{alpha:g}"
        command = ["-m", "mosaic_jax", "compare", "--configs", self.config, "--set", *values, "--seeds", str(seed)]

        def collect() -> None:
            shutil.copytree(place / "results", self.results, dirs_exist_ok=True)

        return Step(f"compare alpha {alpha:g} seed {seed}", [*command, "--out", str(place)], 640, 570, 120, files, collect)

    def files(self, values: list[str], seed: int) -> list[Path]:
        """The result files of all rows of a seed."""
        rows = rows_of([self.config], [], None, values, str(seed), True)
        return [
            Path(run_record.dataset_name(row.configs[0].data.source))
            / run_record.file_name({
                "protocol": row.protocol, "row": run_record.row_name(row.configs[0], row.control),
                "alpha": row.configs[0].partition.alpha, "seed": seed,
            })
            for row in rows
        ]  # fmt: skip

    def profile(self) -> Step:
        traces, run = self.work / "traces", self.work / "profiled"
        command = ["-m", "mosaic_jax", "train", "--config", self.config, "--run-dir", str(run), "--profile", str(traces), "--set"]
        stages = ("warmup", "generators", "meta", "distill", "finetune")
        results = [Path("profile") / f"{stage}.csv" for stage in stages]

        def collect() -> None:
            for stage, result in zip(stages, results, strict=True):
                if (traces / stage / "kernels.csv").exists():
                    (self.results / result).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(traces / stage / "kernels.csv", self.results / result)

        short = [*self.source, *(TINY if self.tiny else SHORT)]
        return Step("profile", [*command, *short], 150, 90, 60, results, collect)

    def pack(self) -> None:
        """OUT/results.tar.gz and OUT/programs.tar.gz, each whole or as before."""
        choices = self.cache / "mosaic_jax" / "stacked"  # what the first step found out about this device
        for name, folders in (("results", [self.results]), ("programs", [self.programs, choices])):
            half = self.out / f"{name}.tmp"
            with tarfile.open(half, "w:gz", compresslevel=1) as file:
                for folder in filter(Path.exists, folders):
                    file.add(folder, arcname=folder.relative_to(self.out if name == "results" else self.work))
            half.replace(self.out / f"{name}.tar.gz")

    def unpack(self) -> None:
        """Data and compiled programs out of data_cache/; raises ConfigError where there are no data."""
        self.programs.mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)
        if not self.tiny and (CACHE / "programs.tar.gz").exists():
            with tarfile.open(CACHE / "programs.tar.gz") as file:
                file.extractall(self.work, filter="data")
        folder, archive = CACHE / "cifar10_jpeg", CACHE / "cifar10_jpeg.tar.xz"
        if self.tiny or folder.is_dir():
            return
        if not archive.exists():
            raise ConfigError(f"{archive}: not found; put CIFAR-10 there as an image folder, or unpacked at {folder}")
        half = CACHE / "cifar10_jpeg.tmp"
        shutil.rmtree(half, ignore_errors=True)
        with tarfile.open(archive) as file:
            file.extractall(half, filter="data")
        half.rename(folder)


def run(protocol: Protocol, step: Step, seconds: float) -> str:
    """Runs a step for at most so many seconds -> what became of it, in words; its output goes to OUT/log.txt."""
    log = protocol.out / "log.txt"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(protocol.programs), "XDG_CACHE_HOME": str(protocol.cache)}
    with log.open("a") as file:
        file.write(f"== {step.name}: {' '.join(step.command)}\n")
        file.flush()
        command = [sys.executable, *step.command]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return f"stopped at its limit of {seconds:.0f} s"
    return "done" if status == 0 else f"failed with status {status}, see {log}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the protocol that a rare GPU is for; see the head of this file.")
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "runs" / "gpu_protocol", metavar="OUT")
    parser.add_argument("--minutes", type=float, default=13.0, metavar="M", help="time for all steps together (default 13)")
    parser.add_argument("--show", action="store_true", help="say what would be done, and end")
    parser.add_argument("--tiny", action="store_true", help="a dry run at a size for a CPU")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    protocol = Protocol(options.out.resolve(), options.tiny)
    try:
        if not options.show:
            protocol.unpack()
        steps = protocol.steps()
    except ConfigError as error:
        print(f"gpu_protocol: {error}", file=sys.stderr)
        return 2
    print(f"{len(steps)} steps without a result in {KEPT.relative_to(ROOT)}, {options.minutes:g} minutes in all:")
    for step in steps:
        print(f"  {step.name}: about {step.expected:.0f} s, at most {step.limit:.0f} s")
    if options.show:
        return 0
    status = 0
    for step in steps:
        left = 60 * options.minutes - (time.monotonic() - started) - RESERVE
        if left < step.least:
            print(f"{step.name}: not begun, {max(left, 0):.0f} s are left", flush=True)
            continue
        begun = time.monotonic()
        ended = run(protocol, step, min(step.limit, left))
        try:
            step.collect()
        except OSError as error:
            ended += f"; no result: {error}"
        protocol.pack()
        there = sum(map(protocol.has, step.results))
        print(f"{step.name}: {ended} after {time.monotonic() - begun:.0f} s, {there} of {len(step.results)} results", flush=True)
        status = status or int(ended != "done")
    print(f"results: {protocol.results}; copy them to {KEPT.relative_to(ROOT)} and commit them")
    return status


if __name__ == "__main__":
    sys.exit(main())

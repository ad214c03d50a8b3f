"""The runner: jits, donates, logs, saves, resumes. Stages are pure; the disk, the clock and the signals are here and in io/."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from mosaic_jax import jax_settings, processes
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import config_hash, did_you_mean
from mosaic_jax.data.partition import describe
from mosaic_jax.driving import Drive, NonFiniteLoss, Segment
from mosaic_jax.io import computation, metrics, run_directory, stacked_choice
from mosaic_jax.io.checkpoints import StageCheckpoints, check_place
from mosaic_jax.io.console import Console, StageProgress
from mosaic_jax.io.data_digests import check_data, digests, write_data
from mosaic_jax.io.datasets import dataset_of
from mosaic_jax.io.label_counts import as_csv
from mosaic_jax.io.metrics import MetricsLog, NoMetrics, read
from mosaic_jax.io.moved_data import located
from mosaic_jax.io.profile import Profile
from mosaic_jax.io.report import write_report
from mosaic_jax.io.results_file import finished, write_results
from mosaic_jax.io.reuse import take
from mosaic_jax.io.stage_clock import StageClock
from mosaic_jax.io.whole_files import write_json, write_text
from mosaic_jax.mapping import one_device, place
from mosaic_jax.methods import stages_of
from mosaic_jax.parser import REMEDIES
from mosaic_jax.planning.fitting import fitted_problem
from mosaic_jax.planning.limit import check, choice, remedies
from mosaic_jax.planning.memory import common_capacity
from mosaic_jax.python_files import one_line
from mosaic_jax.results import results_of, save_samples
from mosaic_jax.signals import Interrupted, catch_signals
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Outputs, Stage
from mosaic_jax.steps.experts import absent_classes
from mosaic_jax.types import PyTree


class OutOfMemory(MemoryError):
    """A device or the machine has no memory left for a stage; its last checkpoint stands."""


class _Run(NamedTuple):
    """What the stages of one run share."""

    problem: Problem
    directory: Path
    log: MetricsLog
    console: Console
    signals: list[int]
    profile: Profile | None
    reuse: Mapping[str, Sequence[Path]]


def is_shortage(error: Exception) -> bool:
    """Whether an error says that memory ran out, of the host or of a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def naming_what_needs_memory(problem: Problem, stage: str) -> Iterator[None]:
    """Memory that runs out in the block, of the host or of a device, is an OutOfMemory that names the stage and what to change."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if is_shortage(error):
            asked = one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")[:120]
            raise OutOfMemory(f"{stage}: out of memory ({asked}); {remedies(problem, stage)}") from error
        raise


@jax_settings.fixed()
def train(
    config: Config,
    run_dir: Path,
    *,
    stop_after: str | None,
    tensorboard: bool,
    console: Console,
    profile: Path | None = None,
    signals: list[int] | None = None,
    reuse: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> int:
    """Train, or resume, the run of `config` in `run_dir`; returns the exit status.

    profile: a directory for a trace of one segment of each stage. signals: where a caller of several runs catches signals
    already; None catches them here. reuse: run directories whose stage of that name is this run's to the last bit: where one has
    finished it, it is taken from there instead of trained (one process only).

    0: finished (or already was), or stopped after `stop_after`. 3: a loss was not finite. 4: out of memory. 128 + its number:
    interrupted by a signal, saved. Raises ConfigError for a directory of another configuration, for data that cannot be used and
    for an estimate above memory.limit_gib.
    """
    processes.check_same(f"{config_hash(config)} {run_dir.name} {stop_after}")
    first = processes.is_first()
    results = None
    with processes.together():
        if first:
            run_directory.check(run_dir, config)
            results = finished(run_dir, console.warning)
    # The directory is not claimed for this: it may be one that cannot be written.
    if processes.of_the_first(np.bool_(results is not None)):
        console.message(f"{run_dir} is finished already; its results:")
        if results is not None:
            console.result_table(results)
        return 0
    with run_directory.claim(run_dir, config), catch_signals() if signals is None else nullcontext(signals) as signals:
        there = common_capacity()
        with processes.together():
            config = located(config, run_dir, console)
            problem, found = prepare(config, console, there)
            names = [stage.name for stage in stages_of(problem)]
            if stop_after is not None and stop_after not in names:
                has = f"method {config.method} has no such stage; its stages are {', '.join(names)}"
                raise ConfigError(f"--stop-after {stop_after}: {has}{did_you_mean(stop_after, names)}")
        processes.check_same_data(" ".join(found.values()))
        kernels = stacked_choice.settle(config, run_dir, console.message)
        with processes.together():
            if processes.of_the_first(np.bool_(not run_directory.has_begun(run_dir))):
                _try_place(run_dir)
            traces = Profile(profile, console.warning) if profile and first else None
            if first:
                clients = as_csv(problem.partition_counts, problem.dataset.class_names)
                if run_directory.has_begun(run_dir):
                    check_data(run_dir, config.data.source, found)
                    run_directory.check_partition(run_dir, problem.partition_counts, problem.dataset.class_names)
                    for complaint in metrics.complaints(run_dir, ()):
                        console.warning(f"{run_dir / metrics.FILE}: {complaint}")
                write_text(run_dir / "partition.csv", clients)
                write_data(run_dir, found)
                if kernels:
                    write_json(run_dir / stacked_choice.RECORD, kernels)
                computation.record(run_dir, console.warning)
            log = MetricsLog(run_dir, tensorboard) if first else NoMetrics()
            if first:
                run_directory.write_config(run_dir, config)  # last: with it the run has begun
        run = _Run(problem, run_dir, log, console, signals, traces, reuse)
        try:
            outputs, done = _run_stages(run, stop_after)
            if first:
                with naming_what_needs_memory(problem, "evaluation"):
                    results = results_of(problem, outputs, run_dir, done)
        except Interrupted as interrupted:
            console.message(f"stopped by {interrupted}; the same command resumes from {run_dir}")
            return interrupted.exit_status
        except NonFiniteLoss as failure:
            console.error(f"{failure}; the last checkpoint before it is kept in {run_dir / 'checkpoints'}")
            return 3
        except OutOfMemory as failure:
            console.error(f"{failure}; the last checkpoint is kept in {run_dir / 'checkpoints'}")
            return 4
        finally:
            log.close()
        with processes.together():
            if first:
                console.result_table(results)
                report = write_report(run_dir, results)
                write_results(run_dir, results)  # last: with it the run is finished
                console.message(f"report: {report}")
        return 0


def _try_place(run_dir: Path) -> None:
    """Raises ConfigError where a run directory is none from which a checkpoint comes back, before hours are spent on one."""
    try:
        check_place(run_dir / "trial.tmp")
    except OSError as error:
        if error.errno in REMEDIES and error.errno != errno.EIO:
            raise
        raise ConfigError(f"--run-dir {run_dir}: cannot hold checkpoints ({error.strerror}); name another directory") from error


def prepare(config: Config, console: Console, there: int | None = None) -> tuple[Problem, dict[str, str]]:
    """The problem of a configuration, and the digests of its data. there: as in `fit`."""
    dataset = dataset_of(config, console)
    problem, stages = fitted_problem(config, console, dataset=dataset, there=there)
    sizes = problem.num_samples
    console.message(
        f"{config.data.source}: {len(problem.dataset.train_labels)} training and {len(problem.dataset.test_labels)} test images, "
        f"{problem.num_classes} classes; {describe(config.partition)}: {sizes.min()} to {sizes.max()} training images each"
    )
    if config.method == "mosaic":
        for c in absent_classes(problem.label_counts[problem.participants]):
            console.warning(f"no client holds class {problem.dataset.class_names[c]}: its expert is the global average")
        if len(problem.participants) < problem.num_clients:
            absent = np.setdiff1d(np.arange(problem.num_clients), problem.participants)
            console.warning(f"these clients never take part in the warm-up and have no generator: {', '.join(map(str, absent))}")
    check(problem, stages, console.warning)
    for line in choice(problem):
        console.message(line)
    return problem, digests(dataset, problem.splits)


def checkpoints_of(problem: Problem, run_dir: Path, stage: Stage) -> StageCheckpoints:
    config, directory = problem.config, run_dir / "checkpoints" / stage.name
    return StageCheckpoints(directory, stage.name, config_hash(config), config.checkpoint.keep, stage.sharding)


def _run_stages(run: _Run, stop_after: str | None) -> tuple[Outputs, list[str]]:
    outputs: Outputs = {}
    done: list[str] = []
    for stage in stages_of(run.problem):
        other = take(run.directory, run.reuse.get(stage.name, ()), stage.name, stage.num_steps, run.log)
        if other is not None:
            run.console.message(f"{stage.name}: taken from {other}")
        with naming_what_needs_memory(run.problem, stage.name):
            outputs[stage.name] = _run_stage(run, stage, outputs)
            if stage.name == "generators" and processes.is_first():
                save_samples(run.problem, outputs["generators"], run.directory)
        done.append(stage.name)
        if stage.name == stop_after:
            break
    return outputs, done


def _run_stage(run: _Run, stage: Stage, outputs: Outputs) -> PyTree:
    """One stage from its newest checkpoint, or its start, to its end -> its output."""
    clock = StageClock()
    inputs = stage.inputs(outputs)
    checkpoints = checkpoints_of(run.problem, run.directory, stage)
    try:
        restored = checkpoints.restore(jax.eval_shape(stage.init, inputs), run.console.warning)
        drive = Drive(run.problem, stage, inputs, restored)
        if restored is not None:
            _check_records(run, stage.name, drive.step)
        if drive.is_fresh or drive.step < stage.num_steps:
            run.log.truncate([stage.name], stage.name, -1 if drive.is_fresh else drive.step)
            _advance(run, drive, checkpoints, clock)
            checkpoints.check(stage.num_steps, drive.state)
        output = drive.output()
        # Every process has done the server's work for itself, not always to the same last bit.
        return output if stage.sharding is not None else place(processes.of_the_first(output), one_device())
    except (Interrupted, NonFiniteLoss, ConfigError):
        raise
    except BaseException as error:
        processes.give_up(error)
        raise
    finally:
        checkpoints.close()


def _check_records(run: _Run, stage: str, step: int) -> None:
    """Warns where a checkpoint is without the records that are always written before it."""
    if not processes.is_first():
        return
    last = max((record["step"] for record in read(run.directory) if record["stage"] == stage), default=None)
    if last is None or last < step:
        there = "none" if last is None else f"those up to {last}"
        lacks = f"lacks records of {stage} up to step {step}, it has {there}"
        run.console.warning(f"metrics.jsonl {lacks}: curves, bytes and seconds will be incomplete")


def _advance(run: _Run, drive: Drive, checkpoints: StageCheckpoints, clock: StageClock) -> None:
    """Segment after segment to the stage's end, with records, checkpoints and signals between them."""
    stage = drive.stage
    before_this = {name: run_directory.last_value(run.directory, stage.name, name) for name in clock.read()}

    def write(values: Mapping[str, float]) -> None:
        run.log.write(stage.name, drive.step, values, round=drive.step if stage.unit == "round" else None)

    def save() -> None:
        # Records first: a run killed after the checkpoint never writes them again, one killed before it drops and rewrites them.
        if drive.step == stage.num_steps:
            write({f"bytes_{way}": float(count) for way, count in stage.traffic(drive.state).items()})
        write({name: before_this[name] + seconds for name, seconds in clock.read().items()})
        try:
            checkpoints.save(drive.step, drive.state)
        except FloatingPointError as error:
            raise NonFiniteLoss(f"{stage.name}: {error} after {drive.step} {stage.unit}s; lower the learning rate") from error

    def traced(last: bool) -> AbstractContextManager:
        return run.profile.segment(stage.name, last) if run.profile else nullcontext()

    with run.console.progress(stage.name, stage.num_steps, drive.step) if stage.num_steps else nullcontext() as progress:
        for segment in drive.segments(traced):
            if segment.losses:
                write(segment.losses)
            if segment.records:
                write(segment.records)
            if segment.stop == 0 < stage.num_steps:
                continue
            for notice in stage.notices(segment.start, segment.stop):
                run.console.warning(notice)
            interrupted = processes.first_signal(run.signals)
            is_due = segment.stop // stage.save_every > segment.start // stage.save_every
            if segment.stop == stage.num_steps or is_due or interrupted:
                save()
            if progress is not None:
                _advance_bar(progress, segment)
            if interrupted:
                checkpoints.wait()
                raise Interrupted(interrupted)


def _advance_bar(progress: StageProgress, segment: Segment) -> None:
    shown = ", ".join(f"{name} {value:.3f}" for name, value in list(segment.losses.items())[:2])
    progress.advance(segment.stop - segment.start, shown)

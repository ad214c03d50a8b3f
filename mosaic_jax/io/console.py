"""What a person sees in the terminal: progress, messages and the result table."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

COST_COLUMNS = ("stage", "sent up", "sent down", "time", "compiling")
PLAIN_WIDTH = 160  # a log file has no width; rich would otherwise cut at 80
PLAIN_PERIOD = 60.0  # seconds between progress lines in a log


class _Terminal(rich.console.Console):
    """rich's console, in which a reader that has gone (`| head`) is the BrokenPipeError that it is anywhere else."""

    def on_broken_pipe(self) -> None:
        raise


class Console:
    """Output of a run: live bars on a terminal, a few plain lines elsewhere, nothing but warnings and errors when quiet.

    silent: not even those, in a process for which another one speaks.
    """

    def __init__(self, *, verbose: bool = False, quiet: bool = False, silent: bool = False, file: TextIO | None = None) -> None:
        self.verbose, self.quiet, self.silent = verbose, quiet or silent, silent
        self._out = _Terminal(file=file, highlight=False, markup=False)
        self.terminal = self._out.is_terminal
        if not self.terminal:
            self._out = _Terminal(file=file, highlight=False, markup=False, width=PLAIN_WIDTH)

    def message(self, text: str) -> None:
        """A line about what happens."""
        if not self.quiet:
            self._out.print(text, soft_wrap=True)

    def warning(self, text: str) -> None:
        """A line about what may be wrong, on standard error."""
        if not self.silent:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """A line about what stopped the run, on standard error."""
        if not self.silent:
            print(f"error: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, stage: str, total: int, done: int = 0, unit: str = "steps") -> Iterator["StageProgress"]:
        """A stage of `total` steps, `done` of them in an earlier run; call `.advance(steps, note)` on what it yields."""
        live = None
        if self.terminal and not self.quiet:
            live = Progress(
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=self._out,
            )
            live.start()
        stage_progress = StageProgress(self, stage, total, done, live, unit)
        try:
            yield stage_progress
        finally:
            if live is not None:
                live.stop()
        stage_progress.finish()

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Text in columns; those whose heading ends in a space are aligned to the right."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left")
        for heading in headings:
            table.add_column(heading.strip(), justify="right" if heading.endswith(" ") else "left")
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def result_table(self, results: Mapping[str, Any], verbose: bool | None = None) -> None:
        """Accuracies of every model, bytes and seconds of every stage; per class when verbose."""
        if self.quiet:
            return
        self._out.print(accuracy_table(results))
        if self.verbose if verbose is None else verbose:
            self._out.print(class_table(results))
        if results.get("seconds") or results.get("bytes"):
            self._out.print(cost_table(results))
        if results.get("hardware"):
            self.message(f"hardware: {results['hardware']}")

    def seeds_table(self, summary: Mapping[str, Any]) -> None:
        """Mean and standard deviation over seeds of every model's accuracies; summary: what seeds.json holds."""
        if not self.quiet:
            self._out.print(means_table(summary))


class StageProgress:
    """Counts the steps of one stage; made by `Console.progress`."""

    def __init__(self, console: Console, stage: str, total: int, done: int, live: Progress | None, unit: str) -> None:
        self._console, self._stage, self._total, self._start_at, self._done, self._live = console, stage, total, done, done, live
        self._started = self._last_line = monotonic()
        self._task: TaskID | None = None
        if live is not None:
            self._task = live.add_task(stage, total=total, completed=done, rate="", note="")
        else:
            console.message(f"{stage}: from {unit.removesuffix('s')} {done} of {total}" if done else f"{stage}: {total} {unit}")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` stands beside them, as in "loss 0.12"."""
        self._done += steps
        now = monotonic()
        seconds = (now - self._started) / max(self._done - self._start_at, 1)
        rate = f"{1 / seconds:.1f}/s" if 0 < seconds < 1 else f"{seconds:.1f} s each"
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._done, rate=rate, note=note)
        elif now - self._last_line >= PLAIN_PERIOD and self._done < self._total:
            self._last_line = now
            left = duration(seconds * (self._total - self._done))
            line = f"{self._stage}: {self._done}/{self._total}, {rate}, about {left} left"
            self._console.message(f"{line}, {note}" if note else line)

    def finish(self) -> None:
        """Says how long the stage took; nothing on a terminal, where the bar stays."""
        if self._live is None:
            seconds = monotonic() - self._started
            self._console.message(f"{self._stage}: {self._done}/{self._total} in {duration(seconds)}")


def accuracy_table(results: Mapping[str, Any]) -> Table:
    """Rows are models, columns validation and test accuracy in percent."""
    table = Table(title=f"{results['method']}, seed {results['seed']}", title_justify="left")
    table.add_column("model")
    table.add_column("validation %", justify="right")
    table.add_column("test %", justify="right")
    for name in present_models(results):
        model = results["models"][name]
        table.add_row(name, percent(model.get("validation")), percent(model.get("test")))
    return table


def means_table(summary: Mapping[str, Any]) -> Table:
    """`accuracy_table` of several seeds: mean ± sample standard deviation."""
    table = Table(title=f"{summary['method']}, seeds {', '.join(map(str, summary['seeds']))}", title_justify="left")
    table.add_column("model")
    table.add_column("validation %", justify="right")
    table.add_column("test %", justify="right")
    for name, model in summary["models"].items():
        table.add_row(name, mean_and_deviation(model["validation"]), mean_and_deviation(model["test"]))
    return table


def class_table(results: Mapping[str, Any]) -> Table:
    """Rows are classes, columns the test accuracy of every model in percent."""
    names = present_models(results)
    table = Table(title="test accuracy per class, %", title_justify="left")
    table.add_column("class")
    for name in names:
        table.add_column(name, justify="right")
    for index, class_name in enumerate(results["class_names"]):
        table.add_row(class_name, *(percent(results["models"][name]["test_per_class"][index]) for name in names))
    return table


def cost_table(results: Mapping[str, Any]) -> Table:
    """`cost_rows` for the terminal."""
    table = Table(title="costs", title_justify="left")
    for place, heading in enumerate(COST_COLUMNS):
        table.add_column(heading, justify="right" if place else "left")
    rows = cost_rows(results)
    for place, row in enumerate(rows):
        table.add_row(*row, end_section=place == len(rows) - 2)
    return table


def cost_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Every stage's bytes sent by clients and to them, its seconds, and the seconds of compiling beside them; then the sums."""
    sent, seconds, compiling = (results.get(key) or {} for key in ("bytes", "seconds", "compile_seconds"))
    numbers: dict[str, tuple[float, ...]] = {}
    for stage in dict.fromkeys([*seconds, *sent, *compiling]):
        traffic = sent.get(stage, {})
        numbers[stage] = traffic.get("up", 0), traffic.get("down", 0), seconds.get(stage, 0.0), compiling.get(stage, 0.0)
    if numbers:
        numbers["total"] = tuple(sum(column) for column in zip(*numbers.values(), strict=True))
    return [
        (stage, human_bytes(up), human_bytes(down), duration(time), duration(compile_time))
        for stage, (up, down, time, compile_time) in numbers.items()
    ]


def present_models(results: Mapping[str, Any]) -> list[str]:
    """The models that a run has, in the order of the stages, in which they were evaluated."""
    return list(results.get("models", {}))


def percent(fraction: float | None) -> str:
    """A fraction as percent with one decimal; - where there is none."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def mean_and_deviation(measure: Mapping[str, Any]) -> str:
    """`81.2 ± 3.4` in percent of a measure of seeds.json, without what there is not."""
    return percent(measure["mean"]) + ("" if measure["std"] is None else f" ± {percent(measure['std'])}")


def human_bytes(count: float) -> str:
    """A number of bytes with a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as 3.2 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

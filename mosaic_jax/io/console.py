"""What a person sees in the terminal: progress, messages and the result table."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

import rich.console
from rich.cells import cell_len
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from mosaic_jax.plain_text import fitting, plain, say

ACCURACY_COLUMNS = ("model", "validation % ", "test % ")
COST_COLUMNS = ("stage", "sent up", "sent down", "time", "compiling")
WRAPPED_FROM = 24  # characters of a cell
UNBOUNDED = 10**6  # a width that no table reaches
LIVE_WIDTH = 60  # of a narrower terminal a bar would leave no room for numbers
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
        self._options: dict[str, Any] = {"file": file, "highlight": False, "markup": False, "emoji": False}
        self._out = _Terminal(**self._options)
        self.terminal = self._out.is_terminal
        if not self.terminal:
            self._out = _Terminal(**self._options, width=PLAIN_WIDTH)

    def _fitting(self, text: str) -> str:
        """A text as this output can show it, on one line."""
        return fitting(plain(text), self._out.file)

    def message(self, text: str) -> None:
        """A line about what happens."""
        if not self.quiet:
            self._out.print(self._fitting(text), soft_wrap=True)

    def warning(self, text: str) -> None:
        """A line about what may be wrong, on standard error."""
        if not self.silent:
            say("warning", text)

    def error(self, text: str) -> None:
        """A line about what stopped the run, on standard error."""
        if not self.silent:
            say("error", text)

    @contextmanager
    def progress(self, stage: str, total: int, done: int = 0, unit: str = "steps") -> Iterator["StageProgress"]:
        """A stage of `total` steps, `done` of them in an earlier run; call `.advance(steps, note)` on what it yields."""
        live = None
        if self.terminal and not self.quiet and self._out.width >= LIVE_WIDTH:
            live = Progress(
                _text("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                _text("{task.fields[rate]}"),
                TimeElapsedColumn(),
                _text("left"),
                TimeRemainingColumn(),
                _text("{task.fields[note]}"),
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

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False) -> None:
        """Text in columns; those whose heading ends in a space are aligned to the right. total: a line sets the last row apart.

        Long cells are wrapped to the width of a terminal and short ones never; one that is too narrow wraps the lines itself.
        """
        if self.quiet:
            return
        table = Table(title=self._fitting(title), title_justify="left")
        cells = [[self._fitting(cell) for cell in row] for row in (headings, *rows)]
        for heading, *column in zip(*cells, strict=True):
            longest = max(map(cell_len, (heading.strip(), *column)))
            whole = longest <= WRAPPED_FROM
            table.add_column(
                heading.strip(), justify="right" if heading.endswith(" ") else "left", overflow="fold", no_wrap=whole,
                min_width=longest if whole else None,
            )  # fmt: skip
        for place, row in enumerate(cells[1:], 1):
            table.add_row(*row, end_section=total and place == len(rows) - 1)
        least, out = Measurement.get(self._out, self._out.options.update(width=UNBOUNDED), table).minimum, self._out
        if least > out.width:
            out = _Terminal(**self._options, width=least)
        out.print(table)

    def result_table(self, results: Mapping[str, Any], verbose: bool | None = None) -> None:
        """Accuracies of every model, bytes and seconds of every stage; per class when verbose."""
        names = present_models(results)
        models = [(name, results["models"][name]) for name in names]
        self.table(
            f"{results['method']}, seed {results['seed']}", ACCURACY_COLUMNS,
            [(name, percent(model.get("validation")), percent(model.get("test"))) for name, model in models],
        )  # fmt: skip
        if self.verbose if verbose is None else verbose:
            self.table(
                "test accuracy per class, %", ("class", *(f"{name} " for name in names)),
                [(class_name, *(percent(model["test_per_class"][index]) for _, model in models))
                 for index, class_name in enumerate(results["class_names"])],
            )  # fmt: skip
        if rows := cost_rows(results):
            self.table("costs", (COST_COLUMNS[0], *(f"{heading} " for heading in COST_COLUMNS[1:])), rows, total=True)
        if results.get("hardware"):
            self.message(f"hardware: {results['hardware']}")

    def seeds_table(self, summary: Mapping[str, Any]) -> None:
        """Mean and standard deviation over seeds of every model's accuracies; summary: what seeds.json holds."""
        self.table(
            f"{summary['method']}, seeds {', '.join(map(str, summary['seeds']))}", ACCURACY_COLUMNS,
            [(name, *(mean_and_deviation(model[which]) for which in ("validation", "test")))
             for name, model in summary["models"].items()],
        )  # fmt: skip


def _text(template: str) -> TextColumn:
    """A part of a progress line, cut where the terminal ends: without rich's ellipsis, which few encodings have."""
    return TextColumn(template, markup=False, table_column=Column(no_wrap=True, overflow="crop"))


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

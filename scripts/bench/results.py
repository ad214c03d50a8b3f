"""What a row measured, and how it is printed."""

from statistics import median
from typing import Any, NamedTuple

from bench.rows import Row

COLUMNS = (
    ("ours img/s", 11), ("torch img/s", 12), ("ratio", 7), ("ours of matmul", 16), ("torch of matmul", 17),
    ("ours GiB", 10), ("torch GiB", 11), ("compile s", 11), ("loss error", 12),
)  # fmt: skip


class Result(NamedTuple):
    """One row, measured.

    ours: seconds of each pass; twin: the same by variant, empty where only ours is measured.
    flops: of one pass, as the twin counts them; matmul_rate: operations per second, measured just before.
    compile_seconds: ours; loss_error: largest relative difference between the losses of both sides; peaks in bytes, 0 where they
    were not measured.
    """

    row: Row
    ours: list[float]
    twin: dict[str, list[float]]
    flops: int
    matmul_rate: float
    compile_seconds: float
    loss_error: float
    ours_peak: int
    twin_peak: int

    @property
    def best(self) -> str:
        """The twin's fastest variant by its median, or nothing."""
        return min(self.twin, key=lambda name: median(self.twin[name]), default="")

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best twin ours is."""
        return median(self.twin[self.best]) / median(self.ours) if self.twin else None

    @property
    def milliseconds_per_client_step(self) -> float:
        """Median cost of one local step of one client."""
        return 1e3 * median(self.ours) / (self.row.steps * self.row.clients)

    def rate(self, seconds: list[float]) -> float:
        """Images per second at the median."""
        return self.row.images / median(seconds)

    def fraction(self, seconds: list[float]) -> float | None:
        """Share of the matrix-multiply rate at the median."""
        return self.flops / median(seconds) / self.matmul_rate if self.flops else None

    def as_json(self) -> dict[str, Any]:
        """Everything measured and derived, for `--json`."""
        theirs = self.twin.get(self.best)
        return {
            "what": self.row.what, "row": self.row.name, "title": self.row.title, "settings": self.row.settings,
            "images_per_pass": self.row.images, "steps_per_pass": self.row.steps,
            "ours_seconds": self.ours, "torch_seconds": self.twin, "torch_best": self.best or None,
            "ours_images_per_second": self.rate(self.ours), "torch_images_per_second": self.rate(theirs) if theirs else None,
            "ratio": self.ratio, "flops_per_pass": self.flops or None, "matmul_flops_per_second": self.matmul_rate,
            "ours_of_matmul": self.fraction(self.ours), "torch_of_matmul": self.fraction(theirs) if theirs else None,
            "ours_compile_seconds": self.compile_seconds, "loss_error": self.loss_error if self.twin else None,
            "ours_peak_bytes": self.ours_peak or None, "torch_peak_bytes": self.twin_peak or None,
            "milliseconds_per_client_step": self.milliseconds_per_client_step if self.row.stage == "warmup" else None,
        }  # fmt: skip


def header() -> str:
    """The names of the columns."""
    return f"{'':50}" + "".join(f"{name:>{width}}" for name, width in COLUMNS) + "  best torch"


def line(result: Result) -> str:
    """One row of the table."""
    theirs = result.twin.get(result.best)
    cells = (
        f"{result.rate(result.ours):,.0f}", f"{result.rate(theirs):,.0f}" if theirs else "",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        _percent(result.fraction(result.ours)), _percent(result.fraction(theirs) if theirs else None),
        _gib(result.ours_peak), _gib(result.twin_peak),
        f"{result.compile_seconds:.1f}", f"{result.loss_error:.0e}" if theirs else "",
    )  # fmt: skip
    numbers = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    return f"{result.row.what:15}{result.row.title:35}{numbers}  {result.best}".rstrip()


def scale_lines(results: list[Result]) -> list[str]:
    """The cost of a client-step at each number of clients, and how far it is from flat where all of them work."""
    lines = [
        f"scale: {_clients(result.row):>16} clients {result.milliseconds_per_client_step:8.2f} ms per client-step, "
        f"peak {_gib(result.ours_peak) or '?'} GiB"
        for result in results
    ]
    costs = [result.milliseconds_per_client_step for result in results if result.row.clients == _num_clients(result.row)]
    if len(costs) > 1:
        lines.append(f"scale: the dearest client-step costs {max(costs) / min(costs):.2f} times the cheapest (flat: up to 1.15)")
    return lines


def _num_clients(row: Row) -> int:
    return row.config.partition.num_clients


def _clients(row: Row) -> str:
    return f"{row.clients:,} of {_num_clients(row):,}" if row.clients < _num_clients(row) else f"{row.clients:,}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _gib(peak: int) -> str:
    return f"{peak / 2**30:.2f}" if peak else ""

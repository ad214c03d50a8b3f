"""Label counts of clients: as text for the terminal, and as the CSV file that `partition.table` reads back."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.plain_text import plain, plain_cell
from mosaic_jax.python_files import one_line
from mosaic_jax.sources import absolute

WHOLE_TABLE, FIRST, LAST = 50, 10, 2  # clients of a table printed whole; of a longer one, clients printed at its two ends
COLUMNS, LARGEST = 20, 5  # a table is at most so wide; of more classes than that, the largest at a client are named


def table(label_counts: np.ndarray, class_names: Sequence[str]) -> str:
    """Clients and classes as aligned plain text with totals; label_counts: integers [C, K].

    A row for each client and a column for each class; classes by clients where only that fits the width. Of many clients the
    first and the last ones; of many clients and classes, the largest classes of each of them.
    """
    counts, num_clients, class_names = np.asarray(label_counts), len(label_counts), list(map(plain, class_names))
    totals = counts.sum(axis=1)
    if len(class_names) > COLUMNS >= num_clients:
        rows = [["class", *map(str, range(num_clients)), "total"]]
        rows += [[name, *map(str, column), str(sum(column))] for name, column in zip(class_names, counts.T.tolist(), strict=True)]
        return aligned([*rows, ["total", *map(str, totals), str(totals.sum())]])
    shown = list(range(num_clients))
    if num_clients > WHOLE_TABLE:
        shown = [*shown[:FIRST], -1, *shown[-LAST:]]
    wide = len(class_names) > COLUMNS
    rows = [["client", "total", "classes", "largest"] if wide else ["client", *class_names, "total"]]
    for client in shown:
        if client < 0:
            rows.append(["..."] * len(rows[0]))
        elif wide:
            held = [c for c in np.argsort(-counts[client], kind="stable") if counts[client, c]]
            largest = ", ".join(f"{class_names[c]} {counts[client, c]}" for c in held[:LARGEST])
            rows.append([str(client), str(totals[client]), str(len(held)), largest + (", ..." if len(held) > LARGEST else "")])
        else:
            rows.append([str(client), *map(str, counts[client]), str(totals[client])])
    if wide:
        return aligned([*rows, ["total", str(totals.sum()), str(int((counts.sum(axis=0) > 0).sum())), ""]])
    return aligned([*rows, ["total", *map(str, counts.sum(axis=0)), str(totals.sum())]])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts in columns, each column to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def summary(label_counts: np.ndarray, num_images: int) -> str:
    """One line: how many images are dealt, and how large and how mixed the clients are."""
    counts = np.asarray(label_counts)
    sizes, classes = counts.sum(axis=1), (counts > 0).sum(axis=1)
    left = num_images - sizes.sum()
    dealt = f"all {num_images} training images" if not left else f"{sizes.sum()} of {num_images} training images ({left} to nobody)"
    spread = [f"{values.min()} to {values.max()}, median {np.median(values):g}" for values in (sizes, classes)]
    return f"{dealt}; images of a client {spread[0]}; classes of a client {spread[1]}"


def as_csv(label_counts: np.ndarray, class_names: Sequence[str]) -> str:
    """A row `client,CLASS,CLASS,...`, then a row for each client; `read_csv` reads it back. Names are made safe to show."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["client", *map(plain_cell, class_names)])
    writer.writerows([client, *row] for client, row in enumerate(np.asarray(label_counts).tolist()))
    return text.getvalue()


def read_csv(path: Path, class_names: Sequence[str]) -> np.ndarray:
    """The label counts i64[C, K] of a file that holds what `as_csv` gives.

    Raises ConfigError, one line with the file, its line and the remedy, for anything else.
    """

    def bad(what: str) -> ConfigError:
        return ConfigError(f"partition.table={path}{what}")

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise bad(f": cannot be read ({one_line(error)}); name a CSV file") from error
    head = ["client", *(plain_cell(name).strip() for name in class_names)]
    as_they_are = ["client", *(name.strip() for name in class_names)]  # as earlier versions wrote them
    form = f"client,{head[1]},...,{head[-1]}"
    if len(rows) < 2:
        raise bad(f": must hold the row {form} and a row for each client")
    if (found := rows[0][1]) not in (head, as_they_are):
        wrong = next((f"{a!r} where {b!r} should be" for a, b in zip(found, head, strict=False) if a != b), f"{len(found)} columns")
        raise bad(f": its first row has {wrong}; it must be {form}, all {len(class_names)} classes in order")
    counts = np.zeros((len(rows) - 1, len(class_names)), np.int64)
    for client, (line, row) in enumerate(rows[1:]):
        if len(row) != len(head):
            raise bad(f", line {line}: has {len(row)} columns, its first row {len(head)}; write a number for each class")
        if row[0] != str(client):
            raise bad(f", line {line}: begins with {row[0]!r}; clients are numbered from 0, so write {client}")
        for column, cell in enumerate(row[1:]):
            if not (cell.isascii() and cell.isdigit() and len(cell) < 16):
                raise bad(f", line {line}: {cell!r} images of class {class_names[column]!r}; write a whole number from 0")
            counts[client, column] = int(cell)
    return counts


def holds(path: Path, label_counts: np.ndarray, class_names: Sequence[str]) -> bool:
    """Whether a file holds these label counts [C, K] of these classes."""
    try:
        return np.array_equal(read_csv(path, class_names), label_counts)
    except ConfigError:
        return False


def read_table(config: PartitionConfig, class_names: Sequence[str]) -> np.ndarray | None:
    """The label counts that `partition.table` prescribes; None for another kind of partition."""
    return read_csv(absolute(config.table), class_names) if config.kind == "table" else None

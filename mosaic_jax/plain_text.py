"""Texts made safe to show: names of files, of classes and of rows come from elsewhere and may hold anything.

Imports no JAX, as `config`.
"""

import sys
from typing import TextIO


def plain(text: str) -> str:
    r"""A text on one line without anything that steers a terminal, turns the direction of writing or is no Unicode.

    Every character that is not printable is escaped as Python writes it (ESC as \x1b, a line break as \n, a right-to-left mark as
    \u200f), and so is every byte of a file's name that is no UTF-8 (\xe9).
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    byte = ord(character) - 0xDC00  # how Python keeps a byte that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode("ascii")


def plain_cell(text: str) -> str:
    """`plain` for a cell of a CSV file: what a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{plain(text)}" if text.lstrip().startswith(("=", "+", "-", "@")) else plain(text)


def fitting(text: str, stream: TextIO) -> str:
    """A text in the characters that a stream's encoding has: ± becomes +-, others that it lacks are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(encoding, "backslashreplace").decode(encoding)
    return text


def say(kind: str, text: str) -> None:
    """A line `kind: text` on standard error."""
    print(fitting(f"{kind}: {plain(text)}", sys.stderr), file=sys.stderr, flush=True)

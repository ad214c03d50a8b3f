"""Parts of a Markdown page that are made and not typed: what stands between `<!-- leaderboard DIR... -->` and `<!-- end -->`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mosaic_jax.config import ConfigError
from mosaic_jax.io.whole_files import write_text
from mosaic_jax.json_file import read_regular

BEGIN, END = "<!-- leaderboard DIR... -->", "<!-- end -->"
_MARK = re.compile(r"^<!-- (?:leaderboard ([^\n]*\S)|end) -->$", re.MULTILINE)


def rewritten(text: str, place: Path, made: Callable[[Sequence[Path]], str], name: str) -> tuple[str, int]:
    """The text with what `made` gives in every block, and how many there are.

    place: what the directories in marks are relative to; name: of the page. Raises ConfigError for a mark without its other one.
    """
    parts, at, directories = [], 0, None
    count = 0
    for mark in _MARK.finditer(text):
        if (mark[1] is None) == (directories is None):
            line = text.count("\n", 0, mark.start()) + 1
            raise ConfigError(f"{name}: line {line} is {mark[0]} where the other mark belongs; write {BEGIN}, then {END}")
        if mark[1] is not None:
            directories = mark[1].split()
            parts.append(text[at : mark.end()])
        else:
            parts.append(f"\n\n{made([place / directory for directory in directories or ()])}\n")
            at, directories, count = mark.start(), None, count + 1
    if directories is not None:
        raise ConfigError(f"{name}: a {BEGIN} has no {END}; write it where the tables end")
    return "".join([*parts, text[at:]]), count


def rewrite(page: Path, made: Callable[[Sequence[Path]], str]) -> int:
    """Writes a page again with what `made` gives in every block, relative to its directory; returns how many there are.

    Raises ConfigError where it cannot be read, has no block or a mark without its other one.
    """
    try:
        text = read_regular(page).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--update {page}: cannot be read ({getattr(error, 'strerror', None) or error}); name a page") from error
    new, count = rewritten(text, page.parent, made, f"--update {page}")
    if not count:
        raise ConfigError(f"--update {page}: has no line {BEGIN}; write it, and {END} below, where the tables belong")
    if new != text:
        write_text(page, new)
    return count

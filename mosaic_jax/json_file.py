"""JSON files read back: odd content is refused in one line that names the file, the place in it and the remedy.

Imports no JAX, as `config`.
"""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mosaic_jax.settings import ConfigError

LARGEST = 1e50  # far above any count, byte, second or float32 loss of ours, and far below what overflows when it is drawn


class Value(NamedTuple):
    """A value that is no list and no object: what it must be, in words, and how that is seen."""

    words: str
    holds: Callable[[Any], bool]


# What a value must be: a Value, [form] for a list of them, {str: form} for an object with any names, or an object's names with
# their forms, of which one that ends in "?" may be missing or null. Other names are left alone.
Form = Value | list[Any] | dict[Any, Any]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST  # neither is NaN below it


NUMBER = Value("a number", _number)
COUNT = Value("a whole number from 0", lambda value: _number(value) and isinstance(value, int) and value >= 0)
AMOUNT = Value("a number from 0", lambda value: _number(value) and value >= 0)
SHARE = Value("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
TEXT = Value("a text", lambda value: isinstance(value, str))
ANYTHING = Value("anything", lambda value: True)


def no_complaint(value: Any) -> str:
    """What is wrong with a value that only needs its form: nothing."""
    return ""


def or_null(value: Value) -> Value:
    """A value that may be null."""
    return Value(f"{value.words} or null", lambda found: found is None or value.holds(found))


class _Misfit(Exception):
    """Where a value is not what it must be, from its outermost name on, and what is wrong."""


def read_json(path: Path, form: Form, remedy: str, wrong: Callable[[Any], str] = no_complaint) -> Any:
    """What a JSON file holds, which has the form; remedy: what to do about one that is damaged, or was changed, or is no file.

    wrong: what is wrong with a value that has the form, in words, empty for nothing. Raises ConfigError, one line with the file,
    what is wrong and the remedy.
    """
    try:
        value = parse_json(read_regular(path).decode("utf-8"), form)
        if complaint := wrong(value):
            raise ValueError(complaint)
        return value
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}; {remedy}") from error


def parse_json(text: str, form: Form) -> Any:
    """The value that a JSON text holds, which has the form; raises ValueError with what is wrong."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        _check(value, form)
    except _Misfit as error:
        raise ValueError(str(error).lstrip(". ")) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; raises OSError, or ValueError for a pipe or a device, which might never end."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        return file.read()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any, form: Form) -> None:
    """Raises _Misfit at the first place where a value differs from a form."""
    if isinstance(form, Value):
        if not form.holds(value):
            raise _Misfit(f" is {_brief(value)}, not {form.words}")
        return
    if isinstance(form, list):
        if not isinstance(value, list):
            raise _Misfit(f" is {_brief(value)}, not a list")
        for place, item in enumerate(value):
            _check_at(f"[{place}]", item, form[0])
        return
    if not isinstance(value, dict):
        raise _Misfit(f" is {_brief(value)}, not an object")
    if str in form:
        for name, inner in value.items():
            _check_at(f".{name}", inner, form[str])
        return
    for name, inner in form.items():
        key, optional = name.removesuffix("?"), name.endswith("?")
        if key not in value and not optional:
            raise _Misfit(f".{key} is missing")
        if value.get(key) is not None or not optional:
            _check_at(f".{key}", value[key], inner)


def _check_at(place: str, value: Any, form: Form) -> None:
    try:
        _check(value, form)
    except _Misfit as error:
        raise _Misfit(f"{place}{error}") from None


def _brief(value: Any) -> str:
    """A value as it stands in the file, its beginning where that is long."""
    kinds = {dict: "an object", list: "a list"}
    if type(value) in kinds:
        return kinds[type(value)]
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of too many digits
        return "a number without end"
    return text if len(text) <= 40 else f"{text[:40]}..."

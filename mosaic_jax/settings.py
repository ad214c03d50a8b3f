"""What a setting of the configuration is: a typed dataclass field with a line of help and its valid values, and how it is checked.

Imports no JAX, as `config`.
"""

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Collection, Iterator
from typing import Any

from mosaic_jax.registry import sections


class ConfigError(ValueError):
    """A bad setting; the message is one line naming the field, the value and the remedy."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Collection[Any] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field with its line of help and its valid values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


LARGEST = 2**31 - 1  # whole number where no setting says another: JAX counts in 32 bits
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Setting(typing.NamedTuple):
    """One setting of a Config: its dotted name, its value, its declared type, and its field with help and limits."""

    name: str
    value: Any
    type: Any
    field: dataclasses.Field


def settings(config: Any) -> Iterator[Setting]:
    """Every setting of a Config, in the order of declaration, those of registered sections last."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "extra":
            for name, section in value:
                yield from of_section(name, section, sections()[name])
        elif dataclasses.is_dataclass(types[field.name]):
            yield from of_section(field.name, value, types[field.name])
        else:
            yield Setting(field.name, value, types[field.name], field)


def of_section(name: str, section: Any, kind: type) -> Iterator[Setting]:
    """Every setting of one section; raises ConfigError where it is none of its class."""
    if not isinstance(section, kind):
        raise ConfigError(f"{name}={section!r}: must be a {kind.__name__}")
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(section):
        yield Setting(f"{name}.{field.name}", getattr(section, field.name), types[field.name], field)


def show(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple | list):
        return ",".join(map(show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def valid_values(setting: Setting) -> str:
    """What a setting accepts, in words: `one of a, b`, `a whole number, at least 1`, `3 numbers`."""
    choices, low, high = (setting.field.metadata[key] for key in ("choices", "low", "high"))
    if choices:
        return ", ".join(map(show, choices)) if len(choices) == 1 else "one of " + ", ".join(map(show, choices))
    kinds = typing.get_args(setting.type)
    if kinds[1:] == (...,):
        words = f"none or several, separated by commas, each {KINDS[kinds[0]]}"
    else:
        words = f"{len(kinds)} numbers separated by commas" if kinds else KINDS[setting.type]
    if low is not None:
        words += f", at least {low:g}" if high is None else f", from {low:.10g} to {high:.10g}"
    if type(setting.value) is int and high is None and setting.value > LARGEST:
        words += f", at most {LARGEST}"
    return words


def item_types(setting: Setting, num: int) -> tuple[type, ...]:
    """The types of `num` values of a setting that holds several; raises ValueError where it holds another number of them."""
    kinds = typing.get_args(setting.type)
    if kinds[1:] == (...,):
        return kinds[:1] * num
    if len(kinds) != num:
        raise ValueError(f"{setting.name} holds {len(kinds)} values, not {num}")
    return kinds


def checked(setting: Setting) -> Any:
    """The value in its declared type (an int where a float is meant becomes one); raises ConfigError when it is not valid."""

    def scalar(value: Any, kind: type) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            value = float(value)
        low, high = setting.field.metadata["low"], setting.field.metadata["high"]
        high = LARGEST if high is None and kind is int else high
        valid = type(value) is kind
        if valid and kind in (int, float):
            valid = abs(value) < math.inf and (low is None or value >= low) and (high is None or value <= high)
        if not valid:
            raise ConfigError(f"{setting.name}={show(setting.value)}: must be {valid_values(setting)}")
        return value

    value, choices = setting.value, setting.field.metadata["choices"]
    if typing.get_args(setting.type):
        try:
            kinds = item_types(setting, len(value if isinstance(value, tuple | list) else None))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{setting.name}={show(value)}: must be {valid_values(setting)}") from error
        return tuple(scalar(item, kind) for item, kind in zip(value, kinds, strict=True))
    value = scalar(value, setting.type)
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), map(str, choices), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{setting.name}={show(value)}: must be {valid_values(setting)}{hint}")
    return value


def describe(config: Any) -> str:
    """A Config, a line for each setting: dotted name, value, help and what is valid."""
    rows = list(settings(config))
    width = max(len(f"{row.name}={show(row.value)}") for row in rows)
    lines, section = [], ""
    for row in rows:
        if row.name.rpartition(".")[0] != section:
            section = row.name.rpartition(".")[0]
            lines.append("")
        lines.append(f"{f'{row.name}={show(row.value)}':<{width}}  {row.field.metadata['help']} ({valid_values(row)})")
    return "\n".join(lines)

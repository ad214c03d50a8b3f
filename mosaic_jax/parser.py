"""An argument parser that answers in one line."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import did_you_mean, one_line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest command or option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.commands: dict[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        """Exit status 2 after one line; without the usage text that argparse puts before it."""
        raise ConfigError(f"{one_line(ValueError(message))} (see {self.prog} --help)")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments, names checked first: a misspelt option would else hide behind a missing one."""
        word = next((word for word in arguments if not word.startswith("-")), None)
        if word is not None and word not in self.commands:
            known = ", ".join(self.commands)
            raise ConfigError(f"{word} is no command; the commands are {known}{did_you_mean(word, self.commands)}")
        parser = self if word is None else self.commands[word]
        for name in (item.partition("=")[0] for item in arguments):
            options: Iterable[str] = parser._option_string_actions
            if name.startswith("--") and name != "--" and name not in options:
                hint = did_you_mean(name, options) or f"; see {parser.prog} --help"
                raise ConfigError(f"{name} is no option of {parser.prog}{hint}")
        return self.parse_args(arguments)

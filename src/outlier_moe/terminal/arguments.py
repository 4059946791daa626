"""A command line whose mistakes name the nearest command, choice or option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NoReturn

from outlier_moe.errors import nearest

_CHOICE = re.compile(r"invalid choice: '(?P<word>[^']*)' \(choose from (?P<known>.*)\)")
_UNKNOWN = re.compile(r"unrecognized arguments: .*?(?P<word>--[\w-]+)")


class Parser(argparse.ArgumentParser):
    """An argparse parser that suggests the nearest right word."""

    def error(self, message: str) -> NoReturn:
        """End with the usage, the mistake and the nearest right word."""
        if choice := _CHOICE.search(message):
            known = [word.strip("' ") for word in choice["known"].split(",")]
            message = f"{message.partition(' (choose')[0]}: {nearest(choice['word'], known)}"
        elif unknown := _UNKNOWN.search(message):
            message = f"{message}: {nearest(unknown['word'], set(options(self)))}"
        super().error(message)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: each for action in found for name, each in action.choices.items()}


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of a command line, and of its commands."""
    yield from (option for option in parser._option_string_actions if option.startswith("--"))
    for command in subcommands(parser).values():
        yield from options(command)

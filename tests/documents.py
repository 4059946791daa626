"""The documents of the project, and what they say that a program can check: commands, code, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_SETTINGS = sorted((ROOT / "config").glob("*.yaml"))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:outlier-moe|snakemake|make|python) [^`]+)`")
_OPENING = re.compile(r"^#   (snakemake .*)$", re.MULTILINE)


class Command(NamedTuple):
    """A command that a document tells its reader to run."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def program(self) -> str:
        """What is run, without its folder."""
        return Path(self.words[0]).name


def commands() -> list[Command]:
    """All commands: lines of shell blocks, of code in sentences, and the first lines of configuration files."""
    found = [Command(page.name, _words(line)) for page in PAGES for line in _lines(page.read_text())]
    found += [Command(file.name, _words(line)) for file in _SETTINGS for line in _OPENING.findall(file.read_text())]
    return [command for command in dict.fromkeys(found) if command.words]


def _words(line: str) -> tuple[str, ...]:
    """A command line's words, up to where the shell sends its output elsewhere."""
    return tuple(takewhile(lambda word: word not in {">", "|"}, shlex.split(line, comments=True)))


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """The page and the text of each block of code in a language."""
    for page in PAGES:
        yield from ((page.name, text) for name, text in _BLOCK.findall(page.read_text()) if name == language)


def _lines(text: str) -> Iterator[str]:
    for language, block in _BLOCK.findall(text):
        if language == "sh":
            yield from block.splitlines()
    yield from _INLINE.findall(_BLOCK.sub("", text).replace("\n", " "))

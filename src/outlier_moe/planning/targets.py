"""What to say of a target that no rule makes: the nearest that one does."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from outlier_moe.errors import StudyError, nearest

# A wildcard with its constraint, as Snakemake writes them in the outputs of a rule.
_WILDCARD = re.compile(r"\{(\w+)(?:,((?:[^{}]|\{[^{}]*\})*))?\}")
# Less alike than so, in the mean over the parts of a path, and another target is no guess worth telling.
_ALIKE = 0.7
_MOST_WORDS = 500


class _Part(NamedTuple):
    """One folder or file of an output."""

    regex: re.Pattern[str]
    """Pattern of allowed names."""
    words: tuple[str, ...]
    """Allowed names, if they can be listed."""


class _Guess(NamedTuple):
    """An output that a target may have meant."""

    alike: float
    """Similarity to the asked target, from 0 to 1."""
    target: str
    """A target that a rule makes."""


def unknown_target(target: str, outputs: Mapping[str, Sequence[str]], models: Collection[str]) -> StudyError:
    """The mistake of naming a target that no rule makes.

    Args:
        target: What was asked for.
        outputs: The outputs of each rule, with the constraints of their wildcards.
        models: The models of the registry, of which one may be named alone.
    """
    return StudyError(
        "No rule makes this target.",
        expected="a file or folder that a rule makes, or a rule without wildcards",
        got=target,
        remedy=_remedy(target, outputs, models),
    )


def rule_of_many(rule: str, outputs: Sequence[str]) -> StudyError:
    """The mistake of naming a rule that makes a file for each of many models or runs.

    Args:
        rule: The rule.
        outputs: Its outputs, with the constraints of their wildcards.
    """
    return StudyError(
        "A rule that makes a file for each of many models or runs is no target.",
        expected="what it makes: " + ", ".join(_readable(output) for output in outputs),
        got=rule,
    )


def _readable(output: str) -> str:
    return _WILDCARD.sub(lambda wildcard: wildcard[1].upper(), output)


def _remedy(target: str, by_rule: Mapping[str, Sequence[str]], models: Collection[str]) -> str:
    outputs = [output for each in by_rule.values() for output in each]
    if target in models:
        return f"To judge a model: snakemake {_table_of(target, outputs)}"
    relative = _relative(target)
    if relative != target and any(_matches(relative, output) for output in outputs):
        return f"Targets are named from the study's folder: snakemake {relative}"
    for parent in list(Path(relative).parents)[:-1]:
        if any(_matches(str(parent), output) for output in outputs):
            return f"It would lie in a folder that is made as a whole: snakemake {parent}"
    if inside := [output for output in map(_readable, outputs) if output.startswith(f"{relative.rstrip('/')}/")]:
        return f"Name what is made in it: {', '.join(inside[:3])}{', ...' if inside[3:] else ''}"
    guess = max((_guess(relative, output) for output in outputs), default=_Guess(0, ""))
    if "/" in relative and guess.alike >= _ALIKE:
        return f"Did you mean '{guess.target}'?"
    named = nearest(target, [*by_rule, *models])
    if named.startswith("did you mean"):
        return named[0].upper() + named[1:]
    return f"snakemake --list-target-rules lists rules. A model's table: {_table_of('MODEL', outputs)}"


def _table_of(model: str, outputs: Iterable[str]) -> str:
    """The table of a model's systematic features, as a target."""
    readable = (_readable(output) for output in outputs if output.endswith("/systematic.parquet"))
    return next(readable, "systematic.parquet").replace("MODEL", model)


def _relative(target: str) -> str:
    path = Path(target)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def _matches(target: str, output: str) -> bool:
    parts, theirs = target.split("/"), _parts(output)
    return len(parts) == len(theirs) and all(
        part.regex.fullmatch(word) for word, part in zip(parts, theirs, strict=True)
    )


def _guess(target: str, output: str) -> _Guess:
    """The target that an output would be, its parts as near to those asked for as can be."""
    words, parts = target.split("/"), _parts(output)
    if len(words) != len(parts):
        return _Guess(0, "")
    guesses = [_nearest_word(word, part) for word, part in zip(words, parts, strict=True)]
    return _Guess(sum(guess.alike for guess in guesses) / len(guesses), "/".join(guess.target for guess in guesses))


def _nearest_word(word: str, part: _Part) -> _Guess:
    if part.regex.fullmatch(word):
        return _Guess(1, word)
    alike = (_Guess(SequenceMatcher(None, word, known).ratio(), known) for known in part.words)
    # A part that may be anything is as good as none.
    best = max(alike, default=_Guess(0, ""))
    return best if best.alike >= 0.5 else _Guess(-1, best.target)


@cache
def _parts(output: str) -> tuple[_Part, ...]:
    return tuple(_Part(re.compile(_regex(part)), tuple(_words(part))) for part in _split(output))


def _split(output: str) -> list[str]:
    """The parts of an output's path; a constraint may have a slash of its own."""
    whole = iter(_WILDCARD.findall(output))
    marked = _WILDCARD.sub("\0", output).split("/")
    return [re.sub("\0", lambda _: "{{{},{}}}".format(*next(whole)), part) for part in marked]


def _regex(part: str) -> str:
    """The regular expression of a part of a path."""
    pieces, end = [], 0
    for wildcard in _WILDCARD.finditer(part):
        pieces += [re.escape(part[end : wildcard.start()]), f"(?:{wildcard[2] or '[^/]+'})"]
        end = wildcard.end()
    return "".join([*pieces, re.escape(part[end:])])


def _words(part: str) -> Iterator[str]:
    """The names that a part of a path may have, as far as they can be listed."""
    options: list[list[str]] = []
    end = 0
    for wildcard in _WILDCARD.finditer(part):
        options += [[part[end : wildcard.start()]], [*_alternatives(wildcard[2])]]
        end = wildcard.end()
    options.append([part[end:]])
    yield from ("".join(chosen) for chosen in islice(product(*options), _MOST_WORDS))


def _alternatives(constraint: str) -> Iterator[str]:
    """The names between the bars of a constraint; one that is no list of names gives none, but a number its first."""
    for alternative in constraint.split("|"):
        name = re.sub(r"\\(\W)", r"\1", alternative)
        if re.escape(name) == alternative:
            yield name
        elif alternative.endswith(r"\d+"):
            yield alternative.removesuffix(r"\d+") + "0"

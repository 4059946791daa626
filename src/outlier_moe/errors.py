"""The error for a user's mistake: it says where, what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class StudyError(Exception):
    """A mistake in an input (configuration, file, checkpoint, corpus) that its user can mend.

    Args:
        problem: One sentence that says what is wrong.
        file: The file that the problem came from.
        key: The key, column or tensor inside that file.
        expected: What would have been right.
        got: What was found instead.
        remedy: What to do about it.
        also: Other mistakes in the same file, a line each.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        key: str | None = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
        also: Sequence[str] = (),
    ) -> None:
        self.problem = problem
        self.file = file
        self.key = key
        self.expected = expected
        self.got = got
        self.remedy = remedy
        self.also = tuple(also)
        super().__init__(problem)

    def __str__(self) -> str:
        details = {
            "file": self.file,
            "key": self.key,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
        }
        lines = [f"  {name}: {detail}" for name, detail in details.items() if detail is not None]
        return "\n".join([self.problem, *lines, *(f"  also: {line}" for line in self.also)])

    def in_a_line(self) -> str:
        """The same in one line, for a list of several."""
        details = {"expected": self.expected, "got": self.got}
        told = "; ".join(f"{name} {detail}" for name, detail in details.items() if detail is not None)
        sentences = (self.problem, told and f"{told[0].upper()}{told[1:]}.", self.remedy)
        return (f"{self.key}: " if self.key else "") + " ".join(filter(None, sentences))


def nearest(word: str, known: Iterable[str]) -> str:
    """The clause that suggests the known word closest to a misspelt one."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known are: " + ", ".join(known) if known else "none is known"

"""Wrong inputs and the answers that they get: each must be told clearly, none in a traceback, none taken silently.

`python -m tests.faults.wrong_inputs` tries all of them and counts; `-v` prints every answer; words pick cases by name.
The cases stand in `inputs_*.py` beside this file, each a list `CASES`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from outlier_moe.cli import main as outlier_moe
from outlier_moe.config.registry import load_registry
from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError
from outlier_moe.study.study import validated_study

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = ROOT / "workflow/schemas"
MOST_LINES = 16
# What an answer must not have: the inside of Python or of Snakemake.
WRAPPINGS = ("Traceback (most recent call last)", "RuleException", "CalledProcessError", "common.smk", "WorkflowError")


class Answer(NamedTuple):
    """What a wrong input gets."""

    failed: bool
    """Whether it was refused."""
    text: str
    """What a person reads."""


@dataclass(frozen=True)
class WrongInput:
    """One wrong input."""

    name: str
    """What is wrong, in a few words, behind where: `config: magnitude is no edge`."""
    ask: Callable[[Path], Answer]
    """Makes the input in an empty folder and asks for it to be used."""
    says: tuple[str, ...]
    """Words of the answer that name the cause and the way out; upper and lower case are alike."""
    is_warning: bool = False
    """Whether the work goes on with a warning, as it can."""


def flaws(case: WrongInput, answer: Answer) -> list[str]:
    """What an answer lacks to be a clear one; empty if it is clear."""
    found = []
    if answer.failed == case.is_warning:
        found.append("is refused, not warned of" if answer.failed else "is taken silently")
    found += [f"shows {wrapping}" for wrapping in WRAPPINGS if wrapping in answer.text]
    found += [f"does not say '{words}'" for words in case.says if words.casefold() not in answer.text.casefold()]
    if not case.says:
        found.append("has no words to be held against")
    lines = answer.text.strip().splitlines()
    if len(lines) > MOST_LINES:
        found.append(f"has {len(lines)} lines")
    if not case.is_warning and not any(word in line for line in lines for word in ("expected:", "remedy:", "usage:")):
        found.append("says neither what was expected nor a remedy")
    return found


def ask(case: WrongInput) -> Answer:
    """Try a wrong input in a folder of its own; an exception other than a StudyError is told as its traceback."""
    with tempfile.TemporaryDirectory(prefix="wrong-input-") as name, contextlib.chdir(name):
        try:
            return case.ask(Path(name))
        except Exception:
            return Answer(failed=True, text=traceback.format_exc())


def called(function: Callable[..., object], *arguments: Any, **options: Any) -> Answer:
    """The answer of a function of the package."""
    try:
        function(*arguments, **options)
    except StudyError as error:
        return Answer(failed=True, text=str(error))
    return Answer(failed=False, text="")


def command(*argv: str) -> Answer:
    """The answer of `outlier-moe`, in this process."""
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            status = outlier_moe(list(argv))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    return Answer(failed=status != 0, text=printed.getvalue() + told.getvalue())


def program(*argv: str, cwd: Path) -> Answer:
    """The answer of a program in a process of its own; slow, for what no function shows."""
    done = subprocess.run(argv, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    return Answer(failed=done.returncode != 0, text=done.stdout)


def studied(**keys: Any) -> Callable[[Path], Answer]:
    """Ask for the shipped study with some keys set, at planning."""
    return lambda folder: called(
        validated_study, {**read_yaml(ROOT / "config/config.yaml"), **keys}, SCHEMAS / "config.schema.yaml"
    )


def registered(document: Any) -> Callable[[Path], Answer]:
    """Ask for a registry: its document, or the text of its file."""

    def ask_for(folder: Path) -> Answer:
        path = folder / "models.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
        return called(load_registry, path, SCHEMAS / "models.schema.yaml")

    return ask_for


def all_cases() -> list[WrongInput]:
    """The cases of all files beside this one; no name stands twice."""
    cases: list[WrongInput] = []
    for path in sorted(Path(__file__).parent.glob("inputs_*.py")):
        cases += importlib.import_module(f"tests.faults.{path.stem}").CASES
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"names that stand twice: {', '.join(sorted(twice))}")
    return cases


def _told(cases: Iterable[WrongInput], *, verbose: bool) -> int:
    n_clear = n_cases = 0
    for case in cases:
        answer = ask(case)
        found = flaws(case, answer)
        n_cases += 1
        n_clear += not found
        if verbose or found:
            print(f"{'clear  ' if not found else 'UNCLEAR'} {case.name}{': ' if found else ''}{'; '.join(found)}")
            print("\n".join(f"        | {line}" for line in answer.text.strip().splitlines()[:40]))
    print(f"{n_cases} wrong inputs: {n_clear} clear answers")
    return 0 if n_clear == n_cases else 1


def main() -> int:
    """Try the cases that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description="Try wrong inputs and count the clear answers.")
    parser.add_argument("words", nargs="*", help="only cases whose name has one of these")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every answer")
    arguments = parser.parse_args()
    chosen = [case for case in all_cases() if not arguments.words or any(word in case.name for word in arguments.words)]
    return _told(chosen, verbose=arguments.verbose)


if __name__ == "__main__":
    sys.exit(main())

"""What the documents tell their reader to run can be run, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser, parse_config
from snakemake.utils import update_config

import outlier_moe
from outlier_moe.cli import _parser
from outlier_moe.study.study import validated_study
from outlier_moe.terminal.arguments import subcommands
from tests.documents import PAGES, ROOT, Command, blocks, commands

COMMANDS = commands()
OTHERS = {"$EDITOR", "source", "pip", "rm", "apt", "eval", "du"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def of(*programs: str) -> list[Command]:
    return [command for command in COMMANDS if command.program in programs]


def test_every_command_is_of_a_known_program() -> None:
    assert {each.program for each in COMMANDS} <= {"outlier-moe", "snakemake", "make", "python"} | OTHERS
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "definitions.md"}


@pytest.mark.parametrize("command", of("outlier-moe"), ids=str)
def test_every_command_of_ours_is_parsed(command: Command) -> None:
    words = command.words[1:]
    if len(words) == 1:
        # Its name alone, as a sentence has it.
        assert words[0] in {*subcommands(_parser()), "--version"}
    else:
        assert callable(_parser().parse_args(words).run)


@pytest.mark.parametrize("command", of("snakemake"), ids=str)
def test_every_run_is_parsed_and_its_study_valid(command: Command) -> None:
    arguments = get_argument_parser().parse_args(command.words[1:])
    document = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for file in arguments.configfile or []:
        update_config(document, yaml.safe_load((ROOT / file).read_text()))
    update_config(document, parse_config(arguments.config))
    assert validated_study(document, ROOT / "workflow/schemas/config.schema.yaml")
    assert all((ROOT / profile / "config.yaml").is_file() for profile in arguments.profile or [])


@pytest.mark.parametrize("command", of("make", "python"), ids=str)
def test_every_target_and_script_exists(command: Command) -> None:
    words = command.words[1:]
    if command.program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif words[0] == "-m":
        assert find_spec(words[1]) is not None
    else:
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize(("page", "text"), list(blocks("python")))
def test_python_names_what_there_is(page: str, text: str) -> None:
    known = {"om": outlier_moe, "recording": outlier_moe.Recording}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert hasattr(known[node.value.id], node.attr), (page, node.attr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    # `tests/a/test_b.py::test_c, ::test_d`: the second is of the same file.
    file = None
    for named, test in re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", page.read_text(encoding="utf-8")):
        file = ROOT / named if named else file
        if named:
            assert file is not None and file.is_file(), named
        if test:
            assert file is not None and re.search(rf"^(def|class) {test}\b", file.read_text(), re.MULTILINE), test

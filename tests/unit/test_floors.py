"""What no module of the science may know: the workflow that calls it, and where that puts its results."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src/outlier_moe"
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """The packages that a module imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_nothing_imports_the_workflow() -> None:
    assert len(MODULES) > 200
    assert [str(path) for path in MODULES if "snakemake" in _imported(path)] == []


def test_nothing_spells_the_folder_of_results() -> None:
    spelling = "results" + "/"
    assert [str(path) for path in MODULES if spelling in path.read_text()] == []

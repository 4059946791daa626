"""What travels to a node."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.staging import KeptBack, fill, inside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workflow's folder."""
    secret = [".env", "rules/.env.local", ".netrc", "data/.env"]
    for name in ["Snakefile", ".skyignore", "data/a.txt", "data/deep/b.txt", *secret]:
        path = tmp_path / "workflow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "workflow"


def _sent(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_sources_and_inputs(root: Path, tmp_path: Path) -> None:
    """What belongs to the workflow and the inputs as they lie here, and no file with secrets."""
    sources = ["Snakefile", ".skyignore", "missing.py", "../outside.py"]
    sources += [".env", "rules/.env.local", ".netrc", "keys.txt"]
    (root / "keys.txt").write_text("secret")
    (tmp_path / "outside.py").write_text("")
    folder = tmp_path / "sent"
    fill(folder, sources, ["data"], KeptBack(root, (root / "keys.txt",)))
    assert _sent(folder) == {"Snakefile", ".skyignore", "data/a.txt", "data/deep/b.txt"}
    # SkyPilot takes its list of what to leave out from there, and not from .gitignore.
    assert (folder / ".skyignore").read_text() == ""


def test_no_copy_where_a_link_will_do(root: Path, tmp_path: Path) -> None:
    """Large inputs take no room: they are the same files; what a link names is sent in its place."""
    (root / "link.txt").symlink_to(root / "data/a.txt")
    fill(tmp_path / "sent", [], ["data/a.txt", "link.txt"], KeptBack(root))
    assert (tmp_path / "sent/data/a.txt").samefile(root / "data/a.txt")
    assert not (tmp_path / "sent/link.txt").is_symlink()
    assert (tmp_path / "sent/link.txt").read_text() == "data/a.txt"


@pytest.mark.parametrize("given", ["../outside.txt", "/etc/hostname", "data/../../x"])
def test_input_from_elsewhere(root: Path, tmp_path: Path, given: str) -> None:
    """The message says what to do."""
    with pytest.raises(WorkflowError, match=r"(?s)outside of the workflow's folder.*storage plugin"):
        fill(tmp_path / "sent", [], [given], KeptBack(root))


@pytest.mark.parametrize("given", ["data/.env", "link", "keys/of/mine", "here", "twin"])
def test_secret_as_input(root: Path, tmp_path: Path, given: str) -> None:
    """A file with secrets is refused, not left out in silence, whatever name a link gives it."""
    (root / "link").symlink_to(".env")
    (root / ".env.d/of").mkdir(parents=True)
    (root / ".env.d/of/mine").touch()
    (root / "keys").symlink_to(".env.d")
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.touch()
    (root / "here").symlink_to(elsewhere)
    (root / "twin").hardlink_to(elsewhere)
    with pytest.raises(WorkflowError, match="file with secrets"):
        fill(tmp_path / "sent", [], [given], KeptBack(root, (elsewhere,)))


def test_secrets_behind_links(root: Path, tmp_path: Path) -> None:
    """As a source or in an input's folder they are left out like those that bear their own name."""
    (root / "settings.txt").symlink_to(".env")
    (root / "data/deep/link").symlink_to("../../.netrc")
    (root / "data/kept.txt").symlink_to("a.txt")
    fill(tmp_path / "sent", ["settings.txt"], ["data"], KeptBack(root))
    assert _sent(tmp_path / "sent") == {".skyignore", "data/a.txt", "data/kept.txt", "data/deep/b.txt"}


def test_paths_inside(root: Path) -> None:
    """Absolute or not, from the folder on; a name that begins with dots is no way out."""
    assert inside(str(root / "data/a.txt"), root) == "data/a.txt"
    assert inside("./data//a.txt", root) == "data/a.txt"
    assert inside("..data", root) == "..data"

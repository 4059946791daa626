"""Keys, and what else is checked before anything is rented."""

from __future__ import annotations

import os
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot import preflight


def test_environment_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set already stays; no file is no error."""
    monkeypatch.setenv("A_OF_TEST", "kept")
    monkeypatch.delenv("B_OF_TEST", raising=False)
    (tmp_path / ".env").write_text("A_OF_TEST=other\nB_OF_TEST='from the file'\n")
    preflight.load_environment(tmp_path / ".env")
    preflight.load_environment(tmp_path / "none")
    assert (os.environ["A_OF_TEST"], os.environ["B_OF_TEST"]) == ("kept", "from the file")
    assert preflight.secret_values("A_OF_TEST, B_OF_TEST ,C_OF_TEST,") == {
        "A_OF_TEST": "kept",
        "B_OF_TEST": "from the file",
    }
    assert preflight.secret_values(None) == {}
    monkeypatch.delenv("B_OF_TEST")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_environment_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    """The file is named, and the remedy; none of its values."""
    (tmp_path / ".env").write_bytes("A_OF_TEST='sécret'\n".encode(encoding))
    with pytest.raises(WorkflowError, match=rf"(?s)not in UTF-8.*got: {tmp_path}/\.env.*lines NAME=VALUE") as caught:
        preflight.load_environment(tmp_path / ".env")
    assert "cret" not in str(caught.value) and "A_OF_TEST" not in os.environ


def test_environment_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and a file of somebody else."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkflowError, match=r"(?s)is a folder.*got: .*/folder.*remove it"):
        preflight.load_environment(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    preflight.load_environment(tmp_path / "")
    refused = PermissionError(13, "Permission denied")
    # Root may read everything.
    monkeypatch.setattr("builtins.open", Mock(side_effect=refused))
    (tmp_path / ".env").touch()
    with pytest.raises(WorkflowError, match=r"(?s)cannot be read.*got: .*/\.env \(Permission denied\)"):
        preflight.load_environment(tmp_path / ".env")


@pytest.mark.parametrize("key", ["rpa_KEY", 'quote"d', "back\\slash\\n", "\U0001f511\t'", "line\nfeed"])
def test_runpod_file_is_written(tmp_path: Path, key: str) -> None:
    """From the key, readable by its owner alone; then it is left alone."""
    path = tmp_path / "home/.runpod/config.toml"
    preflight.ensure_runpod_config(path, {"RUNPOD_API_KEY": key})
    assert path.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(path.read_text(encoding="utf-8")) == {"default": {"api_key": key}}
    written = path.read_bytes()
    preflight.ensure_runpod_config(path, {"RUNPOD_API_KEY": key})
    preflight.ensure_runpod_config(path, {})
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("kept", "environment", "said"),
    [
        (None, {}, r"There is no key for RunPod.*key: RUNPOD_API_KEY.*\.env.*console\.runpod\.io"),
        (None, {"RUNPOD_API_KEY": ""}, "There is no key"),
        ('[default]\napi_key = "one"', {"RUNPOD_API_KEY": "two"}, r"they differ.*config\.toml.*Remove"),
        ("[default", {"RUNPOD_API_KEY": "two"}, r"cannot be read.*config\.toml"),
        ("default = 3", {}, "cannot be read"),
        ('[default]\napi_key = "\xe9"', {}, "cannot be read"),
    ],
)
def test_runpod_keys(tmp_path: Path, kept: str | None, environment: dict[str, str], said: str) -> None:
    """What is missing or contradicts itself is told with the remedy, and without the key."""
    path = tmp_path / "config.toml"
    if kept is not None:
        path.write_text(kept, encoding="latin-1")
    with pytest.raises(WorkflowError, match=f"(?s){said}") as caught:
        preflight.ensure_runpod_config(path, environment)
    assert "got: two" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "kind", "arguments", "said"),
    [
        (
            "requests",
            "ConnectionError",
            ["HTTPSConnectionPool: Max retries exceeded: Failed to resolve a name"],
            r"^RunPod does not answer.*key: infra.*got: An unexpected.*Failed to resolve.*remedy: .*network",
        ),
        ("requests", "ReadTimeout", ["Read timed out."], "^RunPod does not answer"),
        ("requests", "JSONDecodeError", ["Expecting value", "<html>", 0], "^RunPod does not answer"),
        (
            "runpod.error",
            "AuthenticationError",
            ["Unauthorized"],
            "^The cloud refuses the key.*Unauthorized.*sky check runpod",
        ),
        ("runpod.error", "QueryError", ["401"], "^The cloud refuses the key.*got: RunPod API key is invalid"),
    ],
)
def test_refused_key_or_no_answer(
    sky: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, kind: str, arguments: list[Any], said: str
) -> None:
    """Without a network a key is not refused; of SkyPilot's lines the first has the reason."""
    from sky.provision.runpod import utils  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("HOME", str(tmp_path))
    preflight.ensure_runpod_config(tmp_path / ".runpod/config.toml", {"RUNPOD_API_KEY": "rpa_KEY"})
    problem = getattr(import_module(module), kind)(*arguments)
    monkeypatch.setattr(utils, "list_instances", Mock(side_effect=problem))
    with pytest.raises(WorkflowError, match=f"(?s){said}") as caught:
        preflight._refuse_bad_credentials(sky, "runpod")
    assert "pip install" not in str(caught.value) and len(str(caught.value).splitlines()) == 4


@pytest.fixture
def sky_with_key(tmp_path: Path) -> Any:
    """SkyPilot, as far as its ssh key goes."""
    places = (str(tmp_path / "sky/key"), str(tmp_path / "sky/key.pub"), "lock")
    auth = SimpleNamespace(get_ssh_key_and_lock_path=lambda _: places)
    return SimpleNamespace(
        utils=SimpleNamespace(auth_utils=auth, common_utils=SimpleNamespace(get_user_hash=lambda: "x"))
    )


def test_ssh_key(tmp_path: Path, sky_with_key: Any) -> None:
    """A chosen one is put where SkyPilot looks for its own, unless it has another."""
    chosen = tmp_path / "mine"
    preflight.ensure_ssh_key(sky_with_key, None)
    with pytest.raises(WorkflowError, match=f"(?s)An ssh key is missing.*got: {chosen}.*ssh-keygen"):
        preflight.ensure_ssh_key(sky_with_key, str(chosen))
    chosen.write_text("private")
    with pytest.raises(WorkflowError, match=r"mine\.pub"):
        preflight.ensure_ssh_key(sky_with_key, str(chosen))
    chosen.with_name("mine.pub").write_text("public")
    preflight.ensure_ssh_key(sky_with_key, str(chosen))
    preflight.ensure_ssh_key(sky_with_key, str(chosen))
    assert (tmp_path / "sky/key").read_text() == "private"
    assert (tmp_path / "sky/key").stat().st_mode & 0o777 == 0o600
    chosen.write_text("another")
    with pytest.raises(WorkflowError, match="another ssh key already"):
        preflight.ensure_ssh_key(sky_with_key, str(chosen))


def test_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyPilot would say so only after it has rented."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorkflowError, match=r"(?s)wants ssh.*apt-get install"):
        preflight.check_access(None, "runpod")


@pytest.mark.parametrize("may", [True, False])
def test_cloud_that_is_not_enabled(sky: Any, monkeypatch: pytest.MonkeyPatch, may: bool) -> None:
    """SkyPilot is asked anew once; the command that shows why is told."""
    enabled: list[list[str]] = [[], ["RunPod"] if may else ["AWS"]]
    checked: list[tuple[str, ...]] = []
    sdk = SimpleNamespace(check=lambda clouds, verbose: checked.append(clouds), enabled_clouds=lambda: enabled.pop(0))
    asked = SimpleNamespace(get=lambda value: value, client=SimpleNamespace(sdk=sdk))
    for name in ("ensure_runpod_config", "ensure_ssh_key", "_refuse_bad_credentials"):
        monkeypatch.setattr(preflight, name, lambda *_: None)
    if may:
        preflight.check_access(asked, "runpod/CA")
    else:
        with pytest.raises(WorkflowError, match=r"(?s)may not use this cloud.*got: runpod/CA.*sky check runpod"):
            preflight.check_access(asked, "runpod/CA")
    assert checked == [("runpod",)]

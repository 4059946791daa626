from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import save

from outlier_moe.config.registry import CheckpointSource, DirectorySource, HubSource
from outlier_moe.errors import StudyError
from outlier_moe.sources import hub as hub_source
from outlier_moe.sources.hub_answers import HubAwayError
from outlier_moe.sources.models import fetch_model, open_checkpoint
from outlier_moe.sources.origin import read_origin
from outlier_moe.tables.whole_outputs import partial_of
from tests.hub_server import HubServer, hub_environment
from tests.unit.sources.checkpoints import INDEX, repository, shards, write
from tests.unit.sources.entries import model_entry

REPO = "owner/tiny"
TINY = model_entry(HubSource(REPO))
SMALL = {
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
SECRET = "hf_secretsecretsecret"


def refusal(entry: object = TINY, *, directory: Path) -> StudyError:
    with pytest.raises(StudyError) as caught:
        fetch_model(entry, directory)  # pyright: ignore[reportArgumentType]
    assert not directory.exists(), "a refused model leaves no folder"
    assert not list(directory.parent.glob(f".{directory.name}*")), "nor a part of one"
    return caught.value


def test_fetching_from_the_hub_brings_what_is_small_and_pins_the_rest(hub: HubServer, tmp_path: Path) -> None:
    files = repository()
    pinned = hub.add(REPO, files, license="apache-2.0").commit
    fetch_model(TINY, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == SMALL | {"source.json", "labels.json"}
    assert (tmp_path / "model/config.json").read_bytes() == files["config.json"]
    origin = read_origin(tmp_path / "model")
    assert (origin.kind, origin.name, origin.revision) == ("hub", REPO, pinned)
    assert (origin.license, origin.dtype, origin.checkpoint) == ("apache-2.0", "bfloat16", None)
    sizes = {file.name: file.size for file in origin.files}
    assert sizes == {name: len(files[name]) for name in SMALL | {"model.safetensors"}}
    assert all(file.sha256 for file in origin.files if file.name == "model.safetensors")
    assert not [r for r in hub.requests if "safetensors" in r.path], "weights wait until they are needed"


def test_opening_downloads_the_pinned_commit_and_only_what_is_needed(hub: HubServer, tmp_path: Path) -> None:
    first = repository(shards([["a", "b"], ["c"]]))
    pinned = hub.add(REPO, first).commit
    fetch_model(TINY, tmp_path / "model")
    folder = open_checkpoint(tmp_path / "model")
    weights = {name for name in first if name.startswith("model-0")}
    assert {path.name for path in folder.iterdir()} == SMALL | weights | {INDEX}
    assert all((folder / name).read_bytes() == first[name] for name in weights)
    assert all(pinned in request.path for request in hub.requests if "resolve" in request.path)
    n_requests = len(hub.requests)
    assert open_checkpoint(tmp_path / "model") == folder
    assert not [r for r in hub.requests[n_requests:] if r.method == "GET" and "resolve" in r.path]


def test_a_branch_that_moved_on_leaves_the_pinned_commit_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    old = hub.add(REPO, repository()).commit
    fetch_model(TINY, tmp_path / "model")
    open_checkpoint(tmp_path / "model")
    new = repository({"model.safetensors": save({"embed": np.ones(3, np.float32)})})
    assert hub.add(REPO, new).commit != old
    assert (open_checkpoint(tmp_path / "model") / "model.safetensors").read_bytes() != new["model.safetensors"]
    assert read_origin(tmp_path / "model").revision == old


def test_a_revision_may_be_a_branch_or_a_commit(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(REPO, repository(), branches=("main", "refs/pr/7")).commit
    for revision in ("refs/pr/7", commit):
        fetch_model(model_entry(HubSource(REPO, revision)), tmp_path / "model")
        assert read_origin(tmp_path / "model").revision == commit


def test_code_is_fetched_only_where_the_entry_trusts_it(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    fetch_model(model_entry(HubSource(REPO), trust_remote_code=True), tmp_path / "trusted")
    fetch_model(TINY, tmp_path / "plain")
    assert (tmp_path / "trusted/modeling_own.py").exists() and read_origin(tmp_path / "trusted").trust_remote_code
    assert not (tmp_path / "plain/modeling_own.py").exists() and not read_origin(tmp_path / "plain").trust_remote_code
    assert not (open_checkpoint(tmp_path / "plain") / "original").exists()


def test_a_repository_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    error = refusal(directory=tmp_path / "model")
    assert "no such repository" in error.problem and error.key == "models.tiny-0.1b.source.repo"
    assert "no HF_TOKEN" in str(error.got)


def test_a_revision_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    error = refusal(model_entry(HubSource(REPO, "v9")), directory=tmp_path / "model")
    assert (error.key, error.got) == ("models.tiny-0.1b.source.revision", "v9")


def test_a_gated_model_opens_to_a_licensed_token_alone(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.add(REPO, repository(), gated=True, licensed=(SECRET,))
    hub.valid_tokens.add("hf_other")
    error = refusal(directory=tmp_path / "model")
    assert "gated" in error.problem and "no HF_TOKEN" in str(error.got)
    assert f"{hub.endpoint}/{REPO}" in (error.remedy or "")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    error = refusal(directory=tmp_path / "model")
    assert "gated" in error.problem and "with HF_TOKEN" in str(error.got)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fetch_model(TINY, tmp_path / "model")
    open_checkpoint(tmp_path / "model")
    written = [path.read_text() for path in (tmp_path / "model").iterdir()]
    assert SECRET not in "".join([caplog.text, *written, str(error)])


def test_a_token_that_the_hub_does_not_know(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, repository())
    monkeypatch.setenv("HF_TOKEN", SECRET)
    error = refusal(directory=tmp_path / "model")
    assert "token" in error.problem and "expired" in (error.remedy or "") and SECRET not in str(error)
    assert "HF_TOKEN" in str(error.got)


def test_a_saved_login_opens_what_its_account_may_read(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, repository(), gated=True, licensed=(SECRET,))
    # What `hf auth login` does.
    Path(constants.HF_TOKEN_PATH).write_text(SECRET)
    fetch_model(TINY, tmp_path / "model")
    open_checkpoint(tmp_path / "model")
    assert {request.token for request in hub.requests if "resolve" in request.path} == {SECRET}
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "HF_TOKEN of the environment" in str(refusal(directory=tmp_path / "other").got), "it comes first"
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("hf_old")
    assert "saved" in str(refusal(directory=tmp_path / "other").got)


TOLD = {
    401: ("refused", "hf auth login"),
    403: ("refused", "hf auth login"),
    404: ("did not answer as it should", "HF_ENDPOINT"),
    429: ("no more requests", "in 7 s"),
    451: ("status 451", "HF_ENDPOINT"),
    500: ("fault of its own (status 500)", "run again later"),
    503: ("fault of its own (status 503)", "run again later"),
}


@pytest.mark.parametrize("status", TOLD)
def test_each_refusal_is_told_as_what_it_is(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.add(REPO, repository())
    fetch_model(TINY, tmp_path / "fetched")
    hub.fail("revision/main", status=status, times=99, headers={"Retry-After": "7"} if status == 429 else {})
    error = refusal(directory=tmp_path / "model")
    problem, remedy = TOLD[status]
    assert problem in error.problem and remedy in (error.remedy or ""), str(error)
    assert ("could not be reached" in error.problem) is False
    assert isinstance(error, HubAwayError) == (status not in (401, 403))
    # And where the weights are opened, on the machine that runs the model.
    hub.fail("model.safetensors", method="HEAD", status=status, times=99)
    with pytest.raises(StudyError) as caught:
        open_checkpoint(tmp_path / "fetched")
    assert "could not be reached" not in caught.value.problem


def test_a_wait_that_the_hub_asks_for_is_kept(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.add(REPO, repository())
    hub.fail("revision/main", status=429, times=2, headers={"Retry-After": "30"})
    fetch_model(TINY, tmp_path / "model")
    assert waits[:2] == [30.0, 30.0]
    hub.fail("revision/main", status=429, times=1, headers={"Retry-After": "86400"})
    fetch_model(TINY, tmp_path / "model")
    assert max(waits) <= 60


def test_a_repository_that_was_switched_off(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    message = {"X-Error-Message": "Access to this resource is disabled."}
    hub.fail("revision/main", status=403, times=9, headers=message)
    assert "switched" in refusal(directory=tmp_path / "model").problem


def test_a_page_of_another_kind_in_place_of_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hub_source, "HfApi", lambda **_: SimpleNamespace(model_info=lambda *a, **o: json.loads("<html>"))
    )
    error = refusal(directory=tmp_path / "model")
    assert "does not speak" in error.problem and "HF_ENDPOINT" in (error.remedy or "")


def test_a_cache_that_cannot_be_written(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, repository())

    def forbidden(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", "/cache")

    monkeypatch.setattr(hub_source, "snapshot_download", forbidden)
    error = refusal(directory=tmp_path / "model")
    assert "cannot be written" in error.problem and "HF_HOME" in (error.remedy or "")


def test_a_repository_without_safetensors(hub: HubServer, tmp_path: Path) -> None:
    files = {name: content for name, content in repository().items() if name != "model.safetensors"}
    hub.add(REPO, files)
    error = refusal(directory=tmp_path / "model")
    assert "no safetensors" in error.problem and str(error.got).startswith("pytorch_model.bin")
    assert not [request for request in hub.requests if request.path.endswith(".bin")]


def test_a_repository_without_a_configuration(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"model.safetensors": b""})
    assert "no configuration" in refusal(directory=tmp_path / "model").problem


def test_an_index_that_names_a_file_the_repository_lacks(hub: HubServer, tmp_path: Path) -> None:
    files = repository(shards([["a"], ["b"]]))
    del files["model-00002-of-00002.safetensors"]
    hub.add(REPO, files)
    assert "model-00002-of-00002.safetensors" in str(refusal(directory=tmp_path / "model").expected)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_waited_out(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.add(REPO, repository())
    hub.fail("revision/main", status=status, times=2)
    fetch_model(TINY, tmp_path / "model")
    hub.fail("model.safetensors", status=status, times=2)
    assert (open_checkpoint(tmp_path / "model") / "model.safetensors").exists()


def test_a_lasting_failure_is_said_and_keeps_what_is_there(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    fetch_model(TINY, tmp_path / "model")
    hub.fail("revision/main", status=503, times=99)
    with pytest.raises(StudyError) as caught:
        fetch_model(TINY, tmp_path / "model")
    assert "fault of its own (status 503)" in caught.value.problem
    assert sum(request.path.endswith("revision/main") for request in hub.requests) == 1 + 4
    assert (tmp_path / "model/source.json").exists()


def test_a_download_that_breaks_off_goes_on_where_it_broke(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    weights = save({"embed": np.arange(50_000, dtype=np.float32)})
    hub.add(REPO, repository({"model.safetensors": weights}))
    fetch_model(TINY, tmp_path / "model")
    hub.fail("model.safetensors", cut_after=100_000)
    assert (open_checkpoint(tmp_path / "model") / "model.safetensors").read_bytes() == weights
    assert "bytes=100000-" in {request.byte_range for request in hub.requests}


def test_offline_the_cache_is_all_there_is(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(REPO, repository()).commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refusal(directory=tmp_path / "model")
    assert "HF_HUB_OFFLINE" in error.problem and f"hf download {REPO}" in (error.remedy or "")
    assert not hub.requests

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch_model(TINY, tmp_path / "earlier")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match="hub"):
        open_checkpoint(tmp_path / "earlier")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What `hf download` does, as the message says.
    snapshot_download(REPO, token=False)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch_model(TINY, tmp_path / "model")
    assert read_origin(tmp_path / "model").revision == commit
    for model in ("model", "earlier"):
        assert (open_checkpoint(tmp_path / model) / "model.safetensors").exists()
    assert not hub.requests


def test_no_hub_at_all(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refusal(directory=tmp_path / "model")
    assert "could not be reached (ConnectError)" in error.problem and "network" in (error.remedy or "")


def test_a_truncated_file_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, files := repository())
    fetch_model(TINY, tmp_path / "model")
    weights = open_checkpoint(tmp_path / "model") / "model.safetensors"
    weights.resolve().write_bytes(files["model.safetensors"][:-4])
    with pytest.raises(StudyError) as caught:
        open_checkpoint(tmp_path / "model")
    assert caught.value.file == weights and caught.value.got == f"{len(files['model.safetensors']) - 4} bytes"


@pytest.mark.parametrize("source", [DirectorySource, CheckpointSource])
def test_a_folder_is_used_where_it_lies(
    source: type[DirectorySource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path / "given", repository())
    monkeypatch.chdir(tmp_path)
    fetch_model(model_entry(source(Path("given"))), tmp_path / "models/tiny")
    assert {path.name for path in (tmp_path / "models/tiny").iterdir()} == SMALL | {"source.json", "labels.json"}
    monkeypatch.chdir("/")
    assert open_checkpoint(tmp_path / "models/tiny") == files
    assert read_origin(tmp_path / "models/tiny").kind == source.kind
    (files / "model.safetensors").write_bytes(b"")
    with pytest.raises(StudyError, match="no safetensors file"):
        open_checkpoint(tmp_path / "models/tiny")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    absent = model_entry(DirectorySource(tmp_path / "absent"))
    error = refusal(absent, directory=tmp_path / "model")
    assert (error.file, error.key) == (tmp_path / "absent", "models.tiny-0.1b.source.path")
    files = {**repository(), "config.json": b"[1]"}
    broken = model_entry(DirectorySource(write(tmp_path / "broken", files)))
    error = refusal(broken, directory=tmp_path / "model")
    assert "no configuration" in error.problem and str(error.file).endswith("config.json")


def test_an_unavailable_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    error = refusal(model_entry(None, unavailable="Never published."), directory=tmp_path / "model")
    assert error.got == "Never published."


def test_what_was_fetched_before_is_replaced_only_by_something_whole(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    fetch_model(TINY, tmp_path / "model")
    (tmp_path / "model/stale").write_text("")
    process = subprocess.Popen(["true"])
    process.wait()
    left = partial_of(tmp_path / "model", pid=process.pid)
    left.mkdir()
    with pytest.raises(StudyError):
        fetch_model(model_entry(HubSource("owner/absent")), tmp_path / "model")
    assert (tmp_path / "model/stale").exists()
    fetch_model(TINY, tmp_path / "model")
    assert not (tmp_path / "model/stale").exists() and not left.exists()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"files": [{"title": 1}]}'])
def test_a_folder_that_was_never_fetched(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "source.json").write_text(content)
    with pytest.raises(StudyError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.file == tmp_path / "source.json"


def test_the_origin_is_read_as_it_was_written(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    fetch_model(TINY, tmp_path / "model")
    keys = json.loads((tmp_path / "model/source.json").read_text())
    assert keys == json.loads(json.dumps(asdict(read_origin(tmp_path / "model"))))


def test_the_hub_is_found_through_the_environment(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository(), gated=True, licensed=(SECRET,))
    code = (
        "from pathlib import Path\n"
        "from outlier_moe.sources.models import fetch_model, open_checkpoint\n"
        "from tests.unit.sources.test_models import TINY\n"
        "fetch_model(TINY, Path('model')); print(open_checkpoint(Path('model')))"
    )
    environment = {**os.environ, **hub_environment(hub, tmp_path / "home"), "HF_TOKEN": SECRET}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().startswith(str(tmp_path / "home/hub")) and SECRET not in ran.stdout + ran.stderr


@pytest.mark.parametrize("token", ["hf_ä", "hf_a\nhf_b", "hf_a hf_b"])
def test_what_can_be_no_token_is_told_and_not_shown(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.add(REPO, repository())
    monkeypatch.setenv("HF_TOKEN", token)
    error = refusal(directory=tmp_path / "model")
    assert error.key == "HF_TOKEN" and token not in str(error)


def test_a_wrong_proxy_and_lacking_certificates_are_told_as_that(hub: HubServer, tmp_path: Path) -> None:
    """In a process of its own: the client of the hub is made once."""
    code = """
import os
from outlier_moe.errors import StudyError
from outlier_moe.sources.hub import resolve_model
for name, value in (("SSL_CERT_FILE", "/nowhere.pem"), ("HTTP_PROXY", "foo://proxy:1")):
    os.environ[name] = value
    try:
        resolve_model("owner/tiny", "main", key="models.tiny.source")
    except StudyError as error:
        print(error.problem)
    del os.environ[name]
"""
    environment = {**os.environ, **hub_environment(hub, tmp_path / "home"), "NO_PROXY": "", "no_proxy": ""}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert [word in line for word, line in zip(("SSL_CERT_FILE", "proxy"), asked.stdout.splitlines(), strict=True)] == [
        True
    ] * 2


def test_a_saved_login_that_cannot_be_read(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, repository())
    saved = Path(constants.HF_TOKEN_PATH)
    saved.write_bytes(b"\xff\xfe\0")
    assert refusal(directory=tmp_path / "model").file == str(saved)
    saved.unlink()
    saved.mkdir()
    assert "hf auth login" in str(refusal(directory=tmp_path / "model").remedy)


def test_json_that_is_no_hubs_is_told_as_that(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("revision/main", status=200, times=9)
    assert "does not speak as the hub does" in refusal(directory=tmp_path / "model").problem


def test_an_embedding_model_by_its_files(hub: HubServer, tmp_path: Path) -> None:
    """Its configuration is that of the language model which it was made from."""
    hub.add(REPO, repository() | {"modules.json": b"[]", "config_sentence_transformers.json": b"{}"})
    assert "embedding" in refusal(directory=tmp_path / "model").problem

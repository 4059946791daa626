"""A streamed recording is the resident one, byte for byte, also when it was killed on the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from outlier_moe.architectures.moe_hooks import pin_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError
from outlier_moe.recording import resume
from outlier_moe.recording.resident import load_resident, record_resident
from outlier_moe.recording.streamed import StreamedRun, StreamOptions, record_streamed
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.streaming.layer_store import LayerStore
from tests import zoo
from tests.streaming import CPU, open_store

FAMILIES = (
    *("llama", "gpt2", "gemma3", "gemma4_text", "falcon_h1"),
    *("mixtral", "deepseek_v3", "gpt_oss", "qwen3_next", "llama4", "jetmoe", "glm_moe_dsa+shared", "deepseek_v4"),
)
RESIDUALS: tuple[Tap, ...] = ("residual", "residual_rms")
TOKENS = np.concatenate([zoo.tokens(4).numpy(), zoo.tokens(1).numpy() - 1]).astype(np.uint32)
OPTIONS = RecordOptions(chunk=2, floor=0.5, dtype="float32", n_peaks=3)


def options_for(name: str) -> RecordOptions:
    return RecordOptions(chunk=2, floor=0.5, taps=RESIDUALS) if name == "mamba2" else OPTIONS


def resident(checkpoint: Path, directory: Path, options: RecordOptions = OPTIONS) -> Path:
    model = load_resident(checkpoint, dtype=options.dtype, device=CPU)
    structure = find_structure(model)
    pin_experts(structure)
    n_layers = len(structure.layers)
    with RecordingWriter(directory, tokens=TOKENS, n_peaks=3, n_layers=n_layers, ladder=options.ladder) as writer:
        record_resident(model, structure, TOKENS, options, writer, advance=lambda n: None)
        writer.finish({}, lambda ids: str(ids))
    return directory


def streamed(
    store: LayerStore,
    directory: Path,
    options: RecordOptions = OPTIONS,
    *,
    advance: Callable[[int], None] = lambda n: None,
    stream: StreamOptions | None = None,
) -> StreamedRun:
    with RecordingWriter(directory, tokens=TOKENS, n_peaks=3, n_layers=store.n_layers, ladder=options.ladder) as writer:
        chosen = stream or StreamOptions()
        run = record_streamed(store, TOKENS, options, writer, advance=advance, stream=chosen)
        writer.finish({}, lambda ids: str(ids))
    return run


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_same_recording(got: Path, expected: Path) -> None:
    got_files, expected_files = files(got), files(expected)
    assert got_files.keys() == expected_files.keys()
    assert [name for name in expected_files if got_files[name] != expected_files[name]] == []


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("llama", tmp_path / "llama")


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("mixtral", tmp_path / "mixtral")


@pytest.mark.parametrize("name", [*FAMILIES, "mamba2"])
def test_the_tables_are_those_of_the_resident_model(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint(name, tmp_path / "checkpoint")
    options = options_for(name)
    expected = resident(checkpoint, tmp_path / "resident", options)
    advanced: list[int] = []
    with open_store(checkpoint) as store:
        run = streamed(store, tmp_path / "streamed", options, advance=advanced.append)
    assert_same_recording(tmp_path / "streamed", expected)
    assert sum(advanced) == TOKENS.size and len(advanced) == store.n_layers
    assert run == StreamedRun(chunk=2, bytes_read=store.bytes_read, n_resumed=0)


def test_keeping_what_is_finished_changes_nothing(mixtral: Path, tmp_path: Path) -> None:
    for every in (1, 2, "auto"):
        with open_store(mixtral) as store:
            stream = StreamOptions(resume=tmp_path / f"resume-{every}", save_every=every)
            streamed(store, tmp_path / f"kept-{every}", stream=stream)
    with open_store(mixtral) as store:
        streamed(store, tmp_path / "plain")
    for every in (1, 2, "auto"):
        assert_same_recording(tmp_path / f"kept-{every}", tmp_path / "plain")


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from outlier_moe.recording.streamed import StreamOptions
from outlier_moe.recording import resume
from tests.unit.recording import test_streamed
from tests.streaming import open_store

checkpoint, directory, where, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def die_at_last(*args):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "save":
    plain = resume._save_chunk
    resume._save_chunk = lambda *args: (plain(*args), die_at_last())
if where == "layer":
    plain_save = resume._save
    resume._save = lambda *args: (plain_save(*args), die_at_last())
test_streamed.streamed(
    open_store(checkpoint),
    directory / "recording",
    advance=die_at_last if where == "advance" else lambda n: None,
    stream=StreamOptions(resume=directory / "resume", save_every=1),
)
"""


@pytest.mark.parametrize(
    ("family", "where", "count", "n_resumed"),
    [
        # Chunks are three: the fourth is the first of the second time that the forwards' places are saved.
        ("mixtral", "save", 4, 1),
        # Between what a layer has shown and where the forwards stand after it.
        ("gemma4_text", "advance", 3, 2),
        # While the rows of a layer are written, before anything was saved.
        ("llama", "layer", 1, 0),
    ],
)
def test_a_killed_run_goes_on_to_the_same_tables(
    family: str, where: str, count: int, n_resumed: int, tmp_path: Path
) -> None:
    checkpoint = zoo.save_checkpoint(family, tmp_path / "checkpoint")
    command = [sys.executable, "-c", KILLED_RUN, str(checkpoint), str(tmp_path), where, str(count)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "recording").exists()
    with open_store(checkpoint) as store:
        run = streamed(store, tmp_path / "recording", stream=StreamOptions(resume=tmp_path / "resume"))
    assert run.n_resumed == n_resumed
    with open_store(checkpoint) as store:
        streamed(store, tmp_path / "uninterrupted")
        if n_resumed > 1:
            assert run.bytes_read < store.bytes_read
    assert_same_recording(tmp_path / "recording", tmp_path / "uninterrupted")


def interrupt(store: LayerStore, directory: Path, *, after: int) -> Path:
    """Let a run fail after some layers, and give the folder of what it has finished."""
    seen: list[int] = []

    def advance(n_tokens: int) -> None:
        seen.append(n_tokens)
        if len(seen) == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streamed(
            store, directory / "recording", advance=advance, stream=StreamOptions(directory / "resume", save_every=1)
        )
    assert not (directory / "recording").exists()
    return directory / "resume"


@pytest.mark.parametrize("name", ["llama", "deepseek_v4", "inkling2_text", "llama4", "mistral_large4"])
def test_an_interrupted_run_goes_on(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint(name, tmp_path / "checkpoint")
    with open_store(checkpoint) as store:
        folder = interrupt(store, tmp_path, after=2)
        # The same store, whose layer was left on the meta device.
        run = streamed(store, tmp_path / "recording", stream=StreamOptions(resume=folder))
        assert run.n_resumed == 2
        streamed(store, tmp_path / "uninterrupted")
    assert_same_recording(tmp_path / "recording", tmp_path / "uninterrupted")


def test_what_another_run_has_left_is_not_used(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        folder = interrupt(store, tmp_path, after=3)
        other = RecordOptions(chunk=2, floor=0.75, dtype="float32")
        run = streamed(store, tmp_path / "recording", other, stream=StreamOptions(resume=folder))
    assert run.n_resumed == 0


def test_another_checkpoint_is_another_run(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        folder = interrupt(store, tmp_path, after=3)
    for shard in llama.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes())
    with open_store(llama) as store:
        assert streamed(store, tmp_path / "recording", stream=StreamOptions(resume=folder)).n_resumed == 0


def test_a_run_goes_on_with_its_own_chunks_unless_told_otherwise(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        folder = interrupt(store, tmp_path, after=3)
        auto = RecordOptions(chunk="auto", floor=0.5, dtype="float32", n_peaks=3)
        run = streamed(store, tmp_path / "recording", auto, stream=StreamOptions(resume=folder))
        assert (run.chunk, run.n_resumed) == (2, 3)
        folder = interrupt(store, tmp_path, after=3) if not folder.exists() else folder
        other = RecordOptions(chunk=5, floor=0.5, dtype="float32", n_peaks=3)
        run = streamed(store, tmp_path / "recording", other, stream=StreamOptions(resume=folder))
        assert (run.chunk, run.n_resumed) == (5, 0)


@pytest.mark.parametrize("broken", ["state-0003/0001.safetensors", "state-0003/0000.json", "state-0003/0002.json"])
def test_a_broken_state_starts_anew(broken: str, llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        folder = interrupt(store, tmp_path, after=3)
        if broken.endswith("0002.json"):
            (folder / broken).unlink()
        else:
            (folder / broken).write_bytes(b"half")
        run = streamed(store, tmp_path / "recording", stream=StreamOptions(resume=folder))
        assert run.n_resumed == 0
        streamed(store, tmp_path / "uninterrupted")
    assert_same_recording(tmp_path / "recording", tmp_path / "uninterrupted")


def test_broken_rows_of_a_finished_layer_are_told_and_removed(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        folder = interrupt(store, tmp_path, after=3)
        (folder / "layer-0001" / "sketches.safetensors").write_bytes(b"half")
        with pytest.raises(StudyError, match="cannot be resumed"):
            streamed(store, tmp_path / "recording", stream=StreamOptions(resume=folder))
        assert streamed(store, tmp_path / "recording", stream=StreamOptions(resume=folder)).n_resumed == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_is_told_and_what_is_finished_stays(
    error: Exception, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = resume._save, []

    def fill(*args: Any) -> None:
        calls.append(args)
        # Of every layer its rows, and the places of three forwards: this is the third layer's.
        if len(calls) == 9:
            raise error
        plain(*args)

    with open_store(llama) as store:
        stream = StreamOptions(resume=tmp_path / "resume", save_every=1)
        with monkeypatch.context() as patch:
            patch.setattr(resume, "_save", fill)
            with pytest.raises(StudyError, match="disk is full") as told:
                streamed(store, tmp_path / "recording", stream=stream)
        assert told.value.file == tmp_path / "resume"
        assert "kept" in str(told.value.remedy)
        assert streamed(store, tmp_path / "recording", stream=stream).n_resumed == 2


def test_a_full_disk_beside_the_tables_is_told(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordingWriter, "add_layer", fill)
    with open_store(llama) as store, pytest.raises(StudyError, match="disk is full"):
        streamed(store, tmp_path / "recording")


def test_tables_that_cannot_be_closed_do_not_hide_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = RecordingWriter(tmp_path / "recording", tokens=TOKENS, n_peaks=3, n_layers=1, ladder=OPTIONS.ladder)
    with pytest.raises(ArithmeticError), writer:
        writer._any_layer.close()
        monkeypatch.setattr(writer, "_any_layer", SimpleNamespace(close=fill))
        raise ArithmeticError
    assert not writer.partial.exists()


def test_a_shard_that_goes_away_is_told_and_what_is_finished_stays(llama: Path, tmp_path: Path) -> None:
    weight_map = json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"]
    shard = llama / weight_map["model.layers.4.mlp.down_proj.weight"]
    content, stat = shard.read_bytes(), shard.stat()
    stream = StreamOptions(resume=tmp_path / "resume", save_every=1)
    seen: list[int] = []

    def advance(n_tokens: int) -> None:
        seen.append(n_tokens)
        if len(seen) == 1:
            shard.unlink()

    with open_store(llama) as store, pytest.raises(StudyError, match="not there") as told:
        streamed(store, tmp_path / "recording", advance=advance, stream=stream)
    assert told.value.file == shard
    shard.write_bytes(content)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with open_store(llama) as store:
        assert streamed(store, tmp_path / "recording", stream=stream).n_resumed >= 1


def short_of_memory(store: LayerStore, *, layer: int, limit: int) -> None:
    def run_out(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(hidden) > limit:
            raise torch.OutOfMemoryError("out of memory")

    store.structure.layers[layer].register_forward_pre_hook(run_out, with_kwargs=True)


def test_running_out_of_memory_halves_the_chunk(llama: Path, tmp_path: Path) -> None:
    four = RecordOptions(chunk=4, floor=0.5, dtype="float32", n_peaks=3)
    one = RecordOptions(chunk=1, floor=0.5, dtype="float32", n_peaks=3)
    with open_store(llama) as store:
        short_of_memory(store, layer=0, limit=1)
        stream = StreamOptions(resume=tmp_path / "resume")
        assert streamed(store, tmp_path / "recording", four, stream=stream).chunk == 1
        streamed(store, tmp_path / "expected", one)
        assert store.bytes_read < 3 * sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    assert_same_recording(tmp_path / "recording", tmp_path / "expected")


def test_running_out_of_memory_late_names_the_chunk(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        short_of_memory(store, layer=3, limit=1)
        with pytest.raises(StudyError, match="later layer") as told:
            streamed(store, tmp_path / "recording")
        assert (told.value.key, told.value.remedy) == ("record_outliers.chunk", "Set it to 1.")


def test_memory_for_not_even_one_sequence(llama: Path, tmp_path: Path) -> None:
    with open_store(llama) as store:
        short_of_memory(store, layer=0, limit=0)
        with pytest.raises(StudyError, match="single sequence"):
            streamed(store, tmp_path / "recording")

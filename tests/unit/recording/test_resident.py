"""The resident driver on tiny random models: every table against a plain count of what the model computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.taps import VIEWS, Tap
from outlier_moe.errors import StudyError
from outlier_moe.recording import resident
from outlier_moe.recording.resident import load_resident, record_resident
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.tables.recording import FORMAT, Recording, read_recording
from tests.tiny_models import N_LAYERS, tiny_model

FLOOR = 0.5
PROJECTIONS = {
    "llama": ("self_attn.q_proj", "mlp.gate_proj"),
    "gpt2": ("attn.c_attn", "mlp.c_fc"),
    "mixtral": ("self_attn.k_proj", "mlp"),
}
"""Which modules read at attn_in and mlp_in."""


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("made up"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (3, 20)).astype(np.uint32)


def recorded(
    model: PreTrainedModel, tokens: np.ndarray, directory: Path, *, chunk: int = 2, floor: float = FLOOR
) -> Recording:
    options = RecordOptions(floor=floor, chunk=chunk, n_peaks=3)
    with RecordingWriter(directory, tokens=tokens, n_peaks=3, n_layers=N_LAYERS, ladder=options.ladder) as writer:
        record_resident(model, find_structure(model), tokens, options, writer, advance=lambda n: None)
        writer.finish({"format": FORMAT, "floor": floor, "n_layers": N_LAYERS}, lambda ids: f"<{ids[0]}>")
    return read_recording(directory)


def reading(keep: Callable[[Tap, Any], None], tap: Tap) -> Callable[..., None]:
    return lambda module, args: keep(tap, args)


def writing(keep: Callable[[Tap, Any], None]) -> Callable[..., None]:
    return lambda module, args, output: keep("residual", output)


def seen_by_plain_hooks(model: PreTrainedModel, name: str, tokens: np.ndarray) -> dict[tuple[Tap, int], np.ndarray]:
    """What the named projections of each layer read, and what each layer gives, one sequence at a time."""
    found: dict[tuple[Tap, int], list[torch.Tensor]] = {}
    attention, mlp = PROJECTIONS[name]
    hooks = []
    for index, layer in enumerate(find_structure(model).layers):

        def keep(tap: Tap, x: Any, index: int = index) -> None:
            x = x[0] if isinstance(x, tuple) else x
            found.setdefault((tap, index), []).append(x.reshape(tokens.shape[1], -1).clone())

        hooks += [
            layer.get_submodule(attention).register_forward_pre_hook(reading(keep, "attn_in")),
            layer.get_submodule(mlp).register_forward_pre_hook(reading(keep, "mlp_in")),
            layer.register_forward_hook(writing(keep)),
        ]
    with torch.no_grad():
        for row in tokens:
            model(input_ids=torch.from_numpy(row.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    sites = {site: torch.stack(rows).numpy() for site, rows in found.items()}
    for layer in range(N_LAYERS):
        x = sites["residual", layer]
        rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)).astype(np.float32)
        sites["residual_rms", layer] = x / rms
    return sites


def plain_row(x: np.ndarray, ladder: Ladder) -> dict[str, Any]:
    """One row of a table of outliers, from the |x| of one (site, sequence, feature) at every position."""
    edges = [float(edge) for edge in ladder.edges if edge <= x.max()]
    return {
        "peak": x.max(),
        "peak_position": int(x.argmax()),
        "first_token_magnitude": x[0],
        "later_peak": x[1:].max(),
        "later_peak_position": 1 + int(x[1:].argmax()),
        "n_positions": [int((x >= edge).sum()) for edge in edges],
    }


def check_rows(table: pl.DataFrame, key: list[str], expected: dict[tuple, dict[str, Any]]) -> None:
    assert len(table) == len(expected) > 0
    for row in table.iter_rows(named=True):
        plain = expected[tuple(row[name] for name in key)]
        assert {name: row[name] for name in plain} == plain


@pytest.mark.parametrize("name", PROJECTIONS)
def test_tables_equal_plain_counts(name: str, tokens: np.ndarray, tmp_path: Path) -> None:
    model = tiny_model(name)
    sites = seen_by_plain_hooks(model, name, tokens)
    recording = recorded(model, tokens, tmp_path / "outliers", chunk=1)
    ladder = Ladder(floor=FLOOR)
    expected = {
        (tap, layer, sequence, feature): plain_row(np.abs(x[sequence, :, feature]), ladder)
        for (tap, layer), x in sites.items()
        for sequence in range(x.shape[0])
        for feature in range(x.shape[2])
        if np.abs(x[sequence, :, feature]).max() >= FLOOR
    }
    check_rows(recording.layer_outliers().collect(), ["tap", "layer", "sequence", "feature"], expected)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_any_layer_is_the_maximum_over_the_sites_of_a_view(name: str, tokens: np.ndarray, tmp_path: Path) -> None:
    model = tiny_model(name)
    sites = seen_by_plain_hooks(model, name, tokens)
    recording = recorded(model, tokens, tmp_path / "outliers", chunk=1)
    ladder = Ladder(floor=FLOOR)
    expected = {}
    for view, taps in VIEWS.items():
        of_view = [np.abs(x) for (tap, _), x in sites.items() if tap in taps]
        largest = np.max(of_view, axis=0)
        for sequence, feature in zip(*np.nonzero(largest.max(axis=1) >= FLOOR), strict=True):
            row = plain_row(largest[sequence, :, feature], ladder)
            if row["first_token_magnitude"] < FLOOR:
                row["first_token_magnitude"] = 0.0
            if row["later_peak"] < FLOOR:
                row["later_peak"] = row["later_peak_position"] = 0
            expected[view, int(sequence), int(feature)] = row
    check_rows(recording.any_layer_outliers().collect(), ["view", "sequence", "feature"], expected)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_residual_taps_equal_the_hidden_states_that_the_model_gives(name: str, tokens: np.ndarray) -> None:
    model = tiny_model(name)
    ours = seen_by_plain_hooks(model, name, tokens)
    with torch.no_grad():
        states = model(input_ids=torch.from_numpy(tokens[:1].astype(np.int64)), output_hidden_states=True).hidden_states
    # The last of them is taken after the final norm, so that it is no layer's output.
    for layer in range(N_LAYERS - 1):
        np.testing.assert_array_equal(ours["residual", layer][0], states[layer + 1][0].numpy())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_losses_equal_those_of_the_whole_logits(name: str, tokens: np.ndarray, tmp_path: Path) -> None:
    model = tiny_model(name)
    rows = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        expected = [float(model(input_ids=row[None], labels=row[None]).loss) for row in rows]
    found = recorded(model, tokens, tmp_path / "outliers").sequences()
    assert found["loss_nats"].to_list() == pytest.approx(expected, rel=1e-5)
    assert found["n_tokens"].to_list() == [20, 20, 20]


def test_losses_do_not_depend_on_the_slices_of_the_head(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    whole = recorded(model, tokens, tmp_path / "whole").sequences()
    monkeypatch.setattr("outlier_moe.recording.losses.HEAD_BYTES", 4 * 96 * 7)
    monkeypatch.setattr("outlier_moe.recording.losses.CROSS_ENTROPY_BYTES", 4 * 96 * 3)
    sliced = recorded(model, tokens, tmp_path / "sliced").sequences()
    assert sliced["loss_nats"].to_list() == pytest.approx(whole["loss_nats"].to_list(), rel=1e-6)


def test_peaks_are_the_largest_features_of_each_site(tokens: np.ndarray, tmp_path: Path) -> None:
    model = tiny_model("llama")
    sites = seen_by_plain_hooks(model, "llama", tokens)
    peaks = recorded(model, tokens, tmp_path / "outliers", chunk=1).peaks()
    assert len(peaks) == len(sites) * 3 * 3
    for row in peaks.iter_rows(named=True):
        x = sites[row["tap"], row["layer"]][row["sequence"]]
        largest = np.argsort(-np.abs(x).max(axis=0), kind="stable")
        assert row["feature"] == largest[row["rank"]]
        assert row["value"] == x[row["position"], row["feature"]]
        assert row["text"] == f"<{tokens[row['sequence'], row['position']]}>"


def files_of(recording: Recording) -> dict[str, pl.DataFrame]:
    read = {".arrow": pl.read_ipc, ".parquet": pl.read_parquet}
    return {path.name: read[path.suffix](path) for path in recording.directory.iterdir() if path.suffix in read}


def test_tables_do_not_depend_on_the_chunk_where_the_model_does_not(tmp_path: Path, tokens: np.ndarray) -> None:
    # Products of other sizes may round otherwise; in float64 no count at float32's edges feels it.
    model = tiny_model("llama").double()
    one = files_of(recorded(model, tokens, tmp_path / "one", chunk=1))
    three = files_of(recorded(model, tokens, tmp_path / "three", chunk=3))
    counted = [name for name in one if name.startswith(("layer_", "any_layer"))]
    assert len(counted) == N_LAYERS + 1
    for name in counted:
        keys = [column for column in one[name].columns if column not in ("peak", "first_token_magnitude", "later_peak")]
        assert one[name].select(keys).equals(three[name].select(keys)), name


@pytest.mark.parametrize("problem", OUT_OF_MEMORY, ids=["cuda", "cpu", "mps", "cublas"])
def test_running_out_of_memory_halves_the_chunk(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    model = tiny_model("llama")
    whole = recorded(model, tokens, tmp_path / "whole", chunk=1)
    forward = resident._run_chunk

    def starved(model: PreTrainedModel, structure: Any, rows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(rows) > 1:
            raise problem
        return forward(model, structure, rows, *args, **kwargs)

    monkeypatch.setattr(resident, "_run_chunk", starved)
    halved = recorded(model, tokens, tmp_path / "halved", chunk=3)
    for name, table in files_of(whole).items():
        assert table.equals(files_of(halved)[name])


def test_a_single_sequence_that_does_not_fit_is_an_error(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(resident, "_run_chunk", starved)
    with pytest.raises(StudyError, match="single sequence"):
        recorded(tiny_model("llama"), tokens, tmp_path / "outliers")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_half_table_and_no_hook(tokens: np.ndarray, tmp_path: Path) -> None:
    model = tiny_model("llama")
    (tmp_path / "outliers").mkdir()
    (tmp_path / "outliers" / "old").touch()

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        raise RuntimeError("made up")

    hook = find_structure(model).layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="made up"):
        recorded(model, tokens, tmp_path / "outliers")
    hook.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["outliers"]
    assert (tmp_path / "outliers" / "old").exists(), "what was there before is lost"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    state = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(StudyError, match="layers.1.mlp.up_proj.weight") as error:
        load_resident(tmp_path, dtype="float32", device=torch.device("cpu"))
    assert "lacks weights" in error.value.problem


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(StudyError, match="layers.0.mlp") as error:
        load_resident(tmp_path, dtype="float32", device=torch.device("cpu"))
    assert error.value.got == "shape [32, 48]"


def test_a_loss_that_is_no_number_loses_nothing_else(
    tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    expected = recorded(model, tokens, tmp_path / "finite", chunk=1).sequences()["loss_nats"].to_list()
    losses = resident.sequence_losses
    monkeypatch.setattr(
        resident, "sequence_losses", lambda *a, **k: torch.where(seen.pop(0), torch.inf, losses(*a, **k))
    )
    seen = [torch.tensor(odd) for odd in (False, True, False)]
    recording = recorded(model, tokens, tmp_path / "infinite", chunk=1)
    assert recording.sequences()["loss_nats"].to_list() == [expected[0], None, expected[2]]
    assert "the loss of 1 sequences is infinite" in caplog.text


def test_d_model_is_what_a_model_computes_with(tokens: np.ndarray, tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=96, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = OPTForCausalLM(config).eval()
    options = RecordOptions(floor=FLOOR, chunk=3)
    with RecordingWriter(tmp_path / "outliers", tokens=tokens, n_peaks=3, n_layers=2, ladder=options.ladder) as writer:
        record_resident(model, find_structure(model), tokens, options, writer, advance=lambda n: None)
        assert writer.d_model == 32
        writer.finish({"format": FORMAT, "floor": FLOOR, "n_layers": 2}, lambda ids: f"<{ids[0]}>")


def test_a_loaded_checkpoint_equals_the_model_that_was_saved(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    loaded = load_resident(tmp_path, dtype="checkpoint", device=torch.device("cpu"))
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert load_resident(tmp_path, dtype="bfloat16", device=torch.device("cpu")).dtype == torch.bfloat16
    assert cast(Any, loaded.config)._attn_implementation == "sdpa"

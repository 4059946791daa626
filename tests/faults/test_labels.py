"""What the registry says of a model against what the model shows: one agrees, or is refused; none goes onto an axis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlier_moe.cli import main
from outlier_moe.config.model_labels import ModelLabels, agreed_labels, fetched_labels
from outlier_moe.config.registry import DirectorySource, load_registry, refuse_contradiction
from outlier_moe.definitions.presets import Preset
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources.config_labels import config_labels, model_labels
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from outlier_moe.tables.recording import Recording, read_recording
from tests.faults.wrong_inputs import ROOT
from tests.tiny_models import VOCABULARY, save_tiny_model
from tests.unit.sources.entries import model_entry
from tests.zoo import tiny_config

PRESETS = [Preset("dettmers2022", "systematic", "linear_inputs", 6.0)]
SAID = dict.fromkeys(
    ["kind", "family", "total_params_b", "active_params_b", "n_experts", "top_k", "n_shared_experts"]
) | {"model": "m", "routing": None, "release_date": None}
MOE = ModelLabels("mixtral", "moe", 46.7, 12.9, 8, 2, 0)
DENSE = ModelLabels("llama", "dense", 0.6, 0.6, other_families=("llama_text",))
WRONG = {
    "kind": {"kind": "dense"},
    "family": {"family": "llama"},
    "n_experts": {"n_experts": 4},
    "top_k": {"top_k": 1},
    "n_shared_experts": {"n_shared_experts": 1},
    "total_params_b": {"total_params_b": 3.3},
    "active_params_b": {"active_params_b": 3.3},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "checkpoint"
    save_tiny_model("mixtral", folder, "the quick brown fox jumps over the lazy dog " * 20)
    return folder


@pytest.fixture(scope="module")
def recording(checkpoint: Path) -> Recording:
    """Of a small mixture, with an entry of which source and corpus alone are given."""
    folder = checkpoint.parent
    fetch_model(model_entry(DirectorySource(checkpoint), id="m"), folder / "m")
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12)).astype(np.uint32)
    metadata = {
        "n_sequences": 2,
        "sequence_length": 12,
        "tokens_sha256": tokens_sha256(rows),
        "corpus_sha256": "a" * 64,
    }
    write_tokens(TokenTable(rows, metadata), folder / "tokens.arrow")
    options = RecordOptions(device="cpu", chunk=1, mode="resident")
    record_outliers(folder / "m", folder / "tokens.arrow", folder / "outliers", options)
    return read_recording(folder / "outliers")


def compared(recording: Recording, **said: Any) -> dict[str, Any]:
    features = systematic_features(recording, PRESETS).filter("is_systematic")
    table = compare_models([ComparedModel(SAID | said, recording, features)], PRESETS).models
    return table.row(0, named=True)


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_is_refused_by_name(name: str) -> None:
    with pytest.raises(StudyError) as told:
        agreed_labels(SAID | WRONG[name], MOE, model="m", place="config.json")
    assert told.value.key == f"models.m.{name}"
    assert "config.json" in str(told.value.expected) and told.value.remedy


def test_experts_of_a_dense_model_are_refused() -> None:
    with pytest.raises(StudyError, match="n_experts none, top_k none"):
        agreed_labels(SAID | {"n_experts": 8, "top_k": 2}, DENSE, model="m", place="config.json")


def test_all_contradictions_are_told_at_once() -> None:
    said: dict[str, Any] = {}
    for wrong in WRONG.values():
        said |= wrong
    with pytest.raises(StudyError) as told:
        agreed_labels(SAID | said, MOE, model="m", place="config.json")
    assert str(told.value.key).count("models.m.") == len(WRONG)


def test_published_sizes_are_rounded_and_others_give_way() -> None:
    assert agreed_labels(SAID | {"total_params_b": 47.0}, MOE, model="m", place="")["total_params_b"] == 47.0
    # Many leave out embeddings.
    assert agreed_labels(SAID | {"active_params_b": 10.0}, MOE, model="m", place="")["active_params_b"] == 10.0
    assert agreed_labels(SAID | {"total_params_b": 40.0}, MOE, model="m", place="")["total_params_b"] == 46.7
    assert agreed_labels(SAID | {"family": "llama_text"}, DENSE, model="m", place="")["family"] == "llama_text"


def test_a_wrong_label_is_refused_while_fetching(checkpoint: Path, tmp_path: Path) -> None:
    entry = model_entry(DirectorySource(checkpoint), id="m", kind="dense", total_params_b=3.3)
    with pytest.raises(StudyError, match=r"models\.m\.kind, models\.m\.total_params_b"):
        fetch_model(entry, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_label_changed_after_fetching_is_refused_at_the_start(recording: Recording) -> None:
    models = recording.directory.parent
    refuse_contradiction(model_entry(None, id="m", kind="moe", n_experts=4, top_k=2), models)
    with pytest.raises(StudyError, match=r"models\.m\.n_experts"):
        refuse_contradiction(model_entry(None, id="m", kind="moe", n_experts=16), models)
    refuse_contradiction(model_entry(None, id="not-fetched", kind="dense"), models)


def test_the_comparison_completes_an_entry_and_refuses_a_wrong_one(recording: Recording) -> None:
    row = compared(recording)
    shown = fetched_labels(recording.directory.parent / "m")
    assert shown is not None and shown.active_params_b is not None and shown.total_params_b is not None
    assert {name: row[name] for name in ("family", "kind", "n_experts", "top_k", "n_shared_experts")} == {
        "family": "mixtral",
        "kind": "moe",
        "n_experts": 4,
        "top_k": 2,
        "n_shared_experts": 0,
    }
    assert row["total_params_b"] == recording.run["n_parameters"] / 1e9
    assert row["active_ratio"] == shown.active_params_b / shown.total_params_b < 1
    with pytest.raises(StudyError, match=r"models\.m\.kind"):
        compared(recording, kind="dense")


def test_a_recording_of_before_labels_shows_what_it_can(recording: Recording) -> None:
    old = Recording(recording.directory, {key: value for key, value in recording.run.items() if key != "labels"})
    with pytest.raises(StudyError, match=r"models\.m\.kind, models\.m\.n_experts"):
        compared(old, kind="dense", n_experts=8)
    with pytest.raises(StudyError) as told:
        compared(old)
    assert told.value.key == "models.m.family, models.m.active_params_b"
    size = recording.run["n_parameters"] / 1e9
    assert compared(old, family="mixtral", active_params_b=size)["n_experts"] == 4


def test_active_parameters_are_those_of_a_plain_count(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    from outlier_moe.architectures.structure import find_structure

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    labels = model_labels(model, find_structure(model))
    idle = sum(
        p.numel() / 4 * 2 for name, p in model.named_parameters() if "experts" in name
    )  # of 4 experts 2 do not work on a token
    assert labels.active_params_b == pytest.approx((model.num_parameters() - idle) / 1e9)


def test_an_entry_of_source_and_corpus_is_planned(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    own = {"source": {"kind": "directory", "path": str(checkpoint)}, "corpus": "text"}
    corpora = {"text": {"source": {"kind": "files", "paths": ["a.txt"]}, "max_characters": 10}}
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"models": {"mine": own}, "corpora": corpora}))
    where = ["--registry", str(path), "--fetched", str(tmp_path), "--format", "csv"]
    assert main(["plan", "mine", *where]) == 0
    path.write_text(json.dumps({"models": {"mine": {**own, "kind": "dense"}}, "corpora": corpora}))
    capsys.readouterr()
    assert main(["plan", "mine", *where]) == 1
    assert "models.mine.kind" in capsys.readouterr().err


def test_shipped_entries_say_what_they_said() -> None:
    registry = load_registry(ROOT / "config/models.yaml", ROOT / "workflow/schemas/models.schema.yaml")
    assert len(registry.models) == 49
    for entry in registry.models.values():
        assert None not in (entry.family, entry.kind, entry.total_params_b, entry.active_params_b)


@pytest.mark.parametrize("fields", [
    {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 8, "moe_top_k": 3}},
    {"model_type": "hunyuan_v1_moe", "num_experts": 8, "moe_topk": [3, 2]},
    {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 3},
])  # fmt: skip
def test_experts_of_a_token_wherever_a_family_says_how_many(fields: dict[str, Any]) -> None:
    """DBRX says it in a part of its configuration, Hunyuan for each layer."""
    model_type = fields.pop("model_type")
    config = tiny_config(model_type)
    for name, value in fields.items():
        part = getattr(config, name)
        if isinstance(value, dict):
            for key, number in value.items():
                setattr(part, key, number)
        else:
            setattr(config, name, value)
    config.num_hidden_layers = 2
    labels = config_labels(config)
    assert (labels.n_experts, labels.top_k) == (8, 3)
    assert labels.active_params_b is not None and labels.total_params_b is not None
    assert labels.active_params_b < labels.total_params_b

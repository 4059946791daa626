"""The way in from Python: what it records is what the workflow records, and a model is left as it was found."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

import outlier_moe as om
from outlier_moe.config.registry import DirectorySource, ModelEntry, load_registry
from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.definitions.presets import PRESETS, presets
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.judging.count_recording import CountFiles, count_recording
from outlier_moe.judging.sequence_counts import SequenceCounts
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources import given_tokens
from outlier_moe.sources.corpora import fetch_corpus
from outlier_moe.sources.held_tokenizer import held_reader
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import read_tokens, tokenize_corpus
from outlier_moe.statistics.comparison import compare_models, judged_models
from outlier_moe.study.study import validated_study
from tests.hub_server import reachable_hub
from tests.tiny_models import VOCABULARY, byte_tokenizer, save_tiny_model, tiny_model

ROOT = Path(__file__).parent.parent.parent
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40
SMALL: dict[str, Any] = {"floor": 0.5, "chunk": 2}
IDS = np.arange(20).reshape(2, 10) % VOCABULARY
SHAPE: dict[str, Any] = {"n_sequences": 3, "sequence_length": 24}


class Study(NamedTuple):
    """A model, and what the workflow's stages make of it."""

    checkpoint: Path
    fetched: Path
    tokens: Path
    outliers: Path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    made = Study(folder / "tiny", folder / "fetched", folder / "tokens.arrow", folder / "outliers")
    save_tiny_model("mixtral", made.checkpoint, TEXT)
    fetch_model(ModelEntry("tiny", DirectorySource(made.checkpoint)), made.fetched)
    fetch_corpus(given_tokens.EMBEDDED, folder / "text.parquet")
    tokenize_corpus(folder / "text.parquet", made.fetched, made.tokens, bos="tokenizer", **SHAPE)
    record_outliers(made.fetched, made.tokens, made.outliers, RecordOptions(**SMALL))
    return made


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As for a user, whose types nobody checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def held() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer(TEXT)


def in_memory(study: Study) -> Any:
    return AutoModelForCausalLM.from_pretrained(study.checkpoint)


def tables(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "run.json"}


def test_the_package_is_light_until_something_is_asked_of_it() -> None:
    code = "import sys, outlier_moe as om; print(sorted({'record', 'load', 'compare'} & set(dir(om))), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['compare', 'load', 'record']")
    assert not {"torch", "transformers", "polars", "numpy", "altair"} & set(done.stdout.split())
    with pytest.raises(AttributeError):
        _ = om.recorded  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["memory", "path", "streamed"])
def test_a_recording_is_that_of_the_workflow(study: Study, way: str) -> None:
    model = in_memory(study) if way == "memory" else study.checkpoint
    recording = om.record(model, **SHAPE, **SMALL, mode="streamed" if way == "streamed" else "auto")
    assert tables(recording.directory) == tables(study.outliers)
    assert recording.run["mode"] == ("streamed" if way == "streamed" else "resident")


def test_ids_record_as_their_text_does(study: Study) -> None:
    ids = torch.from_numpy(read_tokens(study.tokens).tokens.astype(np.int64))
    cut = om.record(in_memory(study), ids.reshape(-1), sequence_length=ids.shape[1], **SMALL)
    assert tables(cut.directory) == tables(study.outliers)


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [
        ([[1, 2, 3], [4, 5, 6]], (2, 3)),
        ([torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])], (2, 3)),
        (pl.Series([1, 2, 3]), (1, 3)),
        (np.arange(7, dtype=np.int16), (1, 7)),
        ({"input_ids": np.ones((2, 5), np.int32), "attention_mask": [[1] * 5] * 2}, (2, 5)),
    ],
)
def test_ids_come_in_many_kinds(held: LlamaForCausalLM, tokens: Any, shape: tuple[int, int]) -> None:
    table = given_tokens.given_tokens(tokens, held_reader(held, None, None), given_tokens.Shape())
    assert table.tokens.shape == shape and table.metadata["n_sequences"] == shape[0]


def test_a_repository_of_the_hub_is_recorded(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add_folder("someone/tiny", study.checkpoint)
        recording = om.record("someone/tiny", mode="streamed", **SHAPE, **SMALL)
        model = in_memory(study)
        model.name_or_path = "someone/tiny"
        held = om.record(model, **SHAPE, **SMALL)
        with pytest.raises(StudyError):
            om.record("someone/absent")
    assert recording.model == "someone--tiny" and held.model == "tiny"
    assert tables(recording.directory) == tables(held.directory) == tables(study.outliers)


def test_a_model_is_left_as_it_was_found(study: Study) -> None:
    model = in_memory(study).to(torch.bfloat16)
    model.set_experts_implementation("eager")
    model.train()
    model.model.layers[1].eval()
    before = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recording = om.record(model, [TEXT], **SHAPE, **SMALL)
    with pytest.raises(RuntimeError, match="interrupted"):
        model.model.layers[2].register_forward_pre_hook(_interrupt)
        om.record(model, [TEXT], **SHAPE, **SMALL)
    after = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    assert after == before and model.config._experts_implementation == "eager"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert recording.run["dtype"] == "bfloat16"


def _interrupt(*_: object) -> None:
    raise RuntimeError("interrupted")


def test_dropout_is_off_while_a_model_is_recorded() -> None:
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, attention_dropout=0.5, **config)).train()
    first, second = (om.record(model, np.arange(40).reshape(2, 20), **SMALL) for _ in range(2))
    assert tables(first.directory) == tables(second.directory) and model.training


def test_a_temporary_recording_goes_with_its_object(held: LlamaForCausalLM, tmp_path: Path) -> None:
    recording = om.record(held, IDS, **SMALL)
    plot, directory = recording.plot, recording.directory
    del recording
    gc.collect()
    assert directory.is_dir() and plot.layers() is not None
    del plot
    gc.collect()
    assert not directory.parent.exists()


def test_a_recording_is_saved(held: LlamaForCausalLM, tmp_path: Path) -> None:
    recording = om.record(held, IDS, **SMALL)
    made, left = tables(recording.directory), recording.directory
    assert recording.save(tmp_path / "mine") == recording.directory and not left.parent.exists()
    assert tables(tmp_path / "mine") == made
    copy = om.load(tmp_path / "mine")
    copy.save(tmp_path / "copy")
    assert copy.directory == tmp_path / "copy" and (tmp_path / "mine/run.json").is_file()


def test_brackets_in_a_folder_are_a_name_and_no_pattern(study: Study, tmp_path: Path) -> None:
    """Every table is read: also counts, which stand beside a study's recording."""
    folder = tmp_path / "run [1]*?"
    shutil.copytree(study.outliers, folder / "outliers")
    files = CountFiles(folder / "edge_counts.json", folder / "sequence_counts", folder / "layer_peaks.parquet")
    least = {"least_layers": 0.05, "least_positions": 0.01}
    count_recording(folder / "outliers", files, shapes=[], massive=[], **least)
    recording = om.load(folder / "outliers")
    assert recording.sites().equals(om.load(study.outliers).sites())
    assert recording.peaks().height and recording.layers().height and recording.systematic("residual").width
    assert SequenceCounts(files.sequence_counts).counts("residual", 0)


def test_what_is_wrong_with_a_folder_is_told_of_that_folder(study: Study, tmp_path: Path) -> None:
    """And not of the copy that goes when the call ends."""
    folder = tmp_path / "model"
    shutil.copytree(study.checkpoint, folder)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(StudyError) as refused:
        om.record(folder)
    assert Path(str(refused.value.file)).is_relative_to(folder)


def test_what_a_recording_is_asked(study: Study) -> None:
    recording = om.load(study.outliers)
    assert recording.layers()["layer"].n_unique() == 3 and recording.sites().height == 3 * 4 * 3
    assert recording.peaks()["text"].null_count() == 0
    experts = recording.experts()
    assert experts is not None and experts["expert"].n_unique() == 4
    found = recording.systematic("residual", magnitude=0.5, layer_fraction=0.5, position_fraction=0.1)
    assert found.height > 0
    assert found["layer_fraction"].min() >= 0.5 and found["position_fraction"].min() >= 0.1  # type: ignore[operator]
    fewer = recording.systematic("residual", magnitude=0.5, layer_fraction=1.0, position_fraction=0.5)
    assert fewer.height < found.height
    charts = [recording.plot.layers(), recording.plot.layers("kurtosis"), recording.plot.positions("attn_in")]
    charts += [recording.plot.features("residual", magnitude=0.5), recording.plot.experts()]
    assert all(chart.to_dict()["$schema"] for chart in charts)
    assert "tiny" in repr(recording)


def test_models_are_compared_as_the_workflow_compares_them(study: Study, tmp_path: Path) -> None:
    recording = om.record(in_memory(study), **SHAPE, floor=3.0)
    files = CountFiles(tmp_path / "edges.json", tmp_path / "counts", tmp_path / "peaks.parquet")
    chosen = list(PRESETS.values())
    massive = [preset for preset in chosen if preset.rule == "massive"]
    count_recording(recording.directory, files, shapes=[], massive=massive, least_layers=0.05, least_positions=0.01)
    judged = judged_models([({"model": "tiny"}, recording.directory, files.sequence_counts)], chosen)
    expected = compare_models(judged.models, chosen).models
    assert om.compare([recording]).equals(expected)
    both = om.compare({"one": recording, "other": om.load(recording.directory)}, presets=["residual"])
    assert both["model"].unique(maintain_order=True).to_list() == ["one", "other"]
    other = om.record(in_memory(study), **SHAPE, floor=3.0, taps=["residual"])
    assert set(om.compare({"one": recording, "other": other})["preset"]) == {"residual", "sun2024"}
    for wrong in ([recording, recording], []):
        with pytest.raises(StudyError) as refused:
            om.compare(wrong)
        assert refused.value.remedy


def test_definitions_and_the_embedded_text_are_those_of_the_study() -> None:
    study = validated_study(read_yaml(ROOT / "config/config.yaml"), ROOT / "workflow/schemas/config.schema.yaml")
    assert list(PRESETS.values()) == presets(study)
    registry = load_registry(ROOT / "config/models.yaml", ROOT / "workflow/schemas/models.schema.yaml")
    assert given_tokens.EMBEDDED == registry.corpus(given_tokens.EMBEDDED.id)


def _with(ids: np.ndarray, value: int) -> np.ndarray:
    changed = ids.copy()
    changed[1, 3] = value
    return changed


@pytest.mark.parametrize(
    ("tokens", "options", "key"),
    [
        (_with(IDS, VOCABULARY), {}, "tokens[1, 3]"),
        (_with(IDS, -100), {}, "tokens[1, 3]"),
        (IDS.astype(np.float32), {}, "tokens"),
        (IDS.astype(bool), {}, "tokens"),
        (torch.ones(2, 10, 3, dtype=torch.long), {}, "tokens"),
        (np.array(3), {}, "tokens"),
        (np.empty((0, 10), np.int64), {}, "tokens"),
        (IDS[:, :1], {}, "tokens"),
        ([[1, 2, 3], [4, 5]], {}, "tokens"),
        ([1, "a"], {}, "tokens"),
        (IDS, {"sequence_length": 5}, "tokens"),
        (IDS[0], {"n_sequences": 2, "sequence_length": 9}, "tokens"),
        ([], {}, "tokens"),
        (7, {}, "tokens"),
        (b"bytes", {}, "tokens"),
        ({"labels": IDS}, {}, "tokens"),
        ({"input_ids": IDS, "attention_mask": _with(np.ones_like(IDS), 0)}, {}, "attention_mask"),
        ("", {}, "tokens"),
        (["", " \n"], {}, "tokens"),
        (["\ud800 half"], {}, "tokens"),
        (["too short"], {}, "tokens"),
        ([TEXT], {"n_sequences": 500}, "tokens"),
        ([TEXT], {"n_sequences": 0}, "n_sequences"),
        ([TEXT], {"sequence_length": 1}, "sequence_length"),
        ([TEXT], {"sequence_length": 2.5}, "sequence_length"),
        ([TEXT], {"bos": "maybe"}, "bos"),
        ([TEXT], {"bos": "always"}, "tokenize_corpus.bos"),
        ([TEXT], {"tokenizer": "gpt2"}, "tokenizer"),
        (IDS, {"floors": 3.0}, "floors"),
        (IDS, {"floor": 3.3}, "floor"),
        (IDS, {"floor": "3"}, "floor"),
        (IDS, {"taps": ["residul"]}, "taps"),
        (IDS, {"taps": "residual"}, "taps"),
        (IDS, {"chunk": 0}, "chunk"),
        (IDS, {"n_peaks": -1}, "n_peaks"),
        (IDS, {"mode": "whole"}, "mode"),
        (IDS, {"mode": "streamed"}, "mode"),
        (IDS, {"dtype": "float16"}, "dtype"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_tokens_and_options_are_refused_by_name(
    held: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tokens: Any, options: dict[str, Any], key: str
) -> None:
    with pytest.raises(StudyError) as refused:
        om.record(held, tokens, **{"tokenizer": tokenizer, **options})
    assert refused.value.key == key and (refused.value.expected or refused.value.remedy)


def test_a_tokenizer_that_nobody_knows_is_asked_for(held: LlamaForCausalLM) -> None:
    with pytest.raises(StudyError) as refused:
        om.record(held, [TEXT])
    assert refused.value.key == "tokenizer" and refused.value.remedy
    # Ids need none; the tokens of peaks are then told by their numbers.
    assert om.record(held, IDS, **SMALL).peaks()["text"].str.starts_with("#").all()


def test_positions_that_a_model_does_not_have_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(StudyError) as refused:
        om.record(model, np.zeros((1, 65), np.int64))
    assert refused.value.key == "sequence_length" and "64" in str(refused.value.remedy)
    assert om.record(model, [TEXT], tokenizer=tokenizer).run["sequence_length"] == 64


def _quantised() -> nn.Module:
    model = tiny_model("llama")
    layer = model.get_submodule("model.layers.0.mlp")
    layer.down_proj.weight = nn.Parameter(layer.down_proj.weight.to(torch.int8), requires_grad=False)  # type: ignore[union-attr]
    return model


def _on_meta() -> nn.Module:
    model: Any = tiny_model("llama")
    return model.to("meta")


def _without_layers() -> nn.Module:
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList([nn.Linear(32, 32)])  # type: ignore[union-attr]
    return model


SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
WRONG_MODELS = {
    "a module": lambda: nn.Linear(3, 3),
    "a class": lambda: LlamaForCausalLM,
    "a wrapper": lambda: nn.DataParallel(tiny_model("llama")),
    "a number": lambda: 7,
    "no path": lambda: "./nowhere",
    "without a head": lambda: LlamaModel(LlamaConfig(num_attention_heads=4, **SIZES)),
    "an encoder": lambda: BertForMaskedLM(BertConfig(num_attention_heads=4, **SIZES)),
    "an encoder-decoder": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    ),
    "quantised": _quantised,
    "on meta": _on_meta,
    "float64": lambda: tiny_model("llama").double(),
    "no layers": _without_layers,
}


@pytest.mark.parametrize("kind", WRONG_MODELS)
@pytest.mark.usefixtures("unchecked")
def test_a_model_that_cannot_be_recorded_is_refused_by_name(kind: str) -> None:
    model: Any = WRONG_MODELS[kind]()
    with pytest.raises(StudyError) as refused:
        om.record(model, IDS)
    assert refused.value.remedy and refused.value.key


def test_nothing_is_written_over(study: Study, tmp_path: Path) -> None:
    recording = om.load(study.outliers)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes").write_text("mine")
    for path in (study.outliers, tmp_path / "file", tmp_path / "folder"):
        for write in (recording.save, lambda out: om.record(study.checkpoint, out=out)):
            with pytest.raises(StudyError) as refused:
                write(path)
            assert refused.value.remedy
    assert (tmp_path / "folder/notes").read_text() == "mine"


def test_a_folder_without_a_recording_says_so(study: Study, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", study.outliers.parent, study.outliers / "run.json"):
        with pytest.raises(StudyError) as refused:
            om.load(path)
        assert refused.value.remedy
    with pytest.raises(StudyError, match="no recording") as refused:
        om.load(study.outliers.parent)
    assert str(study.outliers) in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ({"preset": "dettmers2023"}, "preset"),
        ({"magnitude": 6.1}, "magnitude of the preset dettmers2022"),
        ({"magnitude": 0.1}, "magnitude of the preset dettmers2022"),
        ({"magnitude": "6"}, "magnitude"),
        ({"layer_fraction": 0.0}, "layer_fraction"),
        ({"position_fraction": 25}, "position_fraction"),
        ({"preset": "sun2024", "layer_fraction": 0.5}, "layer_fraction"),
        ({"first_token": "no"}, "first_token"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_questions_without_an_answer_are_refused_by_name(study: Study, question: dict[str, Any], key: str) -> None:
    with pytest.raises(StudyError) as refused:
        om.load(study.outliers).systematic(**question)
    assert refused.value.key == key and (refused.value.expected or refused.value.remedy)


def test_a_dense_model_has_no_experts(held: LlamaForCausalLM) -> None:
    recording = om.record(held, IDS, name="mine", **SMALL)
    assert recording.experts() is None and recording.model == "mine"
    with pytest.raises(StudyError):
        recording.plot.experts()
    assert isinstance(recording.systematic(), pl.DataFrame)

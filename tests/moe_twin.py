"""The tables of experts and routers from their definitions: one token after the other, in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from outlier_moe.architectures.moe_hooks import ExpertOutputs
from outlier_moe.architectures.moe_parts import Experts
from outlier_moe.definitions.ladder import Ladder


def ordered_output(outputs: ExpertOutputs) -> Tensor:
    """The outputs by sequence, position and choice, copied."""
    ordered = torch.empty_like(outputs.output).index_copy_(0, outputs.pair, outputs.output)
    return ordered.reshape(*outputs.expert.shape, -1)


def counts_at_edges(magnitudes: Sequence[float], ladder: Ladder) -> list[int]:
    counts = [sum(m >= edge for m in magnitudes) for edge in map(float, ladder.edges)]
    return [count for count in counts if count]


def kind_of(number: int, experts: Experts) -> str:
    if number >= experts.n_routed:
        return "shared"
    return "identity" if number >= experts.n_routed - experts.n_identity else "routed"


def largest_finite(values: Sequence[float]) -> float:
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def expert_rows(
    outputs: Sequence[ExpertOutputs], mlp_in: Mapping[int, Tensor], experts: Mapping[int, Experts], ladder: Ladder
) -> list[dict[str, Any]]:
    """The rows of experts.parquet, ordered by layer, expert and sequence."""
    work: dict[tuple[int, int, int], list[dict[str, Any]]] = defaultdict(list)
    for call in outputs:
        n_sequences, n_positions, n_choices = call.expert.shape
        output = ordered_output(call)
        for s in range(n_sequences):
            for p in range(n_positions):
                for c in range(n_choices):
                    gate = float(call.gate[s, p, c])
                    if gate == 0:
                        continue
                    own = output[s, p, c].float().tolist()
                    work[call.layer, int(call.expert[s, p, c]), s].append(
                        {
                            "position": p,
                            "gate": gate,
                            "own": own,
                            "top": largest_finite(mlp_in[call.layer][s, p].tolist()),
                        }
                    )
    rows = []
    for (layer, number, sequence), tokens in sorted(work.items()):
        peak = max(largest_finite(token["own"]) for token in tokens)
        first = next(token for token in tokens if largest_finite(token["own"]) == peak)
        magnitudes = [abs(v) if math.isfinite(v) else 0.0 for v in first["own"]]
        rows.append(
            {
                "layer": layer,
                "expert": number,
                "sequence": sequence,
                "kind": kind_of(number, experts[layer]),
                "n_tokens": len(tokens),
                "gate_sum": sum(token["gate"] for token in tokens),
                "n_outlier_tokens": counts_at_edges([token["top"] for token in tokens], ladder),
                "peak": peak,
                "peak_feature": magnitudes.index(peak),
                "peak_position": first["position"],
                "peak_gate": first["gate"],
                "n_nonfinite": sum(not math.isfinite(v) for token in tokens for v in token["own"]),
            }
        )
    return rows


def router_rows(
    outputs: Sequence[ExpertOutputs], mlp_in: Mapping[int, Tensor], experts: Mapping[int, Experts], ladder: Ladder
) -> list[dict[str, Any]]:
    """The rows of routers.parquet, ordered by layer and sequence."""
    rows = []
    for call in outputs:
        if call.shared:
            continue
        n_sequences, n_positions, n_choices = call.expert.shape
        n_experts = experts[call.layer].n_routed
        for s in range(n_sequences):
            load, shares, tops = [0] * n_experts, [], []
            for p in range(n_positions):
                gates = [float(gate) for gate in call.gate[s, p]]
                if not any(gates):
                    continue
                for number, gate in zip(call.expert[s, p].tolist(), gates, strict=True):
                    load[number] += gate != 0
                shares.append(max(gates) / sum(gates))
                tops.append(largest_finite(mlp_in[call.layer][s, p].tolist()))
            at_edge = [[share for share, top in zip(shares, tops, strict=True) if top >= e] for e in ladder.edges]
            rows.append(
                {
                    "layer": call.layer,
                    "sequence": s,
                    "n_experts": n_experts,
                    "n_choices": n_choices,
                    "n_tokens": len(shares),
                    "n_dead": load.count(0),
                    "load_entropy": entropy(load),
                    "load_cv": variation(load),
                    "top_gate_share_sum": sum(shares),
                    "n_outlier_tokens": counts_at_edges(tops, ladder),
                    "outlier_top_gate_share_sum": [sum(some) for some in at_edge if some],
                }
            )
    return sorted(rows, key=lambda row: (row["layer"], row["sequence"]))


def entropy(load: Sequence[float]) -> float | None:
    total = sum(load)
    if not total:
        return None
    if len(load) == 1:
        return 1.0
    return -sum(n / total * math.log(n / total) for n in load if n) / math.log(len(load))


def variation(load: Sequence[float]) -> float | None:
    mean = sum(load) / len(load)
    return math.sqrt(sum((n - mean) ** 2 for n in load) / len(load)) / mean if mean else None


def expert_summary(experts: pl.DataFrame, routers: pl.DataFrame, k: int) -> list[dict[str, Any]]:
    """What each expert does over all sequences, at the k-th edge."""
    summary = []
    for (layer, number, kind), rows in _grouped(experts, "layer", "expert", "kind"):
        tokens = [row for row in routers.to_dicts() if row["layer"] == layer]
        n_outliers = sum(_at(row["n_outlier_tokens"], k) for row in tokens)
        n_rest = sum(row["n_tokens"] for row in tokens) - n_outliers
        mine = sum(row["n_tokens"] for row in rows)
        outliers = sum(_at(row["n_outlier_tokens"], k) for row in rows)
        best = min(rows, key=lambda row: (-row["peak"], row["sequence"]))
        outlier_share = outliers / n_outliers if n_outliers else None
        rest_share = (mine - outliers) / n_rest if n_rest else None
        lift = None
        if outlier_share is not None and rest_share is not None:
            lift = outlier_share / rest_share if rest_share else math.inf
        summary.append(
            {
                "layer": layer,
                "expert": number,
                "kind": kind,
                "n_tokens": mine,
                "mean_gate": sum(row["gate_sum"] for row in rows) / mine,
                "n_outlier_tokens": outliers,
                "n_layer_tokens": n_outliers + n_rest,
                "n_layer_outlier_tokens": n_outliers,
                "outlier_share": outlier_share,
                "rest_share": rest_share,
                "outlier_lift": lift,
                "peak": best["peak"],
                "peak_feature": best["peak_feature"],
                "peak_sequence": best["sequence"],
                "peak_position": best["peak_position"],
                "peak_gate": best["peak_gate"],
                "n_nonfinite": sum(row["n_nonfinite"] for row in rows),
            }
        )
    return summary


def _at(values: Sequence[float], k: int) -> Any:
    return values[k] if k < len(values) else 0


def _grouped(frame: pl.DataFrame, *keys: str) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in frame.to_dicts():
        groups[tuple(row[key] for key in keys)].append(row)
    return sorted(groups.items())

"""From what the experts of a chunk of sequences put out to the rows of experts.parquet and routers.parquet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Float64, Int64, Num, Shaped, UInt8
from torch import Tensor

from outlier_moe.architectures.moe_hooks import ExpertOutputs
from outlier_moe.architectures.moe_parts import Experts
from outlier_moe.definitions.ladder import N_EDGES, Ladder
from outlier_moe.definitions.taps import Tap
from outlier_moe.recording.arrow_arrays import arrow_array
from outlier_moe.tables import moe as schemas_moe


class MoeTables(NamedTuple):
    """The rows of some sequences."""

    experts: pl.DataFrame
    """Rows of `tables.moe.Expert`."""
    routers: pl.DataFrame
    """Rows of `tables.moe.Router`."""


class _Peaks(NamedTuple):
    """The largest output of each expert for each sequence, by (sequence, expert), on the device."""

    group: Int64[Tensor, " group"]
    """The sequence times the number of experts, plus the expert; only those with a token are there."""
    pair: Int64[Tensor, " group"]
    """The first pair of a token and an expert that has the peak, counted over sequence, position and choice."""
    magnitude: Float32[Tensor, " group"]
    """The largest finite |x|."""
    feature: Int64[Tensor, " group"]
    """The first feature of the pair that has it."""


class _Call(NamedTuple):
    """What is kept of one call of experts: small figures, on the device."""

    shared: bool
    expert: Int64[Tensor, "sequence position choice"]
    gate: Float[Tensor, "sequence position choice"]
    n_nonfinite: Int64[Tensor, "sequence position choice"]
    peaks: _Peaks


class _Pairs(NamedTuple):
    """The pairs of one call whose gate is not 0, ordered by sequence and position, on the host."""

    sequence: Int64[np.ndarray, " pair"]
    position: Int64[np.ndarray, " pair"]
    expert: Int64[np.ndarray, " pair"]
    gate: Float64[np.ndarray, " pair"]
    n_nonfinite: Int64[np.ndarray, " pair"]


class ExpertObserver:
    """What the hooks at the experts, and those at mlp_in, call while a chunk of sequences runs.

    Args:
        experts: The experts of each layer that has some.
        ladder: The edges on which tokens are counted.
        first_sequence: The number, in the corpus, of the chunk's first sequence.
    """

    def __init__(self, experts: Mapping[int, Experts], ladder: Ladder, *, first_sequence: int) -> None:
        self.experts = experts
        self.ladder = ladder
        self.first_sequence = first_sequence
        self._top: dict[int, Float32[Tensor, "sequence position"]] = {}
        self._calls: dict[int, list[_Call]] = {}

    def observe(self, tap: Tap, layer: int, x: Float[Tensor, "sequence position feature"]) -> None:
        """Note the largest finite |x| of each token at mlp_in of a layer with experts; other sites are left alone."""
        if tap == "mlp_in" and layer in self.experts:
            self._top[layer] = _largest(x).magnitude

    def observe_experts(self, outputs: ExpertOutputs) -> None:
        """Note the gates, and the peaks of the experts' own outputs."""
        largest = _largest(outputs.output)
        peaks = _peaks(outputs, largest.magnitude, n_numbers=self._n_numbers(outputs.layer))
        n_nonfinite = torch.empty_like(largest.n_nonfinite).index_copy_(0, outputs.pair, largest.n_nonfinite)
        n_nonfinite = n_nonfinite.reshape(outputs.expert.shape)
        call = _Call(outputs.shared, outputs.expert, outputs.gate, n_nonfinite, peaks)
        self._calls.setdefault(outputs.layer, []).append(call)

    def _n_numbers(self, layer: int) -> int:
        return self.experts[layer].n_routed + len(self.experts[layer].shared)

    def tables(self) -> MoeTables:
        """The rows of the layers that have run, which are forgotten.

        Raises:
            KeyError: If mlp_in of such a layer was not observed.
        """
        experts: list[pl.DataFrame] = [schemas_moe.Expert.create_empty()]
        routers: list[pl.DataFrame] = [schemas_moe.Router.create_empty()]
        for layer in sorted(self._calls):
            top = self._top.pop(layer).cpu().numpy()
            # On the ladder's steps: 0 below the floor, k + 1 from the k-th edge to the next.
            step = np.searchsorted(self.ladder.edges, top, side="right").astype(np.uint8)
            for call in self._calls.pop(layer):
                pairs = _host_pairs(call)
                experts.append(self._expert_rows(layer, call, pairs, step))
                if not call.shared:
                    routers.append(self._router_rows(layer, pairs, step, n_choices=call.expert.shape[2]))
        return MoeTables(pl.concat(experts), pl.concat(routers))

    def _expert_rows(
        self, layer: int, call: _Call, pairs: _Pairs, step: UInt8[np.ndarray, "sequence position"]
    ) -> pl.DataFrame:
        n_numbers = self._n_numbers(layer)
        groups, pair, peak, feature = (figures.cpu().numpy() for figures in call.peaks)
        n_groups = len(groups)
        group = np.searchsorted(groups, pairs.sequence * n_numbers + pairs.expert)
        histogram = _histogram(group, step[pairs.sequence, pairs.position], n_groups)
        sequence, expert = np.divmod(groups, n_numbers)
        columns = {
            "layer": np.full(n_groups, layer),
            "expert": expert,
            "sequence": self.first_sequence + sequence,
            "kind": self._kinds(layer)[expert],
            "n_tokens": np.bincount(group, minlength=n_groups),
            "gate_sum": np.bincount(group, weights=pairs.gate, minlength=n_groups),
            "n_outlier_tokens": _at_least(histogram, histogram),
            "peak": peak,
            "peak_feature": feature,
            "peak_position": pair // call.expert.shape[2] % call.expert.shape[1],
            "peak_gate": call.gate.flatten().double().cpu().numpy()[pair],
            "n_nonfinite": np.bincount(group, weights=pairs.n_nonfinite, minlength=n_groups),
        }
        return schemas_moe.Expert.cast(pl.DataFrame(columns))

    def _kinds(self, layer: int) -> Shaped[np.ndarray, " expert"]:
        experts = self.experts[layer]
        n_computing = experts.n_routed - experts.n_identity
        return np.repeat(["routed", "identity", "shared"], [n_computing, experts.n_identity, len(experts.shared)])

    def _router_rows(
        self, layer: int, pairs: _Pairs, step: UInt8[np.ndarray, "sequence position"], *, n_choices: int
    ) -> pl.DataFrame:
        n_sequences, n_positions = step.shape
        n_experts = self.experts[layer].n_routed
        load = np.bincount(pairs.sequence * n_experts + pairs.expert, minlength=n_sequences * n_experts)
        load = load.reshape(n_sequences, n_experts)
        token = pairs.sequence * n_positions + pairs.position
        tokens, pair_token = np.unique(token, return_inverse=True)
        top_share = _top_share(pair_token, pairs.gate, len(tokens))
        sequence, position = np.divmod(tokens, n_positions)
        token_step = step[sequence, position]
        histogram = _histogram(sequence, token_step, n_sequences)
        columns = {
            "layer": np.full(n_sequences, layer),
            "sequence": self.first_sequence + np.arange(n_sequences),
            "n_experts": np.full(n_sequences, n_experts),
            "n_choices": np.full(n_sequences, n_choices),
            "n_tokens": np.bincount(sequence, minlength=n_sequences),
            "n_dead": (load == 0).sum(axis=1),
            "load_entropy": [load_entropy(row) for row in load],
            "load_cv": [load_cv(row) for row in load],
            "top_gate_share_sum": np.bincount(sequence, weights=top_share, minlength=n_sequences),
            "n_outlier_tokens": _at_least(histogram, histogram),
            "outlier_top_gate_share_sum": _at_least(
                _histogram(sequence, token_step, n_sequences, weights=top_share), histogram
            ),
        }
        return schemas_moe.Router.cast(pl.DataFrame(columns))


class _Largest(NamedTuple):
    magnitude: Float32[Tensor, "*token"]
    """The largest finite |x| of each token, 0 if there is none."""
    n_nonfinite: Int64[Tensor, "*token"]


def _largest(x: Float[Tensor, "*token feature"]) -> _Largest:
    # Twice over the values: |x| would be written to memory first, and aminmax is slower than both.
    magnitude = torch.maximum(x.amax(dim=-1), -x.amin(dim=-1)).float()
    n_nonfinite = torch.zeros_like(magnitude, dtype=torch.int64)
    odd = ~magnitude.isfinite()
    if odd.any():
        finite = x[odd].isfinite()
        magnitude[odd] = x[odd].abs().where(finite, 0).amax(dim=-1).float()
        n_nonfinite[odd] = (~finite).sum(dim=-1)
    return _Largest(magnitude, n_nonfinite)


def _peaks(outputs: ExpertOutputs, magnitude: Float32[Tensor, " pair"], *, n_numbers: int) -> _Peaks:
    """The peak of each expert and sequence. Only largest and smallest values are taken, so that any order will do."""
    pair = outputs.pair
    n_sequences, n_pairs = len(outputs.expert), len(pair)
    first_group = torch.arange(n_sequences, device=pair.device) * n_numbers
    group = (first_group[:, None, None] + outputs.expert).flatten()[pair]
    # Pairs without a gate are never a peak.
    size = magnitude.where(outputs.gate.flatten()[pair] != 0, -1)
    top = size.new_full((n_sequences * n_numbers,), -1).scatter_reduce_(0, group, size, "amax")
    candidate = pair.where((size >= 0) & (size == top[group]), n_pairs)
    first = pair.new_full(top.shape, n_pairs).scatter_reduce_(0, group, candidate, "amin")
    groups = (first < n_pairs).nonzero()[:, 0]
    first = first[groups]
    row = torch.empty_like(pair).index_copy_(0, pair, torch.arange(n_pairs, device=pair.device))
    values = outputs.output[row[first]].float()
    feature = values.abs().where(values.isfinite(), 0).argmax(dim=-1)
    return _Peaks(groups, first, top[groups], feature)


def _host_pairs(call: _Call) -> _Pairs:
    gate = call.gate.double().cpu().numpy()
    at = np.nonzero(gate)
    return _Pairs(
        sequence=at[0],
        position=at[1],
        expert=call.expert.cpu().numpy()[at],
        gate=gate[at],
        n_nonfinite=call.n_nonfinite.cpu().numpy()[at],
    )


def _top_share(
    token: Int64[np.ndarray, " pair"], gate: Float64[np.ndarray, " pair"], n_tokens: int
) -> Float64[np.ndarray, " token"]:
    """The largest gate of each token over the sum of its gates."""
    top = np.full(n_tokens, -np.inf)
    np.maximum.at(top, token, gate)
    return top / np.bincount(token, weights=gate, minlength=n_tokens)


def _histogram(
    group: Int64[np.ndarray, " item"],
    step: UInt8[np.ndarray, " item"],
    n_groups: int,
    *,
    weights: Float64[np.ndarray, " item"] | None = None,
) -> Num[np.ndarray, "group step=256"]:
    """Items of each group on each step, or the sums of their weights."""
    size = N_EDGES + 1
    return np.bincount(group * size + step, weights=weights, minlength=n_groups * size).reshape(n_groups, size)


def _at_least(values: Num[np.ndarray, "group step=256"], counts: Num[np.ndarray, "group step=256"]) -> pl.Series:
    """For each group a list of the sums from each edge upwards, up to the highest edge that it has items on."""
    sums = values[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    reached = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] > 0
    offsets = np.concatenate([[0], reached.sum(axis=1).cumsum()])
    return pl.Series(pa.LargeListArray.from_arrays(arrow_array(offsets), arrow_array(sums[reached])))


def load_entropy(load: Num[np.ndarray, " expert"]) -> float | None:
    """Entropy of the experts' shares of the load in units of the largest possible; None without a load."""
    total = load.sum()
    if total == 0:
        return None
    if len(load) == 1:
        return 1.0
    share = load[load > 0] / total
    return max(0.0, float(-(share * np.log(share)).sum() / math.log(len(load))))


def load_cv(load: Num[np.ndarray, " expert"]) -> float | None:
    """Standard deviation of the experts' loads over their mean; None without a load."""
    mean = load.mean()
    return float(load.std() / mean) if mean > 0 else None

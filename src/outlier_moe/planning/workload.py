"""The workload of a study: how many tokens, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from outlier_moe.config.registry import ModelEntry
from outlier_moe.definitions.record_options import N_SEQUENCES, SEQUENCE_LENGTH, Dtype
from outlier_moe.definitions.taps import TAPS, VIEW_OF, Tap

DeviceType = Literal["cpu", "cuda", "mps"]

# About as many tokens as keep the matrix products of one forward busy; more only costs memory.
TOKENS_PER_CHUNK = {"cpu": 2048, "mps": 4096, "cuda": 16384}

# Logits made at once, in bytes, by both drivers: little beside a layer. Thinner slices cost time, thicker ones memory,
# and another thickness changes the last bits of a loss.
HEAD_BYTES = 32 * 2**20

# Cross entropy goes through the logits in slices of this, in float32: what they take is taken again for the next one.
# Larger pieces the C library takes from the system anew each time, which costs more than the arithmetic.
CROSS_ENTROPY_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Workload:
    """The tokens of a study and what is recorded of them."""

    n_sequences: int
    """Sequences."""
    sequence_length: int = SEQUENCE_LENGTH
    """Tokens of each."""
    taps: tuple[Tap, ...] = TAPS
    """Where activations are read."""
    chunk: int | Literal["auto"] = "auto"
    """Sequences that go through the model together."""
    dtype: Dtype = "checkpoint"
    """Precision of the forward pass."""
    shards: int = 1
    """Parts of the sequences that are recorded one by one, each by a job of its own."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the study."""
        return self.n_sequences * self.sequence_length

    @property
    def n_views(self) -> int:
        """Views whose maximum over all sites is kept, a byte for each token and feature."""
        return len({VIEW_OF[tap] for tap in self.taps})

    def of_one_shard(self) -> Workload:
        """The workload of the largest shard."""
        n_sequences = -(-self.n_sequences // self.shards)
        return Workload(n_sequences, self.sequence_length, self.taps, self.chunk, self.dtype)


def model_tokens(study: Mapping[str, Any], entry: ModelEntry) -> dict[str, Any]:
    """A validated study's `tokenize_corpus` for a model: with a number of sequences where the study says `auto`."""
    tokens = dict(study["tokenize_corpus"])
    if tokens["n_sequences"] == "auto":
        tokens["n_sequences"] = entry.n_sequences or N_SEQUENCES
    return tokens


def study_workload(study: Mapping[str, Any], entry: ModelEntry) -> Workload:
    """What a validated study has a model do."""
    recorded, tokens = study["record_outliers"], model_tokens(study, entry)
    return Workload(
        n_sequences=tokens["n_sequences"],
        sequence_length=tokens["sequence_length"],
        taps=tuple(recorded["taps"]),
        chunk=recorded["chunk"],
        dtype=recorded["dtype"],
        shards=recorded.get("shards", 1),
    )

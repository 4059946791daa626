"""Small language models of the sweep: the upcycling experiment's dense `simple`, over widths and optimisers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.learning_rates import ChosenRate, chosen_rate, options_at, try_rates
from outlier_moe.scale_sweep.measures import Row
from outlier_moe.scale_sweep.runs import train_and_measure
from outlier_moe.scale_sweep.subjects import RunOptions, Subject, SweptModel
from outlier_moe.sources.tokenizer_files import open_tokenizer
from outlier_moe.training.options import OptimizerName
from outlier_moe.training.text_stream import FACTS, first_windows, token_windows
from outlier_moe.upcycling.language_loss import language_loss, next_token_loss
from outlier_moe.upcycling.pairs import model_config, new_model
from outlier_moe.upcycling.study import ModelSizes


@dataclass(frozen=True)
class LanguageModel(SweptModel):
    """A language model, its text and its optimiser."""

    text: Path
    """The folder that `tokenize_training_text` wrote."""
    sizes: ModelSizes
    """Sizes of the model."""

    @property
    def label(self) -> str:
        """The name in the log."""
        return f"simple of d_model {self.sizes.d_model}, {self.optimizer}"


def language_model_of(
    sweep: Mapping[str, Any],
    text: Path,
    *,
    d_model: int,
    optimizer: OptimizerName,
    vocab_size: int,
    sequence_length: int,
) -> LanguageModel:
    """The language model of a width and an optimiser, with heads of one size and a feed-forward part of 4 d_model."""
    n_heads = d_model // sweep["d_head"]
    sizes = ModelSizes(vocab_size, d_model, sweep["n_layers"], n_heads, 4 * d_model, sequence_length)
    return LanguageModel(optimizer, sweep, text, sizes)


def try_language_model_rates(of: LanguageModel, output: Path) -> None:
    """Train a language model for a few steps at each learning rate and choose the best on validation windows.

    Args:
        of: The model.
        output: The table that `try_rates` writes.
    """
    try_rates(of, output, options_of=run_options, subject_of=_subject)


def train_language_model(
    of: LanguageModel, learning_rates: Path | None, output: Path, recording: RecordOptions, *, seed: int
) -> None:
    """Train a language model, measuring it at every checkpoint.

    Args:
        of: The model.
        learning_rates: The table that `try_language_model_rates` wrote; None if the grid is of one rate, which is not
            tried.
        output: The run's folder.
        recording: What is recorded of the probe, windows of held-out text.
        seed: Decides weights and the draws from the text.
    """
    chosen = _only_rate(of) if learning_rates is None else chosen_rate(learning_rates)
    options = run_options(of, recording, chosen, seed)
    train_and_measure(_subject(of, options), output, options, label=f"{of.label}, seed {seed}")


def _only_rate(of: LanguageModel) -> ChosenRate:
    [multiple] = of.sweep["multiples"]
    return ChosenRate(multiple)


def run_options(of: LanguageModel, recording: RecordOptions, chosen: ChosenRate, seed: int) -> RunOptions:
    """Options for training a language model at a multiple of the study's learning rate."""
    return options_at(
        chosen,
        of,
        recording,
        given=of.sweep["learning_rates"],
        n_steps=of.sweep["n_steps"],
        batch_size=of.sweep["batch_size"],
        seed=seed,
        unit="tokens",
    )


def _subject(of: LanguageModel, options: RunOptions) -> Subject:
    tokenizer = open_tokenizer(of.text / "tokenizer").tokenizer
    seed, length = options.training.seed, of.sizes.sequence_length
    model = new_model(model_config("simple", of.sizes, end_of_text=tokenizer.eos_token_id), seed=seed)
    train, held_out = of.text / "train.npy", of.text / "held_out.npy"
    shown = {
        "train": first_windows(train, of.sweep["n_evaluated"], length),
        **_held_out_parts(held_out, of.sweep["n_evaluated"], length),
    }
    probe = first_windows(held_out, of.sweep["n_recorded"], length)

    def evaluate(model: nn.Module, part: str, chunk: int) -> list[Row]:
        return [_loss(model, shown[part], part, chunk=chunk)]

    return Subject(
        model=model,
        batches=token_windows(train, batch_size=options.batch_size, sequence_length=length, seed=seed),
        loss=language_loss(),
        evaluate=evaluate,
        n_evaluated={part: len(windows) for part, windows in shown.items()},
        held_out="validation",
        head=model.get_submodule("lm_head"),
        probe={"input_ids": probe},
        positions=probe.numpy().astype(np.uint32),
        decode=tokenizer.decode,
        identity=json.loads((of.text / FACTS).read_text(encoding="utf-8")),
        unit="tokens",
    )


def _held_out_parts(stream: Path, n_each: int, length: int) -> dict[str, Int[Tensor, "window position"]]:
    """The windows for reported losses, and those after them for choosing a learning rate."""
    windows = first_windows(stream, 2 * n_each, length)
    n_test = (len(windows) + 1) // 2
    if n_test == len(windows):
        raise StudyError(
            "The held-out text is too short for windows to choose learning rates by and others to report.",
            file=stream,
            key="upcycle.text.held_out_fraction",
            expected=f"at least 2 windows of {length} tokens",
            got=len(windows),
            remedy="Hold more out, take a longer text, or shorter sequences.",
        )
    return {"test": windows[:n_test], "validation": windows[n_test:]}


def _loss(model: nn.Module, windows: Int[Tensor, "window position"], part: str, *, chunk: int) -> Row:
    device = next(model.parameters()).device
    total = 0.0
    for tokens in windows.to(device).split(chunk):
        with torch.no_grad():
            total += next_token_loss(model(input_ids=tokens, use_cache=False).logits, tokens).item() * len(tokens)
    return Row("loss_nats", part, None, total / len(windows))

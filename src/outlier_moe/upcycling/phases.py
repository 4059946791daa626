"""The phases of the experiment: train the dense model, make it a mixture, prove that it is the same, train on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from outlier_moe.architectures.model_class import read_config
from outlier_moe.errors import StudyError
from outlier_moe.machine.model_bars import model_bars_hidden
from outlier_moe.sources.tokenizer_files import open_tokenizer
from outlier_moe.tables.whole_outputs import whole_directory, whole_file
from outlier_moe.terminal.figures import plain
from outlier_moe.training.loop import TrainingTask, Visit, forget_state, train
from outlier_moe.training.model_identity import plain_config
from outlier_moe.training.optimizers import adamw
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.text_stream import FACTS, first_windows, token_windows
from outlier_moe.upcycling.equivalence import TOLERANCE, compare_logits
from outlier_moe.upcycling.evaluation import evaluate, greedy_samples
from outlier_moe.upcycling.language_loss import language_loss
from outlier_moe.upcycling.pairs import has_experts, model_config, new_model, with_exact_experts
from outlier_moe.upcycling.study import Arm, ExpertSizes, ModelSizes, Pair
from outlier_moe.upcycling.transfer import TransferOptions, upcycled

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.json"
SAMPLES = "samples.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class PhaseOptions:
    """How one phase is trained."""

    phase: int
    """1: the dense model; 2: the control or a mixture. Each phase draws its own windows of the text."""
    training: TrainingOptions
    """Options of the training loop."""
    lr: float
    """The peak learning rate."""
    weight_decay: float
    """Weight decay of the matrices."""
    batch_size: int
    """Windows of a step."""
    sequence_length: int
    """Tokens of a window."""
    load_balancing: float
    """The weight of the load-balancing loss."""
    n_held_out: int
    """Held-out windows that every checkpoint's loss is taken on."""
    prompts: tuple[str, ...]
    """Prompts of the samples."""
    n_new_tokens: int
    """Tokens that it adds to each."""


@model_bars_hidden()
def train_dense(
    text: Path, model_output: Path, run_output: Path, *, pair: Pair, sizes: ModelSizes, options: PhaseOptions
) -> None:
    """Train the dense model of a pair from random weights.

    Args:
        text: The folder that `tokenize_training_text` wrote.
        model_output: The folder for the trained model.
        run_output: The folder for the history, the evaluations, the samples and the checkpoints along the way.
        pair: The pair.
        sizes: Of the model.
        options: Of the phase.
    """
    end_of_text = open_tokenizer(text / "tokenizer").tokenizer.eos_token_id
    model = new_model(model_config(pair, sizes, end_of_text=end_of_text), seed=options.training.seed)
    _train_phase(model, text, model_output, run_output, options, label=f"{pair}, dense")


@model_bars_hidden()
def continue_training(
    start: Path,
    text: Path,
    model_output: Path,
    run_output: Path,
    *,
    pair: Pair,
    arm: Arm,
    sizes: ModelSizes,
    experts: ExpertSizes | None,
    options: PhaseOptions,
) -> None:
    """Train on from the dense model (the control) or from an arm's mixture.

    Args:
        start: The model to start from.
        text: The folder that `tokenize_training_text` wrote.
        model_output: The folder for the trained model.
        run_output: As for `train_dense`.
        pair: The pair.
        arm: The arm.
        sizes: Of the dense model.
        experts: Of the mixture; None for the control.
        options: Of the phase.

    Raises:
        StudyError: If the model to start from is of another configuration.
    """
    model = load_checked(start, pair=pair, sizes=sizes, experts=experts)
    _train_phase(model, text, model_output, run_output, options, label=f"{pair}, {arm}")


def _train_phase(
    model: PreTrainedModel, text: Path, model_output: Path, run_output: Path, options: PhaseOptions, *, label: str
) -> None:
    # Beside the output, which Snakemake removes before it starts a killed job again.
    work = run_output.with_name(f".{run_output.name}.work")
    tokenizer = open_tokenizer(text / "tokenizer").tokenizer
    top_k = model.config.num_experts_per_tok if has_experts(model.config) else None
    sizes = {"batch_size": options.batch_size, "sequence_length": options.sequence_length}
    task = TrainingTask(
        model=model,
        optimizers=[adamw(model, lr=options.lr, weight_decay=options.weight_decay)],
        batches=token_windows(text / "train.npy", **sizes, seed=options.training.seed, phase=options.phase),
        loss=language_loss(load_balancing=options.load_balancing, top_k=top_k),
        visit=_visit(work, text, tokenizer, options),
        identity={
            "model": plain_config(model),
            "text": json.loads((text / FACTS).read_text(encoding="utf-8")),
            "phase": {**sizes, "phase": options.phase, "load_balancing": options.load_balancing},
        },
        label=label,
    )
    train(task, options.training, work)
    samples = greedy_samples(
        model.eval(), tokenizer, options.prompts, n_new=options.n_new_tokens, longest=options.sequence_length
    )
    for sample in samples:
        log.info("%s: %r -> %r", label, sample["prompt"], sample["sample"])
    _write_json(samples, work / SAMPLES)
    _hand_over(work, model_output, run_output)


def _hand_over(work: Path, model_output: Path, run_output: Path) -> None:
    """Move the outputs of a finished phase out of its working folder, each whole or not at all."""
    _gather_evaluations(work)
    last = sorted((work / CHECKPOINTS).iterdir())[-1]
    with whole_directory(model_output) as partial:
        shutil.copytree(last, partial, dirs_exist_ok=True)
    shutil.rmtree(run_output, ignore_errors=True)
    work.rename(run_output)
    # Only now: a phase that is killed before this goes on from them.
    forget_state(run_output)
    shutil.rmtree(run_output / "evaluations", ignore_errors=True)


def _visit(work: Path, text: Path, tokenizer: Any, options: PhaseOptions) -> Visit:
    held_out = first_windows(text / "held_out.npy", options.n_held_out, options.sequence_length)

    def visit(n_done: int, model: torch.nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        with whole_directory(work / CHECKPOINTS / f"step_{n_done:08d}") as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        found = evaluate(model, held_out, batch_size=options.batch_size)
        log.info("after %d steps: held-out loss %.6f nats", n_done, found["held_out_loss_nats"])
        _write_json({"step": n_done, **found}, work / "evaluations" / f"step_{n_done:08d}.json")

    return visit


def _gather_evaluations(work: Path) -> None:
    paths = sorted((work / "evaluations").glob("*.json"))
    if paths:
        _write_json([json.loads(path.read_text(encoding="utf-8")) for path in paths], work / EVALUATIONS)


def _write_json(document: Any, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_checked(folder: Path, *, pair: Pair, sizes: ModelSizes, experts: ExpertSizes | None) -> PreTrainedModel:
    """A model of the experiment, from its safetensors.

    Raises:
        StudyError: If it is of another configuration than the study says; it names the first key that differs.
    """
    found, wanted = read_config(folder), model_config(pair, sizes, experts)
    keys = ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    for key in [*keys, "num_local_experts", "num_experts_per_tok"]:
        if getattr(found, key, None) != getattr(wanted, key, None):
            raise StudyError(
                "A checkpoint is of another configuration.",
                file=folder / "config.json",
                key=key,
                expected=getattr(wanted, key, None),
                got=getattr(found, key, None),
                remedy="Remove the folder, so that it is made anew, or set the study's key back.",
            )
    return _read(folder)


@model_bars_hidden()
def upcycle_dense(
    dense: Path,
    output: Path,
    *,
    pair: Pair,
    arm: Arm,
    sizes: ModelSizes,
    experts: ExpertSizes,
    options: TransferOptions,
) -> None:
    """Make a trained dense model an arm's mixture.

    Raises:
        StudyError: If the dense model is of another configuration.
    """
    model = load_checked(dense, pair=pair, sizes=sizes, experts=None)
    moe = upcycled(model, pair=pair, arm=arm, sizes=sizes, experts=experts, options=options)
    with whole_directory(output) as partial:
        moe.save_pretrained(partial)
        open_tokenizer(dense).tokenizer.save_pretrained(partial)


@model_bars_hidden()
def verify_equivalence(
    dense: Path,
    moe: Path,
    text: Path,
    output: Path,
    *,
    arm: Arm,
    is_exact: bool,
    n_sequences: int = 8,
    sequence_length: int = 128,
) -> None:
    """Compare a mixture's logits with its dense model's on a frozen batch of held-out text, and write the result.

    Args:
        dense: The dense model.
        moe: The mixture.
        text: The folder that `tokenize_training_text` wrote.
        output: The JSON file to write.
        arm: The arm, for the message.
        is_exact: Whether the arm must be equal.
        n_sequences: Sequences of the probe.
        sequence_length: Tokens of one.

    Raises:
        StudyError: If it must be equal and is not; it says which sequence and layer first differs.
    """
    probe = first_windows(text / "held_out.npy", n_sequences, sequence_length)
    found = compare_logits(_read(dense), _read(moe), probe)
    verdict = "PASSED" if found.passed else "FAILED" if is_exact else "no copy, and not held to it"
    for sequence, value in enumerate(found.difference):
        log.info("sequence %d: max |logit_dense - logit_moe| = %.3g", sequence, value)
    print(f"{arm}: max |logit_dense - logit_moe| = {plain(found.largest, 3)} (below {plain(TOLERANCE)}?): {verdict}")
    if is_exact:
        found.require(file=str(moe))
    _write_json({"arm": arm, "is_exact": is_exact, **found.as_document()}, output)


def _read(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=read_config(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return with_exact_experts(model)


def checkpoint_steps(run: Path) -> Sequence[tuple[int, Path]]:
    """The checkpoints of a run's folder, by the steps done."""
    return [(int(path.name.removeprefix("step_")), path) for path in sorted((run / CHECKPOINTS).glob("step_*"))]

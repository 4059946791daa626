"""Tiny random models with a tokenizer, as folders that the pipeline can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    TokenizersBackend,
)

VOCABULARY = 96
N_LAYERS = 3
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=N_LAYERS, num_key_value_heads=2, **SIZES))


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=N_LAYERS, n_head=4, n_positions=64)
    return GPT2LMHeadModel(config)


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(num_hidden_layers=N_LAYERS, num_key_value_heads=2, num_local_experts=4, **SIZES)
    )


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {"llama": _llama, "gpt2": _gpt2, "mixtral": _mixtral}


def tiny_model(name: str) -> PreTrainedModel:
    """A random model whose every weight, norms and biases included, differs from its default."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def byte_tokenizer(text: str) -> TokenizersBackend:
    """A byte-level BPE of the tiny models' vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return TokenizersBackend(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def save_tiny_model(name: str, directory: Path, text: str) -> None:
    """Write a tiny model and a tokenizer trained on a text."""
    tiny_model(name).save_pretrained(directory)
    byte_tokenizer(text).save_pretrained(directory)

"""The longest sequence of a model, held against what the model does with a longer one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Phi3Config, PreTrainedConfig

from outlier_moe.architectures.lengths import Positions, length_for
from outlier_moe.architectures.positions import positions_of
from outlier_moe.config.registry import load_registry
from outlier_moe.errors import StudyError
from outlier_moe.planning.lengths import known_positions, refuse_long_sequences

ROOT = Path(__file__).parent.parent.parent.parent
MOST = 20
SMALL: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=32,
    n_embd=32,
    d_model=32,
    intermediate_size=48,
    ffn_dim=48,
    num_hidden_layers=2,
    num_layers=2,
    n_layer=2,
    n_layers=2,
    num_attention_heads=4,
    n_head=4,
    n_heads=4,
    attention_heads=4,
    num_key_value_heads=2,
    rotary_dim=8,
    word_embed_proj_dim=32,
    embed_dim=32,
    dff=48,
    pad_token_id=1,
    bos_token_id=None,
    eos_token_id=None,
    is_decoder=True,
)
LENGTHS = dict(max_position_embeddings=MOST, n_positions=MOST, max_seq_len=MOST, n_ctx=MOST)


def small(family: str, **fields: Any) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[family]
    known = {*config_class().to_dict(), *config_class.attribute_map}
    if family == "gpt_neo":
        fields["attention_types"] = [[["global", "local"], 1]]
    # A name that stands for another is not said twice.
    standing = set(config_class.attribute_map) if family != "gpt_neo" else {"num_hidden_layers"}
    said = {name: value for name, value in {**SMALL, **LENGTHS}.items() if name in known and name not in standing}
    return config_class(**{**said, **fields})


def runs(config: PreTrainedConfig, n_tokens: int) -> bool:
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    try:
        with torch.no_grad():
            model(input_ids=torch.randint(2, 60, (1, n_tokens)), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


TABLES = ["gpt2", "gpt_neo", "gpt_bigcode", "gptj", "codegen", "opt", "mpt", "biogpt", "ctrl", "openai-gpt", "roberta"]


@pytest.mark.parametrize("family", TABLES)
def test_a_table_of_positions_ends_where_the_model_fails(family: str) -> None:
    config = small(family)
    positions = positions_of(config, longer_than=MOST + 1)
    assert positions.is_table and positions.largest is not None
    assert runs(config, positions.largest) and not runs(config, positions.largest + 1)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon", "olmo", "bloom", "mamba"])
def test_other_positions_go_on(family: str) -> None:
    config = small(family)
    positions = positions_of(config, longer_than=MOST + 1)
    assert not positions.is_table and runs(config, MOST + 13)
    assert positions.largest == (None if family in ("bloom", "mamba") else MOST)


def test_an_opt_with_the_layout_of_the_smallest_has_2048() -> None:
    config: Any = CONFIG_MAPPING["opt"]()
    config.num_hidden_layers = 1
    assert positions_of(config, longer_than=4096) == Positions(2048, is_table=True)
    assert positions_of(config, longer_than=2048) == Positions(2048, is_table=False), "nothing is built for these"


@pytest.mark.parametrize(
    ("rope", "largest"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 20),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 80),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20, "rope_theta": 1e4}, 80),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10, "rope_theta": 1e4}, 20),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 40),
    ],
)
def test_a_scaling_of_rotations_counts(rope: dict[str, Any], largest: int) -> None:
    config = small("llama", rope_parameters=rope)
    assert positions_of(config, longer_than=200) == Positions(largest, is_table=False)


def test_rotations_within_a_window_have_no_end() -> None:
    assert positions_of(small("mistral", sliding_window=16), longer_than=99).largest is None
    assert positions_of(small("mistral", sliding_window=64), longer_than=99).largest == MOST
    assert positions_of(small("mistral", sliding_window=None), longer_than=99).largest == MOST
    alternate = ["sliding_attention", "full_attention"]
    mixed = small("gemma2", sliding_window=8, layer_types=alternate)
    assert positions_of(mixed, longer_than=99).largest == MOST


def test_the_length_of_a_models_sequences() -> None:
    table, rotary, none = Positions(10, True), Positions(10, False), Positions(None, False)
    asked = {"shortens": False, "model": "m"}
    for positions in (table, rotary, none):
        assert length_for(10, positions, **asked) == (10, None)
    assert length_for(11, none, **asked) == (11, None)
    beyond = length_for(11, rotary, **asked)
    assert beyond.n_tokens == 11 and "10" in (beyond.note or "")
    for positions in (table, rotary):
        shorter = length_for(11, positions, shortens=True, model="m")
        assert shorter.n_tokens == 10 and "not 11" in (shorter.note or "")
    with pytest.raises(StudyError) as caught:
        length_for(11, table, **asked)
    assert caught.value.key == "tokenize_corpus.sequence_length" and caught.value.got == 11
    assert "at most 10 for m" in str(caught.value.expected) and "sequence_length: model" in str(caught.value.remedy)


def registry() -> Any:
    return load_registry(ROOT / "config/models.yaml", ROOT / "workflow/schemas/models.schema.yaml")


def test_the_registrys_models_with_tables_are_known_without_a_hub(tmp_path: Path) -> None:
    entries = [entry for entry in registry().models.values() if entry.source is not None]
    tables = {entry.id: entry.max_positions for entry in entries if entry.max_positions is not None}
    assert {entry.id for entry in entries if entry.family in ("gpt2", "opt")} == set(tables)
    assert {tables[id] for id in tables if id.startswith("gpt2")} == {1024}
    assert {tables[id] for id in tables if id.startswith("opt")} == {2048}
    refuse_long_sequences(entries, 65535, tmp_path)
    told = [replace(entry, sequence_length="study") for entry in entries]
    refuse_long_sequences(told, 1024, tmp_path)
    with pytest.raises(StudyError) as caught:
        refuse_long_sequences(told, 2048, tmp_path)
    assert "gpt2-xl" in str(caught.value.expected) and "opt" not in str(caught.value.expected)


def test_a_configuration_at_hand_is_believed(tmp_path: Path) -> None:
    entry = replace(registry().model("gpt2"), sequence_length="study")
    small("gpt2").save_pretrained(tmp_path / "gpt2")
    assert known_positions(entry, tmp_path, longer_than=MOST + 1) == Positions(MOST, is_table=True)
    with pytest.raises(StudyError, match="table of positions"):
        refuse_long_sequences([entry], MOST + 1, tmp_path)
    (tmp_path / "gpt2/config.json").write_text("{")
    assert known_positions(entry, tmp_path, longer_than=MOST + 1) == Positions(1024, is_table=True)
    small("llama").save_pretrained(tmp_path / "gpt2")
    refuse_long_sequences([entry], 4096, tmp_path)


def test_a_configuration_that_builds_no_model_is_named() -> None:
    config = Phi3Config(vocab_size=64, pad_token_id=32000, max_position_embeddings=64)
    with pytest.raises(StudyError, match="builds no model"):
        positions_of(config, longer_than=65)

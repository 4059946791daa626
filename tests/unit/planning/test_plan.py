"""Plans from configurations: known sizes, the tier that costs least, and a hub that serves a configuration."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from outlier_moe.cli import main
from outlier_moe.config.cluster import load_cluster, refuse_larger_cap
from outlier_moe.config.registry import load_registry
from outlier_moe.definitions.record_options import N_SEQUENCES
from outlier_moe.errors import StudyError
from outlier_moe.planning.effort import cheapest_node, effort
from outlier_moe.planning.memory import resident_memory, streamed_memory
from outlier_moe.planning.plan import mode_memory
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.planning.workload import Workload, model_tokens
from tests.hub_server import reachable_hub

ROOT = Path(__file__).parent.parent.parent.parent
STUDY = Workload(N_SEQUENCES)


def configuration(family: str, **changed: Any) -> PreTrainedConfig:
    """A family's default configuration with some keys changed."""
    return CONFIG_MAPPING[family](**changed)


# The defaults of these families' configurations are published models.
@pytest.mark.parametrize(
    ("family", "total_b", "working_b", "n_layers"),
    [("mixtral", 46.7, 12.6, 32), ("deepseek_v3", 671.0, 35.7, 61), ("gpt_oss", 116.8, 4.55, 36)],
)
def test_sizes_are_those_of_the_published_models(family: str, total_b: float, working_b: float, n_layers: int) -> None:
    sizes = model_sizes(CONFIG_MAPPING[family](), dtype="bfloat16")
    assert sizes.n_parameters / 1e9 == pytest.approx(total_b, rel=0.001)
    assert sizes.n_working / 1e9 == pytest.approx(working_b, rel=0.01)
    assert len(sizes.layers) == n_layers
    assert sizes.computed_bytes == 2 * sizes.n_parameters


def test_an_fp8_checkpoint_is_half_as_large_as_what_is_computed() -> None:
    config = configuration("deepseek_v3", dtype="bfloat16", quantization_config={"quant_method": "fp8"})
    sizes = model_sizes(config)
    assert sizes.is_quantized
    assert sizes.stored_bytes / sizes.computed_bytes == pytest.approx(0.5, abs=0.01)
    assert set(mode_memory(sizes, STUDY, device="cuda")) == {"streamed"}


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else {}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = configuration(
        family, hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=128, **heads, **experts
    )
    model: Any = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=torch.randint(0, 128, (2, 32)), use_cache=False)
    # torch counts the matrices; scores and weighted values are 4 x 16 wide, for half of the pairs of positions.
    attention = 2 * 2 * 3 * (4 * 16) * (2 * 32 * 32 / 2)
    planned = effort(model_sizes(config, dtype="float32"), Workload(n_sequences=2, sequence_length=32))
    assert planned.flops == counted.get_total_flops() + attention


def test_memory_grows_with_sequences_only_by_what_waits() -> None:
    sizes = model_sizes(CONFIG_MAPPING["llama"](dtype="bfloat16"))
    one, two = (streamed_memory(sizes, Workload(n), device="cpu").process for n in (16, 32))
    assert two.states == 2 * one.states and two.union == 2 * one.union and two.weights == one.weights
    resident = [resident_memory(sizes, Workload(n), device="cpu").process.total for n in (16, 32)]
    assert resident[0] == resident[1]


def test_the_cheapest_node_has_room(tmp_path: Path) -> None:
    cluster = load_cluster(ROOT / "config/cluster.yaml", ROOT / "workflow/schemas/cluster.schema.yaml")
    for family in ("llama", "deepseek_v3"):
        sizes = model_sizes(CONFIG_MAPPING[family](), dtype="bfloat16")
        memory = mode_memory(sizes, STUDY, device="cuda")
        node = cheapest_node(sizes, memory, effort(sizes, STUDY), cluster)
        assert node is not None
        need = memory[node.mode].device
        assert need is not None and need.total <= node.tier.count * node.accelerator.memory_gib * 2**30
        assert node.evict == (sizes.stored_bytes / 1e9 + cluster.disk_margin_gb > node.tier.largest_disk_gb)
    broken = tmp_path / "cluster.yaml"
    broken.write_text((ROOT / "config/cluster.yaml").read_text().replace("[RTX4090]", "[RTX4091]"))
    with pytest.raises(StudyError, match="not described") as told:
        load_cluster(broken, ROOT / "workflow/schemas/cluster.schema.yaml")
    assert told.value.key == "tiers.small.accelerators"


@pytest.mark.parametrize(("cap", "got"), [(None, "without a limit"), (100.5, "up to $100.5")])
def test_no_run_may_cost_more_than_the_tiers_say(cap: float | None, got: str) -> None:
    cluster = load_cluster(ROOT / "config/cluster.yaml", ROOT / "workflow/schemas/cluster.schema.yaml")
    refuse_larger_cap(cluster, 100.0)
    refuse_larger_cap(cluster, 0.5)
    with pytest.raises(StudyError) as told:
        refuse_larger_cap(cluster, cap)
    assert told.value.key == "max_price_total" and got in str(told.value)


def registry_with(folder: Path, source: dict[str, str]) -> list[str]:
    """The options that name a registry whose qwen3-0.6b is a model from elsewhere, of which nothing else is said."""
    document = yaml.safe_load((ROOT / "config/models.yaml").read_text())
    document["models"]["qwen3-0.6b"] = {"source": source, "corpus": "fineweb-edu"}
    (folder / "models.yaml").write_text(yaml.safe_dump(document))
    return ["--registry", str(folder / "models.yaml"), "--fetched", str(folder)]


def test_a_plan_from_the_hub_takes_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    config = configuration("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=256)
    files = {"config.json": json.dumps(config.to_dict()).encode(), "model.safetensors": b"x" * 54321}
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("Qwen/Qwen3-0.6B", files)
        where = registry_with(tmp_path, {"kind": "hub", "repo": "Qwen/Qwen3-0.6B"})
        assert main(["plan", "qwen3-0.6b", *where, "--format", "csv"]) == 0
        asked = [request.path for request in hub.requests]
        whole = [request.path for request in hub.requests if request.method == "GET" and request.byte_range is None]
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["basis"], row["stored_bytes"]) == ("hub", "54321")
    assert int(row["n_parameters"]) == 2 * 256 * 64 + 2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64) + 64
    assert any(path.endswith("config.json") for path in asked)
    assert not any("safetensors" in path for path in whole), "no more than headers"


def test_the_command_plans_a_folder_and_says_what_it_guesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "tiny").mkdir()
    config = configuration("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=256)
    (tmp_path / "tiny/config.json").write_text(json.dumps(config.to_dict()))
    where = registry_with(tmp_path, {"kind": "directory", "path": str(tmp_path / "tiny")})
    assert main(["plan", "qwen3-0.6b", "mixtral", *where, "--format", "csv"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["basis"] for row in rows] == ["folder", "registry"]
    assert int(rows[0]["n_parameters"]) == sum(p for p in (2 * 256 * 64, 2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64), 64))
    assert "mixtral is planned from the registry's figures" in printed.err
    assert main(["plan", "mixtrl", *where]) == 1
    assert "mixtral" in capsys.readouterr().err


def test_sequences_that_a_model_has_no_positions_for_are_refused_and_untrained_ones_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    rotary = configuration("llama", hidden_size=64, num_hidden_layers=2, vocab_size=256, max_position_embeddings=512)
    for name, config in (
        ("rotary", rotary),
        ("table", configuration("gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=512)),
    ):
        config.save_pretrained(tmp_path / name)
    document = yaml.safe_load((ROOT / "config/models.yaml").read_text())
    for id, name in (("qwen3-0.6b", "rotary"), ("gpt2", "table")):
        entry = document["models"][id]
        kept = {key: entry[key] for key in ("sequence_length", "corpus") if key in entry}
        document["models"][id] = {"source": {"kind": "directory", "path": str(tmp_path / name)}, **kept}
    said = yaml.safe_dump(document)
    (tmp_path / "models.yaml").write_text(said)
    where = ["--registry", str(tmp_path / "models.yaml"), "--fetched", str(tmp_path), "--no-hub", "--format", "csv"]
    assert main(["plan", "qwen3-0.6b", "gpt2", "gpt2-medium", *where]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["sequence_length"] for row in rows] == ["2048", "512", "1024"]
    assert "qwen3-0.6b: sequences have 2048 tokens, the model was made for 512" in printed.err
    assert "gpt2: sequences have 512 tokens" in printed.err and "gpt2-medium: sequences have 1024" in printed.err
    (tmp_path / "models.yaml").write_text(said.replace("sequence_length: model", "sequence_length: study"))
    assert main(["plan", "qwen3-0.6b", "gpt2", "gpt2-medium", *where]) == 1
    refused = capsys.readouterr().err
    assert "at most 512 for gpt2" in refused and "at most 1024 for gpt2-medium" in refused
    assert "sequence_length: model" in refused


def test_the_studys_number_of_sequences_counts_and_an_entrys_where_it_says_auto() -> None:
    registry = load_registry(ROOT / "config/models.yaml", ROOT / "workflow/schemas/models.schema.yaml")
    study = {"tokenize_corpus": {"n_sequences": "auto", "sequence_length": 64}}
    small, large = registry.model("smollm2"), registry.model("mixtral")
    assert model_tokens(study, small)["n_sequences"] == small.n_sequences != N_SEQUENCES
    assert model_tokens(study, large)["n_sequences"] == N_SEQUENCES
    study["tokenize_corpus"]["n_sequences"] = 5
    assert model_tokens(study, small) == model_tokens(study, large) == study["tokenize_corpus"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_is_planned_in_the_precision_of_its_configuration(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "tiny").mkdir()
    config = configuration("llama", hidden_size=64, num_hidden_layers=2, vocab_size=256, dtype=dtype)
    (tmp_path / "tiny/config.json").write_text(json.dumps(config.to_dict()))
    where = registry_with(tmp_path, {"kind": "directory", "path": str(tmp_path / "tiny")})
    assert main(["plan", "qwen3-0.6b", *where, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    size = getattr(torch, dtype).itemsize
    assert (row["dtype"], row["computed_bytes"]) == (dtype, size * row["n_parameters"])

"""Plans from configurations: known sizes, the tier that costs least, and a hub that serves a configuration."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from outlier_moe.cli import main
from outlier_moe.errors import StudyError
from outlier_moe.planning.cluster import load_cluster
from outlier_moe.planning.effort import cheapest_node, effort
from outlier_moe.planning.memory import resident_memory, streamed_memory
from outlier_moe.planning.plan import mode_memory
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.planning.workload import Workload

ROOT = Path(__file__).parent.parent.parent.parent
STUDY = Workload()


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


def test_the_command_plans_a_folder_and_says_what_it_guesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "tiny").mkdir()
    config = configuration("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=256)
    (tmp_path / "tiny/config.json").write_text(json.dumps(config.to_dict()))
    registry = (
        (ROOT / "config/models.yaml")
        .read_text()
        .replace("{ kind: hub, repo: Qwen/Qwen3-0.6B }", f"{{ kind: directory, path: {tmp_path / 'tiny'} }}")
    )
    (tmp_path / "models.yaml").write_text(registry)
    where = ["--registry", str(tmp_path / "models.yaml"), "--fetched", str(tmp_path)]
    assert main(["plan", "qwen3-0.6b", "mixtral", *where, "--format", "csv"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["basis"] for row in rows] == ["folder", "registry"]
    assert int(rows[0]["n_parameters"]) == sum(p for p in (2 * 256 * 64, 2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64), 64))
    assert "mixtral is planned from the registry's figures" in printed.err
    assert main(["plan", "mixtrl", *where]) == 1
    assert "mixtral" in capsys.readouterr().err

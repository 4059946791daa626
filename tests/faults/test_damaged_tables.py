"""Single flipped bits in every table of a study: each is noticed by name, and what makes the table again is said."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet

from outlier_moe.config.registry import FilesSource
from outlier_moe.definitions.presets import Preset, definition_facts
from outlier_moe.errors import StudyError
from outlier_moe.judging.edge_counts import CountShape, read_edge_counts, write_edge_counts
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.sources.corpora import fetch_corpus, read_corpus
from outlier_moe.sources.tokenization import TokenTable, read_tokens, tokens_sha256, write_tokens
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from outlier_moe.tables.files import CHECKSUM, read_table, schema_facts, table_facts, write_table
from outlier_moe.tables.moe import Expert, Router
from outlier_moe.tables.recording import Recording, read_recording
from outlier_moe.tables.schemas import tap_enum
from tests.recordings import made_up_activations, write_recording
from tests.unit.sources.entries import corpus_entry

PRESETS = [Preset("dettmers2022", "systematic", "linear_inputs", 6.0)]
FACTS = {"model": "m", "kind": "dense", "family": "llama", "total_params_b": 0.1, "active_params_b": 0.1}
UNKNOWN = dict.fromkeys(["n_experts", "top_k", "n_shared_experts", "routing", "release_date"])
N_FLIPS = 40

READERS: dict[str, Callable[[Recording], object]] = {
    "outliers/layer_00.arrow": lambda recording: recording.layer_outliers().collect(),
    "outliers/layer_01.arrow": lambda recording: recording.layer_outliers().collect(),
    "outliers/any_layer.arrow": lambda recording: recording.any_layer_outliers().collect(),
    "outliers/sites.parquet": Recording.sites,
    "outliers/peaks.parquet": Recording.peaks,
    "outliers/sequences.parquet": Recording.sequences,
    "outliers/experts.parquet": Recording.experts,
    "outliers/routers.parquet": Recording.routers,
    "systematic.parquet": lambda recording: read_table(recording.directory.parent / "systematic.parquet"),
    "models.parquet": lambda recording: read_table(recording.directory.parent / "models.parquet"),
    "text.parquet": lambda recording: read_corpus(recording.directory.parent / "text.parquet"),
    "tokens.arrow": lambda recording: read_tokens(recording.directory.parent / "tokens.arrow"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of table that a study has of a model, each with some rows."""
    folder = tmp_path_factory.mktemp("study")
    recording = write_recording(folder / "outliers", made_up_activations(n_layers=2, shape=(2, 16, 24), seed=0))
    first = {"layer": 0, "sequence": 0, "n_tokens": 3, "n_outlier_tokens": [2, 1]}
    peak = {"peak": 9.0, "peak_feature": 1, "peak_position": 2, "peak_gate": 0.5, "n_nonfinite": 0}
    expert = pl.DataFrame([first | peak | {"expert": 0, "kind": "routed", "gate_sum": 1.5}])
    load = {"n_experts": 4, "n_choices": 2, "n_dead": 1, "load_entropy": 0.5, "load_cv": 0.5}
    shares = {"top_gate_share_sum": 1.5, "outlier_top_gate_share_sum": [1.0, 0.5]}
    router = pl.DataFrame([first | load | shares])
    told = recording.ladder.facts
    write_table(Expert.validate(expert, cast=True), folder / "outliers/experts.parquet", told)
    write_table(Router.validate(router, cast=True), folder / "outliers/routers.parquet", told)
    systematic = systematic_features(recording, PRESETS)
    write_table(systematic, folder / "systematic.parquet", definition_facts(PRESETS) | told)
    compared = ComparedModel(FACTS | UNKNOWN, recording, systematic.filter("is_systematic"))
    write_table(compare_models([compared], PRESETS).models, folder / "models.parquet", definition_facts(PRESETS))
    entry = corpus_entry(FilesSource((str(folder / "words.txt"),)), 100)
    (folder / "words.txt").write_text("A word, and another one.")
    fetch_corpus(entry, folder / "text.parquet")
    tokens = np.arange(12, dtype=np.uint32).reshape(2, 6)
    facts = {"n_sequences": 2, "sequence_length": 6, "end_of_text_token": 0, "tokens_sha256": tokens_sha256(tokens)}
    write_tokens(TokenTable(tokens, facts), folder / "tokens.arrow")
    return folder


def flip(path: Path, bit: int) -> bytes:
    """Flip a bit of a file; what it held before."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return whole


def test_every_flipped_bit_is_noticed_by_name(study: Path) -> None:
    chance = random.Random(0)
    recording = read_recording(study / "outliers")
    for number in range(N_FLIPS):
        name = list(READERS)[number % len(READERS)]
        path = study / name
        READERS[name](read_recording(study / "outliers"))
        whole = flip(path, chance.randrange(8 * path.stat().st_size))
        with pytest.raises(StudyError) as told:
            READERS[name](Recording(recording.directory, recording.run))
        path.write_bytes(whole)
        assert told.value.file == path
        assert told.value.key == CHECKSUM
        assert re.search("snakemake --force|Remove the file", str(told.value.remedy))


def test_every_bit_of_what_says_where_tokens_come_from_is_noticed(study: Path) -> None:
    """A changed digest of the text or of the tokenizer would tell other models' recordings to be of another text."""
    path = study / "tokens.arrow"
    start = path.read_bytes().rindex(b"end_of_text_token")
    for byte in range(start, start + 40):
        whole = flip(path, 8 * byte)
        with pytest.raises(StudyError, match="damaged"):
            read_tokens(path)
        path.write_bytes(whole)


def test_a_flip_in_the_checksum_or_its_name_is_noticed_too(study: Path) -> None:
    for name in ("outliers/any_layer.arrow", "models.parquet", "tokens.arrow"):
        path = study / name
        start = path.read_bytes().rindex(b"outlier_moe.crc32=")
        for byte in range(start, start + 26):
            whole = flip(path, 8 * byte + 1)
            with pytest.raises(StudyError, match="damaged"):
                READERS[name](read_recording(study / "outliers"))
            path.write_bytes(whole)


def test_every_flipped_bit_of_the_counts_at_every_edge_is_noticed(study: Path, tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "edge_counts.json"
    shapes = [CountShape("linear_inputs", "decoder_layers", "feature")]
    write_edge_counts(read_recording(study / "outliers"), shapes, path, least_layers=0.05, least_positions=0.01)
    counts = read_edge_counts(path)
    assert list(counts) == shapes
    n_bytes = path.stat().st_size
    # The name of the checksum is near the end.
    for byte in [*(chance.randrange(n_bytes - 1) for _ in range(N_FLIPS)), n_bytes - 15, n_bytes - 18]:
        whole = flip(path, 8 * byte + chance.randrange(3))
        with pytest.raises(StudyError, match="snakemake --force") as told:
            read_edge_counts(path)
        assert told.value.file == path
        path.write_bytes(whole)


def test_a_table_of_before_there_were_checksums_is_read(study: Path, tmp_path: Path) -> None:
    old = tmp_path / "models.parquet"
    table = read_table(study / "models.parquet")
    table.write_parquet(old)
    assert read_table(old).equals(table)
    assert table_facts(old) == {}
    tokens = study / "tokens.arrow"
    with pa.ipc.open_file(tokens) as reader:
        rows = reader.read_all()
    facts = schema_facts(rows.schema)
    rows = rows.replace_schema_metadata({"outlier_moe": json.dumps(facts)})
    with pa.ipc.new_file(tmp_path / "tokens.arrow", rows.schema) as writer:
        writer.write_table(rows)
    assert read_tokens(tmp_path / "tokens.arrow").metadata == facts


def test_an_empty_or_cut_file_is_told(study: Path, tmp_path: Path) -> None:
    whole = (study / "systematic.parquet").read_bytes()
    for part in (b"", whole[:-1], whole[: len(whole) // 2]):
        path = tmp_path / "systematic.parquet"
        path.write_bytes(part)
        with pytest.raises(StudyError, match="snakemake --force"):
            read_table(path)


def test_a_recording_of_another_floor_than_its_tables_is_told(tmp_path: Path) -> None:
    written = write_recording(tmp_path / "outliers", made_up_activations(n_layers=1, shape=(1, 8, 8), seed=0))
    other = Recording(written.directory, written.run | {"floor": 6.0})
    with pytest.raises(StudyError, match="another floor") as told:
        other.any_layer_outliers()
    assert told.value.key == "floor" and told.value.got == 3.0


def test_tables_say_what_they_were_made_by(study: Path) -> None:
    ladder = read_recording(study / "outliers").ladder
    for path in (study / "outliers").glob("*.arrow"):
        with pa.ipc.open_file(path) as reader:
            told = schema_facts(reader.schema)
        assert (told["floor"], told["edges"]) == (3.0, ladder.edges.tolist())
    assert table_facts(study / "outliers/sites.parquet")["floor"] == 3.0
    for name in ("systematic.parquet", "models.parquet"):
        [preset] = table_facts(study / name)["presets"]
        assert Preset(**preset) == PRESETS[0]


def test_pandas_can_read_every_table(study: Path) -> None:
    """It refuses columns of names that are numbered by unsigned numbers."""
    n_columns = 0
    for path in [*study.glob("**/*.parquet"), *study.glob("**/*.arrow")]:
        if path.suffix == ".parquet":
            schema = parquet.read_schema(path)
        else:
            with pa.ipc.open_file(path) as reader:
                schema = reader.schema
        indices = [field.type.index_type for field in schema if pa.types.is_dictionary(field.type)]
        assert all(pa.types.is_signed_integer(kind) for kind in indices), path.name
        n_columns += len(indices)
    assert n_columns >= 7


def test_names_are_read_back_as_they_were(tmp_path: Path) -> None:
    table = pl.DataFrame({"tap": pl.Series(["residual", None, "attn_in"], dtype=tap_enum), "n": [1, 2, 3]})
    write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").equals(table)
    assert read_table(tmp_path / "t.parquet").schema == table.schema

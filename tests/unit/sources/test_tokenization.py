from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, LlamaConfig, TokenizersBackend

from outlier_moe.config.registry import CorpusEntry, FilesSource
from outlier_moe.errors import StudyError
from outlier_moe.sources import tokenization
from outlier_moe.sources.corpora import documents_sha256, fetch_corpus
from outlier_moe.sources.origin import Origin, write_origin
from outlier_moe.sources.tokenization import Bos, read_tokens, tokenize_corpus
from outlier_moe.tables.files import schema_facts

VOCABULARY = 300
WORDS = "the quick brown fox jumps over a lazy dog and does not mind it at all 0 12 345".split()
DOCUMENTS = [" ".join(WORDS[i % 7 :: 1 + i % 3]) + f"\n\n  {i}." for i in range(80)]


def train(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    return tokenizer


def gpt2_like() -> TokenizersBackend:
    """Byte-level, BOS and end of text the same token, and none of them added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return TokenizersBackend(tokenizer_object=train(tokenizer, [end]), eos_token=end, bos_token=end, unk_token=end)


def llama_like() -> TokenizersBackend:
    """Metaspace, BOS in front of every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    train(tokenizer, ["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TokenizersBackend(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def endless() -> TokenizersBackend:
    """Without an end-of-text token, and without BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TokenizersBackend(tokenizer_object=train(tokenizer, []))


BUILDERS: dict[str, Callable[[], TokenizersBackend]] = {"gpt2": gpt2_like, "llama": llama_like, "endless": endless}


def make_model(folder: Path, kind: str, **config: Any) -> Path:
    """A fetched model without weights."""
    config = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, **config}
    LlamaConfig(**config).save_pretrained(folder)
    BUILDERS[kind]().save_pretrained(folder)
    write_origin(Origin("m", "directory", str(folder), None, None, ".", None, False, ()), folder)
    return folder


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in BUILDERS:
        make_model(folder / kind, kind)
    return folder


def make_corpus(folder: Path, documents: list[str], max_characters: int = 10**6) -> Path:
    lines = folder / "text.jsonl"
    lines.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    fetch_corpus(CorpusEntry("text", FilesSource((str(lines),)), max_characters), folder / "text.parquet")
    return folder / "text.parquet"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), DOCUMENTS)


def tokens_by_definition(
    model: Path, documents: list[str], n_sequences: int, sequence_length: int, *, end: int, bos: int | None
) -> list[list[int]]:
    """The plain version: tokens of one document after the other, by the tokenizer's own library."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    stream: list[int] = []
    for document in documents:
        stream.extend(tokenizer.encode(document, add_special_tokens=False).ids)
        stream.append(end)
    rows = []
    for _ in range(n_sequences):
        row = [] if bos is None else [bos]
        while len(row) < sequence_length:
            row.append(stream.pop(0))
        rows.append(row)
    return rows


def tokenized(corpus: Path, model: Path, output: Path, **options: Any) -> tokenization.TokenTable:
    defaults: dict[str, Any] = {"n_sequences": 4, "sequence_length": 16, "bos": "tokenizer"}
    tokenize_corpus(corpus, model, output, **{**defaults, **options})
    return read_tokens(output)


def refusal(corpus: Path, model: Path, output: Path, **options: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        tokenized(corpus, model, output, **options)
    assert not output.exists()
    return caught.value


@pytest.mark.parametrize(
    ("kind", "bos", "bos_token"),
    [
        ("gpt2", "tokenizer", None),
        ("gpt2", "always", 0),
        ("gpt2", "never", None),
        ("llama", "tokenizer", 1),
        ("llama", "always", 1),
        ("llama", "never", None),
    ],
)
@pytest.mark.parametrize("shape", [(1, 2), (7, 31), (5, 64)])
def test_tokens_are_those_of_the_definition(
    fetched: Path, corpus: Path, tmp_path: Path, kind: str, bos: Bos, bos_token: int | None, shape: tuple[int, int]
) -> None:
    table = tokenized(
        corpus, fetched / kind, tmp_path / "t.arrow", n_sequences=shape[0], sequence_length=shape[1], bos=bos
    )
    end = {"gpt2": 0, "llama": 2}[kind]
    assert table.tokens.tolist() == tokens_by_definition(fetched / kind, DOCUMENTS, *shape, end=end, bos=bos_token)
    assert table.metadata["bos_token"] == bos_token and table.metadata["end_of_text_token"] == end


@settings(max_examples=25)
@given(
    documents=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=12),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9)),
    kind=st.sampled_from(["gpt2", "llama"]),
)
def test_any_text_gives_the_tokens_of_the_definition_or_is_too_short(
    fetched: Path,
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    shape: tuple[int, int],
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    documents = ["x", *(document for document in documents if document.strip())]
    corpus = make_corpus(folder, documents)
    end, bos = {"gpt2": (0, None), "llama": (2, 1)}[kind]
    options = {"n_sequences": shape[0], "sequence_length": shape[1]}
    try:
        expected = tokens_by_definition(fetched / kind, documents, *shape, end=end, bos=bos)
    except IndexError:
        assert "too short" in refusal(corpus, fetched / kind, folder / "t.arrow", **options).problem
    else:
        assert tokenized(corpus, fetched / kind, folder / "t.arrow", **options).tokens.tolist() == expected


@pytest.mark.parametrize("batch", [1, 2, 5, 1000])
def test_nothing_depends_on_how_many_documents_go_through_together(
    fetched: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    usual = tokenized(corpus, fetched / "llama", tmp_path / "usual.arrow")
    monkeypatch.setattr(tokenization, "DOCUMENTS_PER_BATCH", batch)
    table = tokenized(corpus, fetched / "llama", tmp_path / "t.arrow")
    assert table.tokens.tolist() == usual.tokens.tolist() and table.metadata == usual.metadata


def test_no_more_documents_are_read_than_it_takes(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    table = tokenized(corpus, fetched / "gpt2", tmp_path / "t.arrow", n_sequences=1, sequence_length=30)
    n_documents = table.metadata["n_documents"]
    tokenizer = Tokenizer.from_file(str(fetched / "gpt2/tokenizer.json"))
    n_tokens = [len(tokenizer.encode(document).ids) + 1 for document in DOCUMENTS]
    assert sum(n_tokens[: n_documents - 1]) < 30 <= sum(n_tokens[:n_documents])


def test_the_metadata_tells_what_the_tokens_are(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    table = tokenized(corpus, fetched / "gpt2", tmp_path / "t.arrow")
    metadata = table.metadata
    assert metadata["corpus_sha256"] == documents_sha256(DOCUMENTS)
    assert (metadata["n_sequences"], metadata["sequence_length"], metadata["bos"]) == (4, 16, "tokenizer")
    written = b"".join(int(token).to_bytes(4, "little") for row in table.tokens.tolist() for token in row)
    assert metadata["tokens_sha256"] == hashlib.sha256(written).hexdigest()
    assert metadata["corpus"]["kind"] == "files" and set(metadata["versions"]) == {"transformers", "tokenizers"}
    assert json.loads(json.dumps(metadata)) == metadata
    with pa.ipc.open_file(str(tmp_path / "t.arrow")) as reader:
        schema = reader.schema
    assert [(field.name, field.type) for field in schema] == [
        ("sequence", pa.uint16()),
        ("position", pa.uint16()),
        ("token", pa.uint32()),
    ]


def test_a_tokenizer_is_told_by_what_it_does_and_not_by_where_it_lies(
    fetched: Path, corpus: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere/with-another-name"
    shutil.copytree(fetched / "gpt2", copy)
    (copy / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((copy / "tokenizer_config.json").read_text()), "chat_template": "x"})
    )
    hashes = [
        tokenized(corpus, model, tmp_path / "t.arrow").metadata["tokenizer_sha256"]
        for model in (fetched / "gpt2", copy, fetched / "llama")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_models_with_one_tokenizer_share_the_work(
    fetched: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fetched / "gpt2", tmp_path / "twin")
    n_streams = []
    stream = tokenization.token_stream
    monkeypatch.setattr(tokenization, "token_stream", lambda *a, **o: n_streams.append(1) or stream(*a, **o))
    first = tokenized(corpus, fetched / "gpt2", tmp_path / "a.arrow", cache=tmp_path / "cache")
    os.utime(next((tmp_path / "cache").glob("*.arrow")), (0, 0))
    second = tokenized(corpus, tmp_path / "twin", tmp_path / "b.arrow", cache=tmp_path / "cache")
    assert first.tokens.tolist() == second.tokens.tolist() and first.metadata == second.metadata
    assert len(n_streams) == 1
    assert (tmp_path / "b.arrow").stat().st_mtime > 0, "newer than what it was made from"
    uncached = tokenized(corpus, fetched / "gpt2", tmp_path / "c.arrow")
    assert uncached.tokens.tolist() == first.tokens.tolist() and uncached.metadata == first.metadata
    others: list[dict[str, Any]] = [{"n_sequences": 3}, {"sequence_length": 15}, {"bos": "always"}]
    for options in others:
        tokenized(corpus, fetched / "gpt2", tmp_path / "d.arrow", cache=tmp_path / "cache", **options)
    tokenized(corpus, fetched / "llama", tmp_path / "d.arrow", cache=tmp_path / "cache")
    shorter = make_corpus(tmp_path, DOCUMENTS[:40])
    tokenized(shorter, fetched / "gpt2", tmp_path / "d.arrow", cache=tmp_path / "cache")
    assert len(n_streams) == 7 and len(list((tmp_path / "cache").glob("*.arrow"))) == 6


def test_a_damaged_file_of_the_cache_is_made_anew(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    first = tokenized(corpus, fetched / "gpt2", tmp_path / "a.arrow", cache=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("*.arrow")
    cached.write_bytes(cached.read_bytes()[:200])
    second = tokenized(corpus, fetched / "gpt2", tmp_path / "b.arrow", cache=tmp_path / "cache")
    assert second.tokens.tolist() == first.tokens.tolist() == read_tokens(cached).tokens.tolist()


def test_a_corpus_that_is_too_short_says_by_how_much(fetched: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, ["a b", "c"])
    tokenizer = Tokenizer.from_file(str(fetched / "gpt2/tokenizer.json"))
    available = len(tokenizer.encode("a b").ids) + len(tokenizer.encode("c").ids) + 2
    error = refusal(corpus, fetched / "gpt2", tmp_path / "t.arrow", n_sequences=9, sequence_length=2)
    assert error.file == corpus and str(error.expected).startswith("18 tokens")
    assert error.got == f"{available} tokens in 2 documents"
    assert error.remedy == (
        f"Take a longer corpus (this one is all used), or lower tokenize_corpus.n_sequences to {available // 2}."
    )
    cut = make_corpus(tmp_path, ["a b c"], max_characters=3)
    error = refusal(cut, fetched / "gpt2", tmp_path / "t.arrow", sequence_length=100)
    assert "max_characters" in (error.remedy or "") and "sequence_length" in (error.remedy or "")


def test_a_tokenizer_without_end_of_text(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    error = refusal(corpus, fetched / "endless", tmp_path / "t.arrow")
    assert error.key == "eos_token" and "config.json" in str(error.expected)
    for end in (7, [7, 8]):
        model = make_model(tmp_path / "named", "endless", eos_token_id=end)
        table = tokenized(corpus, model, tmp_path / "t.arrow")
        assert table.tokens.tolist() == tokens_by_definition(model, DOCUMENTS, 4, 16, end=7, bos=None)
        (tmp_path / "t.arrow").unlink()


def test_bos_that_a_tokenizer_does_not_have(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "endless", eos_token_id=7)
    error = refusal(corpus, model, tmp_path / "t.arrow", bos="always")
    assert error.key == "tokenize_corpus.bos" and error.got == "always"


def test_a_tokenizer_of_another_model(corpus: Path, tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", "gpt2", vocab_size=200)
    error = refusal(corpus, small, tmp_path / "t.arrow", cache=tmp_path / "cache")
    assert (error.file, error.key, error.got) == (small / "config.json", "vocab_size", 200)
    inner = make_model(tmp_path / "inner", "gpt2")
    config = {"model_type": "gemma3", "text_config": {"vocab_size": 200, "hidden_size": 8}, "vision_config": {}}
    (inner / "config.json").write_text(json.dumps(config))
    assert refusal(corpus, inner, tmp_path / "t.arrow").got == 200
    unknown = {"model_type": "no_such_architecture", "text_config": {"vocab_size": 200}}
    (inner / "config.json").write_text(json.dumps(unknown))
    assert refusal(corpus, inner, tmp_path / "t.arrow").got == 200
    (inner / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    assert tokenized(corpus, inner, tmp_path / "t.arrow").tokens.shape == (4, 16)


def gpt2_with_positions(folder: Path, n_positions: int) -> Path:
    """A model with a table of positions."""
    make_model(folder, "gpt2")
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=n_positions, n_embd=8, n_layer=1, n_head=2)
    config.save_pretrained(folder)
    return folder


def test_sequences_longer_than_a_models_table_are_refused_or_shortened(corpus: Path, tmp_path: Path) -> None:
    model = gpt2_with_positions(tmp_path / "model", 12)
    error = refusal(corpus, model, tmp_path / "t.arrow")
    assert (error.key, error.got) == ("tokenize_corpus.sequence_length", 16)
    assert "at most 12" in str(error.expected)
    short = tokenized(corpus, model, tmp_path / "short.arrow", shortens=True, cache=tmp_path / "cache")
    assert short.tokens.shape == (4, 12) and short.metadata["asked_length"] == 16
    assert "12 tokens" in short.metadata["length_note"]
    asked = tokenized(corpus, model, tmp_path / "asked.arrow", sequence_length=12, cache=tmp_path / "cache")
    assert asked.tokens.tolist() == short.tokens.tolist()
    assert "asked_length" not in asked.metadata and "length_note" not in asked.metadata
    fits = tokenized(corpus, model, tmp_path / "fits.arrow", sequence_length=10, shortens=True)
    assert fits.tokens.shape == (4, 10) and "length_note" not in fits.metadata


def test_sequences_beyond_trained_rotations_are_said_to_be(corpus: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "gpt2", max_position_embeddings=12)
    table = tokenized(corpus, model, tmp_path / "t.arrow")
    assert table.tokens.shape == (4, 16) and "made for 12" in table.metadata["length_note"]
    assert tokenized(corpus, model, tmp_path / "t.arrow", shortens=True).tokens.shape == (4, 12)


def test_tokens_of_the_files_own_tokenizer_are_said_to_be(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(fetched / "gpt2", own)
    config = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}))
    plain = tokenized(corpus, fetched / "gpt2", tmp_path / "a.arrow", cache=tmp_path / "cache")
    table = tokenized(corpus, own, tmp_path / "b.arrow", cache=tmp_path / "cache")
    assert (
        table.tokens.tolist() == plain.tokens.tolist() == tokens_by_definition(own, DOCUMENTS, 4, 16, end=0, bos=None)
    )
    assert (plain.metadata["tokenizer"], plain.metadata["tokenizer_note"]) == ("transformers", None)
    assert table.metadata["tokenizer"] == "tokenizer.json" and "Qwen2Tokenizer" in table.metadata["tokenizer_note"]


@pytest.mark.parametrize(
    ("change", "said"), [({"hidden_size": "wide"}, "hidden_size"), ({"num_attention_heads": 0}, "ZeroDivisionError")]
)
def test_a_configuration_that_cannot_be_built_is_not_the_tokenizers_fault(
    fetched: Path, corpus: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(fetched / "gpt2", model)
    config = json.loads((model / "config.json").read_text())
    config.pop("head_dim", None)
    (model / "config.json").write_text(json.dumps({**config, **change}))
    error = refusal(corpus, model, tmp_path / "t.arrow")
    assert error.file == model / "config.json" and "configuration" in error.problem
    assert said in str(error.got) and "fetch" not in (error.remedy or "").lower()


def test_a_model_without_a_tokenizer_is_no_short_text(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(fetched / "gpt2", model)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    error = refusal(corpus, model, tmp_path / "t.arrow")
    assert error.file == model and "no tokenizer" in error.problem


@pytest.mark.parametrize("damage", ["absent", "broken"])
def test_a_tokenizer_that_cannot_be_loaded(fetched: Path, corpus: Path, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(fetched / "gpt2", model)
    for path in model.glob("tokenizer*"):
        path.write_text("{") if damage == "broken" else path.unlink()
    error = refusal(corpus, model, tmp_path / "t.arrow")
    assert str(error.file).startswith(str(model)) and "tokenizer" in error.problem


@pytest.mark.parametrize("keep", [0, 8, 100, -30, -1])
def test_a_truncated_file_of_tokens(fetched: Path, corpus: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.arrow"
    tokenized(corpus, fetched / "gpt2", path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StudyError) as caught:
        read_tokens(path)
    assert caught.value.file == path and "tokenise the corpus again" in (caught.value.remedy or "")


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> None:
    """Write the tokens of a file again, changed."""
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    columns = {name: table[name].to_numpy().copy() for name in table.column_names}
    metadata = schema_facts(table.schema)
    change(columns, metadata)
    changed = pa.table(columns).replace_schema_metadata({b"outlier_moe": json.dumps(metadata)})
    with pa.ipc.new_file(str(path), changed.schema) as writer:
        writer.write_table(changed)


def test_tokens_that_were_changed_are_refused(fetched: Path, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"

    def another_token(columns: dict[str, np.ndarray], _: dict[str, Any]) -> None:
        columns["token"][5] += 1

    def another_order(columns: dict[str, np.ndarray], _: dict[str, Any]) -> None:
        columns["position"][[0, 1]] = columns["position"][[1, 0]]

    def another_shape(_: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        metadata["n_sequences"] = 2

    def another_column(columns: dict[str, np.ndarray], _: dict[str, Any]) -> None:
        columns["tokens"] = columns.pop("token")

    for change in (another_token, another_order, another_shape, another_column):
        tokenized(corpus, fetched / "gpt2", path)
        rewritten(path, change)
        with pytest.raises(StudyError, match="cannot be read"):
            read_tokens(path)
    tokenized(corpus, fetched / "gpt2", path)
    rewritten(path, lambda columns, metadata: None)
    assert read_tokens(path).tokens.shape == (4, 16)

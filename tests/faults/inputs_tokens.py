"""Wrong texts, wrong tokenizers, sequences that are too long, and hubs that refuse."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, LlamaConfig

from outlier_moe.config.registry import FilesSource, HubSource, load_registry
from outlier_moe.planning.lengths import refuse_long_sequences
from outlier_moe.sources.corpora import fetch_corpus, read_corpus
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.origin import Origin, write_origin
from outlier_moe.sources.tokenization import read_tokens, tokenize_corpus
from tests.faults.wrong_inputs import ROOT, SCHEMAS, Answer, WrongInput, called, registered
from tests.hub_server import reachable_hub
from tests.unit.sources.entries import corpus_entry, model_entry

END = "<|endoftext|>"


def text(name: str, content: bytes | str, *, paths: str | None = None, column: str = "text") -> Callable[..., Answer]:
    """Ask for a text that is one file."""

    def ask_for(folder: Path) -> Answer:
        encoded = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(encoded)
        source = FilesSource((paths or name,), column)
        return called(fetch_corpus, corpus_entry(source), folder / "text.parquet")

    return ask_for


def parquet(table: Callable[[], pa.Table], *, column: str = "text") -> Callable[..., Answer]:
    """Ask for a text that is a Parquet file."""

    def ask_for(folder: Path) -> Answer:
        pq.write_table(table(), folder / "a.parquet")
        return called(fetch_corpus, corpus_entry(FilesSource(("a.parquet",), column)), folder / "text.parquet")

    return ask_for


def in_place_of_a_file(make: Callable[[Path], object]) -> Callable[..., Answer]:
    """Ask for a text whose path names something else."""

    def ask_for(folder: Path) -> Answer:
        make(folder / "texts")
        return called(fetch_corpus, corpus_entry(FilesSource(("texts",))), folder / "text.parquet")

    return ask_for


def byte_level(*merged: tuple[str, str]) -> str:
    """A tokenizer of single bytes; with pairs that are merged wherever they stand, if there are any."""
    words = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merged)]
    tokenizer = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, list(merged)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merged)
    return tokenizer.to_str()


def tokenized(
    files: Mapping[str, str | bytes | None] | None = None, config: Mapping[str, Any] | None = None, **options: Any
) -> Callable[..., Answer]:
    """Ask for the tokens of a model of which some files are others, or gone."""

    def ask_for(folder: Path) -> Answer:
        model = folder / "model"
        LlamaConfig(vocab_size=257, max_position_embeddings=64, hidden_size=64, intermediate_size=64).save_pretrained(
            model
        )
        if config is not None:
            said = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps({**said, **config}))
        named = {"tokenizer.json": byte_level(), "tokenizer_config.json": json.dumps({"eos_token": END})}
        for name, content in {**named, **(files or {})}.items():
            if content is None:
                (model / name).unlink(missing_ok=True)
            else:
                (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        write_origin(Origin("m", "directory", "model", None, None, ".", None, False, ()), model)
        (folder / "a.txt").write_text("a few words " * 20)
        fetch_corpus(corpus_entry(FilesSource(("a.txt",))), folder / "text.parquet")
        asked: dict[str, Any] = {"n_sequences": 2, "sequence_length": 16, "bos": "tokenizer", **options}
        answer = called(tokenize_corpus, folder / "text.parquet", model, folder / "tokens.arrow", **asked)
        if answer.failed:
            return answer
        note = read_tokens(folder / "tokens.arrow").metadata
        return Answer(failed=False, text=f"{note.get('tokenizer_note') or ''}{note.get('length_note') or ''}")

    return ask_for


def from_hub(
    *,
    status: int | None = None,
    token: str | None = None,
    offline: bool = False,
    away: bool = False,
    environment: dict[str, str] | None = None,
    **repository: Any,
) -> Callable[..., Answer]:
    """Ask for a model of a hub that refuses it."""

    def ask_for(folder: Path) -> Answer:
        with pytest.MonkeyPatch.context() as patch, reachable_hub(patch, folder / "cache") as hub:
            patch.setattr("time.sleep", lambda _: None)
            if repository:
                hub.add("owner/tiny", {"config.json": b"{}", "model.safetensors": b""}, **repository)
            if token is not None:
                Path(constants.HF_TOKEN_PATH).write_text(token)
            if status is not None:
                hub.fail("revision/main", status=status, times=99, headers={"Retry-After": "9"})
            if offline:
                patch.setattr(constants, "HF_HUB_OFFLINE", True)
            if away:
                patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            return called(fetch_model, model_entry(HubSource("owner/tiny")), folder / "model")

    return ask_for


def too_long_at_planning(folder: Path) -> Answer:
    """Ask whether a study of 2048 tokens fits a folder's GPT-2 of 64 positions."""
    registry = load_registry(ROOT / "config/models.yaml", SCHEMAS / "models.schema.yaml")
    GPT2Config(n_positions=64, n_layer=1, n_embd=16, n_head=2, vocab_size=64).save_pretrained(folder / "pythia-160m")
    return called(refuse_long_sequences, [registry.model("pythia-160m")], 2048, folder)


def cut_text(folder: Path) -> Answer:
    """Ask for a fetched text that was cut off."""
    pl.DataFrame({"document": [0], "text": ["x" * 500]}).write_parquet(folder / "text.parquet")
    content = (folder / "text.parquet").read_bytes()
    (folder / "text.parquet").write_bytes(content[: len(content) // 2])
    return called(read_corpus, folder / "text.parquet")


def with_entry(**keys: Any) -> Callable[..., Answer]:
    """Ask for a registry of one model with some keys."""
    entry = {
        "source": {"kind": "hub", "repo": "owner/tiny"},
        "family": "llama",
        "kind": "dense",
        "total_params_b": 1.0,
        "active_params_b": 1.0,
        "corpus": "text",
        "sweeps": [],
    }
    corpora = {"text": {"source": {"kind": "pydoc_topics"}, "max_characters": 10}}
    return registered({"models": {"tiny": {**entry, **keys}}, "corpora": corpora})


LINE = '{"text": "x"}\n'
CODE = json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}})
TEXTS = [
    WrongInput("text: Latin-1", text("a.txt", "é".encode("latin-1")), ("UTF-8", "iconv", "a.txt")),
    WrongInput("text: UTF-16", text("a.txt", "words".encode("utf-16")), ("UTF-16", "iconv -f UTF-16")),
    WrongInput("text: UTF-32", text("a.txt", "words".encode("utf-32")), ("UTF-32", "iconv -f UTF-32")),
    WrongInput("text: UTF-16 without a mark", text("a.txt", "words".encode("utf-16-le")), ("NUL", "UTF-16")),
    WrongInput("text: a picture", text("a.txt", b"\x89PNG\r\n\x1a\n\0\0"), ("not UTF-8", "0x89")),
    WrongInput("text: an empty file", text("a.txt", ""), ("no text",)),
    WrongInput("text: white space alone", text("a.txt", " \n\t \n"), ("no text",)),
    WrongInput("text: a CSV file", text("a.csv", "text\nx\n"), (".jsonl", "Parquet")),
    WrongInput("text: a JSON file of one list", text("a.json", '[{"text": "x"}]'), (".jsonl", "one object a line")),
    WrongInput("text: no suffix", text("README", "x"), ("no suffix", ".txt")),
    WrongInput("text: a gzip file that is none", text("a.txt.gz", "words"), ("a.txt.gz", "cannot be read")),
    WrongInput("text: gzip cut off", text("a.txt.gz", gzip.compress(b"words" * 99)[:-9]), ("cannot be read", "again")),
    WrongInput("text: bzip2 cut off", text("a.txt.bz2", bz2.compress(b"words" * 99)[:-9]), ("cannot be read", "again")),
    WrongInput("text: zstd that is none", text("a.jsonl.zst", "words"), ("a.jsonl.zst", "cannot be read")),
    WrongInput("text: a broken line of JSON", text("a.jsonl", LINE * 6 + '{"text": \n'), ("line 7", "a.jsonl")),
    WrongInput("text: a list on a line", text("a.jsonl", '["x"]\n'), ("line 1", "list")),
    WrongInput("text: a key twice", text("a.jsonl", '{"text": "x", "text": "y"}\n'), ("line 1", "more than once")),
    WrongInput(
        "text: JSON that is too deep",
        text("a.jsonl", '{"text": ' + "[" * 99_999 + "\n"),
        ("nested too deeply",),
    ),
    WrongInput("text: half of a surrogate pair", text("a.jsonl", '{"text": "\\ud800"}\n'), ("surrogate", "UTF-8")),
    WrongInput("text: a nested column", text("a.jsonl", '{"text": {"en": "x"}}\n'), ("object with en", "column")),
    WrongInput("text: a column of numbers", text("a.jsonl", LINE + '{"text": 5}\n'), ("line 2", "not text", "int")),
    WrongInput("text: a misspelt column", text("a.jsonl", '{"texts": "x"}\n'), ("did you mean 'texts'",)),
    WrongInput("text: a pattern that fits nothing", text("a.txt", "x", paths="b*.txt"), ("b*.txt", "nothing there")),
    WrongInput("text: a folder", in_place_of_a_file(Path.mkdir), ("a folder", "texts/*.txt")),
    WrongInput("text: a dangling link", in_place_of_a_file(lambda p: p.symlink_to("gone")), ("link to gone",)),
    WrongInput("text: an empty Parquet file", text("a.parquet", b""), ("a.parquet", "no bytes")),
    WrongInput("text: Parquet without the column", parquet(lambda: pa.table({"body": ["x"]})), ("the columns body",)),
    WrongInput("text: Parquet without text", parquet(lambda: pa.table({"text": [1]})), ("not text", "int64")),
    WrongInput(
        "text: a Parquet column twice",
        parquet(lambda: pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])),
        ("2 columns of that name",),
    ),
    WrongInput("text: Parquet of bytes", parquet(lambda: pa.table({"text": [b"x"]})), ("not text", "binary")),
    WrongInput(
        "text: all rows empty", parquet(lambda: pa.table({"text": pa.array([None, ""], pa.utf8())})), ("no text",)
    ),
    WrongInput("text: a fetched one cut off", cut_text, ("text.parquet", "fetch the text again")),
]
TOKENIZERS = [
    WrongInput(
        "tokenizer: none", tokenized({"tokenizer.json": None, "tokenizer_config.json": None}), ("no tokenizer",)
    ),
    WrongInput(
        "tokenizer: its configuration alone",
        tokenized({"tokenizer.json": None, "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'}),
        ("no tokenizer", "tokenizer.json"),
    ),
    WrongInput("tokenizer: cut off", tokenized({"tokenizer.json": byte_level()[:99]}), ("tokenizer.json", "again")),
    WrongInput(
        "tokenizer: a configuration that is a list", tokenized({"tokenizer_config.json": "[]"}), ("JSON object",)
    ),
    WrongInput(
        "tokenizer: Python code",
        tokenized({"tokenizer.json": None, "own.tiktoken": "IQ== 0\n", "tokenizer_config.json": CODE}),
        ("Python code", "trust_remote_code"),
    ),
    WrongInput(
        "tokenizer: a SentencePiece model that is none",
        tokenized(
            {
                "tokenizer.json": None,
                "tokenizer.model": b"\n\x0bnone",
                "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}',
            }
        ),
        ("cannot be loaded", "install"),
    ),
    WrongInput(
        "tokenizer: another class than its file",
        tokenized(
            {
                "tokenizer.json": byte_level(("3", ".")),
                "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": END}),
            }
        ),
        ("GPT2Tokenizer", "tokenizer.json"),
        is_warning=True,
    ),
    WrongInput(
        "tokenizer: no end of text", tokenized({"tokenizer_config.json": "{}"}, {"eos_token_id": None}), ("eos_token",)
    ),
    WrongInput("tokenizer: no BOS, asked for", tokenized(bos="always"), ("tokenize_corpus.bos", "never")),
    WrongInput("tokenizer: of a larger model", tokenized(config={"vocab_size": 99}), ("vocab_size", "99")),
    WrongInput("tokens: more than the text has", tokenized(n_sequences=999), ("too short", "n_sequences")),
    WrongInput(
        "configuration: a width that is a word",
        tokenized(config={"hidden_size": "wide"}),
        ("config.json", "hidden_size"),
    ),
    WrongInput("configuration: no JSON", tokenized({"config.json": "{"}), ("config.json", "JSON")),
    WrongInput("configuration: a list", tokenized({"config.json": "[]"}), ("config.json", "a list")),
    WrongInput(
        "length: rotations beyond their range",
        tokenized(sequence_length=100),
        ("made for 64", "never trained"),
        is_warning=True,
    ),
    WrongInput(
        "length: beyond a table of positions",
        tokenized(
            {"config.json": json.dumps(GPT2Config(n_positions=64, n_layer=1, n_embd=16, n_head=2).to_dict())},
            sequence_length=100,
        ),
        ("at most 64", "sequence_length: model"),
    ),
    WrongInput("length: beyond a table, at planning", too_long_at_planning, ("at most 64 for pythia-160m", "2048")),
    WrongInput(
        "registry: another length than it can have", with_entry(sequence_length="short"), ("sequence_length", "model")
    ),
    WrongInput("registry: no positions", with_entry(max_positions=0), ("max_positions",)),
]
HUB = [
    WrongInput("hub: gated", from_hub(gated=True), ("gated", "licence", "hf auth login")),
    WrongInput(
        "hub: a saved login that is wrong",
        from_hub(gated=True, token="hf_x"),
        ("does not know the token", "saved"),
    ),
    WrongInput("hub: no such repository", from_hub(), ("no such repository", "owner and name")),
    WrongInput("hub: private", from_hub(private=True), ("private", "hf auth login")),
    WrongInput("hub: too many requests", from_hub(status=429, branches=("main",)), ("429", "in 9 s")),
    WrongInput("hub: its own fault", from_hub(status=503, branches=("main",)), ("fault of its own", "run again later")),
    WrongInput("hub: offline", from_hub(offline=True), ("HF_HUB_OFFLINE", "hf download")),
    WrongInput("hub: two tokens in one", from_hub(environment={"HF_TOKEN": "hf_a\nhf_b"}), ("HF_TOKEN", "anew")),
    WrongInput("hub: a page of JSON", from_hub(status=200, branches=("main",)), ("not speak as the hub", "proxy")),
    WrongInput("hub: no network", from_hub(away=True), ("could not be reached", "network")),
]
CASES = [*TEXTS, *TOKENIZERS, *HUB]

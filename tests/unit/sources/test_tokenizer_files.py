"""Every tokenizer gives the tokens of its own tokenizer.json, whatever class transformers takes it for."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from outlier_moe.errors import StudyError
from outlier_moe.sources.tokenizer_files import PROBES, open_tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TYPES = (
    "llama qwen2 qwen3 mistral gpt2 gpt_neox opt falcon phi phi3 gemma2 gemma3_text deepseek_v3 olmoe mixtral".split()
)
CLASSES = (
    "GPT2Tokenizer Qwen2Tokenizer LlamaTokenizer LlamaTokenizerFast PreTrainedTokenizerFast GPTNeoXTokenizer "
    "GemmaTokenizer CodeGenTokenizer BloomTokenizer TokenizersBackend"
).split()
# Of every type some classes, and of every class some types: 150 pairs take as long as all other tests of tokens.
PAIRS = [(kind, name) for i, kind in enumerate(TYPES) for j, name in enumerate(CLASSES) if (i + j) % 4 == 0 or i == 0]
END = "<|endoftext|>"


def trained(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROBES, "the quick brown fox"] * 3, trainer)
    return tokenizer


@cache
def byte_level() -> str:
    """Cut as GPT-4's, Llama 3's and Qwen's texts are."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_pieces])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, [END, "<s>"]).to_str()


@cache
def metaspace() -> str:
    """Cut at spaces alone, after a normalizer, with BOS in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trained(tokenizer, ["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def folder_of(folder: Path, tokenizer: str | None, *, model_type: str = "llama", **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    return folder


def by_its_file(tokenizer: str) -> list[list[int]]:
    own = Tokenizer.from_str(tokenizer)
    return [own.encode(probe, add_special_tokens=False).ids for probe in PROBES]


def encoded(folder: Path, **options: Any) -> list[list[int]]:
    tokenizer = open_tokenizer(folder, **options).tokenizer
    return [tokenizer(probe, add_special_tokens=False)["input_ids"] for probe in PROBES]


@pytest.mark.parametrize("own", [byte_level, metaspace])
def test_tokens_are_those_of_the_file_for_every_pair_of_names(tmp_path: Path, own: Any) -> None:
    expected, n_other = by_its_file(own()), 0
    for model_type, name in PAIRS:
        folder = folder_of(tmp_path / "m", own(), model_type=model_type, tokenizer_class=name, eos_token=END)
        opened = open_tokenizer(folder)
        ids = [opened.tokenizer(probe, add_special_tokens=False)["input_ids"] for probe in PROBES]
        assert ids == expected, (model_type, name)
        assert (opened.note is None) == (opened.kind == "transformers")
        n_other += opened.kind == "tokenizer.json"
    assert n_other > 5, "transformers builds some of them anew: else the comparison has nothing to do"


def test_what_transformers_gets_right_is_left_to_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, byte_level(), tokenizer_class="PreTrainedTokenizerFast", eos_token=END)
    opened = open_tokenizer(folder)
    assert opened[1:] == ("transformers", None)
    assert (
        opened.tokenizer.backend_tokenizer.to_str() == AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    )


def test_special_tokens_stay_with_the_files_own_tokenizer(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "said", byte_level(), tokenizer_class="Qwen2Tokenizer", eos_token={"content": END}, bos_token="<s>"
    )
    tokenizer = open_tokenizer(folder).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1)
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    # A class of transformers knows tokens that no file names.
    tokenizer = open_tokenizer(folder_of(tmp_path / "class", byte_level(), tokenizer_class="GPT2Tokenizer")).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 0)
    # Its own post-processor puts BOS in front.
    tokenizer = open_tokenizer(
        folder_of(tmp_path / "own", metaspace(), tokenizer_class="GPT2Tokenizer", bos_token="<s>")
    ).tokenizer
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 1


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(byte_level())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    folder = folder_of(tmp_path, tokenizer.to_str(), tokenizer_class="Qwen2Tokenizer", eos_token=END)
    assert encoded(folder) == by_its_file(byte_level())


def test_a_tokenizer_that_is_code_is_its_file_if_there_is_one(tmp_path: Path) -> None:
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "eos_token": END}
    folder = folder_of(tmp_path, byte_level(), **code)
    opened = open_tokenizer(folder)
    assert opened.kind == "tokenizer.json" and opened.tokenizer.eos_token_id == 0
    assert encoded(folder) == by_its_file(byte_level())


def refused(folder: Path, **options: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        open_tokenizer(folder, **options)
    return caught.value


def test_a_model_without_a_tokenizer_is_said_to_have_none(tmp_path: Path) -> None:
    error = refused(folder_of(tmp_path, None, tokenizer_class="GPT2Tokenizer"))
    assert "no tokenizer" in error.problem and error.got == "tokenizer_config.json"
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    assert "no vocabulary" in refused(tmp_path).problem


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "", "\x00", "[" * 3000])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = folder_of(tmp_path, byte_level(), eos_token=END)
    (folder / name).write_text(content)
    error = refused(folder)
    assert error.file == folder / name and "cannot be read" in error.problem
    assert "trust_remote_code" not in (error.remedy or "")


def test_the_remedy_of_a_tokenizer_that_cannot_be_loaded_follows_from_the_cause(tmp_path: Path) -> None:
    code = folder_of(tmp_path / "code", None, auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    (code / "own.tiktoken").write_text("IQ== 0\n")
    error = refused(code)
    assert "Python code" in error.problem and "trust_remote_code" in (error.remedy or "")
    model = folder_of(tmp_path / "model", None, tokenizer_class="LlamaTokenizer")
    (model / "tokenizer.model").write_bytes(b"\x0a\x0bno such model")
    error = refused(model)
    assert "pip install" in (error.remedy or "") and "trust_remote_code" not in (error.remedy or "")


def kimi(folder: Path, ranks: dict[bytes, int]) -> Path:
    """A repository as Kimi-K2's: a vocabulary of tiktoken's and code."""
    special = {str(len(ranks) + i): {"content": token} for i, token in enumerate(["[BOS]", "[EOS]", "<|im_end|>"])}
    folder_of(
        folder,
        None,
        tokenizer_class="TikTokenTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        bos_token="[BOS]",
        eos_token="[EOS]",
        added_tokens_decoder=special,
    )
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    return folder


RANKS = {bytes([byte]): byte for byte in range(256)} | {
    token.encode(): 256 + i
    for i, token in enumerate(["he", "ll", "hell", "hello", " w", "or", "ld", "wor", " wor", "12", "123", "  ", "\n\n"])
}


def merged_by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's definition: of all neighbours the pair of the lowest rank is merged, until none is known."""
    parts = [bytes([byte]) for byte in piece]
    while True:
        known = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not known:
            return [ranks[part] for part in parts]
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_kimis_vocabulary_is_converted_and_no_code_is_run(tmp_path: Path) -> None:
    opened = open_tokenizer(kimi(tmp_path, RANKS))
    tokenizer = opened.tokenizer
    assert opened.kind == "tiktoken" and "tiktoken.model" in (opened.note or "")
    # The pieces by the pattern's meaning, as its code cuts them.
    pieces = ["hello", " world", " ", "123", "45", "  ", " he's", "中文", "de", "\n\n", "X", " =="]
    ids = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    assert ids == [id for piece in pieces for id in merged_by_rank(piece.encode(), RANKS)]
    n = len(RANKS)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (n, n + 1) and len(tokenizer) == n + 256
    assert tokenizer("hello[EOS]")["input_ids"] == [RANKS[b"hello"], n + 1]
    assert tokenizer.convert_ids_to_tokens(n + 3) == f"<|reserved_token_{n + 3}|>"
    assert tokenizer.decode(ids) == "".join(pieces)


def test_a_damaged_vocabulary_of_tiktokens_is_named(tmp_path: Path) -> None:
    folder = kimi(tmp_path, RANKS)
    (folder / "tiktoken.model").write_bytes(b"\x0a\x0bno lines of base64")
    assert refused(folder).file == folder / "tiktoken.model"

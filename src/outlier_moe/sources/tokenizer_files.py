"""Opening the tokenizer of a folder, so that it does what the folder's tokenizer.json says.

transformers chooses a class by the names in config.json and tokenizer_config.json, and some classes build the way a
text is cut before its merges anew: the tokens are then others than the model was trained on. Every tokenizer of this
project is opened here, and held against its own file.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend

from outlier_moe.errors import StudyError
from outlier_moe.sources.tiktoken_files import converted_tiktoken, tiktoken_file

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"

# Any of these holds a vocabulary.
VOCABULARIES = (FILE, "*.model", "*.tiktoken", "vocab.json", "vocab.txt", "vocab.bpe", "tekken.json")

PROBES = (
    "0 12 345 6789 1234567890, 3.14159 and 1e-05; 2024-01-31 at 12:30, 100,000 and 0x1F",
    "one two  three   four    five          ten \t tab\t\ttabs\n\n\nlines\r\nand more\n   \n  end   ",
    " leading space",
    "\n\tleading lines",
    'def f(x_1, *args):\n\tif x_1 >= 10:\n        return {"a": [x_1, None]}  # it\'s HTTPServer2\n\n    i += 1;',
    "I'm, you're, WE'LL, don't; Café naïve Ærø groß Ζεύς Привет, e\u0301 a\u030a \u1e9b\u0323 \ufb01 ½ ²",
    "中文字符测试。日本語のテスト、한국어 조금 ไทย العربية हिन्दी עברית",
    "🙂👩\u200d👩\u200d👧🏽 🇫🇷 → ∑ ≠ … “quoted” —dash— \u00a0nbsp\u200b\u3000",
)
"""Texts on which tokenizers of different kinds differ: each is encoded by itself, without special tokens."""

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class OpenedTokenizer(NamedTuple):
    """A tokenizer of a folder."""

    tokenizer: Any
    """A `PreTrainedTokenizerBase`, of which pyright knows too little to say more."""
    kind: Literal["transformers", "tokenizer.json", "tiktoken"]
    """What it was made by: transformers' class; its own file, as that class differs; or converted from tiktoken's."""
    note: str | None
    """Why it is not transformers' class, for people."""


def open_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> OpenedTokenizer:
    """The tokenizer of a folder: transformers', unless its own file gives other tokens; that counts.

    Args:
        folder: A folder with tokenizer files and config.json.
        trust_remote_code: Whether Python code of the folder may run.

    Raises:
        StudyError: If there is no tokenizer, or its files cannot be read.
    """
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise StudyError(
            "A model has no tokenizer.",
            file=folder,
            expected=f"{FILE}, or another file with a vocabulary ({', '.join(VOCABULARIES[1:])})",
            got=", ".join(sorted(path.name for path in folder.glob("*tokenizer*"))) or "no tokenizer files",
            remedy=f"Put the {FILE} of the model that this one was trained from into its folder.",
        )
    config = _tokenizer_config(folder)
    own = _own(folder / FILE) if (folder / FILE).is_file() else None
    if own is None and (converted := converted_tiktoken(folder, config)) is not None:
        name = tiktoken_file(folder)
        return OpenedTokenizer(converted, "tiktoken", f"{name and name.name} is converted; no code of the model is run")
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        ids = _encoded(loaded)
    # Whatever a tokenizer's own library makes of a damaged file.
    except Exception as error:
        if own is None:
            raise _unloadable(error, folder, config, trust_remote_code=trust_remote_code) from error
        note = f"transformers cannot load the tokenizer ({_said(error)}): {FILE} alone is used"
        return _noted(_file_alone(folder, own, None), note)
    if own is None or ids == _encoded_by_file(own):
        return OpenedTokenizer(_not_mute(loaded, folder), "transformers", None)
    name = type(loaded).__name__
    note = f"transformers' {name} gives other tokens than {FILE}: the file's own tokenizer is used"
    return _noted(_file_alone(folder, own, loaded), note)


def _noted(tokenizer: PreTrainedTokenizerBase, note: str) -> OpenedTokenizer:
    log.warning("%s: %s", tokenizer.name_or_path, note)
    return OpenedTokenizer(tokenizer, FILE, note)


def _own(path: Path) -> Tokenizer:
    """The tokenizer that a file describes, whole texts at a time."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare exceptions.
    except Exception as error:
        raise StudyError(
            "A tokenizer file cannot be read.",
            file=path,
            expected="a tokenizer that the tokenizers library reads",
            got=_said(error),
            remedy="The file is damaged, or newer than the installed tokenizers: copy or download it again, or install "
            "a newer version.",
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encoded(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer(probe, add_special_tokens=False, truncation=False)["input_ids"] for probe in PROBES]


def _encoded_by_file(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(probe, add_special_tokens=False).ids for probe in PROBES]


def _file_alone(folder: Path, own: Tokenizer, loaded: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The file's tokenizer, with the special tokens that tokenizer_config.json or transformers' class names."""
    try:
        tokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        is_own = _encoded(tokenizer) == _encoded_by_file(own)
    except Exception:
        tokenizer, is_own = None, False
    if tokenizer is None or not is_own:
        tokenizer = TokenizersBackend(tokenizer_object=own, name_or_path=str(folder), bos_token=None, eos_token=None)
    named = _tokenizer_config(folder)
    for name in _NAMED:
        said = named.get(name)
        token = said.get("content") if isinstance(said, dict) else said
        token = token or (loaded and getattr(loaded, name, None))
        if getattr(tokenizer, name) is None and token and own.token_to_id(str(token)) is not None:
            setattr(tokenizer, name, str(token))
    return _not_mute(tokenizer, folder)


def _not_mute(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    if not any(_encoded(tokenizer)):
        raise StudyError(
            "A tokenizer has no vocabulary: it turns every text into no tokens.",
            file=folder,
            expected="tokens",
            got=type(tokenizer).__name__,
            remedy=f"Put the {FILE} of the model that this one was trained from into its folder.",
        )
    return tokenizer


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(
            "A tokenizer's configuration cannot be read.",
            file=path,
            expected="a JSON object",
            got=_said(error),
            remedy=f"Mend the file, or remove it: {FILE} is enough.",
        ) from error
    return config


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _unloadable(error: Exception, folder: Path, config: dict[str, Any], *, trust_remote_code: bool) -> StudyError:
    said = str(error).lower()
    missing = [name for name in ("sentencepiece", "tiktoken", "protobuf", "blobfile") if name in said]
    code = config.get("auto_map")
    problem, expected = "A tokenizer cannot be loaded.", "tokenizer files that transformers reads"
    if code and not trust_remote_code:
        problem, expected = "A tokenizer is Python code of its repository.", FILE
        remedy = f"Take a copy of the model with a {FILE}; or read the code, and if you trust it set "
        remedy += "trust_remote_code: true in the model's entry."
    elif isinstance(error, ImportError) or missing:
        wanted = " ".join(missing) or getattr(error, "name", None) or "what the message names"
        remedy = f"Install {wanted} (pip install {wanted}), or put a {FILE} beside it, which needs no other package."
    else:
        remedy = f"Complete or mend the files; a {FILE} is enough."
    return StudyError(problem, file=folder, expected=expected, got=_said(error), remedy=remedy)

"""Vocabularies in tiktoken's format, converted by transformers in place of the repository's own code.

A repository that has such a file and no tokenizer.json brings Python code along, which holds the pattern that cuts a
text before its bytes are merged. Without the right pattern the tokens are others, so only known ones are converted.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import TokenizersBackend
from transformers.convert_slow_tokenizer import TikTokenConverter

from outlier_moe.errors import StudyError

_HAN = r"[\p{Han}]+"
_KIMI_LETTERS = r"\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_KIMI_UPPER = rf"[\p{{Lu}}{_KIMI_LETTERS}]"
_KIMI_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


@dataclass(frozen=True)
class TiktokenKind:
    """Facts about the vocabulary in a repository's code."""

    pattern: str
    """How a text is cut before its bytes are merged."""
    n_special: int
    """Special tokens behind the vocabulary; those without a name are reserved."""


KINDS = {
    # Kimi-K2, by the class that tokenizer_config.json names.
    "tokenization_kimi.TikTokenTokenizer": TiktokenKind(
        "|".join(
            [
                _HAN,
                rf"[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_ENDING}",
                rf"[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_ENDING}",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            ]
        ),
        n_special=256,
    )
}


class _Converter(TikTokenConverter):
    """transformers' conversion; its own reading of the file wants the tiktoken package for these few lines."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line.strip())
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


def tiktoken_file(folder: Path) -> Path | None:
    """The vocabulary of a folder in tiktoken's format, if it has one."""
    return next(iter(sorted([*folder.glob("*.tiktoken"), *folder.glob("tiktoken*.model")])), None)


def converted_tiktoken(folder: Path, config: dict[str, Any]) -> TokenizersBackend | None:
    """The tokenizer of a tiktoken file, or None if there is no such file or its pattern is not known.

    Args:
        folder: The model's folder.
        config: What tokenizer_config.json says.

    Raises:
        StudyError: If the file is damaged.
    """
    file, kind = tiktoken_file(folder), KINDS.get(_code_class(config) or "")
    if file is None or kind is None:
        return None
    try:
        tokenizer = _Converter(str(file), kind.pattern).converted()
    except (ValueError, OSError, TypeError) as error:
        raise StudyError(
            "A tokenizer file cannot be read.",
            file=file,
            expected="lines of a token in base64 and its rank",
            got=f"{type(error).__name__}: {error}",
            remedy="The file is not whole: copy or download it again.",
        ) from error
    _add_special(tokenizer, config, kind)
    named = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return TokenizersBackend(tokenizer_object=tokenizer, **{"bos_token": None, "eos_token": None, **named})


def _add_special(tokenizer: Tokenizer, config: dict[str, Any], kind: TiktokenKind) -> None:
    first = tokenizer.get_vocab_size()
    names = {int(id): str(_content(token)) for id, token in (config.get("added_tokens_decoder") or {}).items()}
    special = [names.get(id, f"<|reserved_token_{id}|>") for id in range(first, first + kind.n_special)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])


def _code_class(config: dict[str, Any]) -> str | None:
    """The class of the repository's code that its tokenizer is, if it is one."""
    named = (config.get("auto_map") or {}) if isinstance(config.get("auto_map"), dict) else {}
    classes = named.get("AutoTokenizer")
    return next(filter(None, classes), None) if isinstance(classes, list) else classes


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token

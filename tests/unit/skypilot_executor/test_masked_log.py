"""The log of a node's output."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_skypilot.masked_log import MaskedLog, Secrets


def _logged(path: Path, *pieces: str, secrets: tuple[str, ...] = ("s3cret-token",)) -> str:
    log = MaskedLog(path, secrets)
    for piece in pieces:
        assert log.write(piece) == len(piece)
    log.close()
    return path.read_text()


def test_no_colours_and_no_bars(tmp_path: Path) -> None:
    """Escape sequences are gone; of a progress bar its last state is left."""
    bar = (" 10%\r 20%\r", "100%\r", "\n")
    said = _logged(tmp_path / "log", "\x1b[32mgreen\x1b[0m\r\n", *bar, "\x1b]0;title\x07end\n")
    assert said == "green\n100%\nend\n"


@given(st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_secret_in_pieces(cuts: list[int], coloured: bool) -> None:
    """However the output is cut, no secret gets into the file."""
    secret = "s3cret-token"
    first = f"{secret[:5]}\x1b[0m{secret[5:]}" if coloured else secret
    text = f"before {first} after\nlast {secret}"
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
    with tempfile.TemporaryDirectory() as folder:
        said = _logged(Path(folder) / "log", *pieces)
    assert secret not in said and said.count("***") == 2


def test_last_lines_and_short_secrets(tmp_path: Path) -> None:
    """The last lines that say something are kept; a secret of three letters is not looked for."""
    log = MaskedLog(tmp_path / "log", ["abc", "abcdef"], n_last=2)
    log.write("one\n\ntwo abc\nthree abcdef\n\n")
    assert log.last_lines == ["two abc", "three ***"]
    assert log.masked("\x1b[1mabcdef") == "***"
    log.close()
    log.close()


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """A second try adds to the first one's log, and a line without end is written when it is closed."""
    _logged(tmp_path / "deep/log", "first\n")
    assert _logged(tmp_path / "deep/log", "second") == "first\nsecond\n"


def test_secret_of_several_lines(tmp_path: Path) -> None:
    """Each of its lines is one, wherever it stands; what is shorter than a secret is not."""
    key = "-----BEGIN KEY-----\r\n  abcdef\n}\n-----END KEY-----\n"
    said = _logged(tmp_path / "log", f"key: {key}", "then abcdef}\n", secrets=(key, "abc\n"))
    assert said == "key: ***\n  ***\n}\n***\nthen ***}\n"
    assert Secrets([key, "", "\n"]).masked("line 1\nabcdef") == "line 1\n***"

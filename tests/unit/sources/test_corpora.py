from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlier_moe.errors import StudyError
from outlier_moe.registry import FilesSource, HubDatasetSource, PydocTopicsSource
from outlier_moe.sources.corpora import documents_sha256, fetch_corpus, read_corpus
from outlier_moe.sources.documents import chapters
from tests.hub_server import HubServer, hub_environment
from tests.unit.sources.entries import corpus_entry


def fetched(path: Path, *paths: str, max_characters: int = 1000, **options: Any) -> list[str]:
    fetch_corpus(corpus_entry(FilesSource(paths, **options), max_characters), path / "text.parquet")
    return read_corpus(path / "text.parquet").documents


def refusal(path: Path, *paths: str, **options: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        fetched(path, *paths, **options)
    assert not list(path.glob("*text.parquet*"))
    return caught.value


def test_the_topics_of_pythons_help(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    fetch_corpus(corpus_entry(PydocTopicsSource(), 10**6), tmp_path / "text.parquet")
    corpus = read_corpus(tmp_path / "text.parquet")
    assert corpus.documents == [topics[name] for name in sorted(topics)]
    assert corpus.metadata["kind"] == "pydoc_topics" and not corpus.metadata["is_cut"]
    assert corpus.metadata["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")


def test_files_of_every_kind_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b\r\nb")
    (tmp_path / "a.txt").write_bytes("\ufeffä".encode())
    (tmp_path / "c.jsonl").write_text('{"text": "c1"}\n\n{"text": "c2", "other": 3}\n')
    pl.DataFrame({"text": ["d1", None, "d2"]}).write_parquet(tmp_path / "d.parquet")
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.write('{"text": "e1"}\n')
    with gzip.open(tmp_path / "f.txt.gz", "wt") as file:
        file.write("f")
    names = ["*.txt", "c.jsonl", "d.parquet", "e.jsonl.gz", "f.txt.gz", "a.*"]
    documents = fetched(tmp_path, *(str(tmp_path / name) for name in names))
    assert documents == ["ä", "b\r\nb", "c1", "c2", "d1", "d2", "e1", "f"]


def test_relative_files_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts/deep").mkdir(parents=True)
    (tmp_path / "texts/deep/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert fetched(tmp_path, "texts/**/*.txt") == ["a"]


def test_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "text": "y"}\n')
    assert fetched(tmp_path, str(tmp_path / "a.jsonl"), column="body") == ["x"]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=8), st.integers(1, 40))
def test_cutting_keeps_the_first_characters_of_documents_with_any(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], max_characters: int
) -> None:
    path = tmp_path_factory.mktemp("cut")
    (path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    expected = []
    for text in texts:
        if text.strip() and sum(map(len, expected)) < max_characters:
            expected.append(text[: max_characters - sum(map(len, expected))])
    if expected and not expected[-1].strip():
        expected.pop()
    if not expected:
        assert "has no text" in refusal(path, str(path / "a.jsonl"), max_characters=max_characters).problem
        return
    assert fetched(path, str(path / "a.jsonl"), max_characters=max_characters) == expected
    metadata = read_corpus(path / "text.parquet").metadata
    assert metadata["n_documents"] == len(expected) and metadata["n_characters"] == sum(map(len, expected))


def test_the_hash_is_of_the_documents_and_where_they_end() -> None:
    digest = hashlib.sha256()
    for document in (b"a", "é".encode()):
        digest.update(len(document).to_bytes(8, "little") + document)
    assert documents_sha256(["a", "é"]) == digest.hexdigest()
    assert len({documents_sha256(documents) for documents in (["ab"], ["a", "b"], ["ab", ""], ["b", "a"])}) == 4


def test_reading_stops_where_the_text_is_long_enough(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "long enough"}\nnot JSON\n')
    assert fetched(tmp_path, str(tmp_path / "a.jsonl"), max_characters=4) == ["long"]
    assert read_corpus(tmp_path / "text.parquet").metadata["is_cut"]


@pytest.mark.parametrize(
    ("name", "content", "problem", "key"),
    [
        ("a.txt", "é".encode("latin-1"), "not UTF-8", None),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "not UTF-8", "line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "not a JSON object", "line 2"),
        ("a.jsonl", b'["x"]\n', "not a JSON object", "line 1"),
        ("a.jsonl", b'{"txet": "x"}\n', "lacks its column", "line 1"),
        ("a.jsonl", b'{"text": 3}\n', "is not text", "line 1"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not valid Unicode", "corpora.text.source"),
        ("a.parquet", b"PAR1", "cannot be read", None),
        ("a.txt.gz", b"no gzip", "cannot be read", None),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "cannot be read", None),
        ("a.pdf", b"x", "unknown kind", None),
        ("a.parquet.gz", b"x", "unknown kind", None),
        ("a.txt", b" \n", "has no text", "corpora.text.source"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, content: bytes, problem: str, key: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path, str(tmp_path / name))
    assert problem in error.problem and error.key == key
    assert error.file == tmp_path / name or error.key == "corpora.text.source"


def test_a_column_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    pl.DataFrame({"texts": ["a"], "n": [1]}).write_parquet(tmp_path / "a.parquet")
    error = refusal(tmp_path, str(tmp_path / "a.parquet"))
    assert error.got == "the columns texts, n" and "did you mean 'texts'?" in (error.remedy or "")
    assert refusal(tmp_path, str(tmp_path / "a.parquet"), column="n").got == "int64"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(tmp_path, str(tmp_path / "*.txt"))
    assert error.file == str(tmp_path / "*.txt") and error.key == "corpora.text.source.paths"


def test_a_bibles_verses_become_chapters(tmp_path: Path) -> None:
    verses = [
        ("Genesis", 1, "In the beginning"),
        ("Genesis", 1, "And the earth"),
        ("Genesis", 2, "Thus"),
        ("Job", 2, "x"),
    ]
    rows = [{"book": book, "chapter": chapter, "verse": 1, "text": text} for book, chapter, text in verses]
    (tmp_path / "kjv.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(chapters(tmp_path / "kjv.jsonl")) == ["In the beginning\nAnd the earth", "Thus", "x"]


def test_a_fetched_text_that_was_changed_or_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 999)
    fetched(tmp_path, str(tmp_path / "a.txt"))
    path = tmp_path / "text.parquet"
    whole, metadata = path.read_bytes(), pl.read_parquet_metadata(path)
    damages = [whole[:-20], whole[: len(whole) // 2], b"", None]
    for damaged in damages:
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(StudyError) as caught:
            read_corpus(path)
        assert caught.value.file == path
    rows = pl.DataFrame({"document": [0], "text": ["y" * 999]}, schema_overrides={"document": pl.UInt32})
    rows.write_parquet(path, metadata={"outlier_moe": metadata["outlier_moe"]})
    with pytest.raises(StudyError, match="cannot be read"):
        read_corpus(path)
    rows.write_parquet(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_corpus(path)


ROWS = [{"text": f"document {i}", "score": i} for i in range(50)]


def dataset(kind: str) -> dict[str, bytes]:
    """The files of a data set with one configuration, `small`."""
    columns = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(columns)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    readme = f"---\nconfigs:\n- config_name: small\n  data_files: data/*.{kind}\n---\n"
    content = {"jsonl": lines, "parquet": columns.getvalue()}[kind]
    return {"README.md": readme.encode(), f"data/train-0.{kind}": content}


def streamed(hub: HubServer, tmp_path: Path, sources: list[HubDatasetSource]) -> list[str]:
    """What fetching each data set comes to, in a process of its own: `datasets` reads the environment when imported."""
    code = (
        "import json\n"
        "from pathlib import Path\n"
        "from outlier_moe.errors import StudyError\n"
        "from outlier_moe.registry import HubDatasetSource\n"
        "from outlier_moe.sources.corpora import fetch_corpus\n"
        "from tests.unit.sources.entries import corpus_entry\n"
        f"for number, source in enumerate({sources!r}):\n"
        "    try:\n"
        "        fetch_corpus(corpus_entry(source, 60), Path(f'{number}.parquet'))\n"
        "        print(json.dumps('fetched'))\n"
        "    except StudyError as error:\n"
        "        print(json.dumps(str(error)))\n"
    )
    environment = {**os.environ, **hub_environment(hub, tmp_path / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_data_set_of_the_hub_is_streamed(hub: HubServer, tmp_path: Path) -> None:
    kinds = ["jsonl", "parquet"]
    commits = [hub.add(f"owner/{kind}", dataset(kind), kind="datasets").commit for kind in kinds]
    assert (
        streamed(hub, tmp_path, [HubDatasetSource(f"owner/{kind}", name="small") for kind in kinds]) == ["fetched"] * 2
    )
    for number, kind in enumerate(kinds):
        corpus = read_corpus(tmp_path / f"{number}.parquet")
        assert "".join(corpus.documents) == "".join(str(row["text"]) for row in ROWS)[:60]
        metadata = corpus.metadata
        assert (metadata["repo"], metadata["name"], metadata["commit"]) == (f"owner/{kind}", "small", commits[number])


def test_a_data_set_that_is_not_as_registered(hub: HubServer, tmp_path: Path) -> None:
    repo = "owner/texts"
    hub.add(repo, dataset("jsonl"), kind="datasets")
    said = {
        HubDatasetSource("owner/absent"): "no such repository",
        HubDatasetSource(repo, revision="v9"): "no such revision",
        HubDatasetSource(repo, name="large"): "small",
        HubDatasetSource(repo, name="small", split="test"): "test",
        HubDatasetSource(repo, name="small", column="body"): "the columns text, score",
        HubDatasetSource(repo, name="small", column="score"): "is not text",
    }
    for expected, answer in zip(said.values(), streamed(hub, tmp_path, list(said)), strict=True):
        assert expected in answer
    assert not list(tmp_path.glob("*.parquet"))

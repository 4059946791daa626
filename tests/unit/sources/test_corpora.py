from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlier_moe.config.registry import FilesSource, HubDatasetSource, PydocTopicsSource
from outlier_moe.errors import StudyError
from outlier_moe.sources.corpora import documents_sha256, fetch_corpus, read_corpus
from outlier_moe.sources.documents import chapters
from outlier_moe.tables.files import table_facts
from tests.hub_server import HubServer, hub_environment
from tests.unit.sources.entries import corpus_entry


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


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
        ("a.json", b'[{"text": "x"}]', "unknown kind", None),
        ("a.csv", b"text\nx\n", "unknown kind", None),
        ("a", b"x", "unknown kind", None),
        ("a.txt", b"", "has no text", "corpora.text.source"),
        ("a.jsonl", b"", "has no text", "corpora.text.source"),
        ("a.parquet", b"", "cannot be read", None),
        ("a.txt", "x".encode("utf-16"), "not UTF-8", None),
        ("a.txt", "x".encode("utf-16-le"), "NUL", None),
        ("a.txt", b"\xfe\xff\x00x", "not UTF-8", None),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "not UTF-8", "line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x\x00"}\n', "NUL", "line 2"),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', "not a JSON object", "line 1"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "not a JSON object", "line 1"),
        ("a.jsonl", b'{"text": {"en": "x"}}\n', "not text", "line 1"),
        ("a.jsonl", b'{"text": ["x"]}\n', "not text", "line 1"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "not valid Unicode", "corpora.text.source"),
        ("a.txt.bz2", b"x", "cannot be read", None),
        ("a.txt.xz", b"x", "cannot be read", None),
        ("a.txt.zst", b"x", "cannot be read", None),
        ("a.txt.bz2", bz2.compress(bytes(range(65, 91)) * 500)[:-9], "cannot be read", None),
        ("a.txt.xz", lzma.compress(bytes(range(65, 91)) * 500)[:-9], "cannot be read", None),
        ("a.txt.zst", zst(bytes(range(65, 91)) * 500)[:-9], "cannot be read", None),
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


def test_columns_of_a_parquet_file_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    cases = {
        "null": pa.table({"text": pa.nulls(2)}),
        "binary": pa.table({"text": pa.array([b"x"])}),
        "list<element: string>": pa.table({"text": pa.array([["x"]])}),
    }
    for got, table in cases.items():
        pq.write_table(table, file)
        assert refusal(tmp_path, str(file)).got == got
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(twice, file)
    assert refusal(tmp_path, str(file)).got == "2 columns of that name"
    broken = pa.Array.from_buffers(pa.utf8(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"text": broken}), file)
    error = refusal(tmp_path, str(file))
    assert "not UTF-8" in error.problem and error.key == "row 0"
    pq.write_table(pa.table({"text": pa.array(["x", None, "x"]).dictionary_encode()}), file)
    assert fetched(tmp_path, str(file)) == ["x", "x"]


def test_compressed_files_of_every_kind(tmp_path: Path) -> None:
    lines = b'{"text": "x"}\n{"text": "y"}\n'
    for suffix, compress in {"bz2": bz2.compress, "xz": lzma.compress, "zst": zst, "gz": gzip.compress}.items():
        (tmp_path / f"A.JSONL.{suffix}").write_bytes(compress(lines))
        assert fetched(tmp_path, str(tmp_path / f"A.JSONL.{suffix}")) == ["x", "y"]
        # As `cat` joins them.
        (tmp_path / f"b.txt.{suffix}").write_bytes(compress(b"one ") + compress(b"two"))
        assert fetched(tmp_path, str(tmp_path / f"b.txt.{suffix}")) == ["one two"]


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("a[1].txt", "what?.txt", "b*.txt", "a1.txt", "b2.txt"):
        (tmp_path / name).write_text(name)
    assert fetched(tmp_path, str(tmp_path / "a[1].txt")) == ["a[1].txt"]
    assert fetched(tmp_path, str(tmp_path / "what?.txt")) == ["what?.txt"]
    assert fetched(tmp_path, str(tmp_path / "b*.txt")) == ["b*.txt"]
    assert fetched(tmp_path, str(tmp_path / "a[0-9].txt")) == ["a1.txt"]
    folder = tmp_path / "run[7]"
    folder.mkdir()
    (folder / "c.txt").write_text("c")
    assert fetched(tmp_path, str(folder / "c.txt")) == ["c"]
    assert fetched(tmp_path, str(folder / "*.txt")) == ["c"]
    assert fetched(tmp_path, str(folder / "**/*.txt")) == ["c"]


def test_what_lies_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_text("a")
    error = refusal(tmp_path, str(tmp_path / "folder"))
    assert "a folder" in str(error.got) and ".txt" in str(error.got) and "/*.txt" in (error.remedy or "")
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    assert "gone.txt" in str(refusal(tmp_path, str(tmp_path / "link.txt")).got)


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
    whole, facts = path.read_bytes(), table_facts(path)
    damages = [whole[:-20], whole[: len(whole) // 2], b"", None]
    for damaged in damages:
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(StudyError) as caught:
            read_corpus(path)
        assert caught.value.file == path
    rows = pl.DataFrame({"document": [0], "text": ["y" * 999]}, schema_overrides={"document": pl.UInt32})
    rows.write_parquet(path, metadata={"outlier_moe": json.dumps(facts)})
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
        "from outlier_moe.config.registry import HubDatasetSource\n"
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
        HubDatasetSource("owner/script"): "Python script",
        HubDatasetSource("owner/gated"): "gated",
        HubDatasetSource("owner/cut"): "cut off",
        HubDatasetSource("owner/mixed"): "other columns",
        HubDatasetSource("owner/zstd"): "zstandard",
        HubDatasetSource("owner/empty"): "no files",
        HubDatasetSource("owner/latin"): "is damaged",
    }
    hub.add("owner/script", {"script.py": b"import datasets\n", "README.md": b"x"}, kind="datasets")
    hub.add("owner/gated", {"a.jsonl": b'{"text": "x"}\n'}, kind="datasets", gated=True)
    hub.add("owner/cut", {"a.parquet": dataset("parquet")["data/train-0.parquet"][:-30]}, kind="datasets")
    mixed = {"a.jsonl": b'{"text": "x"}\n', "b.jsonl": b'{"text": {"en": 5}, "more": 1}\n'}
    hub.add("owner/mixed", mixed, kind="datasets")
    hub.add("owner/zstd", {"a.jsonl.zst": zst(b'{"text": "x"}\n')}, kind="datasets")
    hub.add("owner/empty", {"README.md": b"x"}, kind="datasets")
    hub.add("owner/latin", {"a.jsonl": '{"text": "é"}\n'.encode("latin-1")}, kind="datasets")
    for expected, answer in zip(said.values(), streamed(hub, tmp_path, list(said)), strict=True):
        assert expected in answer
    assert not list(tmp_path.glob("*.parquet"))

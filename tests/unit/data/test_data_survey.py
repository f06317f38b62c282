"""Patterns become a sorted, fingerprinted list of source files."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_ops.data.corpus import read_sources, survey
from yarn_ops.data.files import LocalFiles, SourceFile
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data


def survey_of(*patterns: str, out: Path) -> list[SourceFile]:
    survey(Data(sources=patterns), LocalFiles(), out)
    return read_sources(out)


def test_files_are_found_once_sorted_and_fingerprinted(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/b ü.txt").write_text("bee")
    (tmp_path / "in/deep/a.txt").write_text("sea")
    (tmp_path / "in/empty.txt").touch()
    record = survey(
        Data(sources=(f"{tmp_path}/in/**/*.txt", f"{tmp_path}/in/b*")), LocalFiles(), tmp_path / "out"
    )
    sources = read_sources(tmp_path / "out")
    assert (record.files, record.size_bytes) == (3, 6)
    assert [source.uri for source in sources] == [
        (tmp_path / "in/b ü.txt").as_uri(),
        (tmp_path / "in/deep/a.txt").as_uri(),
        (tmp_path / "in/empty.txt").as_uri(),  # is counted where the others are read
    ]
    assert sources[0].fingerprint == hashlib.sha256(b"bee").hexdigest()
    with LocalFiles().open(sources[0].uri) as file:
        assert file.read() == b"bee"


def test_a_file_uri_and_a_path_are_the_same_source(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("x")
    sources = survey_of((tmp_path / "a b.txt").as_uri(), str(tmp_path / "a b.txt"), out=tmp_path / "out")
    assert len(sources) == 1


HOSTILE = (
    b"..a", b"%2e%2e%2fpasswd", b"'; DROP TABLE runs; --", b"$(touch x)", b"`id`", b"a\nb", b"-rf", b"~",
    b"*", b"[!a]", b"file:", b"a?b#c", b"\xff\xfe", "\u202e".encode(), b"x" * 250,
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.binary(min_size=1, max_size=40).filter(lambda name: not {0, ord("/")} & {*name} and name.strip(b".")),
)


@given(st.sets(NAMES, min_size=1, max_size=4))
def test_a_file_of_any_name_is_read_and_no_other(names: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "in")
        place.mkdir()
        for name in names:
            Path(os.fsdecode(os.fsencode(place) + b"/_" + name)).write_bytes(b"holds " + name)
        sources = survey_of(f"{place}/*", out=Path(folder, "out"))
        found = set()
        for source in sources:
            assert not source.name.startswith("/") and "\0" not in source.name
            with LocalFiles().open(source.uri) as file:
                found.add(file.read())
        assert found == {b"holds " + name for name in names}
        assert len({source.name for source in sources}) == len(names)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["in", "out"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    assert survey_of("~/*.txt", out=tmp_path / "out")[0].uri == (tmp_path / "a.txt").as_uri()


def test_a_name_with_glob_signs_means_itself(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    (tmp_path / "a1.txt").write_text("y")
    sources = survey_of(f"{tmp_path}/a[1].txt", out=tmp_path / "out")
    assert [source.uri for source in sources] == [(tmp_path / "a[1].txt").as_uri()]


def test_the_standard_library_has_the_same_names_on_all_machines(tmp_path: Path) -> None:
    sources = {source.uri: source for source in survey_of("stdlib:**/*.py", out=tmp_path)}
    assert len(sources) > 500
    assert not [uri for uri in sources if "-packages" in uri or "lib-dynload" in uri or "/root" in uri]
    own = (Path(sysconfig.get_path("stdlib")) / "json/decoder.py").read_bytes()
    assert sources["stdlib:json/decoder.py"].fingerprint == hashlib.sha256(own).hexdigest()
    with LocalFiles().open("stdlib:json/decoder.py") as file:
        assert file.read() == own


def test_names_tell_nothing_of_this_machine() -> None:
    local = SourceFile("file:///home/me/b%C3%BCcher/a%20b.txt", 1, "0123456789abcdef")
    assert local.name == "a b.txt@0123456789ab"
    assert SourceFile("s3://bucket/a.txt", 1, "etag").name == "s3://bucket/a.txt"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{tmp}/none*.txt", "matches no file"),
        ("{tmp}/none.txt", "matches no file"),
        ("{tmp}/empty.txt", "only empty files"),
        ("{tmp}", "is a directory"),
        ("{tmp}/dangling.txt", "matches no file"),
        ("stdlib:no_such_module.py", "matches no file"),
        ("stdlib:../../etc/passwd", "below the standard library"),
        ("stdlib:/etc/passwd", "below the standard library"),
        ("gopher://host/file", "unknown kind of source"),
    ],
)
def test_a_bad_pattern_is_named_in_one_line(tmp_path: Path, pattern: str, says: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
    pattern = pattern.format(tmp=tmp_path)
    with pytest.raises(DataError, match=says) as raised:
        survey_of(pattern, out=tmp_path / "out")
    assert pattern in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(DataError, match=r"secret\.txt: cannot be read \(Permission denied\)"):
        survey_of(f"{tmp_path}/*.txt", out=tmp_path / "out")


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read \(No such file"):
        LocalFiles().open((tmp_path / "gone.txt").as_uri())


def test_a_damaged_list_of_sources_is_named(tmp_path: Path) -> None:
    (tmp_path / "sources.jsonl").write_text('{"uri": 1}\n')
    with pytest.raises(DataError, match="not a list of sources"):
        read_sources(tmp_path)

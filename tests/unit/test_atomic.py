"""What is written appears whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from yarn_ops.atomic import atomic_write, disk_errors
from yarn_ops.errors import StoreError


def test_a_file_appears_at_the_end_and_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in ("first", "second"):
        with atomic_write(path) as draft:
            draft.write_text(text)
            assert text == "first" or path.read_text() == "first"
        assert path.read_text() == text
    assert [path.name for path in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("replacing", [False, True])
def test_a_directory_with_files_is_replaced_only_when_asked(tmp_path: Path, replacing: bool) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    try:
        with atomic_write(path, replacing=replacing) as draft:
            draft.mkdir()
            (draft / "new").touch()
    except OSError:
        assert not replacing
    assert [one.name for one in path.iterdir()] == ["new" if replacing else "old"]
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / ".folder.partial"
    left.mkdir()
    (left / "half").touch()
    with atomic_write(tmp_path / "folder") as draft:
        assert not draft.exists()
        draft.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    path, fsync = tmp_path / "folder", os.fsync

    def seen(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    with atomic_write(path, durable=True) as draft:
        (draft / "below").mkdir(parents=True)
        (draft / "below" / "file").write_text("all of it")
    order = ["file", "below", ".folder.partial", tmp_path.name]
    assert synced == [(name, name == tmp_path.name) for name in order]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EROFS, "the file system is read-only; mount it to write, or choose another place"),
        (errno.EACCES, "permission denied; check owner and mode, or choose another place"),
        (errno.ENOSPC, "no space left on the disk; free some and run again"),
    ],
)
def test_what_a_disk_refuses_says_what_to_do(tmp_path: Path, number: int, told: str) -> None:
    """A disk that failed is mounted read-only: no owner or mode is at fault then."""
    with pytest.raises(StoreError) as refused, disk_errors(tmp_path):
        raise OSError(number, "of the system")
    assert str(refused.value) == f"{tmp_path}: {told}"

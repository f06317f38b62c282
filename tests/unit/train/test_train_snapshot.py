"""Snapshots: whole or not there, the newest whole one found."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from yarn_ops.errors import TrainError
from yarn_ops.train.snapshot import Snapshot, newest_snapshot, save_snapshot


def snapshot(step: int, identity: str = "job") -> Snapshot:
    curve = [{"step": number + 1, "loss": 1 / (number + 3)} for number in range(step)]
    return Snapshot(step, identity, curve, 0.1 * step, {"parameter/a": torch.full((4,), float(step))})


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save_snapshot(tmp_path, snapshot(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    found = newest_snapshot(tmp_path, "job")
    assert found is not None and found.curve == snapshot(6).curve and found.seconds == 0.1 * 6
    assert torch.equal(found.tensors["parameter/a"], torch.full((4,), 6.0))


@pytest.mark.parametrize("file", ["state.safetensors", "snapshot.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    for step in (2, 4):
        newest = save_snapshot(tmp_path, snapshot(step)) / file
    data = newest.read_bytes()
    if damage == "remove":
        newest.unlink()
    elif damage == "truncate":
        newest.write_bytes(data[:-3])
    else:
        newest.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    found = newest_snapshot(tmp_path, "job")
    assert found is not None and found.step == 2


def test_one_left_unfinished_is_no_snapshot(tmp_path: Path) -> None:
    (tmp_path / ".step-00000002.partial").mkdir()
    assert newest_snapshot(tmp_path, "job") is None
    save_snapshot(tmp_path, snapshot(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_another_job_s_is_not_ours(tmp_path: Path) -> None:
    save_snapshot(tmp_path, snapshot(2, "other"))
    assert newest_snapshot(tmp_path, "job") is None


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("a file in the way")
    with pytest.raises(TrainError, match="cannot be written"):
        save_snapshot(tmp_path / "snapshots", snapshot(1))


def test_a_disk_full_of_it_is_given_its_room_back(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        with pytest.raises(TrainError, match="the snapshot cannot be written"):
            save_snapshot(tmp_path, snapshot(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []

"""Disks with hardly any room: scratch lies with the state, and one that is full is told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys, tempfile
from pathlib import Path
from yarn_ops.errors import YarnOpsError
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.loading import weights_alone
from yarn_ops.settings import Settings

model, small, *states = map(Path, sys.argv[1:])
assert tempfile.gettempdir() == str(small)
found = []
for state in states:
    if state != small:
        Settings(state_dir=state).make_home()
    try:
        told = len(load_tokenizer(model))
        with weights_alone(model) as alone:
            assert (alone / "model.safetensors").is_file()
            told = [told, str(alone)]
    except YarnOpsError as error:
        told = str(error)
    left = [str(path) for place in (state / "work", small) for path in place.glob("scratch-*")]
    found.append([told, left])
print(json.dumps(found))
"""
MOUNT = 'mount -t tmpfs -o size=64k tmpfs "$2"'
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


def told_with(model: Path, small: Path, *states: Path) -> list[tuple[object, object]]:
    """(what each state directory gave or refused, what was left there), with a TMPDIR `small` of 64 KiB."""
    small.mkdir()
    arguments = [sys.executable, model, small, *states]
    if subprocess.run([*OWN_MOUNTS, MOUNT, *arguments], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    done = subprocess.run(
        [*OWN_MOUNTS, f'{MOUNT} && exec "$0" -c "$PROGRAM" "$@"', *arguments],
        env={**os.environ, "TMPDIR": str(small), "PROGRAM": PROGRAM, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(told, left) for told, left in json.loads(done.stdout)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tokenizer of more than 64 KiB beside a file in the place of weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    vocabulary = {f"word{number}": number for number in range(8192)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="word0")).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_scratch_lies_with_the_state_and_no_room_is_one_line(model: Path, tmp_path: Path) -> None:
    """Without a state directory, with one on the small disk, and with one where there is room."""
    small = tmp_path / "small"
    places = [small, small / "state", tmp_path / "state"]
    *refused, (told, left) = told_with(model, small, *places)
    for place, (line, remains) in zip(places, refused, strict=False):
        assert str(line).startswith(str(place)) and "\n" not in str(line) and remains == []
        assert str(line).endswith("no space left on the disk; free some and run again")
    assert isinstance(told, list) and told[0] == 8192, told
    assert told[1].startswith(f"{tmp_path}/state/work/scratch-") and left == []

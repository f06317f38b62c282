"""A fuzz: whatever a model directory or a document is, it is read or refused in one line, in 2 GB and 30 s.

`-k 1000 -m slow` draws a thousand; STRANGE_SEED=… another thousand.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from limited import limited
from strange_input import strange_documents, strange_model, tiny_model

from yarn_ops import errors
from yarn_ops.bases import fetch_base
from yarn_ops.data.corpus import read_sources, survey
from yarn_ops.data.documents import read_texts
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Base, Data, Rope
from yarn_ops.records import Local
from yarn_ops.store import StoreOptions

SEED = int(os.environ.get("STRANGE_SEED", "0"))
TOLD = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {"NotText"}

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def take_model(folder: Path, out: Path) -> str:
    """What a run does with a base before it trains."""
    record, path = fetch_base(
        Base(model=str(folder)), cache=out / "cache", store_options=StoreOptions(), find_release=None
    )
    tokens = Tokenizer(path, record.vocab_size).encode(["Words, and more words."])[0]
    patch(Rope(factor=2), Local(record, path), out / "patched", factor=2)
    return f"{record.model_type}, {len(tokens)} tokens"


def take_documents(folder: Path, out: Path) -> str:
    data = Data(sources=(f"{folder}/**/*",))
    survey(data, LocalFiles(), out)
    texts = [len(text) for source in read_sources(out) for text in read_texts(source, LocalFiles(), "text")]
    return f"{len(texts)} documents"


def faults(draws: range, tmp_path: Path) -> tuple[list[str], int]:
    """What was neither read nor refused in one line; and how many were read."""
    sound = tiny_model(tmp_path / "sound")
    take_model(sound, tmp_path / "first")  # imports what every draw needs
    found, read = [], 0
    for number in draws:
        draw = random.Random(f"{SEED}-{number}")
        place = tmp_path / "draw"
        place.mkdir()
        if number % 2:
            told = strange_documents(draw, place / "in")
            ended, said, seconds, taken = limited(take_documents, place / "in", place / "out")
        else:
            told = strange_model(draw, sound, place / "in")
            ended, said, seconds, taken = limited(take_model, place / "in", place / "out")
        read += ended == "returned"
        if ended != "returned" and (ended not in TOLD or "\n" in said or "\x1b" in said):
            found.append(
                f"draw {number} ({told}): {ended} after {seconds:.0f} s, {taken >> 20} MiB: {said[-1500:]}"
            )
        shutil.rmtree(place)
    return found, read


@pytest.mark.parametrize("draws", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_comes_is_read_or_refused(draws: int, tmp_path: Path) -> None:
    found, read = faults(range(draws), tmp_path)
    assert not found, f"{len(found)} of {draws}:\n" + "\n\n".join(found)
    assert 0 < read < draws

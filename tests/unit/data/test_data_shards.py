"""Documents come back from shards as they went in, the same bytes for any number of workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from yarn_ops.data import units
from yarn_ops.data.corpus import survey
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.layout import SPLITS, ShardReader
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.digests import digest_tree
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local, ShardSet
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"
Prepare = Callable[..., Local[ShardSet]]


def words(number: int, count: int) -> str:
    """A text of `count` words that no other `number` has."""
    return " ".join(f"w{number}x{i}" for i in range(count))


def write_documents(folder: Path, texts: list[str], name: str = "rows.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / name


def contents(path: Path) -> dict[str, dict[str, str]]:
    """{split: {document id: its text, decoded}}"""
    fast = FastTokenizer.from_file(str(BASE512 / "tokenizer.json"))
    readers = {split: ShardReader(path, split) for split in SPLITS}
    return {
        split: {
            reader.document_id(i): fast.decode(reader.document(i).tolist(), skip_special_tokens=False)
            for i in range(reader.documents)
        }
        for split, reader in readers.items()
    }


def test_documents_come_back_whole_with_their_end_token(tmp_path: Path, prepare_sources: Prepare) -> None:
    texts = [words(n, 5 + 40 * n) for n in range(40)]
    shards = prepare_sources(write_documents(tmp_path / "in", texts))
    found = contents(shards.path)
    assert sorted([*found["train"].values(), *found["held_out"].values()]) == sorted(
        t + "<|eos|>" for t in texts
    )
    record = shards.record
    assert (record.train_documents, record.held_out_documents) == (
        len(found["train"]),
        len(found["held_out"]),
    )
    reader = ShardReader(shards.path, "train")
    assert reader.tokens == record.train_tokens == int(reader.lengths.sum())
    assert not reader.document(0).flags.writeable


def test_ids_name_file_and_row(tmp_path: Path, prepare_sources: Prepare) -> None:
    shards = prepare_sources(write_documents(tmp_path / "in", [words(n, 9) for n in range(3)]))
    ids = sorted(id for side in contents(shards.path).values() for id in side)
    assert [id.split("@")[0] for id in ids] == ["rows.jsonl"] * 3
    assert [id[-2:] for id in ids] == ["#0", "#1", "#2"]


def test_bytes_do_not_depend_on_workers(
    tmp_path: Path, prepare_sources: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LEAST_BYTES", 300_000)
    patterns = ("stdlib:[a-h]*.py", "stdlib:json/*.py")
    trees = [digest_tree(prepare_sources(*patterns, workers=workers).path) for workers in (1, 2, 4)]
    assert trees[0] == trees[1] == trees[2]
    assert sum(name.startswith("tokens-") for name in trees[0]) >= 3


def test_bytes_do_not_depend_on_the_place(tmp_path: Path, prepare_sources: Prepare) -> None:
    write_documents(tmp_path / "here", [words(n, 9) for n in range(20)])
    shutil.copytree(tmp_path / "here", tmp_path / "there/and/deeper")
    first = prepare_sources(tmp_path / "here/rows.jsonl")
    second = prepare_sources(tmp_path / "there/and/deeper/rows.jsonl")
    assert digest_tree(first.path) == digest_tree(second.path)
    assert not [f for f in first.path.iterdir() if str(tmp_path).encode() in f.read_bytes()]


@pytest.mark.parametrize("least_bytes", [200, 1 << 20])
def test_documents_lie_in_the_files_of_their_units(
    tmp_path: Path, prepare_sources: Prepare, monkeypatch: pytest.MonkeyPatch, least_bytes: int
) -> None:
    monkeypatch.setattr(units, "LEAST_BYTES", least_bytes)
    texts = [words(n, 30) for n in range(12)]
    shards = prepare_sources(write_documents(tmp_path / "in", texts))
    found = contents(shards.path)
    assert sorted([*found["train"].values(), *found["held_out"].values()]) == sorted(
        t + "<|eos|>" for t in texts
    )
    assert {id.split("#")[1] for side in found.values() for id in side} == {str(row) for row in range(12)}
    files = len(list(shards.path.glob("tokens-*")))
    assert files == 1 if least_bytes > 200 else files > 6


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 30), min_size=2, max_size=40).filter(lambda n: len(set(n)) > 1),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**40),
)
def test_no_text_is_on_both_sides_and_no_side_is_empty(
    tmp_path: Path, prepare_sources: Prepare, numbers: list[int], fraction: float, seed: int
) -> None:
    source = write_documents(tmp_path / "in", [f"text number {n}" for n in numbers])
    shards = prepare_sources(source, held_out_fraction=fraction, seed=seed)
    train, held_out = (list(contents(shards.path)[split].values()) for split in SPLITS)
    assert train and held_out and not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == sorted({f"text number {n}<|eos|>" for n in numbers})
    assert shards.record.dropped.duplicates == len(numbers) - len(set(numbers))


def test_a_side_is_decided_by_the_text_not_by_its_place(tmp_path: Path, prepare_sources: Prepare) -> None:
    texts = [words(n, 5) for n in range(60)]
    first = prepare_sources(write_documents(tmp_path / "a", texts))
    second = prepare_sources(write_documents(tmp_path / "b", texts[::-1]))
    sides = [set(contents(shards.path)["held_out"].values()) for shards in (first, second)]
    assert sides[0] == sides[1]
    assert sides[0] != set(contents(prepare_sources(tmp_path / "a/*", seed=1).path)["held_out"].values())


def test_the_share_held_out_is_the_one_asked_for(tmp_path: Path, prepare_sources: Prepare) -> None:
    source = write_documents(tmp_path / "in", [f"text number {n}" for n in range(4000)])
    for fraction in (0.125, 0.5):
        held_out = prepare_sources(source, held_out_fraction=fraction).record.held_out_documents
        deviation = (4000 * fraction * (1 - fraction)) ** 0.5
        assert abs(held_out - 4000 * fraction) < 3 * deviation


def test_the_audit_counts_lengths_and_what_was_dropped(tmp_path: Path, prepare_sources: Prepare) -> None:
    # "a" is one token; " a" is one more each; EOS ends the document.
    texts = ["a" + " a" * (tokens - 2) for tokens in (256, 257, 600, 1025, 3000)]
    write_documents(tmp_path / "in", [*texts, texts[2], "", " \n "])
    (tmp_path / "in/latin1.txt").write_bytes(b"caf\xe9")
    shards = prepare_sources(tmp_path / "in/*")
    record = shards.record
    total = 256 + 257 + 600 + 1025 + 3000
    assert record.train_tokens + record.held_out_tokens == total
    assert (record.longest_document_tokens, record.dropped.duplicates) == (3000, 1)
    assert [(share.longer_than_tokens, share.documents) for share in record.lengths] == [
        (256, 4), (512, 3), (1024, 2), (2048, 1),
    ]  # fmt: skip
    expected = [(total - 256) / total, 4625 / total, 4025 / total, 3000 / total]
    assert [share.token_share for share in record.lengths] == pytest.approx(expected, rel=1e-12)
    manifest = json.loads((shards.path / "shards.json").read_text())
    assert {name: count for name, count in manifest["dropped"].items() if count} == {
        "duplicates": 1, "empty": 2, "not_text": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["only one"], "1 usable document in 1 file "),
        (["twice", "twice"], r"1 usable document in 1 file \(left out: 1 duplicate\)"),
        ([" ", ""], r"0 usable documents in 1 file \(left out: 2 empty"),
    ],
)
def test_too_few_documents_are_refused(
    tmp_path: Path, prepare_sources: Prepare, texts: list[str], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        prepare_sources(write_documents(tmp_path / "in", texts))
    assert not list(tmp_path.rglob("shards.json"))


def test_nothing_but_binary_files_is_refused(tmp_path: Path, prepare_sources: Prepare) -> None:
    (tmp_path / "in").mkdir()
    for n in range(3):
        (tmp_path / f"in/{n}.bin").write_bytes(bytes([n, 0, 255]))
    with pytest.raises(DataError, match=r"0 usable documents in 3 files .*3 files not UTF-8 text"):
        prepare_sources(tmp_path / "in/*")


def test_a_bad_row_ends_the_stage_without_readable_shards(tmp_path: Path, prepare_sources: Prepare) -> None:
    source = write_documents(tmp_path / "in", [words(n, 9) for n in range(50)])
    source.write_text(source.read_text() + "{\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 51: not JSON"):
        prepare_sources(source)
    assert not list(tmp_path.rglob("shards.json"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "swap", "add"])
@pytest.mark.parametrize("name", ["tokens.bin", "fragments.bin", "digests.json"])
def test_a_unit_that_was_damaged_between_two_attempts_is_made_again(
    tmp_path: Path, base: Local[BaseModel], name: str, damage: str
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"document {number} " * 50)
    data = Data(sources=(str(tmp_path / "*.txt"),))
    corpus = Local(survey(data, LocalFiles(), tmp_path / "corpus"), tmp_path / "corpus")
    kept = LocalUnits(tmp_path / "units", LocalFiles(), 1)
    for attempt in ("first", "second"):
        prepare(data, corpus, base, tmp_path / attempt, units=kept, report=lambda *_: None)
        (unit,) = (tmp_path / "units").iterdir()
        path = unit / name
        sound = path.read_bytes()
        path.unlink()  # the shards have links to it
        if damage != "remove":
            path.write_bytes(
                {
                    "flip": bytes([sound[0] ^ 1]) + sound[1:],
                    "cut": sound[:-1],
                    "empty": b"",
                    "swap": (unit / ("tokens.bin" if name != "tokens.bin" else "fragments.bin")).read_bytes(),
                    "add": sound,
                }[damage]
            )
        if damage == "add":
            (unit / "signatures.bin").write_bytes(b"0000")
    assert digest_tree(tmp_path / "first") == digest_tree(tmp_path / "second")


@pytest.mark.parametrize("name", ["shards.json", "tokens-00000.bin", "train.index", "train.ids"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_shards_are_named(tmp_path: Path, prepare_sources: Prepare, name: str, damage: str) -> None:
    shards = prepare_sources(write_documents(tmp_path / "in", [words(n, 9) for n in range(9)]))
    file = shards.path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=name):
        ShardReader(shards.path, "train")

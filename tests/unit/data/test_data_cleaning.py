"""What cleaning finds, what it leaves alone, and that it says how much it left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_ops.data.contamination import COMMON_DOCUMENTS, measured_hashes, passages, shares_passage
from yarn_ops.data.layout import SPLITS, ShardReader
from yarn_ops.data.near_duplicates import first_near_duplicates, signature
from yarn_ops.data.tokenizer import PIECE_CHARS
from yarn_ops.data.words import runs, words
from yarn_ops.errors import DataError
from yarn_ops.records import Dropped, Local, ShardSet

Prepare = Callable[..., Local[ShardSet]]
SHARED = 50

GERMAN = "Die alte Mühle am Bach gehörte seit vielen Jahren einer Familie, die niemand im Dorf recht kannte. "
ENGLISH = "The old mill beside the stream had for many years belonged to a family that nobody really knew. "


def text(chance: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in chance.integers(0, 5000, count)]


def write(folder: Path, rows: list[str], name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder / name


def kept_rows(shards: Local[ShardSet]) -> set[int]:
    readers = [ShardReader(shards.path, split) for split in SPLITS]
    ids = [reader.document_id(number) for reader in readers for number in range(reader.documents)]
    return {int(id.split("#")[1]) for id in ids}


def test_words_are_letters_and_digits_in_any_case_and_layout() -> None:
    assert words("One two_3,\n four").tolist() == words("(ONE)  two_3 — Four!".replace("—", "-")).tolist()
    assert len(words("Grüße, Ἀθῆναι")) == 2
    assert len(words("中文字 かな 한글")) == 7
    assert len(words(" .,\n")) == len(words("")) == 0
    assert len(set(words("a b ab ba aa bb " + "x" * 64 + " " + "x" * 65).tolist())) == 8


def test_a_long_text_has_the_words_of_its_parts() -> None:
    parts = [" ".join(f"word{n}x{number}" for n in range(12_000)) for number in range(5)]
    assert len(" ".join(parts)) > 2 * PIECE_CHARS
    assert words(" ".join(parts)).tolist() == [hash for part in parts for hash in words(part).tolist()]


@given(st.lists(st.sampled_from(["a", "b", "cc", "d1"]), max_size=30), st.integers(1, 6))
def test_equal_runs_have_equal_hashes(drawn: list[str], length: int) -> None:
    found = runs(words(" ".join(drawn)), length).tolist()
    spelt = [tuple(drawn[at : at + length]) for at in range(len(drawn) - length + 1)]
    assert len(found) == max(0, len(spelt))
    assert len(set(zip(found, spelt, strict=True))) == len(set(found)) == len(set(spelt))


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_near_duplicates_are_found_and_others_are_not(seed: int) -> None:
    """Similarity 0.82 and above counts as planted, 0.55 as unlike: recall ≥ 0.95, false alarms ≤ 1 %."""
    chance = np.random.default_rng(seed)
    rows = [text(chance, int(chance.integers(60, 600))) for _ in range(150)]
    for number in range(50):  # a run of five is lost with any of its words
        changed = chance.random(len(rows[number])) < 0.02
        rows.append([f"x{word}" if lost else word for word, lost in zip(rows[number], changed, strict=True)])
    unlike = []
    for row in rows[50:100]:  # a share of 0.7 / 1.3 in common
        cut = int(0.7 * len(row))
        unlike.append([*row[:cut], *text(chance, len(row) - cut)])
    hashes = [words(" ".join(row)) for row in [*rows, *unlike]]
    first = first_near_duplicates(np.stack([signature(found) for found in hashes]), 0.7)
    exact = [_similarity(hashes[number], hashes[150 + number]) for number in range(50)]
    planted = [number for number in range(50) if exact[number] >= 0.82]
    assert np.mean([first[150 + number] == number for number in planted]) >= 0.95
    others = [*range(150), *range(200, 250)]
    assert np.mean([first[number] != number for number in others]) <= 0.01


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    sets = [set(runs(hashes, 5).tolist()) for hashes in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 420), st.integers(0, 500))
def test_a_passage_in_common_is_always_found_a_shorter_run_never(seed: int, at: int, place: int) -> None:
    chance = np.random.default_rng(seed)
    measured, other = text(chance, 500), text(chance, 500)
    told = measured_hashes([passages(words(" ".join(measured)), SHARED)])

    def found(shared: int) -> bool:
        mixed = [*other[:place], *measured[at : at + shared], *other[place:]]
        return shares_passage(passages(words(" ".join(mixed)), SHARED), told)

    assert found(SHARED) and found(SHARED + 30)
    assert not found(0) and not found(12)


def test_what_many_measured_documents_have_betrays_nothing() -> None:
    licence = " ".join(f"licence{n}" for n in range(60))
    chance = np.random.default_rng(0)
    measured = [passages(words(f"{licence} {' '.join(text(chance, 90))}"), SHARED) for _ in range(20)]
    found = passages(words(licence), SHARED)
    assert shares_passage(found, measured_hashes(measured[:COMMON_DOCUMENTS]))
    assert not shares_passage(found, measured_hashes(measured))
    assert not shares_passage(found, measured_hashes([]))


def test_of_near_duplicates_the_first_is_kept(tmp_path: Path, prepare_sources: Prepare) -> None:
    chance = np.random.default_rng(1)
    rows = [" ".join(text(chance, 200)) for _ in range(6)]
    again = [rows[0].upper(), rows[1] + " and more", rows[2], rows[3].replace(" ", "\n")]
    source = write(tmp_path / "in", [*rows, *again])
    assert prepare_sources(source).record.dropped == Dropped(duplicates=1)
    shards = prepare_sources(source, near_duplicate_similarity=0.8)
    assert shards.record.dropped == Dropped(duplicates=1, near_duplicates=3)
    assert kept_rows(shards) == set(range(6))


def test_documents_that_share_a_passage_with_held_out_ones_are_not_trained_on(
    tmp_path: Path, prepare_sources: Prepare
) -> None:
    chance = np.random.default_rng(2)
    rows = [" ".join(text(chance, 300)) for _ in range(40)]
    held_out = prepare_sources(write(tmp_path / "in", rows))
    reader = ShardReader(held_out.path, "held_out")
    number = int(reader.document_id(0).split("#")[1])
    passage = " ".join(rows[number].split()[100:160])
    rows += [" ".join(text(chance, 100)) + " " + passage.upper(), " ".join(passage.split()[:12])]
    source = write(tmp_path / "in", rows)
    assert prepare_sources(source).record.dropped == Dropped()
    shards = prepare_sources(source, shared_words=SHARED)
    assert shards.record.dropped == Dropped(contaminated=1)
    assert kept_rows(shards) == {*range(40), 41}


def _rows_of(shards: Local[ShardSet], split: str) -> set[int]:
    reader = ShardReader(shards.path, split)  # type: ignore[arg-type]
    return {int(reader.document_id(number).split("#")[1]) for number in range(reader.documents)}


def test_documents_of_other_evaluations_are_kept_from_training(
    tmp_path: Path, prepare_sources: Prepare
) -> None:
    chance = np.random.default_rng(3)
    asked = [" ".join(text(chance, 120)) for _ in range(5)]
    rows = [" ".join(text(chance, 300)) for _ in range(30)]
    rows += [f"{rows[0][:500]} Question: {question} Answer:" for question in asked]
    source, other = write(tmp_path / "in", rows), write(tmp_path / "eval", asked)
    shards = prepare_sources(source, shared_words=SHARED, evaluation_sources=(str(other),), seed=7)
    held_out = _rows_of(shards, "held_out")
    assert shards.record.dropped.contaminated >= 5 - len(held_out & set(range(30, 35)))
    assert not _rows_of(shards, "train") & set(range(30, 35))
    with pytest.raises(DataError, match=r"data\.evaluation_sources: .* matches no file"):
        prepare_sources(source, shared_words=SHARED, evaluation_sources=(f"{tmp_path}/none*",))


def test_languages_and_lengths_are_filters_with_counts(tmp_path: Path, prepare_sources: Prepare) -> None:
    rows = [f"{ENGLISH * n} {n}" for n in range(2, 8)] + [f"{GERMAN * n} {n}" for n in range(2, 5)]
    source = write(tmp_path / "in", [*rows, rows[-1], "short", "short", ""])
    assert prepare_sources(source).record.dropped == Dropped(duplicates=2, empty=1)
    shards = prepare_sources(source, languages=("en",), min_document_tokens=20)
    assert shards.record.dropped.empty == 1
    assert shards.record.dropped.language + shards.record.dropped.length == 6
    assert kept_rows(shards) == set(range(6))
    lengths = [len(row) for row in rows]
    longest = prepare_sources(source, max_document_tokens=int(np.median(lengths) / 3)).record
    assert 0 < longest.dropped.length < len(rows)
    assert longest.longest_document_tokens <= np.median(lengths) / 3


def test_too_much_cleaning_says_what_it_left_out(tmp_path: Path, prepare_sources: Prepare) -> None:
    source = write(tmp_path / "in", [f"{ENGLISH} {n}" for n in range(4)])
    with pytest.raises(DataError, match=r"0 usable documents in 1 file \(left out: 4 in other languages\)"):
        prepare_sources(source, languages=("ja",))

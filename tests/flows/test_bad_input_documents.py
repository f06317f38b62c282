"""Documents that are missing, damaged or too few are refused in one line, before a model is loaded."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from person import Person, fails


def text(name: str, lines: int) -> bytes:
    return "".join(f"{name}: line {number} of {lines}\n" for number in range(lines)).encode()


SOURCES: dict[str, tuple[dict[str, bytes], list[str]]] = {
    "a pattern that matches nothing": ({}, ["data.sources: ", "matches no file; check the path"]),
    "empty files only": ({"a.txt": b"", "b.txt": b""}, ["matches only empty files; give files with text"]),
    "no text": (
        {"a.txt": b"\xff\xfe\x00" * 40},
        ["0 usable documents in 1 file ", "1 file not UTF-8 text", "give"],
    ),
    "a bad line of JSON": (
        {"a.jsonl": b'{"text": "one"}\n{"text"\n'},
        ["a.jsonl, line 2: not JSON", "correct the line"],
    ),
    "a line that is no object": (
        {"a.jsonl": b'["text"]\n'},
        ["a.jsonl, item 1: expected an object with 'text'"],
    ),
    "no text field": (
        {"a.jsonl": b'{"body": "one"}\n'},
        ["a.jsonl, line 1: no field 'text', it has: body; set data.text_field"],
    ),
    "a text that is a number": (
        {"a.jsonl": b'{"text": 3}\n'},
        ["a.jsonl, line 1: 'text' is int", "set data.text_field"],
    ),
    "a damaged Parquet file": (
        {"a.parquet": b"PAR1" * 9},
        ["a.parquet: damaged .parquet file", "replace it"],
    ),
    "a truncated gzip file": (
        {"a.jsonl.gz": gzip.compress(b'{"text": "one"}\n' * 99)[:-20]},
        ["a.jsonl.gz: damaged gzip file", "replace it"],
    ),
    "a damaged zstd file": (
        {"a.jsonl.zst": b"none at all"},
        ["a.jsonl.zst: damaged zst file", "replace it"],
    ),
    "one document only": (
        {"a.txt": text("a", 99)},
        ["1 usable document in 1 file ", "at least two different"],
    ),
    "one document twice": (
        {"a.txt": text("a", 9), "b.txt": text("a", 9)},
        ["1 duplicate)", "at least two different"],
    ),
    "too little for one window": (
        {"a.txt": text("a", 3), "b.txt": text("b", 3)},
        [
            "train: corpus too short for one window of 256 tokens",
            "add documents or ask for a shorter context",
        ],
    ),
}

LENGTHS = {
    "held-out text shorter than a merged window": (
        ["rope.factor=500"],
        ["held_out: corpus too short for one window of 256000 tokens", "add documents"],
    ),
    "held-out text shorter than the longest length": (
        ["evaluate.lengths=[1, 4000]"],
        ["evaluate.lengths: a window of 2048000 tokens does not fit", "add documents"],
    ),
    "a length too short for the pairs": (
        ["evaluate.lengths=[0.1, 1]"],
        ["evaluate.lengths: 51 tokens cannot hold 4 code pairs", "measure longer windows"],
    ),
    "training windows longer than the target": (
        ["train.context_tokens=9000000"],
        ["train.context_tokens: 9000000 is above the target context of 1024", "at most"],
    ),
}


@pytest.mark.parametrize("fault", SOURCES)
def test_sources(fault: str, person: Person, small_recipe: Path, tmp_path: Path) -> None:
    files, phrases = SOURCES[fault]
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    answer = fails(person, ["extend", small_recipe, "--set", f'data.sources=["{folder}/*"]'], *phrases)
    assert "evaluate" not in answer.stages


@pytest.mark.parametrize(
    ("source", "phrases"),
    [
        ("/", ["/: is a directory; name the files in it, e.g. /**/*.txt"]),
        ("ftp://host/*", ["ftp://host/*: unknown kind of source"]),
        ("stdlib:../*", ["stdlib:../*: write stdlib: and a path or glob below the standard library"]),
        ("s3://bucket", ["s3://bucket: names no objects; write s3://bucket/path/*.txt"]),
    ],
)
def test_a_pattern(source: str, phrases: list[str], person: Person, small_recipe: Path) -> None:
    fails(person, ["extend", small_recipe, "--set", f'data.sources=["{source}"]'], *phrases)


@pytest.mark.parametrize("fault", LENGTHS)
def test_lengths(fault: str, person: Person, small_recipe: Path) -> None:
    changes, phrases = LENGTHS[fault]
    settings = [part for change in changes for part in ("--set", change)]
    answer = fails(person, ["extend", small_recipe, *settings], *phrases)
    assert not {"train", "evaluate"} & {*answer.stages}


def test_a_comparison_looks_at_its_windows_before_it_measures(person: Person, small_recipe: Path) -> None:
    changes = ("rope.factor=64", "train.context_tokens=32768", "data.held_out_fraction=0.95")
    settings = [part for change in changes for part in ("--set", change)]
    answer = fails(
        person,
        ["compare", small_recipe, "--methods", "yarn", "--arms", "lora", *settings],
        "train: corpus too short for one window of 32768 tokens",
        "add documents",
    )
    assert "evaluate" not in answer.stages

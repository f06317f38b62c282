"""Digests depend on values, names and bytes, never on spelling or order."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_ops.digests import canonical_json, digest_of, digest_tree, file_digest, tree_digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_known_digest() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    assert digest_of({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        digest_of(value)


def test_a_tree_is_names_and_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "b.bin").write_bytes(b"x" * 3_000_000)
        (tmp_path / folder / "a.txt").write_text("a")
    first, second = digest_tree(tmp_path / "one"), digest_tree(tmp_path / "two")
    assert list(first) == ["a.txt", "deep/b.bin"]
    assert first["deep/b.bin"] == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert tree_digest(first) == tree_digest(second)
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "c.txt")
    assert tree_digest(digest_tree(tmp_path / "two")) != tree_digest(first)


def test_progress_adds_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"y" * 2_500_000)
    seen: list[int] = []
    file_digest(tmp_path / "file", seen.append)
    assert sum(seen) == 2_500_000

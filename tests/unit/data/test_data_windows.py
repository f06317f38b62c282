"""Windows are a pure function of seed and index, with the distribution that was promised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from yarn_ops.data.layout import ShardReader, ShardWriter, TokenWriter
from yarn_ops.data.windows import Window, WindowSampler, spread
from yarn_ops.errors import DataError


def shards(path: Path, *lengths: int) -> ShardReader:
    """Documents of these lengths; token i of document d is 1000·d + i mod 1000."""
    dtype = np.dtype("<u4")
    with ShardWriter(path, dtype) as writer, TokenWriter(path / "tokens-00000.bin", dtype) as file:
        for document, tokens in enumerate(lengths):
            extent = file.append((1000 * document + np.arange(tokens) % 1000).astype(np.uint32))
            writer.index("train", f"d{document}", extent)
            writer.index("held_out", f"d{document}", extent)
    writer.finish([file.tokens], {})
    return ShardReader(path, "train")


def sampler(
    reader: ShardReader, window_tokens: int = 100, seed: int = 0, prefer_long: float = 0
) -> WindowSampler:
    return WindowSampler(reader, window_tokens=window_tokens, seed=seed, prefer_long=prefer_long)


def check(window: Window, window_tokens: int) -> None:
    """Shapes, and every token belongs to the document that its segment names."""
    assert (window.ids.dtype, window.segments.dtype) == (np.int64, np.int32)
    assert window.ids.shape == window.segments.shape == (window_tokens + 1,)
    numbers = np.array([int(id[1:]) for id in window.document_ids])
    np.testing.assert_array_equal(numbers[window.segments], window.ids // 1000)
    assert np.unique(window.segments).tolist() == list(range(len(numbers)))


def shares(sampler: WindowSampler, count: int) -> dict[str, float]:
    first = Counter(sampler.window(index).document_ids[0] for index in range(count))
    return {document: windows / count for document, windows in first.items()}


def test_a_window_is_a_function_of_seed_and_index(tmp_path: Path) -> None:
    reader = shards(tmp_path, 500, 30, 900, 101)
    straight = [sampler(reader, seed=3).window(index) for index in range(20)]
    resumed = sampler(ShardReader(tmp_path, "train"), seed=3)
    for index in (19, 7, 0, 12):
        np.testing.assert_array_equal(resumed.window(index).ids, straight[index].ids)
        assert resumed.window(index).document_ids == straight[index].document_ids
    other = [sampler(reader, seed=4).window(index).ids for index in range(20)]
    assert any((ours.ids != theirs).any() for ours, theirs in zip(straight, other, strict=True))


def test_windows_are_the_same_on_every_machine(tmp_path: Path) -> None:
    # Recorded from the sampler itself: a change here makes resumed runs see other windows.
    windows = sampler(shards(tmp_path, 500, 30, 900, 101), prefer_long=1)
    assert [(window.document_ids[0], int(window.ids[0])) for window in map(windows.window, range(5))] == [
        ("d2", 2657), ("d2", 2253), ("d0", 157), ("d2", 2503), ("d2", 2099),
    ]  # fmt: skip


def test_a_long_document_fills_a_window_alone(tmp_path: Path) -> None:
    windows = sampler(shards(tmp_path, 101, 250))
    for index in range(50):
        window = windows.window(index)
        check(window, 100)
        assert len(window.document_ids) == 1
        assert (np.diff(window.ids) == 1).all()


def test_short_documents_follow_each_other_round_the_end(tmp_path: Path) -> None:
    windows = sampler(shards(tmp_path, 40, 30, 50, 20), window_tokens=100)
    orders = {windows.window(index).document_ids for index in range(40)}
    assert orders == {
        ("d0", "d1", "d2"),
        ("d1", "d2", "d3", "d0"),
        ("d2", "d3", "d0"),
        ("d3", "d0", "d1", "d2"),
    }
    for index in range(40):
        check(windows.window(index), 100)


def test_without_preference_windows_are_uniform_over_tokens(tmp_path: Path) -> None:
    found = shares(sampler(shards(tmp_path, 1000, 3000, 500, 50, 5450)), 2000)
    expected = {"d0": 0.1, "d1": 0.3, "d2": 0.05, "d3": 0.005, "d4": 0.545}
    assert found == pytest.approx(expected, abs=2e-3)


def test_with_preference_a_document_weighs_by_its_length_in_windows(tmp_path: Path) -> None:
    found = shares(sampler(shards(tmp_path, 101, 404, 808), prefer_long=1), 2000)
    weights = np.array([1.0, 16.0, 64.0])  # n · (n / w)^1, in units of w
    assert list(map(found.get, ("d0", "d1", "d2"))) == pytest.approx(weights / weights.sum(), abs=2e-3)


def test_every_place_in_a_document_is_as_likely(tmp_path: Path) -> None:
    windows = sampler(shards(tmp_path, 900), window_tokens=99)
    starts = np.array([int(windows.window(index).ids[0]) for index in range(801)])
    assert starts.min() <= 2 and starts.max() >= 798
    counts, _ = np.histogram(starts, bins=10, range=(0, 801))
    np.testing.assert_allclose(counts, 80.1, atol=3)


def test_a_short_run_is_spread_over_the_documents(tmp_path: Path) -> None:
    windows = sampler(shards(tmp_path, *[400] * 50))
    assert len({windows.window(index).document_ids for index in range(50)}) >= 45


def test_a_split_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    reader = shards(tmp_path, 60, 40)
    sampler(reader, window_tokens=99)
    with pytest.raises(
        DataError, match="too short for one window of 100 tokens: it holds 100; add documents"
    ):
        sampler(reader, window_tokens=100)
    with pytest.raises(DataError, match="too short for one window of 100 tokens"):
        spread(reader, 100, 1, seed=0)


def overlaps(windows: list[Window]) -> int:
    """Tokens that are in more than one window."""
    seen = Counter(token for window in windows for token in window.ids.tolist())
    return sum(count - 1 for count in seen.values())


def test_measuring_takes_every_long_document_before_one_twice(tmp_path: Path) -> None:
    reader = shards(tmp_path, 50, 350, 101, 205, 50)
    windows = spread(reader, 100, 6, seed=0)
    for window in windows:
        check(window, 100)
        assert len(window.document_ids) == 1
    first = [window.document_ids[0] for window in windows]
    assert set(first[:3]) == {"d1", "d2", "d3"} and Counter(first) == {"d1": 3, "d2": 1, "d3": 2}
    assert overlaps(windows) == 0
    assert first != [window.document_ids[0] for window in spread(reader, 100, 6, seed=2)]


def test_measuring_packs_short_documents_next(tmp_path: Path) -> None:
    windows = spread(shards(tmp_path, 60, 60, 150, 90, 20), 100, 3, seed=0)
    assert [window.document_ids for window in windows] == [("d2",), ("d0", "d1"), ("d3", "d4")]
    assert overlaps(windows) == 0


def test_measuring_overlaps_only_when_all_is_used(tmp_path: Path) -> None:
    windows = spread(shards(tmp_path, 250, 60, 60), 100, 8, seed=0)
    assert len(windows) == 8 and overlaps(windows[:3]) == 0 < overlaps(windows)
    for window in windows:
        check(window, 100)


def test_windows_before_do_not_depend_on_how_many_are_asked_for(tmp_path: Path) -> None:
    reader = shards(tmp_path, *range(120, 300, 7))
    few, many = spread(reader, 100, 4, seed=1), spread(reader, 100, 16, seed=1)
    for ours, theirs in zip(few, many, strict=False):
        np.testing.assert_array_equal(ours.ids, theirs.ids)


def test_every_window_begins_with_what_the_tokenizer_puts_before_a_text(tmp_path: Path) -> None:
    dtype = np.dtype("<u2")
    folder = tmp_path / "shards"
    with ShardWriter(folder, dtype) as writer, TokenWriter(folder / "tokens-00000.bin", dtype) as file:
        for number in range(6):
            tokens = np.full(100 + 40 * number, 5, np.uint16)
            tokens[0] = 7
            for split in ("train", "held_out"):
                writer.index(split, f"{split}-{number}", file.append(tokens))
    writer.finish([file.tokens], {"prefix": [7]})
    reader = ShardReader(tmp_path / "shards", "train")
    sampler = WindowSampler(reader, window_tokens=50, seed=0, prefer_long=1)
    windows = [sampler.window(index) for index in range(30)] + spread(reader, 50, 30, 0)
    assert all(window.ids[0] == 7 and len(window.ids) == 51 for window in windows)

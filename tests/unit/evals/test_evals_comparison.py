"""A comparison: judged by the gate, ranked by recall at the target, told in one table."""

from __future__ import annotations

import json
from pathlib import Path

from yarn_ops.evals.report.comparison import PICTURE, ROWS, TABLE, Entry, compare, parameter_count
from yarn_ops.recipe import Gate
from yarn_ops.scores import Score, Scorecard

LENGTHS = (512, 1024, 2048)
GATE = Gate(
    min_recall=0.9,
    min_recall_kept=None,
    min_uses_share=None,
    min_long_gain=1.5,
    max_long_growth=1.1,
    max_short_growth=1.05,
)


def card(perplexities: tuple[float, ...], recalls: tuple[float, ...]) -> Scorecard:
    scores = []
    for length, perplexity, recall in zip(LENGTHS, perplexities, recalls, strict=True):
        facts = {"context_tokens": length, "seed": 0, "samples": 96}
        scores.append(Score(task="perplexity/last-quarter", value=perplexity, **facts))
        scores.append(
            Score(task="recall/code", value=recall, low=recall - 0.02, high=min(1, recall + 0.02), **facts)
        )
        scores.append(Score(task="recall/code", depth=0.125, value=0.5, **facts))
    return Scorecard(model_digest="0" * 64, original_context_tokens=512, scores=tuple(scores))


BASE = card((10.0, 120.0, 280.0), (0.98, 0.0, 0.0))
BROKEN = card((12.0, 12.0, 90.0), (0.97, 0.9, 0.0))
GOOD = card((10.2, 10.0, 9.8), (0.98, 0.97, 0.93))
BETTER = card((10.3, 10.1, 9.9), (0.98, 0.97, 0.95))


def test_the_winner_recalls_most_of_those_that_pass(tmp_path: Path) -> None:
    arms = [
        Entry("ntk", "lora", BROKEN, 75_000),
        Entry("by-parts", "lora", GOOD, 75_000),
        Entry("yarn", "lora", BETTER, 75_000),
    ]
    comparison = compare(GATE, BASE, arms, 2048, tmp_path)
    assert [contender.verdict.passed for contender in comparison.contenders] == [False, True, True]
    assert comparison.winner == "yarn, lora"
    assert (comparison.original_context_tokens, comparison.target_context_tokens) == (512, 2048)


def test_equal_recall_is_decided_by_perplexity(tmp_path: Path) -> None:
    other = card((10.3, 10.1, 9.7), (0.98, 0.97, 0.95))
    assert (
        compare(
            GATE,
            BASE,
            [Entry("a", "lora", BETTER, 75_000), Entry("b", "lora", other, 75_000)],
            2048,
            tmp_path,
        ).winner
        == "b, lora"
    )


def test_no_winner_when_none_passes(tmp_path: Path) -> None:
    assert compare(GATE, BASE, [Entry("ntk", "lora", BROKEN, 75_000)], 2048, tmp_path).winner is None


def test_what_is_written(tmp_path: Path) -> None:
    compare(
        GATE,
        BASE,
        [Entry("ntk", "lora", BROKEN, 75_000), Entry("yarn", "lora", BETTER, 75_000)],
        2048,
        tmp_path,
    )
    assert (tmp_path / TABLE).read_text("utf-8") == (
        "**Winner: yarn, lora**\n\n"
        "| method | arm | trained | perplexity at 512 / 1,024 / 2,048 | code recall | short change | gate |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| base | as it is |  | 10 / 120 / 280 | 0.98 / 0.00 / 0.00 [-0.02, 0.02] | +0.0 % |  |\n"
        "| ntk | lora | 75 k | 12 / 12 / 90 | 0.97 / 0.90 / 0.00 [-0.02, 0.02] | +20.0 % | failed |\n"
        "| yarn | lora | 75 k | 10.3 / 10.1 / 9.9 | 0.98 / 0.97 / 0.95 [0.93, 0.97] | +3.0 % "
        "| passed, **winner** |\n\n"
        "- ntk, lora fails: recall at 2,048 tokens is 0.000, below 0.9; growth of perplexity from 512 to "
        "2,048 tokens (12.00 to 90.00) is 7.500, above 1.1; perplexity after / before at 512 tokens is "
        "1.200, above 1.05\n"
    )
    rows = json.loads((tmp_path / ROWS).read_text("utf-8"))
    assert [(row["method"], row["verdict"]["passed"]) for row in rows] == [("ntk", False), ("yarn", True)]
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_more_arms_than_methods(tmp_path: Path) -> None:
    arms = ("zero-shot", "lora-only", "lora+norms")
    comparison = compare(GATE, BASE, [Entry("yarn", arm, GOOD, 0) for arm in arms], 2048, tmp_path)
    assert [contender.name for contender in comparison.contenders] == [f"yarn, {arm}" for arm in arms]
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_counts_are_told_in_three_digits() -> None:
    told = [parameter_count(count) for count in (0, 73_728, 999_499, 999_500, 4_980_000, 8_030_261_248)]
    assert told == ["", "73.7 k", "999 k", "1 M", "4.98 M", "8.03 G"]


def test_the_short_change_has_the_interval_of_its_windows(tmp_path: Path) -> None:
    def with_windows(card: Scorecard, change: float) -> Scorecard:
        first, *others = card.scores
        windows = (2.0 + change, 2.4 + 1.2 * change, 2.8 + 0.8 * change, 2.0 + change)
        return card.model_copy(update={"scores": (first.model_copy(update={"items": windows}), *others)})

    compare(GATE, with_windows(BASE, 0), [Entry("yarn", "lora", with_windows(GOOD, 0.02), 0)], 2048, tmp_path)
    assert "| +2.0 % [+1.5, +2.6] |" in (tmp_path / TABLE).read_text("utf-8")

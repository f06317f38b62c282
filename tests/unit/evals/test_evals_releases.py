"""Released versions side by side: same cells only, paired where items are kept, one page of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.intervals import mean_interval, paired_share_interval
from yarn_ops.evals.names import LAST_QUARTER
from yarn_ops.evals.report.releases import ReleaseFacts, as_json, cell_table, compare_cells, letter, write
from yarn_ops.scores import SameCell, Score

FACTS = ReleaseFacts(
    name="long", version=1, aliases=("champion",), gate="passed", run="a run", method="yarn", factor=4.0,
    trained="lora", steps=60, tokens_seen=61_440, sees=None, uses=None, seconds=None, device_s=None,
    dollars=None,
)  # fmt: skip
OTHER = replace(FACTS, version=2, aliases=(), gate="failed", method="<ntk>")
NATS = (2.0, 2.5, 3.0, 2.25), (1.5, 2.25, 2.5, 2.0)
FOUND = (1.0, 0.0, 1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)


def cells(place: int, protocol: str = "p", items: bool = True) -> dict[SameCell, Score]:
    nats, found = NATS[place], FOUND[place]
    scores = [
        Score.of(LAST_QUARTER, 2048, math.exp(sum(nats) / 4), None, 4, 0, items=nats if items else ()),
        Score.of("recall/code", 2048, sum(found) / 6, (0.1, 0.95), 6, 0, items=found if items else ()),
        Score.of("recall/code", 2048, 0.5, None, 3, 0, depth=0.25),
    ]
    return {SameCell(protocol, s.task, s.context_tokens, s.depth, s.seed): s for s in scores}


def test_changes_are_paired_by_item() -> None:
    rows = compare_cells([FACTS, OTHER], [cells(0), cells(1)]).rows
    perplexity, recall, by_depth = (row.changes[1] for row in rows)
    assert perplexity and recall and by_depth
    low, high = mean_interval([after - before for before, after in zip(*NATS, strict=True)]) or (0, 0)
    assert perplexity.paired and perplexity.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert perplexity.value == pytest.approx(math.exp(-0.375))
    assert recall.paired and recall.interval == pytest.approx(paired_share_interval(*FOUND))
    assert recall.value == pytest.approx(1 / 6)
    assert (by_depth.value, by_depth.interval, by_depth.paired) == (0.0, None, False)


def test_what_has_no_items_is_unpaired_and_marked() -> None:
    side = compare_cells([FACTS, OTHER], [cells(0), cells(1, items=False)])
    change = side.rows[1].changes[1]
    assert change and change.interval and not change.paired
    assert cell_table(side)[-1][-1] == f"+0.17 [{change.interval[0]:.2f}, {change.interval[1]:.2f}] *"


def test_only_what_all_were_asked_alike_is_compared() -> None:
    elsewhere = cells(1, protocol="q")
    with pytest.raises(EvaluationError, match="long:1, long:2: no cell in common, since") as raised:
        compare_cells([FACTS, OTHER], [cells(0), elsewhere])
    assert "\n" not in str(raised.value)
    side = compare_cells([FACTS, OTHER], [cells(0), elsewhere | dict([*cells(1).items()][:1])])
    assert [row.cell.task for row in side.rows] == [LAST_QUARTER]
    assert side.left_out == (2, 3)
    told = as_json(side)
    assert [one["cells_left_out"] for one in told["releases"]] == [2, 3]
    assert told["cells"][0]["values"][1]["change"]["paired"] is True


def test_of_several_ways_to_ask_the_one_with_most_samples_is_shown() -> None:
    """All are in the JSON."""
    few = Score.of(LAST_QUARTER, 2048, 50.0, None, 2, 0)
    both = [cells(place) | {SameCell("o", LAST_QUARTER, 2048, None, 0): few} for place in (0, 1)]
    side = compare_cells([FACTS, OTHER], both)
    assert [row.scores[0].samples for row in side.shown] == [4, 6]
    assert len(cell_table(side)) == 1 + 2 * 2
    assert len(as_json(side)["cells"]) == 4


def test_the_page_holds_everything_and_points_nowhere(tmp_path: Path) -> None:
    side = compare_cells([FACTS, OTHER], [cells(0), cells(1)])
    page = write(side, tmp_path / "out").read_text("utf-8")
    assert "http" not in page and page.count("<img ") == 1 and 'src="data:image/png;base64,' in page
    assert "&lt;ntk&gt; ×4" in page and "<ntk>" not in page
    for heads in ("pairs recalled, code form", "sees to", "×0.687 [", "+0.17 [", "not measured", "61,440"):
        assert heads in page
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match="the page cannot be written"):
        write(side, tmp_path / "file")


def test_letters_do_not_run_out() -> None:
    assert [letter(place) for place in (0, 25, 26, 27)] == ["A", "Z", "A1", "B1"]

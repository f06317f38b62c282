"""On the demo's base, zero-shot at twice its window: who finds what, and at what cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from yarn_ops.cli.remedies import show
from yarn_ops.data.files import LocalFiles
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.names import CONTINUATION
from yarn_ops.remedies.compare import Asked, compare
from yarn_ops.remedies.costs import metered
from yarn_ops.remedies.picture import draw
from yarn_ops.remedies.side_by_side import SideBySide, part_depth
from yarn_ops.remedies.table import lines

LENGTH, WINDOW = 1536, 512
FARTHEST, NEAREST = part_depth(0), part_depth(3)


def quiet(done: int, total: int, note: str) -> None: ...


@pytest.fixture(scope="module")
def side(base512: Path) -> SideBySide:
    asked = Asked(
        model=base512, name="base512", factor=4, context_tokens=LENGTH, windows=4,
        documents=("stdlib:asyncio/*.py", "stdlib:email/*.py"),
    )  # fmt: skip
    return compare(asked, LocalFiles(), device="cpu", precision="fp32", progress=quiet)


@pytest.fixture(scope="module")
def rows(side: SideBySide):
    return {row.remedy: row for row in side.rows}


def test_a_rolling_buffer_keeps_perplexity_and_loses_what_left_it(rows) -> None:
    full, rolling = rows["full attention"], rows["rolling buffer"]
    assert full.value("recall/code", FARTHEST) == 1
    assert rolling.value("recall/code", FARTHEST) == 0
    assert rolling.value("recall/code", NEAREST) >= 0.75
    assert rolling.value(CONTINUATION) < 1.2 * full.value(CONTINUATION)
    assert rolling.held_bytes < full.held_bytes * WINDOW / (LENGTH - 150)


@pytest.mark.parametrize(("name", "share"), [("block selection", 0.25), ("search", 0.1)])
def test_the_farthest_is_found_from_a_fraction_of_the_tokens(rows, name, share) -> None:
    assert rows[name].value("recall/code", FARTHEST) >= 0.75
    assert rows[name].value("recall/code") >= 0.8
    assert rows[name].seen_tokens < share * LENGTH


def test_only_the_agent_follows_a_chain(rows) -> None:
    found = {name: row.value("recall/chain") for name, row in rows.items()}
    assert found.pop("agent loop") >= 0.5
    assert max(found.values()) <= 0.25


def test_the_cut_text_holds_the_nearest_alone(rows) -> None:
    cut = rows["text cut to the window"]
    assert cut.value("recall/code", FARTHEST) == 0
    assert cut.value("recall/code", NEAREST) >= 0.5
    assert cut.prepare_tokens < WINDOW and cut.seen_tokens <= WINDOW


def test_costs_are_counted(rows) -> None:
    full, search, agent = (rows[name] for name in ("full attention", "search", "agent loop"))
    assert search.prepare_tokens == agent.prepare_tokens == 0
    assert agent.answer_tokens > search.answer_tokens == search.seen_tokens
    assert (
        full.prepare_tokens == rows["rolling buffer"].prepare_tokens == rows["block selection"].prepare_tokens
    )
    assert LENGTH - 150 < full.prepare_tokens < full.seen_tokens <= LENGTH
    longest = max(score.context_tokens for score in full.scores)
    assert full.held_bytes <= 2 * 4 * 2 * 64 * 4 * longest  # K and V, layers, heads, width, fp32, tokens


def test_nothing_is_found_that_was_not_planted(rows) -> None:
    assert {row.value("recall/code/no-needle") for row in rows.values()} == {0}


def test_table_picture_and_json_say_the_same(side, tmp_path, capsys) -> None:
    draw(side, tmp_path / "remedies.png")
    assert (tmp_path / "remedies.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert SideBySide.model_validate_json(side.model_dump_json()) == side
    table = lines(side)
    assert len(table) == 2 + len(side.rows)
    rolling = next(line for line in table if line.startswith("rolling buffer"))
    row = next(row for row in side.rows if row.remedy == "rolling buffer")
    parts = [row.value("recall/code", part_depth(part)) for part in range(4)]
    assert " ".join(f"{value:.2f}" for value in parts) in rolling
    show(side, as_json=False)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:]] == table


def test_the_meter_sees_what_was_in_use(tmp_path) -> None:
    done, seconds, peak = metered(torch.device("cpu"), lambda: len(torch.ones(16 << 20)))
    assert done == 16 << 20 and seconds > 0
    assert peak is None or 60 << 20 < peak < 200 << 20
    _, _, small = metered(torch.device("cpu"), lambda: len(torch.ones(1 << 10)))
    assert peak is None or small < 30 << 20


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({}, "base512: 512 tokens lie within the 512 that it was trained on"),
        ({"factor": 4, "context_tokens": 400}, "400 tokens lie within"),
        ({"factor": 4, "templates": ("cod",)}, "--templates: 'cod' is unknown; there is code, prose"),
    ],
)
def test_what_cannot_be_compared_is_said_before_a_model_is_loaded(base512, asked, complaint) -> None:
    request = Asked(model=base512, name="base512", **asked)
    with pytest.raises(EvaluationError, match=complaint):
        compare(request, LocalFiles(), device="nowhere", precision="fp32", progress=quiet)


def test_a_factor_on_top_of_another_is_refused(base512, tmp_path) -> None:
    config = json.loads((base512 / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    with pytest.raises(EvaluationError, match="already extended"):
        compare(
            Asked(model=tmp_path, name="long", factor=2),
            LocalFiles(),
            device="cpu",
            precision="fp32",
            progress=quiet,
        )

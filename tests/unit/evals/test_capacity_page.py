"""The page of a model measured by hand-written scores; what is kept of it for later pages; joined cards."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from yarn_ops.evals.attention import Diagnosis
from yarn_ops.evals.capacity import Capacity, read_capacity, write_capacity
from yarn_ops.evals.reach import reach_of
from yarn_ops.evals.report.page import html, write_page
from yarn_ops.models.costs import Dimensions, costs
from yarn_ops.scores import Score, Scorecard


def score(task: str, length: int, value: float, depth: float | None = None, **more) -> Score:
    return Score(
        task=task, context_tokens=length, depth=depth, value=value, low=0.9 * value, high=1.1 * value,
        samples=32, seed=0, **more,
    )  # fmt: skip


def capacity(
    name: str, ruler: dict[int, float], losses: tuple[float, ...] = (2.0, 2.1, 2.2, 2.3)
) -> Capacity:
    """Of a model that was trained on 4,096 tokens."""
    scores = [
        *(score("ruler/average", length, value) for length, value in ruler.items()),
        score("perplexity/last-quarter", 4096, math.exp(fmean(losses)), items=losses),
        *(score("needle/code", 4096, value, depth) for value, depth in ((0.9, None), (0.8, 0.25), (1, 0.75))),
    ]
    dimensions = Dimensions(layers=2, width=64, heads=4, kv_heads=1, head_dim=16, parameters=10**6)
    diagnosis = Diagnosis(4096, ((1, 4, 0.5), (4, 16, 0.3)), 0.2, 0.4, ((1, 2, 0.6),), 1, 8, 1, 0.9, 0.1, 0.9)
    return Capacity(
        name=name, card=card_of(*scores), context_tokens=8192, lengths=(4096, 8192),
        skipped={"copy at 128": "too short"}, reach=reach_of(card_of(*scores)), dimensions=dimensions,
        costs=costs(dimensions, (4096, 8192)), diagnosis=diagnosis,
    )  # fmt: skip


def card_of(*scores: Score) -> Scorecard:
    return Scorecard(model_digest="d" * 64, original_context_tokens=4096, scores=scores)


def rows(page: str) -> list[list[str]]:
    cells = re.compile(r"<t[dh]>(.*?)</t[dh]>")
    return [cells.findall(row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_ruler_stands_beside_the_published_models_with_their_effective_lengths():
    page = rows(html([capacity("mine", {2048: 0.99, 4096: 0.9, 8192: 0.5})], b""))
    heads = next(row for row in page if row[-1].startswith("effective"))
    assert heads[1:4] == ["2k", "4k", "8k"] and "85.6" in heads[-1]
    table = {row[0]: row[1:] for row in page if len(row) == len(heads)}
    assert table["<b>mine</b>"] == ["99.0", "90.0", "50.0", "", "", "", "", "4k"]
    assert table["Llama-3.1-8B"] == ["", "95.5", "93.8", "91.6", "87.4", "84.7", "77.0", "32k"]
    assert table["Together-7B-32K"][-1] == "4k"


def test_a_model_below_the_threshold_has_no_effective_length():
    page = rows(html([capacity("mine", {4096: 0.5})], b""))
    assert next(row for row in page if row[0] == "<b>mine</b>")[-1] == "none"


def test_what_short_texts_pay_has_the_interval_of_its_windows():
    base = capacity("base", {4096: 0.9}, (2.0, 2.1, 2.2, 2.3))
    after = capacity("mine", {4096: 0.9}, (2.01, 2.11, 2.21, 2.31))
    page = rows(html([after, base], b""))
    assert next(row for row in page if row[0] == "4k" and len(row) == 6)[3] == "1.010 [1.010, 1.010]"


def test_costs_attention_and_what_was_left_out_are_told():
    page = html([capacity("mine", {4096: 0.9})], b"")
    assert "MQA, 1 of 4 heads" in page
    assert ["4k", "512.0 KiB", "2.0 MiB", "512.0 KiB"] in [row[:4] for row in rows(page)]
    assert "with the best head silenced 0.10, with another silenced 0.90" in page
    assert "copy at 128: too short" in page


def test_every_figure_says_in_words_what_was_asked():
    tasks = ("multi-key/choice/no-needle", "perplexity/last-quarter of books/*.txt", "needle/prose/choice")
    model = capacity("mine", {4096: 0.9})
    more = (score(task, 4096, 0.5) for task in tasks)
    model = replace(model, card=card_of(*model.card.scores, *more))
    told = [row[0] for row in rows(html([model], b"")) if row]
    assert told[1:6] == [
        "perplexity, last quarter",
        "perplexity, last quarter of books/*.txt",
        "needles found, code form",
        "needles found, prose; chosen from four",
        "one of sixteen keys; chosen from four; without a needle",
    ]


def test_a_capacity_comes_back_as_it_was_written(tmp_path: Path):
    written = capacity("mine", {4096: 0.9})
    write_capacity(written, tmp_path)
    assert read_capacity(tmp_path, "other") == replace(written, name="other")


def test_a_model_may_be_called_anything(tmp_path: Path) -> None:
    """Signs of TeX and of HTML, in the page and in its picture."""
    hostile = "m$\\frac{$<img src=x onerror=alert(1)>&#x27;"
    page, picture = write_page([capacity(hostile, {4096: 0.9}), capacity("base", {4096: 0.9})], tmp_path)
    assert picture.stat().st_size > 10_000
    assert "<img src=x" not in page.read_text("utf-8")

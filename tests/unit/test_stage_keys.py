"""Which stages a change of the recipe computes again: their keys, as the flow makes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from flows import curriculum, extend
from flows.stages import measuring
from flows.tasks import stage_key
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.records import Record
from yarn_ops.shipped import recipe_path

ENDS = {"judge", "draw", "publish"}
TRAINS = {"train", "merge", "evaluate", *ENDS}
COMPUTED_AGAIN = {
    "train.steps=3": {"rehearse", *TRAINS},
    "train.exercises={share=0.5}": {"rehearse", *TRAINS},
    "train.checkpoint_every=3": {"rehearse", "draw", "publish"},  # how a loss is computed, not which
    "data.document_mask=true": TRAINS,
    "data.prefer_long=2": TRAINS,
    "data.seed=1": {"prepare", "rehearse", *TRAINS},
    "rope.beta_fast=30": {"patch", "rehearse", *TRAINS},
    "evaluate.windows=3": {"evaluate", *ENDS},
    "gate.min_long_gain=0.002": ENDS,
    "publish.alias=other": {"draw", "publish"},
}
"""a change of the recipe: the stages that are computed again; the report (`draw`) says what was asked"""
NAMES = {
    extend: ("fetch_base", "survey", "patch", "prepare", "rehearse", "merge", "judge", "draw", "publish"),
    curriculum: ("train", "merge"),
    measuring: ("evaluate",),
}


class Made(Record):
    """What any stage hands on, known by the stage's key."""

    key: str
    context_tokens: int = 512
    steps: int = 4
    passed: bool = True


def keys_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """{stage: keys} of the flow's body, whose stages only make their keys."""
    found: dict[str, set[str]] = {}

    def noting(name: str) -> Callable[..., Made]:
        def made(*inputs: Any) -> Made:
            key = stage_key(name, 1, () if name in ("fetch_base", "survey") else inputs)  # observations
            found.setdefault(name, set()).add(key)
            return Made(key=key)

        return made

    shop = SimpleNamespace(run=SimpleNamespace(id="run"), earlier_steps=0)
    for module, names in NAMES.items():
        for name in names:
            monkeypatch.setattr(module, name, noting(name))
    monkeypatch.setattr(extend, "open_workshop", lambda *_: nullcontext(shop))
    monkeypatch.setattr(extend, "warm_trainer", nullcontext)
    monkeypatch.setattr(extend, "show_report", lambda *_: None)
    monkeypatch.setattr(curriculum, "workshop", lambda: shop)
    extend.extend.fn(recipe)
    return found


@pytest.mark.parametrize("change", COMPUTED_AGAIN)
def test_a_change_computes_what_depends_on_it(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(load_recipe(recipe_path("demo")), monkeypatch)
    after = keys_of(load_recipe(recipe_path("demo"), [change]), monkeypatch)
    again = {name for name in before if after[name] != before[name]}
    assert again == COMPUTED_AGAIN[change]

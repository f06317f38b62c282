"""Which stages a change of the recipe computes again: their keys, as the flow makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import Task

from flows import compare, curriculum, extend, fit, reevaluate, tasks
from flows.stages import measuring
from flows.tasks import keyed_inputs, stage_key
from yarn_ops import processes
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.records import Record
from yarn_ops.shipped import recipe_path

ENDS = {"judge", "draw", "publish"}
TRAINS = {"train", "merge", "evaluate", *ENDS}
COMPUTED_AGAIN = {
    "train.steps=3": {"rehearse", *TRAINS},
    "train.exercises={share=0.5}": {"rehearse", *TRAINS},
    "train.checkpoint_every=3": {"rehearse", "draw", "publish"},  # how a loss is computed, not which
    "data.document_mask=true": {"rehearse", *TRAINS},
    "data.prefer_long=2": TRAINS,
    "data.seed=1": {"prepare", *TRAINS},
    "rope.beta_fast=30": {"patch", "rehearse", *TRAINS},
    "evaluate.windows=3": {"evaluate", *ENDS},
    "gate.min_long_gain=0.002": ENDS,
    "publish.alias=other": {"draw", "publish"},
    "publish.fingerprint=true": {"draw", "take_fingerprint", "publish"},
    "publish.approval=true": {"draw", "publish"},
    "publish.approval=false": set(),
}
"""a change of the recipe: the stages that are computed again; the report (`draw`) says what was asked"""
NAMES = {
    extend: (
        "fetch_base", "survey", "patch", "prepare", "rehearse", "merge", "judge", "draw", "take_fingerprint",
        "publish",
    ),
    curriculum: ("train", "merge"),
    measuring: ("evaluate",),
}  # fmt: skip
SIGNATURES = {
    name: inspect.signature(getattr(module, name).fn) for module, names in NAMES.items() for name in names
}


def test_no_stage_begins_after_an_interrupt_that_a_library_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the stage before, e.g. while it drew: what follows may be the release."""
    run: Any = SimpleNamespace()  # without anything that a stage would use first
    monkeypatch.setattr(processes, "_missed", [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        tasks._use(run, tasks._Call("publish", "", (), lambda _: Made(key="k"), Made), tasks._observe)


class Made(Record):
    """What any stage hands on, known by the stage's key."""

    key: str
    context_tokens: int = 512
    target_context_tokens: int = 2048
    train_tokens: int = 1_000_000
    held_out_tokens: int = 100_000
    steps: int = 4
    passed: bool = True
    alias: str | None = "champion"


def keys_of(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, language: str = "en") -> dict[str, set[str]]:
    """{stage: keys} of the flow's body, whose stages only make their keys."""
    found: dict[str, set[str]] = {}

    def noting(name: str) -> Callable[..., Made]:
        signature = SIGNATURES[name]

        def made(*inputs: Any, **named: Any) -> Made:
            keyed = keyed_inputs(signature, *inputs, **named)
            key = stage_key(name, 1, () if name in ("fetch_base", "survey") else keyed)  # observations
            found.setdefault(name, set()).add(key)
            return Made(key=key)

        return made

    run = SimpleNamespace(
        id="run", asks_a_person=False, mlflow=SimpleNamespace(step_sink=lambda arm, earlier_steps: None),
        plan=lambda base, corpus: None, settings=SimpleNamespace(language=language),
    )  # fmt: skip
    for module, names in NAMES.items():
        for name in names:
            monkeypatch.setattr(module, name, noting(name))
    monkeypatch.setattr(extend, "open_run", lambda *_: nullcontext(run))
    monkeypatch.setattr(extend, "warm_trainer", nullcontext)
    monkeypatch.setattr(extend, "show_report", lambda *_: None)
    for name in ("warm_up", "require_measurable"):
        monkeypatch.setattr(extend, name, lambda *_: None)
    monkeypatch.setattr(curriculum, "current_run", lambda: run)
    extend.extend.fn(recipe)
    return found


@pytest.mark.parametrize("change", COMPUTED_AGAIN)
def test_a_change_computes_what_depends_on_it(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(load_recipe(recipe_path("demo")), monkeypatch)
    after = keys_of(load_recipe(recipe_path("demo"), [change]), monkeypatch)
    again = {name for name in after if after[name] != before.get(name)}
    assert again == COMPUTED_AGAIN[change]


def test_a_report_in_another_language_is_another_one_and_nothing_else_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    english, chinese = (
        keys_of(load_recipe(recipe_path("demo")), monkeypatch, language) for language in ("en", "zh")
    )
    assert {name for name in english if english[name] != chinese[name]} == {"draw", "publish"}


def test_a_key_does_not_depend_on_how_inputs_are_given() -> None:
    def evaluate(
        model: str, tokens: int, target: int | None = None, by: tuple[str, ...] = (), *, log: str
    ) -> None:
        """A stage's inputs."""

    signature = inspect.signature(evaluate)
    assert keyed_inputs(signature, "m", 5, log="here") == ("m", 5)
    assert keyed_inputs(signature, tokens=5, model="m", log="there") == ("m", 5)
    assert keyed_inputs(signature, "m", 5, None, by=(), log="") == ("m", 5)
    assert keyed_inputs(signature, "m", 5, by=("p",), log="") == ("m", 5, None, ("p",))
    with pytest.raises(TypeError):
        keyed_inputs(signature, "m", log="")


def test_a_stage_keeps_its_signature_without_its_context() -> None:
    for name, named in (("train", {"asked", "steps"}), ("merge", set())):
        parameters = inspect.signature(getattr(curriculum, name).fn).parameters
        assert "context" not in parameters and "base" in parameters
        assert {one.name for one in parameters.values() if one.kind is one.KEYWORD_ONLY} == named


@pytest.mark.parametrize("module", (curriculum, extend, measuring, compare, reevaluate, fit))
def test_no_stage_takes_ten_inputs(module: Any) -> None:
    stages = [one.fn for one in vars(module).values() if isinstance(one, Task)]
    assert stages
    for one in stages:
        assert sum(p.kind is not p.KEYWORD_ONLY for p in inspect.signature(one).parameters.values()) < 10

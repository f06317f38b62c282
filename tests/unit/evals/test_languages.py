"""The card and the forms in Chinese: complete, with the figures of the English ones, and the same recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pages
import pytest
from prefect.utilities.schema_tools.validation import validate
from rich.cells import cell_len

from flows.deploy import deployments
from yarn_ops import languages
from yarn_ops.evals.capacity import Capacity
from yarn_ops.evals.gate import judge
from yarn_ops.evals.names import SKILLS
from yarn_ops.evals.reach import reach_of
from yarn_ops.evals.report.verdict import as_markdown, as_text, in_language, reached_in, verdict_rows
from yarn_ops.languages import LANGUAGES, said, zh
from yarn_ops.recipe import Condition, Gate
from yarn_ops.scores import BeforeAfter, Score

BARE = {"perplexity/sliding": 4.0}
FORMS = ("extend-model", "extend-context", "compare-methods", "fit-rope")
CHINESE = re.compile("[一-鿿]")
SAME = (
    "Rope.beta_fast", "Rope.beta_slow", "Rope.theta", "Rope.low_freq_factor", "Rope.high_freq_factor",
    "Recipe.rope", "Train.alpha",
)  # fmt: skip
"""fields whose titles are names"""
FIGURE = re.compile(r"\d[\d,.]*\d|\d")
BASE = {"perplexity": {256: 9.3, 512: 9.1, 2048: 271}, "code": {256: 0.98, 512: 0.95, 2048: 0}}
GOOD = {"perplexity": {256: 9.2, 512: 8.9, 2048: 6.8}, "code": {256: 0.98, 512: 0.97, 2048: 0.94}}
GATE = {"min_recall": 0.9, "max_skill_loss": 0.02}


def skills(share: float | None) -> tuple[Score, ...]:
    if share is None:
        return ()
    some = tuple(Score.of(task, 256, share, (share - 0.01, share + 0.01), 400, 0) for task in SKILLS)
    return (*some, *(Score.of(task, 2048, value, None, 4, 0) for task, value in BARE.items()))


def condition(
    score: str = "recall/code", evidence: Literal["value", "sure"] = "value", **values: Any
) -> Condition:
    return Condition(score=score, evidence=evidence, **({"at_least": 0.99} | values))


CONDITIONS = (
    condition(), condition(evidence="sure"), condition(at_least=None, at_most=0.1), condition("recall/none"),
    condition(at_least=None, at_most=0.1, evidence="sure"), condition(evidence="unrefuted"),
    condition(at_least=None, at_most=0.1, evidence="unrefuted"), condition(measure="ratio", length=4.0),
    condition(measure="difference"), condition(depth=0.5), condition("perplexity/single-pass"),
    condition("perplexity/sliding", evidence="sure"),
    condition("perplexity/sliding", measure="ratio"), condition("short/cloze", measure="ratio", length=0.5),
)  # fmt: skip


@pytest.fixture
def cards(scorecard) -> list[tuple[tuple[str, str], ...]]:
    """Promoted ones, awaited ones, and those that fail everything, by figures and for want of them."""

    def card(
        after: dict[str, Any],
        gate: Gate,
        before: Any = BASE,
        kept: float | None = 0.9,
        approval: bool = False,
    ):
        scores = [scorecard(**one) for one in (before, after)]
        shares = zip(scores, (0.9, kept), strict=True)
        both = BeforeAfter(*(s.model_copy(update={"scores": s.scores + skills(k)}) for s, k in shares))
        reach = BeforeAfter(
            *(Capacity("x", one, (512,), (512,), {}, reach_of(one), None, ()) for one in both)
        )
        return verdict_rows(
            "demo-long", "champion", judge(gate, both, 2048), both, reach, 2048, 4.0, approval=approval
        )

    return [
        card(GOOD, Gate()),
        card(GOOD, Gate(min_recall_kept=None, min_uses_share=None, max_short_growth=None), approval=True),
        card({**GOOD, "perplexity": {256: 9.9, 512: 9.9, 2048: 31}, "code": {256: 0.7, 512: 0.7, 2048: 0.2}},
             Gate(**GATE, conditions=CONDITIONS), kept=0.5),
        card({**GOOD, "code": {}, "perplexity": {256: 9.2}}, Gate(**GATE),
             before={**BASE, "code": {256: 0.9}}),
        card({**GOOD, "code": {512: 0.01, 2048: 0.01}}, Gate(**GATE), before={**BASE, "code": {512: 0.02}}),
        card({**GOOD, "perplexity": {256: 9.9, 512: 9.9, 2048: 31}}, UNASKED),
        card({**GOOD, "code": {256: 0.9, 512: 0.97, 2048: 0.2}}, UNASKED),
        card({**GOOD, "code": {256: 0.9, 512: 0.97, 1024: 0.97, 2048: 0.2}}, UNASKED),
        card({**GOOD, "code": {}, "prose": {256: 0.7, 512: 0.7, 2048: 0.1}}, Gate(**GATE),
             before={**BASE, "code": {}, "prose": {256: 0.9, 512: 0.9, 2048: 0}}),
        card({**GOOD, "prose": {256: 0.7, 512: 0.7, 2048: 0.1}}, UNASKED,
             before={**BASE, "prose": {256: 0.9, 512: 0.9, 2048: 0}}),
        card({**GOOD, "code": {512: 0.97, 2048: 0.1}, "prose": {512: 0.9, 2048: 0.2}}, Gate(),
             before={**BASE, "prose": {512: 0.9}}),
        card({"perplexity": {512: 9.1, 2048: 200}}, Gate(**GATE), before={"perplexity": BASE["perplexity"]},
             kept=None),
        card({**GOOD, "code": {256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.85},
              "depths": {512: (0.94, 1), 2048: (0.8, 0.9)}},
             Gate(), before={**BASE, "depths": {512: (0.9, 1), 2048: (0, 0)}}),
    ]  # fmt: skip


UNASKED = Gate(**Gate.unasked())


def test_a_card_in_chinese_has_the_figures_and_commands_of_the_english_one(cards) -> None:
    for rows in cards:
        chinese = in_language(rows, "zh")
        assert in_language(rows, "en") == rows
        for (label, english), (shown, text) in zip(rows, chinese, strict=True):
            assert re.search("[一-鿿]", shown), label
            assert sorted(FIGURE.findall(text)) == sorted(FIGURE.findall(english))
            told = re.sub(r"yarn-ops.*|tokens?\b|demo-long|factor|[a-z-]+[./_][\w./-]*", "", text)
            assert not re.search("[a-z]{3}", re.sub("evaluate|sure", "", told)), (english, text)
        assert reached_in(as_markdown(rows, "zh")) == reached_in(as_markdown(rows))


def test_every_phrase_is_of_a_card_that_can_be(cards, monkeypatch: pytest.MonkeyPatch) -> None:
    """None that the code no longer says, or that another one hides."""
    used: set[str] = set()

    def noted(english: str, fits: Any) -> Any:
        return lambda text: (found := fits(text)) and (used.add(english), found)[1]

    known = zip(zh.PHRASES, languages._phrases("zh"), strict=True)
    phrases = tuple((noted(english, fits), *rest) for english, (fits, *rest) in known)
    monkeypatch.setattr(languages, "_phrases", lambda language: phrases)
    for rows in cards:
        in_language(rows, "zh")
    assert [one for one in zh.PHRASES if one not in used] == []


@pytest.mark.parametrize("english", zh.PHRASES)
def test_a_phrase_has_the_placeholders_of_the_english_one(english: str) -> None:
    named = [sorted(re.findall(r"{(\w+)}", text)) for text in (english, zh.PHRASES[english])]
    assert named[0] == named[1]


def test_lines_in_a_terminal_are_as_wide_as_it_is(cards) -> None:
    for rows in cards:
        for language in LANGUAGES:
            lines = list(as_text(rows, 60, language))
            assert all(cell_len(line) <= 60 for line in lines if "yarn-ops" not in line)
            starts = [said(label, language) for label, _ in rows]
            heads = [line for line in lines if not line.startswith(" ")]
            assert [head.split()[0] for head in heads] == starts
            assert all(cell_len(head[: len(start)]) <= 9 for head, start in zip(heads, starts, strict=True))


def fields(form: dict[str, Any], owner: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"{owner}.{name}", field) for name, field in form["properties"].items())
    for name, definition in form.get("definitions", {}).items():
        yield from fields(definition, name)


def test_every_field_of_the_forms_is_in_chinese_with_its_figures_and_runs_the_same() -> None:
    known: set[str] = set()
    for english, chinese in zip(deployments(), deployments("zh"), strict=True):
        forms = [one._parameter_openapi_schema.model_dump(exclude_unset=True) for one in (english, chinese)]
        assert english.parameters == chinese.parameters
        validate(json.loads(json.dumps(chinese.parameters)), forms[1], raise_on_error=True)
        assert shape(forms[0]) == shape(forms[1])
        if english.name not in FORMS:
            continue
        assert CHINESE.search(chinese.description)
        for (name, told), (_, shown) in zip(*(fields(form, english.name) for form in forms), strict=True):
            known.add(name)
            assert CHINESE.search(shown["title"]) or name in SAME, name
            assert ("description" in told) == (len(zh.FIELDS[name]) == 2), name
            texts = [field.get("description", "") for field in (told, shown)]
            assert CHINESE.search(texts[1]) or not texts[1], name
            assert sorted(FIGURE.findall(texts[0])) == sorted(FIGURE.findall(texts[1])), name
        for name, definition in forms[1].get("definitions", {}).items():
            assert definition["description"] == zh.SECTIONS[name]
    assert known == set(zh.FIELDS)


def shape(form: Any) -> Any:
    """A schema without what a person reads."""
    if isinstance(form, dict):
        return {
            k: shape(v) for k, v in form.items() if not (k in ("title", "description") and isinstance(v, str))
        }
    return [shape(one) for one in form] if isinstance(form, list) else form


def test_the_newcomers_page_has_the_blocks_of_the_readme() -> None:
    block = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    ours, theirs = [
        [(kind, re.sub(r"\s+# .*", "", body)) for kind, body in block.findall(page.read_text("utf-8"))]
        for page in (pages.CHECKOUT / "infra/docs/newcomer.zh.md", pages.PAGES[0])
    ]
    assert ours == [
        one for one in theirs if "yarn_ops/\n" not in one[1]
    ]  # the tree of files is English alone

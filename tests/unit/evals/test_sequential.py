"""Asked until it is decided: intervals cover whenever it stops, and what matters is never stopped."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from suite_parts import SPEC, documents, measured, planned

from yarn_ops.evals import scoring
from yarn_ops.evals.cells import Size
from yarn_ops.evals.examples import Question
from yarn_ops.evals.intervals import paired_share_interval
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.packed import Reply
from yarn_ops.evals.reach import LEAST_SHORT
from yarn_ops.evals.sequential import Looks, exact_interval, stopped_early
from yarn_ops.scores import Score

RUNS = 4000
QUICK, FULL, RECALL = Looks.at(8, 32), Looks.at(50, 32), Looks.at(24, 4)


def answered(form: str, rights: np.ndarray) -> list[scoring.Answered]:
    return [(Question((1,), (2,), part=0, form=form), Reply((bool(right),))) for right in rights]


def asked_until_decided(looks: Looks, *rights: np.ndarray) -> list[Score]:
    """The scores of a cell whose outcomes would be these, of one form or of several in the same texts."""
    forms = ("code", "prose")[: len(rights)]
    tasks = [f"needle/{form}" for form in forms]
    blocks: list[tuple[Score, ...]] = []
    start = 0
    for end in looks.texts:
        asked = [
            pair for form, some in zip(forms, rights, strict=True)
            for pair in answered(form, some[start * looks.each : end * looks.each])
        ]  # fmt: skip
        blocks.append(scoring.recall_of(tasks, asked, 1024, 1, 0, scoring.every_outcome))
        if scoring.decided(looks, tasks, blocks):
            break
        start = end
    scores = scoring.joined(tasks, blocks, looks=looks)
    return [score for score in scores if score.task in tasks and score.depth is None]


def test_looks_are_few_and_can_decide() -> None:
    assert (QUICK.texts, FULL.texts, RECALL.texts) == ((2, 4, 8), (3, 6, 12, 24, 50), (13, 24))
    assert Looks.at(2, 16).texts == (2,)  # of a tiny suite: no look could decide
    for looks in (QUICK, FULL, RECALL):
        errors = [looks.error(texts * looks.each) for texts in looks.texts]
        assert sum(errors) == pytest.approx(0.05)
        nothing = [0.0] * looks.texts[0] * looks.each
        assert looks.why_enough(nothing) and not looks.why_enough([1.0, 0.0] * (len(nothing) // 2))


@pytest.mark.parametrize("trials", [13, 64, 256])
def test_the_exact_interval_covers_every_share(trials: int) -> None:
    from scipy.stats import binom

    for error in (0.05, 0.005):
        intervals = np.array([exact_interval(found, trials, error) for found in range(trials + 1)])
        for share in np.linspace(0, 1, 101):
            missed = (intervals[:, 0] > share) | (intervals[:, 1] < share)
            assert binom.pmf(np.flatnonzero(missed), trials, share).sum() <= error + 1e-12


@pytest.mark.parametrize("looks", [QUICK, FULL, RECALL], ids=str)
def test_intervals_cover_whenever_it_stops(looks: Looks) -> None:
    """At shares about those where it stops or not, and at others; false stops are rare."""
    rng, runs = np.random.default_rng(0), 300 if looks is not FULL else 100
    for share in (0.0, 0.01, 0.03, 0.06, 0.09, LEAST_SHORT, 0.15, 0.5, 0.93):
        scores = [asked_until_decided(looks, rng.random(looks.most) < share)[0] for _ in range(runs)]
        covered = np.mean([score.bounds[0] <= share <= score.bounds[1] for score in scores])
        stopped = np.mean([bool(score.stopped) for score in scores])
        assert covered >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs), share
        if share >= LEAST_SHORT:
            assert stopped <= 0.05
        if share == 0:
            assert stopped == 1 and {score.samples for score in scores} == {looks.texts[0] * looks.each}


def test_coverage_over_all_shares_is_as_stated() -> None:
    rng = np.random.default_rng(1)
    shares = rng.uniform(0, 0.4, RUNS)
    scores = [asked_until_decided(QUICK, rng.random(QUICK.most) < share)[0] for share in shares]
    assert np.mean([s.bounds[0] <= p <= s.bounds[1] for s, p in zip(scores, shares, strict=True)]) >= 0.95


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.0, 0.06), (0.05, 0.06), (0.0, 0.15), (0.09, 0.8)])
def test_forms_of_one_text_are_asked_until_both_are_decided(shares: tuple[float, float]) -> None:
    """Each form's interval covers, whatever the other decides; one that matters keeps both being asked."""
    rng, runs = np.random.default_rng(3), 300
    found = [
        asked_until_decided(QUICK, *(rng.random(QUICK.most) < share for share in shares)) for _ in range(runs)
    ]
    for form, share in enumerate(shares):
        covered = np.mean([one[form].bounds[0] <= share <= one[form].bounds[1] for one in found])
        assert covered >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs), share
    assert all((one.samples, not one.stopped) == (other.samples, not other.stopped) for one, other in found)
    stopped = np.mean([bool(one.stopped) for one, _ in found])
    if max(shares) >= LEAST_SHORT:
        assert stopped <= 0.05
    if max(shares) == 0:
        assert stopped == 1


def test_paired_changes_cover_with_the_error_of_the_last_look() -> None:
    rng, hits = np.random.default_rng(2), []
    for outcomes in rng.multinomial(96, [0.80, 0.03, 0.12, 0.05], RUNS).tolist():
        both, gained, lost, neither = outcomes
        before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
        after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
        low, high = paired_share_interval(before, after, RECALL.error(RECALL.most))
        hits.append(low <= 0.03 - 0.12 <= high)
    assert np.mean(hits) >= 0.95


def test_a_model_that_finds_nothing_is_asked_little(encode: Any, tiny_llama: Any, tmp_path: Any) -> None:
    """And says why; who shares the work or goes on after a kill asks no more."""
    from yarn_ops.data.haystack import Haystack

    words = documents(encode, tokens=3000)
    haystack = Haystack(
        words.texts, tuple(ids % 97 for ids in words.documents), (5, 6),
        lambda text: [token % 97 for token in words.encode(text)], "tiny",
    )  # fmt: skip
    plan = planned(Size(4, 16, 4, 0, ("needle/code",)), (128,), haystack)
    (cell,) = plan.cells
    assert len(cell.blocks) == 3 and cell.looks == (1, 2)
    journal = JsonLines(tmp_path / "journal")
    found = measured(plan, lambda: tiny_llama, SPEC, journal)
    score = found.scores[0]
    assert found.computed == 1 and score.samples == 4 * 16
    assert score.stopped == "[0.00, 0.09] after 64 of 256: fewer than 0.1 are found"
    assert stopped_early(found.scores) == [f"needle/code at 128 tokens {score.stopped}"]
    again = measured(plan, partial(pytest.fail, "loaded"), SPEC, journal)
    assert (again.scores, again.computed) == (found.scores, 0)

"""The gate: better at the long end, not worse at the short end, or no promotion.

A condition whose score was not measured fails: absence of evidence is no evidence.
Perplexity is the last quarter's: the same target tokens at every length and for both models.
"""

from __future__ import annotations

import math

from yarn_ops.evals.conditions import compared, decide
from yarn_ops.evals.intervals import asked_of_both, bounds, figure
from yarn_ops.evals.names import CHAT_ENDS, LAST_QUARTER, RECALL, SKILLS, USES, template_of
from yarn_ops.evals.reach import capacity_scores
from yarn_ops.recipe import Gate
from yarn_ops.scores import BeforeAfter, Check, Score, Scorecard, Verdict

LEAST_BASE_RECALL = 0.1
"""of a base that can be said to use its own window; the demo's base has 0.95, chance is 0.00001"""


def judge(gate: Gate, scores: BeforeAfter[Scorecard], target_context_tokens: int) -> Verdict:
    """Decide on every threshold that the gate sets; passed when all of them hold."""
    before, after = map(with_capacity, scores)
    original, target = before.original_context_tokens, target_context_tokens
    checks: list[Check] = []
    if gate.min_recall_kept is not None or gate.min_recall is not None:
        checks.append(_base_uses_its_window(before, original))
    if gate.min_recall_kept is not None:
        checks.append(_recall_kept(before, after, original, target, gate.min_recall_kept))
    if gate.min_uses_share is not None:
        checks.append(_uses_share(after, target, gate.min_uses_share))
    if gate.min_recall is not None:
        checks.append(_recall_at_target(after, target, gate.min_recall))
    if gate.min_long_gain is not None:
        checks.append(_long_gain(before, after, target, gate.min_long_gain))
    if gate.max_long_growth is not None:
        checks.append(_long_growth(after, original, target, gate.max_long_growth))
    if gate.max_short_growth is not None:
        checks.append(_short_loss(before, after, original, gate.max_short_growth))
    if gate.max_short_recall_loss is not None:
        checks.append(_short_recall_loss(before, after, original, gate.max_short_recall_loss))
    if gate.max_skill_loss is not None:
        checks.append(_skill_loss(before, after, gate.max_skill_loss))
    checks += [decide(condition, before, after, original, target) for condition in gate.conditions]
    digests = (scores.before.digest, scores.after.digest)
    return Verdict(parents=digests, passed=all(check.passed for check in checks), checks=tuple(checks))


def with_capacity(card: Scorecard) -> Scorecard:
    """A suite's card knows how far; of another it is read off recall and perplexity."""
    known = {score.task for score in card.scores}
    found = tuple(score for score in capacity_scores(card) if score.task not in known)
    return card.model_copy(update={"scores": card.scores + found})


def _base_uses_its_window(before: Scorecard, original: int) -> Check:
    name, best = "base uses its window", _best_recall(before, original)
    if best is None:
        return _unmeasured(name, LEAST_BASE_RECALL, f"the base's recall at its own {original:,} tokens")
    passed = best.value >= LEAST_BASE_RECALL
    reason = f"the base recalls {best.value:.2f} of the pairs within its own {original:,} tokens"
    if not passed:
        reason += ": a model that never used its own window gains nothing from a longer one"
    return Check(name=name, measured=best.value, threshold=LEAST_BASE_RECALL, passed=passed, reason=reason)


def _recall_kept(before: Scorecard, after: Scorecard, original: int, target: int, threshold: float) -> Check:
    """Other texts at another length, so the interval is that of two independent scores."""
    name, base, result = "recall kept", _best_recall(before, original), _best_recall(after, target)
    if base is None or result is None:
        missing = f"{original:,} tokens of the base" if base is None else f"{target:,} tokens of the result"
        return _unmeasured(name, threshold, f"recall at {missing}")
    kept, interval = compared(result, base, "ratio") if base.value and result.value else (0.0, None)
    low = interval[0] if interval else kept
    forms = ["" if base.task == result.task else f" in {template_of(one.task)}" for one in (base, result)]
    what = (
        f"least of what {target:,} tokens keep of the base's recall at its {original:,} "
        f"({base.value:.2f}{forms[0]} before, {result.value:.2f}{forms[1]} after, "
        f"{kept:.2f}{bounds(interval)} of it)"
    )
    return _at_least(name, what, low, threshold)


def _uses_share(after: Scorecard, target: int, threshold: float) -> Check:
    name, found = "share used", after.by_length(USES)
    if not found:
        return _unmeasured(name, threshold, "how far the result uses its window")
    what = f"share used of {target:,} tokens ({figure(found[-1], 0)} of them)"
    return _at_least(name, what, found[-1].value / target, threshold)


def _recall_at_target(after: Scorecard, target: int, threshold: float) -> Check:
    name, what, best = "recall at the target", f"recall at {target:,} tokens", _best_recall(after, target)
    return (
        _unmeasured(name, threshold, what) if best is None else _at_least(name, what, best.value, threshold)
    )


def _long_gain(before: Scorecard, after: Scorecard, target: int, threshold: float) -> Check:
    base, result = _perplexities((before, target), (after, target))
    if base is None or result is None:
        return _unmeasured("long gain", threshold, f"perplexity at {target:,} tokens of {_missing(base)}")
    what = f"gain at {target:,} tokens (perplexity {base:,.2f} before, {result:,.2f} after)"
    return _at_least("long gain", what, base / result, threshold)


def _long_growth(after: Scorecard, original: int, target: int, threshold: float) -> Check:
    short, long = _perplexities((after, original), (after, target))
    if short is None or long is None:
        missing = original if short is None else target
        return _unmeasured("long growth", threshold, f"the result's perplexity at {missing:,} tokens")
    what = f"growth of perplexity from {original:,} to {target:,} tokens ({short:,.2f} to {long:,.2f})"
    return _at_most("long growth", what, long / short, threshold)


def _short_loss(before: Scorecard, after: Scorecard, original: int, threshold: float) -> Check:
    """The worst ratio result / base over the lengths up to the original context, which must be among them."""
    name, worst = "short loss", (0.0, 0)
    for length in _short_lengths(before, after, original):
        base, result = _perplexities((before, length), (after, length))
        if base is None or result is None:
            return _unmeasured(name, threshold, f"perplexity at {length:,} tokens of {_missing(base)}")
        worst = max(worst, (result / base, length))
    return _at_most(name, f"perplexity after / before at {worst[1]:,} tokens", worst[0], threshold)


def _short_recall_loss(before: Scorecard, after: Scorecard, original: int, threshold: float) -> Check:
    """The worst drop over templates and lengths up to the original context, which must be among them."""
    name, worst = "short recall loss", (-math.inf, "")
    tasks = [task for task in RECALL if before.by_length(task) or after.by_length(task)]
    if not tasks:
        return _unmeasured(name, threshold, f"recall up to {original:,} tokens")
    for task in tasks:
        for length in _short_lengths(before, after, original):
            base, result = (_measured(card, task, length) for card in (before, after))
            if base is None or result is None:
                what = f"recall of {template_of(task)} pairs at {length:,} tokens of {_missing(base)}"
                return _unmeasured(name, threshold, what)
            change = f"({base:.2f} before, {result:.2f} after)"
            lost = f"{template_of(task)} recall lost at {length:,} tokens {change}"
            worst = max(worst, (base - result, lost))
    return _at_most(name, worst[1], worst[0], threshold)


def _skill_loss(before: Scorecard, after: Scorecard, threshold: float) -> Check:
    """The worst of what is surely lost; only chats may be missing, of both."""
    name, worst = "skill loss", (-math.inf, "")
    for task in SKILLS:
        (base, *_), (result, *_) = ((*card.by_length(task), None) for card in (before, after))
        if base is None and result is None and task == CHAT_ENDS:
            continue
        if base is None or result is None:
            missing = _missing(base.value if base else None)
            return _unmeasured(name, threshold, f"{task} of {missing}")
        lost, interval = compared(base, result, "difference")
        low = interval[0] if interval else lost
        change = f"({base.value:.2f} before, {result.value:.2f} after, {lost:.2f}{bounds(interval)} less)"
        worst = max(worst, (low, f"least of {task} that is lost {change}"))
    return _at_most(name, worst[1], worst[0], threshold)


def _short_lengths(before: Scorecard, after: Scorecard, original: int) -> list[int]:
    measured = {score.context_tokens for card in (before, after) for score in card.by_length(LAST_QUARTER)}
    return sorted({length for length in measured if length <= original} | {original})


def _best_recall(card: Scorecard, length: int) -> Score | None:
    """Of the template that the model knows best."""
    found = (card.score(task, length) for task in RECALL if _measured(card, task, length) is not None)
    return max(filter(None, found), key=lambda score: score.value, default=None)


def _measured(card: Scorecard, task: str, length: int) -> float | None:
    """None also for a value that is no number."""
    value = card.value(task, length)
    return value if value is not None and math.isfinite(value) else None


def _perplexities(*asked: tuple[Scorecard, int]) -> list[float | None]:
    """Of two cards or lengths, over the windows that both were asked; None as in `_measured`."""
    found = [card.score(LAST_QUARTER, length) for card, length in asked]
    one, other = found
    if one is not None and other is not None:
        found = [*asked_of_both(one, other)]
    return [score.value if score is not None and math.isfinite(score.value) else None for score in found]


def _missing(base: float | None) -> str:
    return "the base" if base is None else "the result"


def _at_least(name: str, what: str, value: float, threshold: float) -> Check:
    passed = value >= threshold
    reason = f"{what} is {value:,.3f}, {'at least' if passed else 'below'} {threshold:,.12g}"
    return Check(name=name, measured=value, threshold=threshold, passed=passed, reason=reason)


def _at_most(name: str, what: str, value: float, threshold: float) -> Check:
    passed = value <= threshold
    reason = f"{what} is {value:,.3f}, {'at most' if passed else 'above'} {threshold:,.12g}"
    return Check(name=name, measured=value, threshold=threshold, passed=passed, reason=reason)


def _unmeasured(name: str, threshold: float, what: str) -> Check:
    reason = f"{what} was not measured, so {name} cannot be judged"
    return Check(name=name, measured=None, threshold=threshold, passed=False, reason=reason)

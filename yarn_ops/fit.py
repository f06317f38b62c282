"""A search for the parameters of a method that suit one base, zero-shot, on held-out text.

Few evaluations, each the mean loss of the same windows at the target context: under a static RoPE that one
forward holds every shorter context too. The search is a pattern search (Hooke and Jeeves 1961) along one
coordinate at a time from the method's defaults, which costs no gradient, draws no random number and never
leaves its best point. Whatever it finds was chosen among many on the text it was chosen by, so it is then
compared with the defaults once, window by window, on documents the search has not seen, and adopted only if
the 95 % interval of the gain there is above 0. Otherwise the defaults stay.

    yarn      log2 beta_fast, log2 beta_slow, slope of the attention factor (0.1 in 0.1 ln s + 1)
    longrope  log2 of a factor at four places between the fastest and the slowest pair, on top of YaRN's own
              factors; and the slope. Texts within the original context keep the base's frequencies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from transformers import PreTrainedModel

from yarn_ops.data.haystack import Ids
from yarn_ops.data.windows import ShardReader, Window, spread
from yarn_ops.errors import EvaluationError, RecipeError, RopeError
from yarn_ops.evals.forward import require_known_head, token_losses
from yarn_ops.evals.intervals import LEAST_MEAN_SAMPLES, mean_interval
from yarn_ops.export.engines import Engine
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.device import Dtype, torch_dtype
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.progress import OnProgress
from yarn_ops.recipe import Evaluate, FittedMethod, Rope
from yarn_ops.records import BaseModel, Local, ShardSet
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.methods import (
    BETA_FAST,
    BETA_SLOW,
    YARN_TEMPERATURE_SLOPE,
    RopeSpec,
    attention_factor,
    inverse_frequencies,
)
from yarn_ops.rope.proof import retune
from yarn_ops.scores import Fit

EVALUATIONS = 24
HALVINGS = 2
"""how often the steps are halved before the search ends on its own"""
ENGINES: tuple[Engine, ...] = ("transformers", "vllm", "vllm-0.29", "sglang", "llama.cpp")
"""that a fit is checked against; `export` answers for the others"""
KNOTS = 4
DIGITS = 4
"""significant digits of what is found: finer than any difference in loss"""

Point = tuple[float, ...]
Losses = NDArray[np.float64]
"""mean loss of each window in nats a token, [W]"""


@dataclass(frozen=True)
class Space:
    """The coordinates of a method: where its defaults lie, how far a first step goes, what a point means."""

    start: Point
    steps: Point
    section: Callable[[Point], dict[str, Any]]
    """values of a recipe's rope section"""


def fit(
    section: Evaluate,
    rope: Rope,
    method: FittedMethod,
    base: Local[BaseModel],
    shards: Local[ShardSet],
    *,
    device: str,
    precision: Dtype,
    progress: OnProgress,
    evaluations: int = EVALUATIONS,
) -> Fit:
    """The best found parameters of `method` at the factor that `rope` asks for, or its defaults.

    `section.windows` windows to search on and as many to verify on, from different documents.
    EvaluationError where the held-out text is too short for that, RecipeError for a factor of 1.
    """
    started = time.monotonic()
    original = base.record.context_tokens
    factor, target = rope.resolve_factor(original), rope.target_tokens(original)
    if section.windows < LEAST_MEAN_SAMPLES:
        raise RecipeError(
            f"evaluate.windows: {section.windows} windows cannot verify what is fitted; give at least "
            f"{LEAST_MEAN_SAMPLES}"
        )
    if factor == 1:
        raise RecipeError("rope.factor: 1 leaves nothing to fit; ask for a longer context")
    config = read_config(base.path)

    def patched(values: Mapping[str, Any]) -> tuple[dict[str, Any], RopeSpec]:
        asked = Rope.model_validate(values)
        return patch_config(config, asked, factor=factor, original_context_tokens=original)

    plain, yarn = patched({"method": "yarn", "factor": factor})
    space = longrope_space(yarn) if method == "longrope" else yarn_space(factor)
    searched, fresh = draw_parts(ShardReader(shards.path, "held_out"), target, section)
    network = load_proven(base.path, plain, yarn, dtype=torch_dtype(precision), device=device)
    require_known_head(network)

    def measured(values: Mapping[str, Any], windows: Ids) -> NDArray[np.float32]:
        return losses_under(network, patched(values)[1], windows)

    done = 0

    def loss(point: Point) -> float:
        nonlocal done
        progress(done, evaluations + 2, "searching")
        try:
            value = float(measured(space.section(point), searched).mean(dtype=np.float64))
        except (RopeError, ValidationError):  # no such embedding: a ramp without width, say
            return math.inf
        done += 1
        return value

    best, seen = pattern_search(space.start, space.steps, loss, evaluations)
    progress(evaluations, evaluations + 2, "verifying")
    default, found = space.section(space.start), space.section(best)
    before, after = (measured(values, fresh) for values in (default, found))
    gain, low, high = _gain(before, after)
    short, *_ = _gain(before[:, :original], after[:, :original])
    adopted = low > 0
    chosen = found if adopted else default
    of_both = {} if target == round(factor * original) else {"target_context_tokens": target}
    progress(evaluations + 2, evaluations + 2, "fitted")
    tokens = searched[:, 1:].size * done + fresh[:, 1:].size * 2
    return Fit(
        parents=(base.record.digest, shards.record.digest),
        rope=chosen | of_both,
        adopted=adopted,
        found=found,
        search_gain_nats=seen[space.start] - seen[best],
        gain_nats=gain,
        low_nats=low,
        high_nats=high,
        short_gain_nats=short,
        default_loss_nats=float(before.mean(dtype=np.float64)),
        windows=len(fresh),
        target_context_tokens=target,
        unservable=refusals(patched(chosen)[0]),
        evaluations=done + 2,
        tokens=tokens,
        seconds=time.monotonic() - started,
    )


def yarn_space(factor: float) -> Space:
    """Ramp ends and temperature of YaRN; the start is the authors' defaults."""

    def section(point: Point) -> dict[str, Any]:
        fast, slow, slope = point
        values: dict[str, Any] = {"method": "yarn", "factor": factor}
        values |= {"beta_fast": _rounded(2**fast), "beta_slow": _rounded(2**slow)}
        return (
            values
            if slope == YARN_TEMPERATURE_SLOPE
            else values | {"attention_factor": _factor(slope, factor)}
        )

    start = (math.log2(BETA_FAST), math.log2(BETA_SLOW), YARN_TEMPERATURE_SLOPE)
    return Space(start, (1.0, 1.0, 0.04), section)


def longrope_space(yarn: RopeSpec) -> Space:
    """Factors of single pairs, bent at a few places; the start is YaRN written as LongRoPE."""
    plain = yarn.model_copy(update={"method": "none"})
    factors = inverse_frequencies(plain) / inverse_frequencies(yarn)
    pairs = np.arange(len(factors))
    places = np.linspace(0, len(factors) - 1, KNOTS)

    def section(point: Point) -> dict[str, Any]:
        *bends, slope = point
        bent = np.maximum(factors * 2 ** np.interp(pairs, places, bends), 1.0)
        return {
            "method": "longrope",
            "factor": yarn.factor,
            "short_factors": [1.0] * len(factors),
            "long_factors": [_rounded(value) for value in bent],
            "attention_factor": _factor(slope, yarn.factor),
        }

    return Space((0.0,) * KNOTS + (YARN_TEMPERATURE_SLOPE,), (0.25,) * KNOTS + (0.04,), section)


def pattern_search(
    start: Point, steps: Point, loss: Callable[[Point], float], evaluations: int
) -> tuple[Point, dict[Point, float]]:
    """The best point within at most `evaluations` calls of `loss`, and all that were tried; `start` is one.

    One coordinate after the other, up and then down, moving whenever it gets better; when none does, all
    steps are halved.
    """
    seen = {start: loss(start)}
    best = start
    for halving in range(HALVINGS + 1):
        moved = True
        while moved:
            moved = False
            for axis, step in enumerate(steps):
                for direction in (1, -1):
                    distance = direction * step / 2**halving
                    point = (*best[:axis], round(best[axis] + distance, 9), *best[axis + 1 :])
                    if point not in seen:
                        if len(seen) == evaluations:
                            return best, seen
                        seen[point] = loss(point)
                    if seen[point] < seen[best]:
                        best, moved = point, True
                        break
    return best, seen


def draw_parts(reader: ShardReader, window_tokens: int, section: Evaluate) -> tuple[Ids, Ids]:
    """Windows to search on and windows to verify on, int64 [W, window_tokens + 1], of different documents."""
    verifying = max(section.windows, LEAST_MEAN_SAMPLES)  # fewer have no interval
    windows = spread(reader, window_tokens, section.windows + 3 * verifying, section.seed)
    searched = windows[: section.windows]
    known = {document for window in searched for document in window.document_ids}
    fresh = [window for window in windows[section.windows :] if known.isdisjoint(window.document_ids)]
    if len(fresh) < LEAST_MEAN_SAMPLES:
        raise EvaluationError(
            f"evaluate.windows: {section.windows} windows of {window_tokens} tokens leave {len(fresh)} of "
            f"other held-out documents, and verifying takes {LEAST_MEAN_SAMPLES}; add documents, raise "
            "data.held_out_fraction or search on fewer windows"
        )
    return _stacked(searched), _stacked(fresh[:verifying])


def losses_under(network: PreTrainedModel, spec: RopeSpec, windows: Ids) -> NDArray[np.float32]:
    """Loss of every token of every window in nats, [W, T], with the network's heads turned by `spec`."""
    target = spec.target_context_tokens
    retune(network, inverse_frequencies(spec, target), attention_factor(spec, target))
    return token_losses(network, windows, windows.shape[1] - 1)


def refusals(config: Mapping[str, Any]) -> dict[str, str]:
    """Which of `ENGINES` cannot serve a config, with their reasons."""
    reasons: dict[str, str] = {}
    for engine in ENGINES:
        try:
            serving_settings(config, engine)
        except RopeError as error:
            reasons[engine] = str(error)
    return reasons


def _gain(before: NDArray[np.float32], after: NDArray[np.float32]) -> tuple[float, float, float]:
    """Mean loss before less after, and its 95 % interval over windows."""
    gains = (before.mean(axis=1, dtype=np.float64) - after.mean(axis=1, dtype=np.float64)).tolist()
    low, high = mean_interval(gains) or (-math.inf, math.inf)
    return float(np.mean(gains)), low, high


def _factor(slope: float, factor: float) -> float:
    return _rounded(slope * math.log(factor) + 1)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _stacked(windows: list[Window]) -> Ids:
    return np.stack([window.ids for window in windows])

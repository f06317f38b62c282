"""How far a model sees and uses, from scores written by hand and from simulated ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yarn_ops.evals.intervals import wilson
from yarn_ops.evals.reach import Reach, reach_of
from yarn_ops.evals.report import page
from yarn_ops.models.costs import costs, dimensions_of
from yarn_ops.scores import Score, Scorecard


def needles(recall: dict[int, list[float]], samples: int = 48, task: str = "needle/code") -> list[Score]:
    """recall: by length, the share of each part, farthest first."""
    scores = []
    for length, shares in recall.items():
        hits = [round(share * samples) for share in shares]
        rows = [(None, sum(hits), samples * len(hits))]
        rows += [((part + 0.5) / len(hits), found, samples) for part, found in enumerate(hits)]
        for depth, found, asked in rows:
            low, high = wilson(found, asked)
            scores.append(
                Score(task=task, context_tokens=length, depth=depth, value=found / asked, low=low, high=high,
                      samples=asked, seed=0)
            )  # fmt: skip
    return scores


def rises(nats: dict[int, tuple[float, float]]) -> list[Score]:
    """Loss above the best with less context: (mean, half of its interval) by length."""
    scores = [Score(task="loss/same-targets", context_tokens=2048, value=2, samples=9, seed=0)]
    for length, (mean, half) in nats.items():
        scores.append(
            Score(task="loss/rise", context_tokens=length, value=mean, low=mean - half, high=mean + half,
                  samples=9, seed=0)
        )  # fmt: skip
    return scores


def reach_of_scores(scores: list[Score], seed: int = 0) -> Reach:
    return reach_of(Scorecard(model_digest="", original_context_tokens=2048, scores=tuple(scores)), seed)


def test_sees_32k_uses_24k():
    """YaRN zero-shot on a real 8k model: perplexity flat, the farthest quarter of 32k not found."""
    grid = {
        2048: [1.0] * 8,
        8192: [0.9] * 8,
        16_384: [1.0] * 8,
        32_768: [0.15, 0.2, 0.98, 1, 0.92, 0.92, 1, 1],
    }
    flat = {8192: (-0.2, 0.02), 16_384: (-0.01, 0.02), 32_768: (0.0, 0.02)}
    reach = reach_of_scores([*needles(grid), *rises(flat)])
    assert (reach.sees.tokens, reach.sees.low, reach.sees.high) == (32_768, 32_768, 32_768)
    assert reach.uses.tokens == 24_576
    assert 16_384 <= reach.uses.low <= 24_576 == reach.uses.high
    assert reach.by_length.tokens == 16_384
    assert reach.threshold == pytest.approx(0.85)


def test_what_is_not_seen_is_not_used():
    grid = {2048: [1.0] * 4, 4096: [1.0] * 4}
    reach = reach_of_scores([*needles(grid), *rises({4096: (1.5, 0.1)})])
    assert (reach.sees.tokens, reach.uses.tokens) == (2048, 2048)


def test_a_rise_that_is_not_sure_widens_the_interval():
    reach = reach_of_scores(rises({4096: (0.05, 0.01), 8192: (0.06, 0.2), 16_384: (0.12, 0.05)}))
    assert (reach.sees.low, reach.sees.tokens, reach.sees.high) == (4096, 8192, 16_384)
    assert reach.uses is None


def test_a_model_that_finds_nothing_uses_nothing():
    reach = reach_of_scores(needles({2048: [0.0] * 4, 4096: [1.0] * 4}))
    assert reach.uses.tokens == 0 and reach.threshold is None


def test_the_shape_that_is_known_best_counts():
    scores = needles({2048: [0.2] * 4, 4096: [0.2] * 4}) + needles(
        {2048: [1.0] * 4, 4096: [0, 1, 1, 1]}, task="needle/prose"
    )
    reach = reach_of_scores(scores)
    assert reach.task == "needle/prose" and reach.uses.tokens == 3072


@pytest.mark.parametrize("reached", [2, 5, 8])
def test_intervals_cover_in_a_simulation(reached: int):
    """Eight parts of which the nearest few are found at .95 and the others at .5; the truth is in 95 %."""
    rng = np.random.default_rng(reached)
    truth, trials, covered = 32_768 * reached // 8, 300, 0
    for trial in range(trials):
        far = [rng.binomial(48, 0.5) / 48 for _ in range(8 - reached)]
        near = [rng.binomial(48, 0.97) / 48 for _ in range(reached)]
        short = [rng.binomial(48, 0.97) / 48 for _ in range(8)]
        uses = reach_of_scores(needles({2048: short, 32_768: [*far, *near]}), seed=trial).uses
        covered += uses.low <= truth <= uses.high
    assert covered / trials >= 0.94


def test_costs_are_those_of_llama_3_8b():
    config = {
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "num_hidden_layers": 32,
    }  # fmt: skip
    (cost,) = costs(dimensions_of(config, 6_979_000_000), [32_768])
    assert cost.kv_bytes == 32_768 * 128 * 1024  # 128 KiB a token
    assert (cost.kv_bytes_mha, cost.kv_bytes_mqa) == (4 * cost.kv_bytes, cost.kv_bytes // 8)
    attention = cost.attention_share * cost.prefill_flops
    assert attention == pytest.approx(281.5e12, rel=2e-3)
    assert cost.prefill_flops - attention == pytest.approx(457.4e12, rel=1e-3)
    assert dimensions_of({"n_embd": 4}, 1) is None


def test_published_effective_lengths():
    effective = {name: page.effective_tokens(row) for name, row in page.PUBLISHED.items()}
    assert effective["Llama-3.1-8B"] == 32_768 and effective["Together-7B-32K"] == 4096
    assert math.isclose(page.RULER_THRESHOLD, 85.6)

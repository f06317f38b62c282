"""8k to 32k on one GPU, every method zero-shot and after 50 steps; a direct jump against a curriculum.

    python infra/benchmarks/base8k.py BASE DOCUMENTS_GLOB OUT [--methods none,linear,…] [--seeds 3]
    python infra/benchmarks/base8k.py BASE DOCUMENTS_GLOB OUT --arms staged --first-seed 3 --seeds 1

BASE: a base model of 8,192 tokens. Prints a table and writes OUT/rows.json. Arms: base, zero-shot and trained
for every method; direct and staged with YaRN for every seed; staged+optimizer and staged+weights carry that
over from leg to leg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bare import Bare, Clock

from yarn_ops.recipe import Carry, Leg, Rope, parse_recipe
from yarn_ops.scores import Scorecard

FACTOR = 4
LENGTHS = (0.0625, 1, 2, 4)
OF_METHODS, OF_SEEDS = ("zero-shot", "trained"), ("direct", "staged", "staged+optimizer", "staged+weights")
ARMS = ("base", *OF_METHODS, *OF_SEEDS[:2])
CARRY: dict[str, Carry] = {
    "staged": "adapter", "staged+optimizer": "adapter+optimizer", "staged+weights": "weights",
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("documents")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--methods", default="none,linear,ntk,by-parts,yarn")
    arguments.add_argument("--arms", default=",".join(ARMS))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--first-seed", type=int, default=1)
    arguments.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    asked = arguments.parse_args()
    arms = asked.arms.split(",")
    if unknown := set(arms) - {*ARMS, *OF_SEEDS}:
        arguments.error(f"unknown arms: {', '.join(sorted(unknown))}")
    asked.out.mkdir(parents=True, exist_ok=True)
    recipe = parse_recipe(
        {
            "base": {"model": str(asked.base)},
            "rope": {"factor": FACTOR},
            "publish": {"name": "base8k"},
            "data": {"sources": [asked.documents], "held_out_fraction": 0.25},
            "train": {"rank": 32, "alpha": 64, "batch_windows": 2, "learning_rate": 5e-4, "warmup_steps": 10,
                      "checkpoint_every": 50},
            "evaluate": {"lengths": [float(text) for text in asked.lengths.split(",")], "windows": 8,
                         "recall_windows": 24, "sliding_stride_tokens": 0},
        }
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        bare = Bare.prepare(recipe, Path(folder))
        shards = bare.shards.record
        print(f"{shards.train_tokens} train tokens, {shards.held_out_tokens} held-out", clock)
        original = bare.base.record.context_tokens

        def note(name: str, card: Scorecard, seconds: float) -> None:
            rows.append(row(name, card, original) | {"seconds": round(seconds, 1)})
            print(line(rows[-1]), clock, flush=True)
            (asked.out / "rows.json").write_text(json.dumps(rows, indent=1))

        if "base" in arms:
            note("base", bare.score(bare.base, "base"), 0.0)
        for method in asked.methods.split(",") if set(arms) & set(OF_METHODS) else ():
            rope = Rope(method=method, factor=FACTOR)
            if "zero-shot" in arms:
                patched = bare.patch(rope, FACTOR, f"{method}-zero")
                note(f"{method}, zero-shot", bare.score(bare.base, f"{method}-zero", patched), 0.0)
            if "trained" in arms:
                began = time.perf_counter()
                legs = recipe.model_copy(update={"rope": rope}).curriculum(original)
                checkpoint, seconds = bare.train(rope, legs, method)
                merged_s = time.perf_counter() - began
                note(f"{method}, 50 steps", bare.score(checkpoint, method), sum(seconds))
                print(f"  (train and merge as processes: {merged_s:.0f} s)", flush=True)
        rope = Rope(method="yarn", factor=FACTOR)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            for arm in (arm for arm in OF_SEEDS if arm in arms):
                checkpoint, seconds = bare.train(rope, curriculum(arm, original), f"{arm}-{seed}", seed=seed)
                note(f"yarn {arm}, seed {seed}", bare.score(checkpoint, f"{arm}-{seed}"), sum(seconds))


def curriculum(arm: str, original: int) -> list[Leg]:
    """Direct: 50 steps of 32k. Staged: 34 of 16k and 33 of 32k, which read as many tokens."""
    if arm == "direct":
        return [Leg(context_tokens=4 * original, steps=50, factor=4.0)]
    return [
        Leg(context_tokens=2 * original, steps=34, factor=2.0),
        Leg(context_tokens=4 * original, steps=33, factor=4.0, carry=CARRY[arm]),
    ]


def row(name: str, card: Scorecard, original: int) -> dict[str, Any]:
    lengths = sorted({score.context_tokens for score in card.scores if score.task == "recall/code"})
    recall = {
        template: {length: card.value(f"recall/{template}", length) for length in lengths}
        for template in ("code", "prose")
    }
    depths = [
        round(score.value, 3)
        for score in card.scores
        if score.task == "recall/code" and score.context_tokens == lengths[-1] and score.depth is not None
    ]
    perplexity = {length: card.value("perplexity/last-quarter", length) for length in lengths}
    return {"name": name, "perplexity": perplexity, "recall": recall, "recall_by_depth": depths}


def line(values: dict[str, Any]) -> str:
    def cells(of: dict[int, float | None]) -> str:
        return " ".join(f"{value:7.2f}" if value is not None else "      -" for value in of.values())

    recall = values["recall"]
    return (
        f"{values['name']:<22} ppl {cells(values['perplexity'])} | code {cells(recall['code'])} | prose "
        f"{cells(recall['prose'])} | by depth {values['recall_by_depth']} | {values['seconds']} s"
    )


main()

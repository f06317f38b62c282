"""8k to 32k on one GPU, every method zero-shot and after 50 steps; a direct jump against a curriculum.

    python infra/benchmarks/base8k.py BASE DOCUMENTS_GLOB OUT [--methods none,linear,…] [--seeds 3]

BASE: a base model of 8,192 tokens. Prints a table and writes OUT/rows.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bare import Bare, Clock

from yarn_ops.recipe import Rope, Stage, parse_recipe
from yarn_ops.records import Scorecard

FACTOR = 4
LENGTHS = (0.0625, 1, 2, 4)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("documents")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--methods", default="none,linear,ntk,by-parts,yarn")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    asked = arguments.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    recipe = parse_recipe(
        {
            "base": {"model": str(asked.base)},
            "rope": {"factor": FACTOR},
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

        note("base", bare.score(bare.base, "base"), 0.0)
        for method in asked.methods.split(","):
            rope = Rope(method=method, factor=FACTOR)
            patched = bare.patch(rope, FACTOR, f"{method}-zero")
            note(f"{method}, zero-shot", bare.score(bare.base, f"{method}-zero", patched), 0.0)
            (leg,) = recipe.model_copy(update={"rope": rope}).curriculum(original)
            began = time.perf_counter()
            checkpoint, seconds = bare.train(rope, [leg], method)
            merged_s = time.perf_counter() - began
            note(f"{method}, 50 steps", bare.score(checkpoint, method), sum(seconds))
            print(f"  (train and merge as processes: {merged_s:.0f} s)", flush=True)
        rope = Rope(method="yarn", factor=FACTOR)
        for seed in range(1, asked.seeds + 1):
            # 34 steps of 16k and 33 of 32k read as many tokens as 50 of 32k
            legs = [Stage(context_tokens=2 * original, steps=34, factor=2.0),
                    Stage(context_tokens=4 * original, steps=33, factor=4.0)]  # fmt: skip
            direct = [Stage(context_tokens=4 * original, steps=50, factor=4.0)]
            for name, curriculum in (("direct", direct), ("staged", legs)):
                checkpoint, seconds = bare.train(rope, curriculum, f"{name}-{seed}", seed=seed)
                note(f"yarn {name}, seed {seed}", bare.score(checkpoint, f"{name}-{seed}"), sum(seconds))


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

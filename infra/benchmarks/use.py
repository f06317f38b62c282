"""What makes a model use its window: arms of training objectives on one base, at an equal number of windows.

    python infra/benchmarks/use.py BASE DOCUMENTS_GLOB OUT ARM [ARM …] [--factor 4] [--windows 12] [--seed 0]

An ARM is NAME[:KEY=VALUE…]: base, zero-shot, or text / exercises with keys steps, lr, rank, share, weight,
seed, context (tokens of a training window), legs (CONTEXTxSTEPS joined by +, instead of steps and context),
families (joined by +) and precision; ruler=SAMPLES asks eight of RULER's tasks as well (the answers are
written, which takes minutes). Every arm is trained and measured in this process, merged into the base as it
is; a line a cell goes to OUT/rows.jsonl as it is found. Recall and the held-out tasks are the evaluation's
own, whose forms no exercise has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import Bare
from torch.nn import functional as F
from transformers import AutoTokenizer

from yarn_ops.data.haystack import Haystack
from yarn_ops.data.layout import ShardReader
from yarn_ops.data.windows import spread
from yarn_ops.errors import DataError
from yarn_ops.evals import scoring
from yarn_ops.evals.plan import GRIDS
from yarn_ops.evals.reader import SharedReader
from yarn_ops.evals.tasks import ruler
from yarn_ops.evals.tasks.recall import recall_examples
from yarn_ops.models.files import read_config
from yarn_ops.models.head import Head
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Leg, Rope, Train, parse_recipe
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.train.events import NoEvents
from yarn_ops.train.job import Job
from yarn_ops.train.layout_search import choose_layout
from yarn_ops.train.loop import Loop
from yarn_ops.train.lora import load_trained, make_trainable, merge_lora
from yarn_ops.train.parallel.ranks import Ranks
from yarn_ops.train.plan import GIB

RULER_TASKS = ("niah_multikey_2", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2")
HELD_OUT_TASKS = ("passkey", "key-value", "multi-key")


def main(bench_type: type[Bench], description: str | None) -> None:
    """Trains and measures the arms that the command line names, in a bench of this type."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("base", type=Path)
    arguments.add_argument("documents")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("arms", nargs="+")
    arguments.add_argument("--factor", type=int, default=4)
    arguments.add_argument("--lengths", default="0.5,1,2,4", help="in multiples of the original context")
    arguments.add_argument("--windows", type=int, default=12)
    arguments.add_argument("--texts", type=int, default=6)
    arguments.add_argument("--batch", type=int, default=2)
    arguments.add_argument("--folder", type=Path, default=Path("/tmp/use"))
    arguments.add_argument("--skip-held-out", action="store_true")
    asked = arguments.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = bench_type(asked)
    for arm in asked.arms:
        bench.run(arm)


class Steps(NoEvents):
    """The events of steps, kept."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def emit(self, event: str, *, step: int | None = None, **facts: Any) -> None:
        if event == "step":
            self.events.append(facts)


class Bench:
    """One base and its shards, prepared once."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        recipe = parse_recipe(
            {
                "base": {"model": str(asked.base)},
                "rope": {"factor": asked.factor},
                "data": {"sources": [asked.documents], "held_out_fraction": 0.2},
                "publish": {"name": "use"},
                "train": {"targets": ["all-linear"], "batch_windows": asked.batch, "learning_rate": 1e-3},
            }
        )
        shutil.rmtree(asked.folder, ignore_errors=True)
        asked.folder.mkdir(parents=True)
        began = time.perf_counter()
        self.bare = Bare.prepare(recipe, asked.folder)
        self.patched = self.bare.patch(Rope(method="yarn", factor=asked.factor), asked.factor, "yarn")
        self.original = self.bare.base.record.context_tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(asked.base)
        self.held_out = ShardReader(self.bare.shards.path, "held_out")
        documents = [self.held_out.document(n).astype(np.int64) for n in range(self.held_out.documents)]
        texts = tuple(self.tokenizer.decode(ids.tolist()) for ids in documents)
        self.haystack = Haystack(texts, tuple(documents), (), self.encode, "", self.tokenizer.decode)
        shards = self.bare.shards.record
        self.note("prepared", {"train": shards.train_tokens, "held_out": shards.held_out_tokens}, began)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def note(self, what: str, facts: dict[str, Any], began: float) -> None:
        line = json.dumps({"what": what, "seconds": round(time.perf_counter() - began, 1), **facts})
        print(line, flush=True)
        with (self.asked.out / "rows.jsonl").open("a") as file:
            file.write(line + "\n")

    def run(self, arm: str) -> None:
        name, *pairs = arm.split(":")
        keys = dict(pair.split("=") for pair in pairs)
        began = time.perf_counter()
        if name in ("base", "zero-shot"):
            model = self.loaded(self.asked.base if name == "base" else self.patched.path)
        else:
            model, steps = self.train(name, keys)
            facts: dict[str, Any] = {"step_s": round(statistics.median(step["step_s"] for step in steps), 3)}
            facts["peak_gib"] = round(max(step["peak_bytes"] for step in steps) / GIB, 2)
            for key in ("loss", "answer_loss"):
                curve = [step[key] for step in steps if step.get(key)]
                facts[key] = [round(value, 3) for value in curve[:: max(1, len(curve) // 6)]]
                facts[f"{key}_last_10"] = round(statistics.fmean(curve[-10:]), 4) if curve else None
            self.note(f"{arm} trained", facts, began)
        self.measure(arm, model, ruler_samples=int(keys.get("ruler", 0)))
        del model
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def loaded(self, configured: Path) -> Any:
        """The base with the config of a directory."""
        config = read_config(configured)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        return load_proven(self.asked.base, config, rope_spec_of(config), dtype=dtype, device=self.device)

    def train(self, name: str, keys: dict[str, str]) -> tuple[Any, list[dict[str, Any]]]:
        """The merged model, and the event of every step."""
        steps, seed = int(keys.get("steps", 50)), int(keys.get("seed", 1))
        exercises = {
            "share": 0.0 if name == "text" else float(keys.get("share", 1)),
            "answer_share": float(keys.get("weight", 0.67)),
            "families": keys["families"].split("+") if "families" in keys else [],
        }
        values = self.bare.recipe.train.model_dump() | {
            "exercises": exercises, "seed": seed, "checkpoint_every": 10_000,
            "rank": int(keys.get("rank", 16)), "learning_rate": float(keys.get("lr", 1.5e-3)),
            "precision": keys.get("precision", "auto"),
        }  # fmt: skip
        length = int(keys.get("context", self.asked.factor * self.original))
        legs = [leg.split("x") for leg in keys.get("legs", f"{length}x{steps}").split("+")]
        steps_seen = Steps()
        previous: Path | None = None
        for number, (context, leg_steps) in enumerate(legs):
            job = Job(
                train=Train.model_validate(values),
                leg=Leg(context_tokens=int(context), steps=int(leg_steps), factor=float(self.asked.factor)),
                data=self.bare.recipe.data.model_copy(update={"seed": seed + 1000 * number}),
                base_dir=self.asked.base,
                patched_dir=self.patched.path,
                shards_dir=self.bare.shards.path,
                previous_dir=previous,
                out_dir=self.asked.folder / f"adapter-{number}",
                work_dir=self.asked.folder / "work",
                device="auto",
                threads=torch.get_num_threads(),
            )
            job.work_dir.mkdir(exist_ok=True)
            shutil.rmtree(job.out_dir, ignore_errors=True)
            torch.manual_seed(seed)
            choose_layout(job, Ranks())
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            loop = Loop(job, steps_seen, threading.Event(), Ranks())
            loop.run()
            loop.write_adapter()
            previous = job.out_dir
            del loop
            shutil.rmtree(job.work_dir)
        assert previous is not None
        model = self.loaded(self.patched.path)  # training may have held frozen weights in fewer bits
        make_trainable(model, job.train)
        load_trained(model, previous)
        merge_lora(model)
        model.requires_grad_(False)
        return model.to(torch.bfloat16 if self.device == "cuda" else torch.float32).eval(), steps_seen.events

    def lengths(self) -> list[int]:
        return [round(float(text) * self.original) for text in self.asked.lengths.split(",")]

    def measure(self, arm: str, model: Any, ruler_samples: int) -> None:
        lengths = self.lengths()
        if arm == "base":
            lengths = [length for length in lengths if length <= self.original]
        for length in lengths:
            began = time.perf_counter()
            windows = [w.ids[:length] for w in spread(self.held_out, length, self.asked.windows, 7)]
            found: dict[str, Any] = {}
            for form in ("code", "prose"):
                asked = recall_examples(windows, self.encode, (form,), length, 8, 3)
                whole, *parts = scoring.recall(form, scoring.ask_in_turn(model, asked), length, 8, 3)[:9]
                found[form] = [round(whole.value, 3), [round(part.value, 2) for part in parts]]
            found["perplexity"] = round(float(np.exp(np.mean([*self.losses(model, windows[:6])]))), 3)
            self.note(f"{arm} @ {length}", found, began)
        if self.asked.skip_held_out:
            return
        reader = SharedReader(model)
        for length in lengths:
            began = time.perf_counter()
            found = {}
            for task in HELD_OUT_TASKS:
                samples = GRIDS[task](self.haystack, length, 8, self.asked.texts, 5)
                scores = scoring.recall(task, scoring.ask_all(reader, [samples]), length, 8, 5)
                found[task] = [
                    round(scores[0].value, 3),
                    [round(s.value, 2) for s in scores if s.depth is not None],
                ]
            self.note(f"{arm} held out @ {length}", found, began)
            if ruler_samples:
                began, found = time.perf_counter(), {}
                for task in RULER_TASKS:
                    with suppress(DataError):  # a length that cannot hold it
                        asked = ruler.examples(task, self.haystack, length, ruler_samples, 5)
                        (score,) = ruler.measure(reader, task, asked, self.tokenizer.decode, length, 5)
                        found[task] = round(score.value, 3)
                self.note(f"{arm} ruler @ {length}", found, began)

    def losses(self, model: Any, windows: list[Any]) -> Iterator[float]:
        """Mean loss of each window's last quarter."""
        with torch.inference_mode():
            for ids in windows:
                ids_BT = torch.as_tensor(ids)[None].to(model.device)
                quarter = len(ids) // 4
                hidden = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[
                    0, -quarter - 1 : -1
                ]
                yield float(F.cross_entropy(Head.of(model).logits(hidden), ids_BT[0, -quarter:]))


if __name__ == "__main__":
    main(Bench, __doc__)

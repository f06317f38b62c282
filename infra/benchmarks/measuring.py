"""What measuring a base and its result takes beside training: one shape, random weights, one GPU.

    python infra/benchmarks/measuring.py --tokenizer DIR --documents 'books/*.txt' --out rows.jsonl

Plans what a recipe asks of a base and of its result, on held-out documents tokenised by DIR, a base's
directory. Of every family of cells at every length a part is measured by the product's own code, two windows
or one text of it; its seconds a token, times the tokens that the plan asks, are the cell's. Random weights
find nothing, so what is asked follows from what a base and a result do: a result is asked all, a base beyond
its context until the first look. Cells that `--seconds` leaves no time for take the seconds a token of the
other model, which differs by its rotation alone. Training is the recipe's steps times a step that any_gpu.py
measures first, in a process of its own. Reading weights from a disk is not in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import any_gpu  # first: it sets the allocator
import torch
from measuring_plan import BASE, NAMED, RESULT, CellKey, Plan, config_of, family
from streamed_run import filled
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.errors import DataError
from yarn_ops.evals import attention
from yarn_ops.evals.cells import ModelUnderTest
from yarn_ops.planning import plan_run
from yarn_ops.recipe import Recipe, load_recipe
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.serving.measure import BITS, TEXTS, faulty_specs
from yarn_ops.serving.reading import TokenisedText, forward
from yarn_ops.shipped import recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="8k-to-32k")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, as `extend --set`")
    parser.add_argument("--shape", choices=NAMED, default="llama-3-8b")
    parser.add_argument("--row", default="8b-32k", help="of any_gpu.py, whose step is measured")
    parser.add_argument("--original", type=int, default=8192, help="context of the base")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--documents", required=True)
    parser.add_argument("--seconds", type=float, default=140, help="of all, after which nothing more begins")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to try the script")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    ends = time.monotonic() + asked.seconds

    def tell(**row: Any) -> None:
        line = json.dumps({"left_s": round(ends - time.monotonic(), 1), **row}, ensure_ascii=False)
        print(line, flush=True)
        if asked.out:
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    overrides = [f"base.model={asked.tokenizer}", f"data.sources=[{json.dumps(asked.documents)}]", *asked.set]
    recipe = load_recipe(recipe_path(asked.recipe), overrides)
    with tempfile.TemporaryDirectory(prefix="measuring-") as folder:
        step = StepMeasurement(asked, Path(folder))
        began = time.perf_counter()
        plan = Plan.of(recipe, asked, Path(folder))
        tell(planned_s=round(time.perf_counter() - began, 1), cells=len(plan.whole))
        step_s = step.wait()
        tell(step_s=step_s)
        windows = recipe.train.batch_windows * recipe.train.gradient_accumulation_steps
        training_s = recipe.train.steps * windows * step_s
        found = Measurement(plan, asked, ends)
        for row in found.rows():
            tell(**row)
        spent = found.table(training_s, windows)
        tell(**spent, foretold=foretold(recipe, plan, Path(folder), asked))


class StepMeasurement:
    """any_gpu.py's step, in a process that has the GPU until it ends."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self._out = folder / "step.jsonl"
        tokens = [] if asked.device == "cuda" else ["--tokens", "256"]
        layers = [] if asked.layers is None else ["--layers", str(asked.layers)]
        self._process = subprocess.Popen(
            [sys.executable, any_gpu.__file__, "--rows", asked.row, "--out", str(self._out),
             "--device", asked.device, *tokens, *layers], stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self) -> float:
        """Seconds of the last step."""
        self._process.wait()
        lines = [json.loads(line) for line in self._out.read_text("utf-8").splitlines()]
        steps = [line["step_s"] for line in lines if "step_s" in line]
        if not steps:
            raise SystemExit(f"{any_gpu.__file__}: no step was measured: {lines[-1:]}")
        return float(steps[-1])


def made(config: LlamaConfig, device: str, weights: dict[str, torch.Tensor] | None) -> Any:
    """A model of a config: with random weights, or with these."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    if weights is None:
        filled(model, device)
    else:
        model.load_state_dict(weights, assign=True)
    with torch.device(device):
        model.base_model.rotary_emb = type(model.base_model.rotary_emb)(config=config)
    return model


@dataclass
class Measurement:
    """The part of the plan, of both models."""

    plan: Plan
    asked: argparse.Namespace
    ends: float
    token_s: dict[tuple[str, CellKey], float] = field(default_factory=dict)
    """seconds of a token of each family at each length"""
    alone_s: dict[str, float] = field(default_factory=dict)
    """of what is done once, by name"""

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for everything that is measured, when it is."""
        plan, device = self.plan, self.asked.device
        longest = max(tokens for _, tokens in plan.whole)
        factor = longest / self.asked.original
        torch.manual_seed(0)
        weights = None
        for name in (RESULT, BASE):
            config = config_of(self.asked, factor if name == RESULT else 1)
            model = made(config, device, weights)
            weights = model.state_dict()
            under_test = ModelUnderTest(lambda model=model: model, rope_spec_of(config.to_dict()))
            with self._timed(f"choosing the forward, {name}"):
                assert under_test.model is model and under_test.reader is not None
            yield {name: "reads by", "as": type(under_test.reader).__name__, "s": self._last_s}
            for key in sorted(plan.part, key=lambda key: plan.asked(key, name), reverse=True):
                if time.monotonic() > self.ends:
                    yield {name: "no time for", "cell": key}
                    continue
                if (name, family(key)) in self.token_s:
                    continue
                blocks = plan.part[key].blocks
                tokens = sum(block.tokens for block in blocks)
                try:
                    with self._timed():
                        for block in blocks:
                            block.measure(under_test)
                except DataError as error:  # the product leaves such a cell out, too
                    self.token_s[name, family(key)] = 0.0
                    yield {name: key[0], "tokens": key[1], "left out": str(error)}
                    continue
                self.token_s[name, family(key)] = self._last_s / tokens
                yield {name: key[0], "tokens": key[1], "read": tokens, "s": round(self._last_s, 2)}
            if name == RESULT and time.monotonic() < self.ends:
                looked = attention.cell(plan.haystack, "code", longest, plan.seed)
                with self._timed("attention"):
                    looked.blocks[0].measure(under_test)
                yield {name: "attention", "tokens": longest, "s": round(self._last_s, 2)}
                yield self._fingerprint(model, longest)
            del model, under_test
            gc.collect()

    def _fingerprint(self, model: Any, longest: int) -> dict[str, Any]:
        """Of one text in float32, or bfloat16 where that does not fit, as the product does."""
        own = made(model.config, self.asked.device, model.state_dict())
        own = own.float() if self.asked.device == "cpu" or torch.cuda.mem_get_info()[0] > 60e9 else own
        ids = [int(token) for token in self.plan.haystack.ids[: longest - 8]]
        text = TokenisedText(ids, [len(ids)])
        for _ in range(2):
            with self._timed():
                forward(own, [text])
        specs = faulty_specs(rope_spec_of(model.config.to_dict()))
        states = 1 + len(specs) + 2 + len(BITS)  # measured, faults, a cut context and BOS, rounded weights
        self.alone_s["fingerprint"] = states * TEXTS * self._last_s
        return {
            "fingerprint": str(own.dtype), "forward_s": round(self._last_s, 2), "states": states,
            "texts": TEXTS, "s": round(self.alone_s["fingerprint"], 1),
        }  # fmt: skip

    def _timed(self, name: str | None = None) -> Timed:
        return Timed(self, name)

    _last_s: float = 0.0

    def table(self, training_s: float, windows: int) -> dict[str, Any]:
        """Seconds by kind of cell and model, their sum, and that over training."""
        kinds: dict[str, dict[str, float]] = {}
        total = {BASE: self.plan.made_s, RESULT: self.plan.made_s}
        for name in (BASE, RESULT):
            other = BASE if name == RESULT else RESULT
            for key in self.plan.whole:
                units = [self.token_s.get((model, family(key))) for model in (name, other)]
                unit = next((unit for unit in units if unit is not None), None)
                if unit is None:
                    kinds.setdefault("not measured", {})[f"{name} {key}"] = self.plan.asked(key, name)
                    continue
                seconds = unit * self.plan.asked(key, name)
                kind = kinds.setdefault(key[0], {})
                kind[name] = round(kind.get(name, 0.0) + seconds, 1)
                total[name] += seconds
            total[name] += self.alone_s.get(f"choosing the forward, {name}", 0.0)
        total[RESULT] += self.alone_s.get("attention", 0.0)
        measuring = sum(total.values())
        fingerprint = self.alone_s.get("fingerprint", 0.0)
        return {
            "kinds": kinds,
            "once": {name: round(seconds, 1) for name, seconds in self.alone_s.items()},
            "texts_made_s": round(self.plan.made_s, 1),
            "measuring_s": {name: round(seconds, 1) for name, seconds in total.items()},
            "training_s": round(training_s, 1),
            "measuring over training": round(measuring / training_s, 3),
            "of eight windows a step": round(measuring / training_s * windows / 8, 3),
            "with the fingerprint": round((measuring + fingerprint) / training_s, 3),
        }


class Timed:
    """Seconds of a block, when the GPU has done what it was told."""

    def __init__(self, kept: Measurement, name: str | None) -> None:
        self._kept, self._name = kept, name

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_: object) -> None:
        self._kept._last_s = self._now() - self._began
        if self._name is not None:
            self._kept.alone_s[self._name] = self._kept._last_s

    def _now(self) -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def foretold(recipe: Recipe, plan: Plan, folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """What `yarn-ops plan` says of the same, by the rates of a measured GPU."""
    gpu = torch.cuda.get_device_name() if asked.device == "cuda" else "H200"
    parts = plan_run(recipe, plan.subject.path, gpu).parts
    return {part.name: round(part.seconds, 1) for part in parts}


if __name__ == "__main__":
    main()

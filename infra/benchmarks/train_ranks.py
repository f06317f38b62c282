"""Several GPUs beside one, in one run: Llama shapes, random weights, LoRA r=16 on every linear layer or all
parameters.

    torchrun --nproc-per-node 2 infra/benchmarks/train_ranks.py [--arms NAME,NAME] [--out rows.jsonl]

    correct     a small shape: losses and adapter gradients of every layout against one GPU's, bf16
    full        1B, all parameters learn, 32,768 tokens: all GPUs with a window each and a sharded optimizer,
                then one GPU alone with all windows
    context     8B, 131,072 tokens: all GPUs with a part of the window each, then one GPU alone
    sharded     the same by all GPUs with the base sharded
    data        8B, 32,768 tokens: all GPUs with a window each, then one GPU alone with all windows
    full-8b     8B, all parameters learn, 32,768 tokens, by all GPUs with a part of the window each:
                more than one GPU holds
    longest     the longest window that the planner gives a GPU without host memory, alone and shared: a
                forward and a layer's backward, when its memory has peaked

What the layers keep is chosen by the planner, whose forecast is a line of its own before a model is made. A
model of two such layers then takes a step, which compiles the kernels; steps of the whole model are timed
between synchronisations, the slowest rank counts. A row that would not end within `--seconds` is named as
left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as every trainer has it

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shared_run import Fields, Run, Work, device, prepared
from train_step import PEAK_FLOPS, SHAPE, SHAPES, SMALL, EnoughError, random_model, shape_config

from yarn_ops.train import decoder
from yarn_ops.train.backbone import capacity
from yarn_ops.train.layout_search import Prediction, communication_s
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.parallel.layout import Layout
from yarn_ops.train.parallel.ranks import Ranks, join
from yarn_ops.train.plan import GIB, MARGIN, LayerPolicy, Rates, model_flops, plan_step, step_cost

ALONE = Layout()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", default="correct,full,context,sharded,data,full-8b,longest")
    parser.add_argument("--steps", type=int, help="timed ones of a row")
    parser.add_argument("--seconds", type=float, default=1e9, help="of all rows together")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and few tokens, to try the script")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    ends = time.monotonic() + asked.seconds
    folder = Path(tempfile.gettempdir()) / "train-ranks"
    folder.mkdir(exist_ok=True)
    with join(device(), folder) as ranks:
        gpu = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
        for arm in asked.arms.split(","):
            for row in rows_of(arm, ranks, asked, ends):
                tell(ranks, {"arm": arm, "device": gpu, "gpus": ranks.size, **row}, asked.out)


def rows_of(arm: str, ranks: Ranks, asked: argparse.Namespace, ends: float) -> Iterator[Fields]:
    n = ranks.size
    if arm == "correct":
        yield from correct(ranks)
        return
    if arm == "longest":
        for layout in (Layout(context=n), Layout(context=n, sharded=True), ALONE):
            yield longest(ranks, layout)
        return
    work, layouts = {
        "full": (
            Work(SHAPES["llama-3.2-1b"], 32768, n, True, 3),
            {Layout(n, optimizer_sharded=True): 20, ALONE: 10},
        ),
        "context": (Work(SHAPE, 131072, 1, steps=1), {Layout(context=n): 35, ALONE: 48}),
        "sharded": (Work(SHAPE, 131072, 1, steps=1), {Layout(context=n, sharded=True): 35}),
        "data": (Work(SHAPE, 32768, n, steps=3), {Layout(n): 40, ALONE: 40}),
        "full-8b": (Work(SHAPE, 32768, 1, True), {Layout(context=n, optimizer_sharded=True): 18}),
    }[arm]
    if asked.steps:
        work = work._replace(steps=asked.steps)
    if asked.tiny:
        shape = SMALL | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
        work = work._replace(shape=shape, tokens=work.tokens // 64)
    shared: Fields = {}
    for layout, expected_s in layouts.items():
        if ranks.any(ends - time.monotonic() < expected_s):
            yield {"layout": layout.describe() or "one GPU", "left_out": f"it takes about {expected_s} s"}
            continue
        for row in timed(ranks, layout, work):
            yield row
        if layout != ALONE:
            shared = row
        elif "step_s" in row and "step_s" in shared:
            yield compared(row, shared)


def compared(alone: Fields, shared: Fields) -> Fields:
    return {
        "compared": shared["layout"],
        "times_the_tokens_per_s": round(shared["tokens_per_s"] / alone["tokens_per_s"], 3),
        "losses_off": [
            abs(one / other - 1) for one, other in zip(shared["losses"], alone["losses"], strict=True)
        ],
    }


def tell(ranks: Ranks, row: Fields, out: Path | None) -> None:
    if not ranks.is_main:
        return
    print(json.dumps(row, ensure_ascii=False), flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def by(ranks: Ranks, layout: Layout, work: Callable[[Ranks], Fields]) -> Fields:
    """Done by all ranks in this layout, or by the first alone while the others wait."""
    found: Fields = {}
    try:
        if layout != ALONE:
            ranks.use_layout(layout)
            found = work(ranks)
        elif ranks.is_main:
            found = work(Ranks())
    except torch.OutOfMemoryError as error:
        found = {"failed": str(error).splitlines()[0]}
    freed()
    dist.barrier(group=dist.new_group(backend="gloo"))
    return {"layout": layout.describe() or "one GPU", **found}


def freed() -> None:
    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def foretold(work: Work, ranks: Ranks) -> Prediction:
    """By the planner, before there is a model, from rates that every rank probes."""
    config, layout = shape_config(work.shape, work.tokens), ranks.layout
    model = prepared(random_model(config, "meta"), work.full)
    shape = ModelShape.of(model, element_bytes=2, weight_bytes=4 if work.full else 2).laid_out(layout)
    positions = work.tokens // layout.context
    memory, host, *rates = ranks.minimum(
        capacity(shape, device(), torch.bfloat16, positions, work.tokens, False, ranks.size)
    )
    freed()
    plan = plan_step(shape, positions, work.tokens, Rates(*rates), memory_bytes=memory, host_bytes=host)
    step_s = plan.step_s + (communication_s(shape, layout, positions) if ranks.size > 1 else 0.0)
    return Prediction(work.windows // layout.data * step_s, layout, plan)


def timed(ranks: Ranks, layout: Layout, work: Work) -> Iterator[Fields]:
    """What is foretold of it, then the row."""
    known: list[Prediction] = []

    def predicted(ranks: Ranks) -> Fields:
        found = foretold(work, ranks)
        known.append(found)
        return {
            "foretold": "before it ran",
            "predicted_s": round(found.step_s, 3),
            "predicted_gib": round(found.plan.peak_bytes / GIB, 2),
        }

    def measured(ranks: Ranks) -> Fields:
        plan = known[0].plan
        small = work._replace(shape=work.shape | {"num_hidden_layers": 2})
        Run(small, ranks, [plan.policies[0], plan.policies[-1]]).step(0, ranks.layout.data)
        freed()
        run = Run(work, ranks, list(plan.policies))
        if device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, losses = [], []
        for number in range(work.steps):
            ranks.any(False)  # all begin together
            began = now()
            losses.append(run.step(number, work.windows))
            seconds.append(-ranks.minimum([began - now()])[0])
        step_s = statistics.median(seconds)
        flops = model_flops(run.backbone.shape, work.tokens, work.tokens) * work.windows / ranks.size
        row: Fields = {
            "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            "learn": sum(parameter.numel() for parameter in run.learning),
            "tokens": work.tokens,
            "windows": work.windows,
            "kept": plan.describe(),
            "step_s": round(step_s, 3),
            "tokens_per_s": round(work.windows * work.tokens / step_s),
            "mfu": round(flops / step_s / PEAK_FLOPS, 3),
            "predicted_s": round(known[0].step_s, 3),
            "predicted_gib": round(plan.peak_bytes / GIB, 2),
            "all_s": [round(value, 3) for value in seconds],
            "losses": losses,
        }
        if device() == "cuda":
            peak = ranks.minimum([-torch.cuda.max_memory_allocated()])[0]
            row["peak_gib"] = round(-peak / GIB, 2)
            row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
        return row

    yield by(ranks, layout, predicted)
    yield by(ranks, layout, measured)


def now() -> float:
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def correct(ranks: Ranks) -> Iterator[Fields]:
    """Against one GPU, which rank 0 asks first: a loss, and the worst and the whole of the gradients."""
    work = Work(SMALL, 8192, 2)

    def alone(ranks: Ranks) -> Fields:
        run = Run(work, ranks)
        return {"loss": run.backward(0, 2), "gradients": [p.grad.clone() for p in run.learning]}

    expected = by(ranks, ALONE, alone)
    n = ranks.size
    for layout in (Layout(n), Layout(1, n), Layout(n, 1, True), Layout(1, n, True)):

        def shared(ranks: Ranks) -> Fields:
            run = Run(work, ranks)
            loss = run.backward(0, 2)
            ranks.sum_gradients(run.learning)
            if not ranks.is_main:
                return {}
            pairs = list(zip((p.grad for p in run.learning), expected["gradients"], strict=True))
            off = torch.stack([(one - other).norm() for one, other in pairs])
            size = torch.stack([other.norm() for _, other in pairs])
            return {
                "tokens": 8192,
                "loss_off": abs(loss / expected["loss"] - 1),
                "gradients_off": float(off.norm() / size.norm()),
                "worst_gradient_off": float((off / size).max()),
            }

        yield by(ranks, layout, shared)


def longest(ranks: Ranks, layout: Layout) -> Fields:
    policies = [LayerPolicy("input")] * SHAPE["num_hidden_layers"]

    def work(ranks: Ranks) -> Fields:
        context = ranks.layout.context
        run = Run(Work(SHAPE, 8192 * context, 1), ranks, policies)
        shape, rates = run.backbone.shape, run.backbone._rates
        memory = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        usable = ranks.minimum([memory])[0] * (1 - MARGIN)
        tokens = 8192 * context
        while fits(shape, policies, tokens + 8192 * context, context, rates, usable):
            tokens += 8192 * context
        del run
        freed()
        run = Run(Work(SHAPE, tokens, 1), ranks, policies)
        began = time.perf_counter()
        backward_of_one_layer(lambda: run.backward(0, 1))
        return {
            "tokens": tokens,
            "kept": run.backbone.plan.describe(),
            "forward_and_one_layer_s": round(time.perf_counter() - began, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 1),
            "predicted_gib": round(run.backbone.plan.peak_bytes / GIB, 1),
        }

    return by(ranks, layout, work)


def fits(shape: ModelShape, policies: Any, tokens: int, context: int, rates: Any, usable: float) -> bool:
    return step_cost(shape, policies, tokens // context, tokens, rates).peak_bytes <= usable


def backward_of_one_layer(step: Callable[[], float]) -> None:
    """A forward, and backward until the last layer's input has its gradient."""
    layer, seen = decoder.decoder_layer, []

    def arrived(_: torch.Tensor) -> None:
        torch.cuda.synchronize()
        seen.append(1)
        if len(seen) > 1:
            raise EnoughError

    def watched(x: torch.Tensor, *others: Any) -> torch.Tensor:
        y: torch.Tensor = layer(x, *others)
        y.register_hook(arrived)
        return y

    decoder.decoder_layer = watched
    try:
        step()
    except EnoughError:
        pass
    finally:
        decoder.decoder_layer = layer


if __name__ == "__main__":
    main()

"""The LoRA step on cards of other sizes and on long windows: one GPU, its memory capped where a row says so.

    python infra/benchmarks/any_gpu.py --out rows.jsonl [--rows 8b-32k,8b-32k-24] [--seconds 240] [--host 100]
    python infra/benchmarks/any_gpu.py --foretell          what each row will take; needs no GPU

Random weights of each row's shape, embeddings and head not tied, LoRA r=16 on every linear layer, batch 1,
YaRN ×4. A row is foretold by the planner, from rates that are probed in the row's process, before its model
is made; then a step of two such layers compiles the kernels, and `--steps` steps of the whole model are timed
(each of forward, backward and optimizer). A row named `…-resident` may not stream, one named `…-nf4` holds
the layers in 4 bits. A row of a million tokens is one step that compiles as it goes, each layer told as it
is done; `8b-1m` computes two of the layers and works out the whole. Rows run in the order given, each in a
process of its own, a line for each event as soon as it is known; one that fails is a line too, and one that
would not end within `--seconds` is named as left out.

    same     gradients of a streamed and a resident step of a small shape: equal to the last bit?
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as every trainer has it
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # imports that ask for a GPU spoil no fork

import argparse
import gc
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from streamed_run import Run, adapted, shape_of
from train_step import PEAK_FLOPS, SHAPES, SMALL, shape_config
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.errors import TrainError
from yarn_ops.planning import DRIVER_BYTES, narrower
from yarn_ops.recipe import Train
from yarn_ops.train.attention import choose_kernel
from yarn_ops.train.layout_search import Prediction, predict
from yarn_ops.train.parallel.layout import Layout, StepShape
from yarn_ops.train.plan import GIB, LADDER, Rates, model_flops, plan_step, step_cost
from yarn_ops.train.probe import GPUS, measure_rates


class Row(NamedTuple):
    """One row of the table."""

    shape: str
    tokens: int
    card_gb: float | None = None
    """None: the whole GPU"""
    resident: bool = False
    nf4: bool = False
    by_layers: bool = False
    """one step, each layer timed as it computes, nothing compiled before"""
    layers: int | None = None
    """so many of the shape's are computed, each as the planner has the whole's first"""


MILLION = 1 << 20
ROWS = {
    "8b-32k": Row("llama-3-8b", 32768, resident=True),
    "8b-32k-24": Row("llama-3-8b", 32768, 24),
    "8b-32k-12": Row("llama-3-8b", 32768, 12),
    "8b-32k-12-nf4": Row("llama-3-8b", 32768, 12, nf4=True),
    "8b-32k-nf4": Row("llama-3-8b", 32768, nf4=True),
    "32b-32k-24": Row("qwen-2.5-32b", 32768, 24),
    "32b-32k-resident": Row("qwen-2.5-32b", 32768, resident=True),
    "8b-131k-24": Row("llama-3-8b", 131072, 24),
    "70b-32k": Row("llama-3-70b", 32768),
    "smollm2-1m": Row("smollm2-135m", MILLION, by_layers=True),
    "1b-1m": Row("llama-3.2-1b", MILLION, by_layers=True),
    "8b-1m": Row("llama-3-8b", MILLION, resident=True, by_layers=True, layers=2),
}
START_S = 14.0
"""of a row's process until its rates are probed, FlashAttention-4's import and compilation in it"""
COMPILE_S = 14.0
"""of the other kernels"""
PIN_S = 0.3
"""of a GiB of host memory that is pinned: 32B's 49 GiB took 13 s there"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(["same", *ROWS]))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240, help="of all rows together")
    parser.add_argument("--host", type=float, default=100, help="GiB of host memory that a step may pin")
    parser.add_argument("--layers", type=int, help="fewer than the shapes have, to try the script")
    parser.add_argument("--tokens", type=int, help="other than the rows have, to try the script")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument("--foretell", action="store_true", help="by the planner's table of an H200")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.start = "fork"
    ends = time.monotonic() + asked.seconds
    for name in asked.rows.split(","):
        left_s = ends - time.monotonic()
        for line in [forecast(name, asked)] if asked.foretell else lines_of(name, asked, left_s):
            print(json.dumps(line, ensure_ascii=False), flush=True)
            if asked.out:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def forecast(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What a row will take, by the table of an H200: its step as the planner foretells it, and `row_s`,
    seconds of its process."""
    if name == "same":
        return {"row": name, "row_s": 20}
    row, gpu = ROWS[name], GPUS[1]
    tokens, config = asked.tokens or row.tokens, config_of(ROWS[name], asked)
    rates = narrower(gpu.rates, shape_of(adapted(config)))
    memory = gpu.memory_bytes if row.card_gb is None else row.card_gb * GIB - DRIVER_BYTES
    try:
        found = foretold(config, tokens, row, rates, memory, asked.host * GIB)
    except TrainError as error:
        return {"row": name, "refused": str(error)}
    layers, pinned_s = config.num_hidden_layers, PIN_S * found.plan.host_bytes / GIB
    steps = (row.layers or layers) / layers if row.by_layers else asked.steps + 2 / layers
    row_s = START_S + COMPILE_S + pinned_s * min(1, steps) + found.plan.step_s * steps
    return {"row": name, "row_s": round(row_s), **predicted(found, row)}


def lines_of(name: str, asked: argparse.Namespace, left_s: float) -> Iterator[dict[str, Any]]:
    """What a row's process tells, until it ends or its time is over.

    It is a fork of this one, in which all is imported and the GPU has not been touched (where an import did,
    it is a new process); its memory is gone when it ends, and what it compiled stays on disk.
    """
    expected_s = forecast(name, asked).get("row_s", 0) if asked.device == "cuda" else 0
    if left_s < expected_s:
        yield {"row": name, "left_out": f"{left_s:.0f} s were left, it takes about {expected_s:.0f}"}
        return
    starting: Any = multiprocessing.get_context(asked.start)
    mine, its = starting.Pipe(duplex=False)
    process = starting.Process(target=measure_in_child, args=(name, asked, its))
    began = time.monotonic()
    process.start()
    its.close()
    ended = False
    while not ended:
        if not mine.poll(max(0.0, began + left_s - time.monotonic())):
            process.kill()
            yield {"row": name, "failed": f"not done after {left_s:.0f} s"}
            break
        try:
            line = mine.recv()
        except EOFError:
            line = {"failed": "its process ended"}
        ended = line.get("done") or "failed" in line
        if "re-initialize CUDA" in line.get("failed", ""):
            process.join()
            asked.start = "spawn"
            yield from lines_of(name, asked, began + left_s - time.monotonic())
            return
        yield {"row": name, "at_s": round(time.monotonic() - began, 1), **line}
    process.join()


def measure_in_child(name: str, asked: argparse.Namespace, told: Connection) -> None:
    try:
        if name == "same":
            told.send({**same(asked.device), "done": True})
        else:
            measure(ROWS[name], asked, told.send)
    except Exception as error:
        told.send({"failed": f"{type(error).__name__}: {error}"[:400]})
        raise


def measure(row: Row, asked: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    """Tells what was foretold of a row, then each step, then the row."""
    tokens, device, config = asked.tokens or row.tokens, asked.device, config_of(row, asked)
    memory, rates = card(row.card_gb, config, tokens, device)
    found = foretold(config, tokens, row, rates, memory, asked.host * GIB)
    tell({
        "shape": row.shape, "tokens": tokens, "card_gb": row.card_gb, "cap_gib": round(memory / GIB, 2),
        **predicted(found, row),
        "rates": {name: f"{rate:.3g}" for name, rate in rates._asdict().items()},
    })  # fmt: skip
    if row.by_layers:
        measure_layers(row, asked, config, found, rates, tell)
        return
    values = SHAPES[row.shape]
    small = shape_config(values | {"num_hidden_layers": 2}, tokens)
    compiling = found._replace(layout=Layout(streamed=2 * bool(found.layout.streamed)))
    run = Run(small, tokens, device, compiling, nf4=row.nf4, keeps=2, tell=tell)
    run.step()
    tell({"compiled": True})
    del run
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    run = Run(config, tokens, device, found, nf4=row.nf4, tell=tell)
    tell({"made": True, **memory_used(device)})
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(asked.steps):
        step_s, loss = run.step()
        line = {"step": number, "step_s": round(step_s, 3), "loss": round(loss, 4)}
        line |= {"mfu": mfu(run.model, tokens, step_s), **memory_used(device)}
        tell(line | {"done": number + 1 == asked.steps})


def measure_layers(
    row: Row,
    asked: argparse.Namespace,
    config: LlamaConfig,
    found: Prediction,
    rates: Rates,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """One step, layer by layer; where the row has fewer layers than its shape, the whole's seconds are worked
    out: the step without compiling, and a layer's forward and backward for each that is missing."""
    tokens, whole = asked.tokens or row.tokens, config.num_hidden_layers
    layers = row.layers or whole
    if layers < whole:
        config = shape_config(SHAPES[row.shape] | {"num_hidden_layers": layers}, tokens)
        plan = step_cost(shape_of(adapted(config)), found.plan.policies[:layers], tokens, tokens, rates)
        found = Prediction(plan.step_s, Layout(), plan)
        tell({"layers": layers, **predicted(found, row)})
    run = Run(config, tokens, asked.device, found, tell=tell)
    tell({"made": True, **memory_used(asked.device)})
    step_s, loss, forward_s, backward_s, first_s = run.step_by_layers()
    compiled_s = step_s - first_s
    line = {
        "step_s": round(step_s, 2), "loss": round(loss, 4), "without_compiling_s": round(compiled_s, 2),
        "layer_forward_s": round(forward_s, 3), "layer_backward_s": round(backward_s, 3),
        "mfu": mfu(run.model, tokens, compiled_s), **memory_used(asked.device),
    }  # fmt: skip
    if layers < whole:
        worked_out = compiled_s + (whole - layers) * (forward_s + backward_s)
        line["whole_s"] = round(worked_out, 1)
        line["whole_is"] = (
            f"{compiled_s:.1f} + {whole - layers} × ({forward_s:.2f} + {backward_s:.2f}) = {worked_out:.0f} s"
        )
    tell(line | {"done": True})


def config_of(row: Row, asked: argparse.Namespace) -> LlamaConfig:
    values = SHAPES[row.shape]
    layers = asked.layers or values["num_hidden_layers"]
    return shape_config(values | {"num_hidden_layers": layers}, asked.tokens or row.tokens)


def predicted(found: Prediction, row: Row) -> dict[str, Any]:
    plan = found.plan
    return {
        "layout": found.layout.describe() or "resident" + ", nf4" * row.nf4, "kept": plan.describe(),
        "predicted_s": round(plan.step_s, 3), "predicted_gib": round(plan.peak_bytes / GIB, 2),
        "predicted_host_gib": round(plan.host_bytes / GIB, 1),
    }  # fmt: skip


def mfu(model: LlamaForCausalLM, tokens: int, step_s: float) -> float:
    return round(model_flops(shape_of(model), tokens, tokens) / step_s / PEAK_FLOPS, 3)


def memory_used(device: str) -> dict[str, float]:
    """GiB of this process's host memory, and the most of the GPU's."""
    used = {"host_gib": round(psutil.Process().memory_info().rss / GIB, 1)}
    if device == "cuda":
        used["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        used["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return used


def card(size_gb: float | None, config: LlamaConfig, tokens: int, device: str) -> tuple[float, Rates]:
    """Bytes that torch may take of a card of this size, from now on, and the GPU's rates."""
    if device == "cpu":
        return (size_gb or 1e3) * GIB, Rates(1e11, 1e11, 1e11, 1e10, 1e10)
    free, total = torch.cuda.mem_get_info()
    memory = free if size_gb is None else size_gb * GIB - DRIVER_BYTES
    torch.cuda.set_per_process_memory_fraction(memory / total)
    shape = shape_of(adapted(config))
    kernel = choose_kernel("cuda", torch.bfloat16, shape.head_width, documents=False)
    rates = measure_rates(shape, tokens, tokens, kernel)
    torch.cuda.empty_cache()
    return memory, rates


def foretold(
    config: LlamaConfig, tokens: int, row: Row, rates: Rates, memory: float, host: float
) -> Prediction:
    shape = replace(shape_of(adapted(config)), nf4=row.nf4)
    if row.layers:  # what a host would have to hold is part of the answer
        host = math.inf
    if row.resident:
        plan = plan_step(shape, tokens, tokens, rates, memory_bytes=memory, host_bytes=host)
        return Prediction(plan.step_s, Layout(), plan)
    step = StepShape(1, 1, tokens, shape.heads, shape.kv_heads, ours=True)
    train = Train(precision="nf4" if row.nf4 else "auto")
    return predict(1, step, train, shape, rates, memory_bytes=memory, host_bytes=host)


def same(device: str) -> dict[str, Any]:
    """Whether three steps' gradients of a streamed model are a resident one's to the last bit."""
    tokens = 128 if device == "cuda" else 64  # past one block, cuDNN's backward does not repeat itself
    config = shape_config(SMALL | {"num_hidden_layers": 6}, tokens)
    shape = shape_of(adapted(config))
    rates = Rates(1e12, 1e12, 1e12, 1e12, 1e12)
    plan = plan_step(shape, tokens, tokens, rates, memory_bytes=100 * GIB, host_bytes=GIB)
    mixed = tuple(LADDER[place % len(LADDER)] for place in range(shape.layers))
    gradients: dict[int, list[torch.Tensor]] = {}
    for streamed in (0, 0, 3, shape.layers):
        found = Prediction(0, Layout(streamed=streamed), replace(plan, policies=mixed))
        run = Run(config, tokens, device, found)
        seen = []
        for _ in range(3):
            ids = torch.randint(0, config.vocab_size, (1, tokens), generator=run.random).to(device)
            run.backward(ids)
            seen += [parameter.grad.clone() for parameter in run.learning if parameter.grad is not None]
        twice = gradients.get(streamed)
        gradients[streamed] = seen
        if twice is not None:
            repeats = all(map(torch.equal, twice, seen))
    equal = {
        streamed: sum(map(torch.equal, seen, gradients[0]))
        for streamed, seen in gradients.items()
        if streamed
    }
    return {"resident_repeats_itself": repeats, "equal_gradients": equal, "of": len(gradients[0])}


if __name__ == "__main__":
    main()

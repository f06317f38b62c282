"""Several GPUs beside one, in one run: Llama 3 8B's shape, random weights, LoRA r=16 on every linear layer.

    torchrun --nproc-per-node 2 infra/benchmarks/train_ranks.py [--arms NAME,NAME] [--out rows.jsonl]

    correct     a small shape: losses and adapter gradients of every layout against one GPU's, bf16
    context     131,072 tokens: one GPU alone, then all of them with a part of the window each
    data        32,768 tokens: one GPU alone with a window, then all of them with a window each
    longest     the longest window that the planner gives a GPU without host memory, alone and shared: a
                forward and a layer's backward, when its memory has peaked

What the layers keep is chosen by the planner. A step is timed whole between synchronisations, the slowest
rank counts; the first is not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model
from train_step import PEAK_FLOPS, SHAPE, SMALL, EnoughError, model_flops, random_model, shape_config

from yarn_ops.train import decoder
from yarn_ops.train.backbone import Backbone
from yarn_ops.train.batches import IGNORED, Batch
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.parallel.layout import Layout
from yarn_ops.train.parallel.ranks import Ranks, join
from yarn_ops.train.parallel.sharding import ShardedLayers
from yarn_ops.train.plan import GIB, MARGIN, LayerPolicy, ModelShape, step_cost

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
STEPS = 2
ALONE = Layout()


class Run:
    """One model and the way its steps are shared."""

    def __init__(
        self, shape: dict[str, Any], tokens: int, ranks: Ranks, policies: list[LayerPolicy] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.config, self.tokens, self.ranks = shape_config(shape, tokens), tokens, ranks
        self.model = random_model(self.config).requires_grad_(False)
        inject_adapter_in_model(LORA, self.model)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self.learning:
            parameter.data = parameter.data.float()
        layers = self.model.base_model.layers
        absent = ShardedLayers(layers, "cuda", ranks.size) if ranks.layout.sharded else None
        self.backbone = Backbone(
            self.model,
            torch.bfloat16,
            windows=1,
            window=tokens,
            policies=policies,
            ranks=ranks,
            absent=absent,
        )
        self.loss_of = CausalLoss(self.model, self.backbone, torch.bfloat16, ranks.context_group)
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4, fused=True)

    def backward(self, number: int, windows: int) -> float:
        """Gradients of a step of `windows`, summed over all ranks; its loss."""
        share = windows // self.ranks.layout.data
        mine = range(self.ranks.data_rank * share, (self.ranks.data_rank + 1) * share)
        loss = 0.0
        for window in mine:
            random = torch.Generator().manual_seed(1000 * number + window)
            ids = torch.randint(0, self.config.vocab_size, (1, self.tokens), generator=random).cuda()
            targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
            batch = Batch(ids, targets, None, self.tokens - 1, frozenset()).part(self.ranks.context_group)
            part = self.loss_of(batch).total / (windows * (self.tokens - 1))
            part.backward()
            loss += float(part.detach())
        self.ranks.sum_gradients(self.learning)
        return self.ranks.total(loss)

    def step(self, number: int, windows: int) -> float:
        loss = self.backward(number, windows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", default="correct,context,data,longest")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "train-ranks"
    folder.mkdir(exist_ok=True)
    with join("cuda", folder) as ranks:
        n = ranks.size
        for arm in arguments.arms.split(","):
            if arm == "correct":
                rows = correct(ranks)
            elif arm == "context":
                layouts = [ALONE, Layout(context=n), Layout(context=n, sharded=True)]
                rows = [timed(ranks, layout, 131072, 1, arguments.steps) for layout in layouts]
            elif arm == "data":
                rows = [timed(ranks, ALONE, 32768, 1, 3), timed(ranks, Layout(data=n), 32768, n, 3)]
            else:
                layouts = [ALONE, Layout(context=n), Layout(context=n, sharded=True)]
                rows = [longest(ranks, layout) for layout in layouts]
            for row in rows:
                tell(
                    ranks,
                    {"arm": arm, "device": torch.cuda.get_device_name(), "gpus": n, **row},
                    arguments.out,
                )


def tell(ranks: Ranks, row: dict[str, Any], out: Path | None) -> None:
    if not ranks.is_main:
        return
    print(json.dumps(row), flush=True)
    if out:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def by(ranks: Ranks, layout: Layout, work: Callable[[Ranks], dict[str, Any]]) -> dict[str, Any]:
    """Done by all ranks in this layout, or by the first alone while the others wait."""
    found: dict[str, Any] = {}
    try:
        if layout != ALONE:
            ranks.use_layout(layout)
            found = work(ranks)
        elif ranks.is_main:
            found = work(Ranks())
    except torch.OutOfMemoryError as error:
        found = {"failed": str(error).splitlines()[0]}
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    dist.barrier(group=dist.new_group(backend="gloo"))
    return {"layout": layout.describe() or "one GPU", **found}


def timed(ranks: Ranks, layout: Layout, tokens: int, windows: int, steps: int) -> dict[str, Any]:
    def work(ranks: Ranks) -> dict[str, Any]:
        run = Run(SHAPE, tokens, ranks)
        seconds, losses = [], []
        for number in range(steps + 1):
            ranks.any(False)  # all begin together
            torch.cuda.synchronize()
            began = time.perf_counter()
            losses.append(run.step(number, windows))
            torch.cuda.synchronize()
            seconds.append(-ranks.minimum([began - time.perf_counter()])[0])
        step_s = statistics.median(seconds[1:])
        flops = model_flops(run.config, tokens) * windows / ranks.size
        return {
            "tokens": tokens,
            "windows": windows,
            "kept": run.backbone.plan.describe(),
            "step_s": round(step_s, 3),
            "tokens_per_s": round(windows * tokens / step_s),
            "mfu": round(flops / step_s / PEAK_FLOPS, 3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 1),
            "predicted_s": round(run.backbone.plan.step_s * windows / ranks.layout.data, 2),
            "predicted_gib": round(run.backbone.plan.peak_bytes / GIB, 1),
            "all_s": [round(value, 3) for value in seconds],
            "losses": losses,
        }

    return by(ranks, layout, work)


def correct(ranks: Ranks) -> list[dict[str, Any]]:
    """Against one GPU, which rank 0 asks first: a loss, and the worst and the whole of the gradients."""

    def alone(ranks: Ranks) -> dict[str, Any]:
        run = Run(SMALL, 8192, ranks)
        return {"loss": run.backward(0, 2), "gradients": [p.grad.clone() for p in run.learning]}

    expected = by(ranks, ALONE, alone)
    rows = []
    n = ranks.size
    for layout in (Layout(n), Layout(1, n), Layout(n, 1, True), Layout(1, n, True)):

        def shared(ranks: Ranks) -> dict[str, Any]:
            run = Run(SMALL, 8192, ranks)
            loss = run.backward(0, 2)
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

        rows.append(by(ranks, layout, shared))
    return rows


def longest(ranks: Ranks, layout: Layout) -> dict[str, Any]:
    policies = [LayerPolicy("input")] * SHAPE["num_hidden_layers"]

    def work(ranks: Ranks) -> dict[str, Any]:
        context = ranks.layout.context
        run = Run(SHAPE, 8192 * context, ranks, policies)
        shape, rates = run.backbone.shape, run.backbone._rates
        memory = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        usable = ranks.minimum([memory])[0] * (1 - MARGIN)
        tokens = 8192 * context
        while fits(shape, policies, tokens + 8192 * context, context, rates, usable):
            tokens += 8192 * context
        del run
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run = Run(SHAPE, tokens, ranks, policies)
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

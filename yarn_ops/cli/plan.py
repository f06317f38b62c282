"""`yarn-ops plan`: what training a recipe will take, before anything is prepared or trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from yarn_ops.cli.display import CONSOLE
from yarn_ops.cli.rope import directory_of
from yarn_ops.errors import RecipeError
from yarn_ops.recipe import Recipe

if TYPE_CHECKING:
    from yarn_ops.train.plan import Plan, Rates, Shape

GIB = 1 << 30
HOST_BYTES = 96 * GIB
"""of a machine that is not this one"""


@dataclass(frozen=True)
class LegPlan:
    """One leg of the curriculum."""

    context_tokens: int
    steps: int
    keeps: str
    peak_bytes: int
    host_bytes: int
    step_s: float
    seconds: float
    mfu: float | None
    """of the GPU's measured peak"""


@dataclass(frozen=True)
class RunPlan:
    """A recipe's training on one device."""

    device: str
    parameters: int
    trained: int
    disk_bytes: int
    """base, adapter of every leg, merged model"""
    legs: tuple[LegPlan, ...]


def plan_run(recipe: Recipe, gpu: str | None) -> RunPlan:
    """By a measured GPU's name, or by this machine's own GPU; TrainError where a leg does not fit."""
    import torch

    from yarn_ops.checkpoints import read_config
    from yarn_ops.rope.patch import lay_out
    from yarn_ops.train.lora import make_trainable
    from yarn_ops.train.plan import Shape, plan_step

    directory = directory_of(recipe.base.model, recipe.base.original_context_tokens)
    original = recipe.base.original_context_tokens or read_config(directory)["max_position_embeddings"]
    model = lay_out(directory)
    make_trainable(model, recipe.train)
    whole, float8 = recipe.train.method == "full", recipe.train.precision == "fp8"
    shape = Shape.of(model, element_bytes=2, weight_bytes=4 if whole else 2)
    legs = []
    for leg in recipe.curriculum(original):
        window = leg.context_tokens
        positions = window * recipe.train.batch_windows
        device, memory, rates, peak = _device(gpu, shape, positions, window, float8)
        found = plan_step(shape, positions, window, rates, memory_bytes=memory, host_bytes=HOST_BYTES)
        legs.append(_leg(shape, found, leg.steps, window, positions, recipe.train.accumulate, peak))
    adapter = shape.trained * torch.float32.itemsize
    disk = 2 * shape.parameters * 2 + len(legs) * adapter
    return RunPlan(device, shape.parameters - shape.trained * (not whole), shape.trained, disk, tuple(legs))


def show(plan: RunPlan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    learn = f"{plan.trained / 1e6:,.1f} M of {plan.parameters / 1e6:,.1f} M parameters learn"
    CONSOLE.print(f"{plan.device}: {learn}, {plan.disk_bytes / GIB:,.1f} GiB on disk")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("tokens", "steps", "kept by the layers", "GPU GiB", "host GiB", "s/step", "minutes", "MFU"):
        table.add_column(head, justify="left" if head == "kept by the layers" else "right")
    for leg in plan.legs:
        table.add_row(
            f"{leg.context_tokens:,}",
            str(leg.steps),
            leg.keeps,
            f"{leg.peak_bytes / GIB:.1f}",
            f"{leg.host_bytes / GIB:.1f}",
            f"{leg.step_s:.2f}",
            f"{leg.seconds / 60:.1f}",
            "" if leg.mfu is None else f"{leg.mfu:.2f}",
        )
    CONSOLE.print(table)


def _device(
    gpu: str | None, shape: Shape, positions: int, window: int, float8: bool
) -> tuple[str, float, Rates, float | None]:
    """Name, bytes, rates and peak FLOP/s of the asked GPU, or of the one that is here, which is probed."""
    import torch

    from yarn_ops.train.attention import choose_kernel
    from yarn_ops.train.plan import GPUS, known_gpu
    from yarn_ops.train.probe import measure_rates

    if gpu is not None:
        known = known_gpu(gpu)
        if known is None:
            names = ", ".join(each.name for each in GPUS)
            raise RecipeError(
                f"--gpu {gpu}: not measured yet; choose from {names}, or plan where that GPU is"
            )
        rates = known.rates._replace(products=known.float8_products) if float8 else known.rates
        return known.name, known.memory_bytes, rates, known.peak_flops
    if not torch.cuda.is_available():
        names = " or ".join(f"--gpu {each.name}" for each in GPUS)
        raise RecipeError(f"plan: no GPU here to plan for; name one: {names}")
    name, known = torch.cuda.get_device_name(), known_gpu(torch.cuda.get_device_name())
    kernel = choose_kernel("cuda", torch.bfloat16, shape.head_width, documents=False)
    rates = measure_rates(shape, positions, window, kernel, float8=float8)
    return name, torch.cuda.mem_get_info()[0], rates, known and known.peak_flops


def _leg(
    shape: Shape, plan: Plan, steps: int, window: int, positions: int, accumulate: int, peak: float | None
) -> LegPlan:
    from yarn_ops.train.plan import model_flops

    step_s = plan.step_s * accumulate
    mfu = None if peak is None else model_flops(shape, positions, window) / plan.step_s / peak
    return LegPlan(
        window, steps, plan.describe(), plan.peak_bytes, plan.host_bytes, step_s, steps * step_s, mfu
    )

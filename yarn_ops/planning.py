"""What a recipe will take on a GPU, before anything is prepared or trained."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yarn_ops.bill import BillItem, Machines, Workload, bill, models_a_night
from yarn_ops.errors import RecipeError, TrainError
from yarn_ops.recipe import Recipe

if TYPE_CHECKING:
    from yarn_ops.evals.cells import Reads
    from yarn_ops.train.layout_search import Prediction
    from yarn_ops.train.model_shape import ModelShape
    from yarn_ops.train.plan import Rates

GIB = 1 << 30
HOST_GB = 96.0
"""of a machine that is not this one, for each GPU: host memory that a step may take"""
DRIVER_BYTES = GIB // 2
"""of a card's memory, which the driver and CUDA take"""
SIZED = re.compile(r"(?:(?P<name>\w+):)?(?P<size>\d+(?:\.\d+)?) ?GB", re.IGNORECASE)
"""a card of any size: 24GB, H200:24GB"""
USUAL_CARDS = ("12GB", "16GB", "24GB", "48GB", "H100", "H200")
"""least memory first: what a recipe is planned for where no GPU is named or there"""
MODEL_START_S = 4.0
"""of a model that is measured, its file's reading apart: texts are made, forward and reader held to float32
(SmolLM2-135M on an H200: 1.9 until the first cell, 2 more in it)"""
FILE_BYTES_PER_S = 2e9
"""of weights, read and hashed once before"""
LAYER_S = 1.9e-4
"""of a layer's calls in a forward: transformers' of 30 layers took 17 ms, ours a third (decision 37)"""
OWN_FORWARD_CALLS = 3
"""times as long transformers' own forward calls"""
LOGIT_BYTES = 16
"""moved for a logit: bfloat16 out and in, float32 out, log-softmax in and out"""
WIDE = (4096, 128)
"""hidden and head width of the shape that `train.probe.GPUS` was measured on"""
ENDS_WIDTH = 400
"""of a product's inner width, for which the beginning and the end of its loop take as long as the loop;
fitted to SmolLM2-135M (width 576) on an H200, infra/benchmarks/results/use-smollm2.md"""
EXPONENTIALS_PER_S = 16 * 132 * 1.755e9
"""of attention, one for each head's pair of row and key however wide the head is: an H100's or H200's, 16 a
clock on each multiprocessor"""
FINGERPRINT_FORWARDS = 4 * 17
"""texts of the target length, each under the measured state, its faults and rounded weights"""
TILED_SHARE = 0.57
"""of the rate of attention that PyTorch's FlashAttention-2 reaches on Hopper: newer kernels are 1.5 to 2
times as fast (FlashAttention-3, 2024)"""
PROCESS_GIB = 8
"""of a trainer process beside what it keeps on the host: imports, CUDA, a shard of weights on its way"""
TRAINER_START_S = 30.0
"""of a leg beside its steps: start, compilation, its files written (SmolLM2-135M on an H200: 19 to 43)"""
SHM_GIB = 2
"""of shared memory for each GPU's process: NCCL's buffers, torchrun's store"""
SHARDS_GIB = 32
"""of disk for documents and token shards at work"""


@dataclass(frozen=True)
class LegPlan:
    """One leg of the curriculum."""

    context_tokens: int
    steps: int
    keeps: str
    peak_bytes: int
    """of each GPU"""
    host_bytes: int
    """for each GPU"""
    step_s: float
    seconds: float
    mfu: float | None
    """of the GPUs' measured peak"""
    shared: str
    """how several GPUs share a step, how much one streams, or that layers are in 4 bits; "" for none"""


@dataclass(frozen=True)
class RunPlan:
    """A recipe's run."""

    device: str
    processes: int
    """GPUs that train together"""
    parameters: int
    trained: int
    disk_bytes: int
    """base, adapter of every leg, merged model"""
    legs: tuple[LegPlan, ...]
    parts: tuple[BillItem, ...]
    models_a_night: int

    def job_variables(self) -> dict[str, str]:
        """What a run asks a Kubernetes pool for, by the names of the pools' templates."""
        base_gib = 2 * self.parameters / GIB
        host_gib = self.processes * (max(leg.host_bytes for leg in self.legs) / GIB + PROCESS_GIB)
        shm_gib = self.processes * SHM_GIB
        snapshot_gib = 12 * self.trained / GIB  # weights and AdamW's moments in float32
        disk_gib = self.disk_bytes / GIB + base_gib + 2 * snapshot_gib + SHARDS_GIB
        held_gib = max(2 * base_gib, snapshot_gib)  # a merge holds base and result
        return {
            "gpus": str(self.processes),
            "memory": f"{round(host_gib + held_gib + shm_gib + 0.5)}Gi",
            "shm": f"{shm_gib}Gi",
            "scratch": f"{round(disk_gib + 0.5)}Gi",
        }


def plan_run(
    recipe: Recipe,
    directory: Path,
    gpu: str | None,
    machines: Machines | None = None,
    document_bytes: float = 1e9,
    host_gb: float = HOST_GB,
) -> RunPlan:
    """By a measured GPU's name, a size (`_device`), or this machine's own GPU, which has to be there;
    TrainError where a leg does not fit. directory: of the base. `host_gb`: of host memory for each GPU."""
    import torch

    from yarn_ops.models.files import read_config
    from yarn_ops.models.loading import lay_out
    from yarn_ops.train.layout_search import predict, step_shape, training_shape
    from yarn_ops.train.lora import make_trainable
    from yarn_ops.train.parallel.layout import usable_processes

    machines = machines or Machines()
    config = read_config(directory)
    original = recipe.base.original_context_tokens or config["max_position_embeddings"]
    model = lay_out(directory)
    make_trainable(model, recipe.train)
    whole, float8 = recipe.train.method == "full", recipe.train.precision == "fp8"
    shape = training_shape(model, recipe.train, "cuda")
    legs, processes = [], 1
    for leg in recipe.curriculum(original):
        window = leg.context_tokens
        positions = window * recipe.train.batch_windows
        device, memory, rates, peak = _device(gpu, shape, positions, window, float8)
        step = step_shape(model, recipe.train, window, config)
        processes = usable_processes(machines.gpus, step)
        found = predict(
            processes, step, recipe.train, shape, rates, memory_bytes=memory, host_bytes=host_gb * GIB
        )
        legs.append(_leg(shape, found, leg.steps, window, step.windows, peak))
    adapter = shape.trained * torch.float32.itemsize
    workload = Workload(
        document_bytes,
        2 * shape.parameters,
        sum(TRAINER_START_S + leg.seconds for leg in legs),
        *_evaluation(recipe, original, shape, rates if gpu is None else narrower(rates, shape)),
    )
    parts = bill(workload, machines)
    return RunPlan(
        device, processes, shape.parameters - shape.trained * (not whole), shape.trained,
        2 * shape.parameters * 2 + len(legs) * adapter, tuple(legs), parts, models_a_night(parts, machines),
    )  # fmt: skip


def plan_cards(
    recipe: Recipe, directory: Path, machines: Machines, document_bytes: float, host_gb: float
) -> dict[str, RunPlan | TrainError]:
    """By `USUAL_CARDS`, each as `plan_run` has it: the plan, or why a leg does not fit there. TrainError, the
    largest card's, where none fits."""
    found: dict[str, RunPlan | TrainError] = {}
    for card in USUAL_CARDS:
        try:
            found[card] = plan_run(recipe, directory, card, machines, document_bytes, host_gb)
        except TrainError as error:
            found[card] = error
    if isinstance(largest := found[USUAL_CARDS[-1]], TrainError):
        raise TrainError(f"plan: no usual card fits, an {USUAL_CARDS[-1]} neither: {largest}")
    return found


def _evaluation(
    recipe: Recipe, original: int, shape: ModelShape, rates: Rates
) -> tuple[float, int, float, float]:
    """Seconds on one GPU, blocks, seconds of what is not divided, of the largest block (`Workload`).

    A base beyond its context finds nothing and is asked until the first look; a result is asked all.
    """
    from yarn_ops.evals.cells import Reads
    from yarn_ops.evals.plan import loads

    asked = recipe.measured(original)
    target = recipe.rope.target_tokens(original)
    found, took = loads(asked, original, target), []
    for load in found:
        of_base = load.reads.until_look if load.context_tokens > original else 1.0
        took.append((of_base + 1) * reading_seconds(shape, load.reads, rates))
    alone_s = 2 * (MODEL_START_S + 2 * shape.parameters / FILE_BYTES_PER_S)
    if recipe.publish.fingerprint:
        exact = rates._replace(
            products=rates.products / 2, attention_forward=rates.attention_forward * TILED_SHARE,
            bytes=rates.bytes / 2,
        )  # fmt: skip
        text = Reads(target, target**2 / 2, OWN_FORWARD_CALLS)
        alone_s += FINGERPRINT_FORWARDS * reading_seconds(shape, text, exact)
    if asked.suite == "none":  # no helpers are asked for
        return sum(took) + alone_s, 1, sum(took) + alone_s, 0.0
    largest_s = max(seconds / load.blocks for seconds, load in zip(took, found, strict=True))
    return sum(took) + alone_s, sum(load.blocks for load in found), alone_s, largest_s


def narrower(rates: Rates, shape: ModelShape) -> Rates:
    """Rates that were measured on products and heads of `WIDE`, as a narrower model reaches them."""
    width, head = WIDE
    depth = (1 + ENDS_WIDTH / width) / (1 + ENDS_WIDTH / shape.hidden)
    pair_s = 4 * head / rates.attention_forward
    ours_s = (pair_s - 1 / EXPONENTIALS_PER_S) * shape.head_width / head + 1 / EXPONENTIALS_PER_S
    return rates._replace(products=rates.products * depth, attention_forward=4 * shape.head_width / ours_s)


def reading_seconds(shape: ModelShape, reads: Reads, rates: Rates) -> float:
    """Of what goes through a model of this shape, on one GPU: layers, logits, and calls."""
    from yarn_ops.train.plan import forward_seconds

    layers_s = forward_seconds(shape, reads.tokens, 2 * reads.pairs / reads.tokens, rates)
    logit_s = 2 * shape.hidden / rates.products + LOGIT_BYTES / rates.bytes
    return layers_s + reads.scored * shape.vocabulary * logit_s + reads.forwards * shape.layers * LAYER_S


def _device(
    gpu: str | None, shape: ModelShape, positions: int, window: int, float8: bool
) -> tuple[str, float, Rates, float | None]:
    """Name, bytes, rates and peak FLOP/s of the asked GPU, or of the one that is here, which is probed.

    A measured GPU may be asked for by name, and with another memory (`H200:24GB`). A size alone (`24GB`)
    answers what fits any such card, with the seconds of the first measured GPU.
    """
    import torch

    from yarn_ops.train.attention import choose_kernel
    from yarn_ops.train.probe import GPUS, known_gpu, measure_rates

    if gpu is not None:
        sized = SIZED.fullmatch(gpu.strip())
        known = known_gpu((sized["name"] or GPUS[0].name) if sized else gpu)
        if known is None:
            names = ", ".join(each.name for each in GPUS)
            raise RecipeError(
                f"--gpu {gpu}: not measured yet; choose from {names}, or a size such as 24GB, or plan "
                "where that GPU is"
            )
        rates = known.rates._replace(products=known.float8_products) if float8 else known.rates
        if sized is None:
            return known.name, known.memory_bytes, rates, known.peak_flops
        memory_bytes = float(sized["size"]) * GIB - DRIVER_BYTES
        if not 0 < memory_bytes < math.inf:
            fault = "large" if memory_bytes > 0 else f"small; its driver takes {DRIVER_BYTES / GIB} GiB"
            raise RecipeError(f"--gpu {gpu[:40]}: no card is as {fault}")
        name = f"{sized['size']} GB at an {known.name}'s rates"
        return name, memory_bytes, rates, known.peak_flops
    name, known = torch.cuda.get_device_name(), known_gpu(torch.cuda.get_device_name())
    kernel = choose_kernel("cuda", torch.bfloat16, shape.head_width, documents=False)
    rates = measure_rates(shape, positions, window, kernel, float8=float8)
    return name, torch.cuda.mem_get_info()[0], rates, known and known.peak_flops


def _leg(
    shape: ModelShape, found: Prediction, steps: int, window: int, windows: int, peak: float | None
) -> LegPlan:
    from yarn_ops.train.plan import model_flops

    plan, layout, step_s = found.plan, found.layout, found.step_s
    mfu = None
    if peak is not None:
        mfu = windows * model_flops(shape, window, window) / step_s / (peak * layout.processes)
    shared = ", ".join(filter(None, (layout.describe(), "layers in 4 bits" * shape.nf4)))
    return LegPlan(
        window, steps, plan.describe(), plan.peak_bytes, plan.host_bytes, step_s, steps * step_s, mfu, shared
    )  # fmt: skip

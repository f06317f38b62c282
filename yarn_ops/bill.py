"""What a recipe takes on so many machines, in hours and money: each part by its measured unit cost.

Machines are alike, with so many GPUs each. Documents are prepared on the cores of all machines. A run has the
GPUs of one from its beginning to its end: it trains on all of them and measures on the first; helpers on the
other machines' GPUs share the cells of its suite.
"""

from __future__ import annotations

from dataclasses import dataclass

from yarn_ops.errors import SettingsError
from yarn_ops.settings import GPU_HOUR, NODE_HOUR

TOKENISE_BYTES_PER_S = 3.0e6
"""of text, by one core: 31.5 MB in 4.4 to 6.1 s on two (infra/decisions/0004)"""
WORKER_START_S = 60.0
"""of one more grid worker until its first cell, the model's way from the store left out: an assumption"""
STORE_BYTES_PER_S = 0.22 * (1 << 30)
"""to or from the object store, by one machine (infra/benchmarks/results/pull.md)"""
MOVES = 4
"""of a model in a run: the base comes, the result goes, both come to where they are measured"""
RUN_START_S = 18.0
"""of a run whose model is small: processes, imports, registering (infra/benchmarks/results/faults.md)"""
CORES = 32
"""of a machine: an assumption"""
HOUR_S = 3600.0
NIGHT_HOURS = 10.0


@dataclass(frozen=True)
class Machines:
    """The machines to plan for, and their prices an hour."""

    nodes: int = 1
    gpus: int = 1
    """of each node"""
    gpu_hour: float = GPU_HOUR
    node_hour: float = NODE_HOUR

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus < 1:
            raise SettingsError(f"{self.nodes} nodes of {self.gpus} GPUs: name at least one of each")
        if min(self.gpu_hour, self.node_hour) < 0:
            raise SettingsError("--gpu-hour, --node-hour: a price is 0 or more")


@dataclass(frozen=True)
class Workload:
    """A recipe's, in units that machines are counted by."""

    document_bytes: float
    model_bytes: float
    training_s: float
    """on the GPUs of one node"""
    evaluation_s: float
    """on one GPU, base and result together"""
    blocks: int
    """of the evaluation, that can go to different GPUs; the rest goes to one"""
    alone_s: float
    """of `evaluation_s`, what is not divided"""
    largest_s: float
    """of the largest block: however many share the rest, it takes as long"""


@dataclass(frozen=True)
class BillItem:
    """One part of a run."""

    name: str
    seconds: float
    gpu_s: float
    """seconds of GPUs that it is charged for, busy or not"""
    money: float
    """US dollars"""
    limit: str
    """what saturates first"""
    setting: str
    """what to change then"""


def bill(workload: Workload, machines: Machines) -> tuple[BillItem, ...]:
    """The items in their order. Documents are charged by the node, the rest by the GPU."""
    cores = machines.nodes * CORES
    preparing_s = workload.document_bytes / TOKENISE_BYTES_PER_S / cores
    there = 1 + (machines.nodes - 1) * machines.gpus
    workers = max(1, min(there, workload.blocks))
    moved_s = workload.model_bytes / STORE_BYTES_PER_S
    helper_s = WORKER_START_S + 2 * moved_s if workers > 1 else 0.0  # while the first has begun
    each_s = max((workload.evaluation_s - workload.alone_s) / workers, workload.largest_s) + helper_s

    limit, setting = (
        f"{workers} of {there} GPUs for {workload.blocks} blocks",
        "--nodes" if there == 1 else f"YARN_OPS_GRID_WORKERS={workers}",
    )
    if workload.alone_s > each_s:
        limit, setting = "scores that one GPU makes alone", "evaluate.windows"

    def on_gpus(name: str, seconds: float, gpu_s: float, limit: str, setting: str) -> BillItem:
        return BillItem(name, seconds, gpu_s, gpu_s * machines.gpu_hour / HOUR_S, limit, setting)

    return (
        BillItem(
            "documents", preparing_s, 0.0, preparing_s * machines.nodes * machines.node_hour / HOUR_S,
            f"{cores} cores, {TOKENISE_BYTES_PER_S / 1e6:.0f} MB/s each", "YARN_OPS_CLUSTER, --nodes",
        ),
        on_gpus(
            "model files", RUN_START_S + MOVES * moved_s, (RUN_START_S + MOVES * moved_s) * machines.gpus,
            f"the store, {STORE_BYTES_PER_S / (1 << 30):.2f} GiB/s", "YARN_OPS_STORE_URL",
        ),
        on_gpus(
            "training", workload.training_s, workload.training_s * machines.gpus,
            f"the GPUs of one node, {machines.gpus}", "--gpus, YARN_OPS_PROCESSES",
        ),
        on_gpus(
            "evaluation", workload.alone_s + each_s,
            (workload.alone_s + each_s) * machines.gpus + each_s * (workers - 1), limit, setting,
        ),
    )  # fmt: skip


def models_a_night(items: tuple[BillItem, ...], machines: Machines) -> int:
    """Models of one recipe that the machines make side by side, documents prepared before."""
    gpu_s = sum(item.gpu_s for item in items)
    return int(machines.nodes * machines.gpus * NIGHT_HOURS * HOUR_S / gpu_s) if gpu_s else 0

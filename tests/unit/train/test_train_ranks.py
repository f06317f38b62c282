"""Several processes train as one does: the same losses, the same gradients, however they share a step."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import PROGRAM, TOLERANCE, together

from yarn_ops.train.job import Job
from yarn_ops.train.parallel.parameter_shards import ParameterShards
from yarn_ops.train.parallel.ranks import Ranks

MakeJob = Callable[..., Job]
ACROSS_BORDERS = {"prefer_long": 0.0}
"""windows are drawn without regard to documents, so most hold several"""
CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "data × 2": {"context_parallel": 1, "shard_base": "no"},
        "context × 2": {"context_parallel": 2, "shard_base": "no"},
        "data × 2, base sharded": {"context_parallel": 1, "shard_base": "yes"},
        "context × 2, base sharded": {"context_parallel": 2, "shard_base": "yes"},
        "data × 2, optimizer sharded": {"context_parallel": 1, "method": "full"},
        "context × 2, optimizer sharded": {"context_parallel": 2, "method": "full"},
    },
    4: {
        "data × 4": {"context_parallel": 1, "shard_base": "no"},
        "context × 4": {"context_parallel": 4, "shard_base": "no"},
        "data × 2, context × 2": {"context_parallel": 2, "shard_base": "no"},
        "data × 2, context × 2, base sharded": {"context_parallel": 2, "shard_base": "yes"},
        "data × 4, optimizer sharded": {"context_parallel": 1, "method": "full"},
        "context × 4, optimizer sharded": {"context_parallel": 4, "method": "full"},
        "data × 2, context × 2, optimizer sharded": {"context_parallel": 2, "method": "full"},
    },
}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_one_process(
    processes: int, four_heads: Path, make_job: MakeJob, job_of: MakeJob, tmp_path: Path
) -> None:
    """Of text alone and of windows with exercises, and of jobs that are left and gone on with; in one test,
    since processes start longer than they train."""
    common: dict[str, Any] = {"gradient_accumulation_steps": 2, "targets": ["all-linear"]}
    places = {"base_dir": four_heads / "base", "patched_dir": four_heads / "patched", "batch_windows": 2}
    jobs, weighed = {}, {}
    for packed in (True, False):
        data = ACROSS_BORDERS | {"document_mask": packed}
        for layout, forced in CASES[processes].items():
            job = make_job(steps=2, data=data, **common, **places, **forced)
            jobs[f"{layout}{', packed' * packed}"] = job
        for context in (1, 2):
            # one step: Adam's first update takes a gradient's sign, even of one that is rounding alone
            job = job_of("run", steps=1, data=data, context_parallel=context, **common)
            weighed[f"{context}{packed}"] = job
    # Where windows are shared, nothing but the order of sums differs, in bf16 too.
    jobs[f"data × {processes}, optimizer sharded, bf16"] = make_job(
        steps=1, data=ACROSS_BORDERS, context_parallel=1, method="full", precision="bf16",
        **common | places | {"batch_windows": 1, "gradient_accumulation_steps": 4},
    )  # fmt: skip
    left = {
        f"left, {method}": make_job(
            f"left-{method}", steps=6, method=method, keep_optimizer=True, **common, **places
        )
        for method in ("lora", "full")
    }
    written = {name: job.model_dump(mode="json") for name, job in (jobs | weighed | left).items()}
    (tmp_path / "jobs.json").write_text(json.dumps(written))
    together(processes, PROGRAM, tmp_path / "jobs.json", tmp_path)
    first_losses: dict[bool, set[float]] = {True: set(), False: set()}
    for rank in range(processes):
        found = json.loads((tmp_path / f"experts-{rank}.json").read_bytes())
        assert max(found) < TOLERANCE and len(found) == 9
    for name in left:
        found = json.loads((tmp_path / f"{name}.json").read_bytes())
        assert found["same_files"], name
        assert found["dtypes"] == ["torch.float32"] and found["tensors"] >= 20
        assert max(found["losses"], found["weights"], found["moments"]) < TOLERANCE, name
    for name in jobs | weighed:
        for rank in range(processes):
            found = json.loads((tmp_path / f"{name}-{rank}.json").read_bytes())
            assert found["loss"] < TOLERANCE, name
            assert found["gradient"] < TOLERANCE, name
            if name in weighed:
                assert found["compared"] > 10
                continue
            assert found["layout"] == re.sub(r", (packed|bf16)$", "", name)
            if "bf16" not in name:
                first_losses["packed" in name].add(found["first_loss"])
                assert found["compared"] >= 40
    masked, unmasked = (sum(losses) / len(losses) for losses in first_losses.values())
    assert abs(masked - unmasked) > 100 * TOLERANCE  # the mask is at work


def test_shards_are_freed_with_their_parameters() -> None:
    """Hooks that hold the shards would make a circle that Python's collector does not see."""
    parameter = torch.nn.Parameter(torch.ones(4))
    shards = ParameterShards({"a": parameter}, {"a": torch.float32}, Ranks())
    left = weakref.ref(shards.parts["a"])
    del parameter, shards
    gc.collect()
    assert left() is None

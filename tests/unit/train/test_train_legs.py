"""What a leg takes over from the one before it, and that it goes on bit for bit wherever it was left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import StopAfter
from safetensors.torch import load_file
from small_models import attach_adapter
from transformers import AutoModelForCausalLM

from yarn_ops.digests import digest_tree
from yarn_ops.errors import Stopped, TrainError
from yarn_ops.recipe import Train
from yarn_ops.train.events import EventLog
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job
from yarn_ops.train.lora import merge_lora
from yarn_ops.train.moments import FILE
from yarn_ops.train.optimizer import BETAS

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
SHORT = {"context_tokens": 64, "factor": 2.0}


@pytest.fixture
def first(make_job: MakeJob, trained: Trained) -> Job:
    """A leg of 64 tokens that kept its optimizer."""
    return trained(make_job("first", steps=3, leg=SHORT, keep_optimizer=True))


def moments(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.out_dir / FILE)


def merged(base: Path, adapter: Path, out: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    attach_adapter(model, adapter)
    merge_lora(model)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("carry", ["adapter", "adapter+optimizer", "weights"])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_leg_left_and_gone_on_with_is_one_never_left(
    tiny: Path, tmp_path: Path, make_job: MakeJob, trained: Trained,
    method: str, carry: str, steps_before: int,
) -> None:  # fmt: skip
    before = trained(make_job("before", steps=2, leg=SHORT, keep_optimizer=True, method=method))
    carried = {"previous_dir": before.out_dir}
    if carry == "weights":
        carried = {"base_dir": merged(tiny / "base", before.out_dir, tmp_path / "merged")}
    changes = {
        "steps": 5, "leg": {"carry": carry}, "method": method, "keep_optimizer": True, "checkpoint_every": 2,
        **carried,
    }  # fmt: skip
    whole, left = trained(make_job("whole", **changes)), make_job("left", **changes)
    left.work_dir.mkdir(parents=True)
    with pytest.raises(Stopped, match=f"after step {steps_before} of 5"):
        run_job(left, EventLog(left.events, steps=5, through_step=0), StopAfter(steps_before), None)
    assert digest_tree(trained(left).out_dir) == digest_tree(whole.out_dir)


def test_the_optimizer_goes_on_from_its_moments(first: Job, make_job: MakeJob, trained: Trained) -> None:
    """The same gradient comes first: exp_avg = β₁ m + (1 − β₁) g, exp_avg_sq = β₂ v + (1 − β₂) g²."""
    changes = {"steps": 1, "previous_dir": first.out_dir, "keep_optimizer": True}
    fresh = moments(trained(make_job("fresh", **changes)))
    carried = moments(trained(make_job("carried", leg={"carry": "adapter+optimizer"}, **changes)))
    for name, before in moments(first).items():
        if name != "updates":
            beta = BETAS[name.startswith("exp_avg_sq")]
            torch.testing.assert_close(carried[name], beta * before + fresh[name], rtol=1e-5, atol=1e-9)
    assert (int(fresh["updates"]), int(carried["updates"])) == (1, 4)


def test_only_an_optimizer_that_is_asked_for_is_kept(make_job: MakeJob, trained: Trained) -> None:
    plain = trained(make_job("plain", steps=1))
    assert not (plain.out_dir / FILE).exists()
    leg = {"carry": "adapter+optimizer"}
    with pytest.raises(TrainError, match=r"optimizer\.safetensors: unreadable .*train the leg before again"):
        trained(make_job("next", steps=1, leg=leg, previous_dir=plain.out_dir))


def test_another_s_optimizer_is_refused(
    first: Job, make_job: MakeJob, trained: Trained, tmp_path: Path
) -> None:
    wide = trained(make_job("wide", steps=1, rank=8, keep_optimizer=True))
    mixed = tmp_path / "mixed"
    shutil.copytree(first.out_dir, mixed)
    shutil.copy(wide.out_dir / FILE, mixed / FILE)
    with pytest.raises(TrainError, match="not of the parameters that this leg trains"):
        trained(make_job("next", steps=1, leg={"carry": "adapter+optimizer"}, previous_dir=mixed))


def test_a_gate_changes_nothing_of_what_is_trained(make_job: MakeJob) -> None:
    assert make_job().identity() == make_job(leg={"gate": {"min_recall": 0.5}}).identity()
    assert make_job().identity() != make_job(leg={"carry": "weights"}).identity()


def test_what_a_leg_says_itself_is_not_in_what_all_share() -> None:
    legs = [{"context_tokens": 64, "steps": 2}, {"context_tokens": 128, "steps": 3}]
    asked = Train.model_validate({"legs": legs, "steps": 7, "learning_rate": 0.1, "rank": 4})
    assert asked.shared_by_legs() == Train(rank=4)

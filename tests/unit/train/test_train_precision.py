"""bf16 on a CPU is tried in a child process before a trainer is started with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from yarn_ops.errors import TrainError
from yarn_ops.models.device import resolve_dtype
from yarn_ops.train import precision
from yarn_ops.train.precision import BELOW_AMX, trainer_environment

DIES_OF_AMX = """
import os, signal
if os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX512_CORE_BF16":
    os.kill(os.getpid(), signal.SIGILL)
"""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


def test_auto_follows_the_device() -> None:
    assert [resolve_dtype("auto", "cpu"), resolve_dtype("auto", "cuda")] == ["fp32", "bf16"]
    assert [resolve_dtype("bf16", "cpu"), resolve_dtype("fp32", "cuda")] == ["bf16", "fp32"]


@pytest.mark.parametrize("asked, device", [("auto", "auto"), ("fp32", "cpu"), ("bf16", "cuda")])
def test_nothing_is_tried_unless_a_cpu_shall_multiply_in_bf16(
    asked: precision.Asked, device: precision.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "PROBE", DIES)
    assert trainer_environment(asked, device) == {}


def multiplies(variables: Mapping[str, str]) -> bool:
    """Whether a process with these variables multiplies two bf16 matrices on this CPU."""
    program = "import torch; a = torch.ones(256, 256, dtype=torch.bfloat16); a @ a"
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, **variables}).returncode == 0


def test_what_is_answered_is_what_this_cpu_does() -> None:
    working = [variables for variables in ({}, BELOW_AMX) if multiplies(variables)]
    if working:
        assert trainer_environment("bf16", "cpu") == working[0]
    else:
        with pytest.raises(TrainError, match="use fp32 or auto"):
            trainer_environment("bf16", "cpu")


def test_an_illegal_instruction_is_met_with_older_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PROBE", DIES_OF_AMX)
    assert trainer_environment("bf16", "cpu") == {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


def test_a_cpu_that_cannot_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "PROBE", DIES)
    with pytest.raises(TrainError, match=r"^train.precision: .*SIGILL.*; use fp32 or auto$"):
        trainer_environment("bf16", "cpu")

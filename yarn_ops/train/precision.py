"""Which arithmetic the trainer uses, proven to run before a model is loaded.

Some processors advertise matrix instructions (AMX) that their machine does not allow: the first bf16
product ends the process with SIGILL. So on a CPU a child process tries one, once with the instructions
that oneDNN picks and once with those it picks below AMX.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from yarn_ops.errors import TrainError

Dtype = Literal["fp32", "bf16"]

BELOW_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
PROBE = """
import torch
a = torch.ones(256, 256, dtype=torch.bfloat16, requires_grad=True)
(a @ a).sum().backward()
assert a.grad.float().mean() == 512
"""


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products, and the variables that the trainer's environment needs for it."""

    dtype: Dtype
    environment: Mapping[str, str] = field(default_factory=dict)


def dtype_of(asked: Literal["auto", "fp32", "bf16"], device: str) -> Dtype:
    """auto: bf16 on a GPU, fp32 on a CPU."""
    if asked != "auto":
        return asked
    return "fp32" if device == "cpu" else "bf16"


def resolve_precision(asked: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """The precision to start a trainer with; TrainError when this CPU cannot multiply in bf16."""
    dtype = dtype_of(asked, device)
    if dtype == "fp32" or device != "cpu":
        return Precision(dtype)
    for environment in ({}, BELOW_AMX):
        code = _probe(environment)
        if code == 0:
            return Precision(dtype, environment)
    reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    raise TrainError(
        f"train.precision: a bf16 matrix product does not run on this CPU ({reason}); use fp32 or auto"
    )


def _probe(environment: Mapping[str, str]) -> int:
    """Exit status of a process that multiplies in bf16; minus the signal's number when one ended it."""
    return subprocess.run(
        [*with_environment(environment), sys.executable, "-c", PROBE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


def with_environment(environment: Mapping[str, str]) -> list[str]:
    """The start of a command line that adds variables to the inherited environment; env(1) becomes the command."""
    return ["env", *(f"{name}={value}" for name, value in environment.items())]

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
from typing import Literal

from yarn_ops.errors import TrainError
from yarn_ops.settings import child_environment

Device = Literal["auto", "cpu", "cuda"]
Asked = Literal["auto", "fp32", "bf16", "fp8"]
Dtype = Literal["fp32", "bf16"]

BELOW_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
PROBE = """
import sys, torch
if sys.argv[1] == "cpu" or not torch.cuda.is_available():
    a = torch.ones(256, 256, dtype=torch.bfloat16, requires_grad=True)
    (a @ a).sum().backward()
    assert a.grad.float().mean() == 512
"""


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """auto: the GPU where there is one. TrainError when a GPU is asked for that is not there."""
    if device == "cpu":
        return "cpu"
    from torch import cuda  # seconds; whoever asks is about to load a model

    if device == "cuda" and not cuda.is_available():
        raise TrainError("device: torch finds no CUDA GPU here; set YARN_OPS_DEVICE to auto or cpu")
    return "cuda" if cuda.is_available() else "cpu"


def gpu_uuid() -> str:
    """Of the first GPU."""
    from torch import cuda

    return str(cuda.get_device_properties(0).uuid)


def resolve_dtype(asked: Asked, device: Literal["cpu", "cuda"]) -> Dtype:
    """Of what is not multiplied in 8 bits; auto: bf16 on a GPU, fp32 on a CPU."""
    if asked != "auto":
        return "bf16" if asked == "fp8" else asked
    return "bf16" if device == "cuda" else "fp32"


def trainer_environment(asked: Asked, device: Device) -> Mapping[str, str]:
    """The variables that a trainer needs for its arithmetic to run; TrainError when none help."""
    if asked == "fp8":
        _require_float8(device)
    if asked != "bf16" or device == "cuda":
        return {}
    status = 0
    for environment in ({}, BELOW_AMX):
        status = _probe(device, environment)
        if status == 0:
            return environment
    reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    raise TrainError(
        f"train.precision: a bf16 matrix product does not run on this CPU ({reason}); use fp32 or auto"
    )


def _require_float8(device: Device) -> None:
    if resolve_device(device) == "cpu":
        raise TrainError("train.precision: fp8 needs a GPU of Hopper's generation or newer; use bf16 or auto")
    from yarn_ops.train.float8 import require_float8

    require_float8()


def _probe(device: Device, environment: Mapping[str, str]) -> int:
    """Exit status of a process that multiplies in bf16; minus the signal's number when one ended it."""
    return subprocess.run(
        [sys.executable, "-c", PROBE, device],
        env=child_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode

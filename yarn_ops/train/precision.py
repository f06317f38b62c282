"""Whether a training precision works on this machine, tried before a model is loaded.

Some processors advertise matrix instructions (AMX) that their machine does not allow: the first bf16
product ends the process with SIGILL. So on a CPU a child process computes one, with the instructions that
oneDNN chooses, and if that fails with those below AMX.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from yarn_ops.errors import TrainError
from yarn_ops.models.device import Asked, Device, resolve_device
from yarn_ops.settings import child_environment

BELOW_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
PROBE = """
import sys, torch
if sys.argv[1] == "cpu" or not torch.cuda.is_available():
    a = torch.ones(256, 256, dtype=torch.bfloat16, requires_grad=True)
    (a @ a).sum().backward()
    assert a.grad.float().mean() == 512
"""


def trainer_environment(asked: Asked, device: Device) -> Mapping[str, str]:
    """Environment variables that a trainer needs to compute in this precision; TrainError where it cannot."""
    if asked == "fp8":
        if resolve_device(device) == "cpu":
            raise TrainError(
                "train.precision: fp8 needs a GPU of Hopper's generation or newer; use bf16 or auto"
            )
        from yarn_ops.train.float8 import require_float8

        require_float8()
    if asked == "nf4":
        require_bitsandbytes()
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


def require_bitsandbytes() -> None:
    """TrainError unless it is installed; it is not loaded."""
    if find_spec("bitsandbytes") is None:
        raise TrainError(
            "train.precision: nf4 needs bitsandbytes, not installed here; pip install 'yarn-ops[nf4]', or "
            "use auto"
        )


def _probe(device: Device, environment: Mapping[str, str]) -> int:
    """Exit status of a process that multiplies in bf16; minus the signal's number when one ended it."""
    return subprocess.run(
        [sys.executable, "-c", PROBE, device],
        env=child_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode

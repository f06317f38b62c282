"""AdamW's moments by parameter name, as they lie beside an adapter for the next leg.

optimizer.safetensors        exp_avg/NAME, exp_avg_sq/NAME (float32); updates (int64): steps taken
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from yarn_ops.errors import TrainError

FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"

Parameters = Mapping[str, nn.Parameter]


def save_moments(directory: Path, tensors: Mapping[str, Tensor], updates: int) -> None:
    """Write moments into an adapter directory."""
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    save_file({**kept, UPDATES: torch.tensor(updates)}, directory / FILE)


def load_moments(directory: Path, parameters: Parameters) -> tuple[dict[str, Tensor], int]:
    """(moments, steps taken) from an adapter directory; TrainError where they cannot be read or are not those
    of `parameters`."""
    try:
        tensors = load_file(directory / FILE)
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{directory / FILE}: unreadable ({error}); train the leg before again") from None
    updates = tensors.pop(UPDATES)
    shapes = {f"{moment}/{name}": value.shape for name, value in parameters.items() for moment in MOMENTS}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise TrainError(
            f"{directory / FILE}: it is not of the parameters that this leg trains; "
            "let the leg carry over its adapter alone"
        )
    return tensors, int(updates)

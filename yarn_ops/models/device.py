"""What models run on and compute in, and which of them our own layers serve. Nothing here loads torch before
it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from yarn_ops.errors import TrainError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Asked = Literal["auto", "fp32", "bf16", "fp8"]
Dtype = Literal["fp32", "bf16"]
LLAMAS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""architectures that our own layers (`train.decoder`) serve"""


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """cpu or cuda; auto is the GPU where there is one. TrainError when a GPU is asked for and not there."""
    if device == "cpu":
        return "cpu"
    from torch import cuda  # seconds; whoever asks is about to load a model

    if device == "cuda" and not cuda.is_available():
        raise TrainError("device: torch finds no CUDA GPU here; set YARN_OPS_DEVICE to auto or cpu")
    return "cuda" if cuda.is_available() else "cpu"


def gpu_uuid() -> str:
    """The first GPU's UUID, which names it on every machine and in every process."""
    from torch import cuda

    return str(cuda.get_device_properties(0).uuid)


def resolve_dtype(asked: Asked, device: Literal["cpu", "cuda"]) -> Dtype:
    """The dtype of activations and gradients: auto is bf16 on a GPU and fp32 on a CPU; fp8's is bf16."""
    if asked != "auto":
        return "bf16" if asked == "fp8" else asked
    return "bf16" if device == "cuda" else "fp32"


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """torch's own name of it."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]

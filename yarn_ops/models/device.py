"""Devices, dtypes, and the architectures that our own layers serve. torch is imported on the first call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from yarn_ops.errors import TrainError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Asked = Literal["auto", "fp32", "bf16", "fp8", "nf4"]
Dtype = Literal["fp32", "bf16"]
Item = TypeVar("Item")
Result = TypeVar("Result")
LLAMAS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""architectures whose layers are Llama's up to biases and query-key norms: our own forwards serve them"""


def unsupported(model: Any, tokens: int) -> str | None:
    """Why our layers do not compute windows of so many tokens of a transformers model; None when they do."""
    config, name = model.config, type(model).__name__
    if name not in LLAMAS:
        return f"{name} is not of Llama's shape"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if getattr(config, "attention_dropout", 0):
        return "it drops attention out"
    window = getattr(config, "sliding_window", None)
    if window and window < tokens and getattr(config, "use_sliding_window", True):
        return f"its attention slides over {window} tokens"
    return None


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
USUAL = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 1 << 16}
"""what glibc starts with, or comes to by its own rule after large blocks"""
RETURNED_BYTES = 4 << 20
"""blocks of so many bytes are the system's as soon as they are freed, where freed memory is not kept"""


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """cpu or cuda; `auto` is cuda where torch finds a GPU. TrainError when cuda is asked for and not
    there."""
    if device == "cpu":
        return "cpu"
    from torch import cuda  # seconds; whoever asks is about to load a model

    if device == "cuda" and not cuda.is_available():
        raise TrainError("device: torch finds no CUDA GPU here; set YARN_OPS_DEVICE to auto or cpu")
    return "cuda" if cuda.is_available() else "cpu"


def gpu_uuids() -> list[str]:
    """The GPUs' UUIDs, in torch's order: the same in every process and container of a machine."""
    from torch import cuda

    return [str(cuda.get_device_properties(number).uuid) for number in range(cuda.device_count())]


def energy_joules(uuids: Sequence[str]) -> float | None:
    """What these GPUs have taken since their driver was loaded; None where NVIDIA's management library is
    not installed, or does not tell."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000  # of mJ
    except pynvml.NVMLError:
        return None


def resolve_dtype(asked: Asked, device: Literal["cpu", "cuda"]) -> Dtype:
    """The dtype of activations and gradients: auto and nf4 are bf16 on a GPU and fp32 on a CPU; fp8 computes
    in bf16."""
    if asked in ("fp32", "bf16"):
        return asked
    if asked == "fp8":
        return "bf16"
    return "bf16" if device == "cuda" else "fp32"


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch dtype of that name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread of the processor: for pieces that its cache holds, which several threads
    take longer to share than to compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: str) -> list[Result]:
    """What `work` returns for each item, in their order; it raises what `work` does.

    On a processor as many items are worked on at a time as torch has threads, each in one thread: torch's own
    threads, which share an item, wait for each other after every piece. A GPU is given one after the other.
    Whether gradients are recorded is a thread's own: `work` says so itself.
    """
    import torch

    threads = torch.get_num_threads() if device == "cpu" else 1
    with one_thread(), ThreadPoolExecutor(threads) as pool:  # new threads of torch's begin with its number
        return list(pool.map(work, items))


@contextmanager
def freed_memory(kept: bool) -> Iterator[None]:
    """Within the block, memory that is freed on the processor is kept for the next tensors, or given back.

    Kept: the system fills each page with zeros before it gives it, which took a fifth of a training step.
    Given back: else glibc keeps freed blocks of up to 32 MiB, in a heap for every thread that reads tensors.
    """
    asked = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1} if kept else {M_MMAP_THRESHOLD: RETURNED_BYTES}
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError):  # another C library
        yield
        return
    for option, value in asked.items():
        set_option(option, value)
    try:
        yield
    finally:
        for option in asked:
            set_option(option, USUAL[option])
        trim(0)

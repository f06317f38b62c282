"""Run in a process of its own: merges a random base of several shards in argv[1]. Prints three numbers: bytes
of the base, of its largest shard, and by how many the resident set grew at most."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from merged import merge
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.models import device
from yarn_ops.recipe import Rope, Train
from yarn_ops.rope.config import patch_config
from yarn_ops.train.lora import PEFT_NAME, PEFT_PREFIX, make_trainable, save_adapter, trained_parameters
from yarn_ops.train.weight_files import WeightFiles

WIDTH, MLP_WIDTH = 384, 1536
LAYER_PARAMETERS = 4 * WIDTH * WIDTH + 3 * WIDTH * MLP_WIDTH
LAYERS_A_SHARD = 4
RETURNED_BYTES = 1 << 16
"""below every matrix of this small model by as much as those of real ones are above the product's own"""


def prepare(root: Path, layers: int) -> None:
    """Base, patched config, adapter and shards of a job into `root`."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, intermediate_size=MLP_WIDTH, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=32,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(root / "base")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    files = WeightFiles(root / "base", shapes, LAYERS_A_SHARD * 2 * (LAYER_PARAMETERS + 4096))
    for name, shape in shapes.items():
        files.write(name, 0.02 * torch.randn(shape))
    plain = json.loads((root / "base/config.json").read_bytes())
    patched, _ = patch_config(plain, Rope(factor=4), factor=4.0, original_context_tokens=32)
    (root / "patched").mkdir()
    (root / "patched/config.json").write_text(json.dumps(patched))
    make_trainable(model, Train(rank=4, targets=("all-linear",)))
    save_adapter(model.to_empty(device="cpu"), root / "adapter", {"method": "lora"}, [])
    learnt = {
        PEFT_PREFIX + name.replace(PEFT_NAME, ""): 0.02 * torch.randn(value.shape)
        for name, value in trained_parameters(model).items()
    }
    save_file(learnt, root / "adapter/adapter_model.safetensors")
    dtype = np.dtype("<u2")
    with (
        ShardWriter(root / "shards", dtype) as writer,
        TokenWriter(root / "shards/tokens-00000.bin", dtype) as file,
    ):
        extent = file.append(np.random.default_rng(0).integers(0, 512, 200).astype(np.uint16))
        writer.index("held_out", "only", extent)
    writer.finish([file.tokens], {})


def job(root: Path) -> SimpleNamespace:
    return SimpleNamespace(
        base_dir=root / "base", patched_dir=root / "patched", out_dir=root / "adapter",
        shards_dir=root / "shards", train=SimpleNamespace(method="lora"),
    )  # fmt: skip


def status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def main(root: Path) -> None:
    device.RETURNED_BYTES = RETURNED_BYTES
    forked = multiprocessing.get_context("fork")  # what a preparation frees is not for a merge to fill again
    for name, layers in (("small", 1), ("large", 12)):
        preparing = forked.Process(target=prepare, args=(root / name, layers))
        preparing.start()
        preparing.join()
    small, large = job(root / "small"), job(root / "large")
    merge(small, root / "small/merged")  # brings in whatever is loaded late
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    merge(large, root / "large/merged")
    sizes = [file.stat().st_size for file in large.base_dir.glob("*.safetensors")]
    print(sum(sizes), max(sizes), status("VmHWM") - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

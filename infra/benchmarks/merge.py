"""What a merge costs: memory and bytes a second, beside a plain copy of the base and the whole-model way.

    python infra/benchmarks/merge.py --layers 9 --rounds 3

Makes a base of Llama's shape with random weights (bfloat16, shards of 400 MB) and an adapter on every linear
layer and norm, then takes turns, a process each: `dd` of the base's files; our merge, whose first pass writes
and whose second reads base and files back and proves them on short windows; and transformers + PEFT with the
model in memory (load, merge, save, no proof). Before each turn the base is put out of the page cache, and a
writer is done when its files are synced. Memory is how much a process grew over what it had after a merge of
one layer: resident (VmHWM), and private anonymous pages alone (sampled).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.models.checkpoints import quiet_transformers
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Rope, Train
from yarn_ops.records import Adapter, BaseModel, Dropped, Local, PatchedModel, ShardSet
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.train.lora import (
    PEFT_NAME,
    PEFT_PREFIX,
    load_trained,
    make_trainable,
    merge_lora,
    require_adapter,
    save_adapter,
    trained_parameters,
)
from yarn_ops.train.merge import merge
from yarn_ops.train.weight_files import write_weights

MB = 10**6
SHARD_BYTES = 400 * MB
ORIGINAL_TOKENS, FACTOR = 64, 4.0
SAMPLE_S = 0.02
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where it all lies (three times the base); removed")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(ARMS[arguments.arm](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="merge-", dir=arguments.folder) as place:
        measure(Path(place), arguments.layers, arguments.rounds)


def measure(folder: Path, layers: int, rounds: int) -> None:
    make(folder / "small", 1)
    make(folder / "large", layers)
    sizes = [file.stat().st_size for file in weights(folder / "large/base")]
    layer_bytes = 2 * LAYER_PARAMETERS
    print(
        f"base {sum(sizes) / MB:,.0f} MB in {len(sizes)} files, the largest {max(sizes) / MB:.0f} MB, "
        f"a layer {layer_bytes / MB:.0f} MB in bfloat16; "
        f"1.3 × the largest and a layer: {(1.3 * max(sizes) + layer_bytes) / MB:.0f} MB"
    )
    rows: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in ARMS:
            rows[arm].append(timed(arm, folder))
            print(f"round {number + 1}, {arm}: {rows[arm][-1]}, load {os.getloadavg()[0]:.1f}", flush=True)
    for arm, found in rows.items():
        print(arm, {key: round(statistics.median(row[key] for row in found), 1) for key in found[0]})
    for arm in ("ours", "whole"):
        ratios = [
            copied["write_s"] / row["write_s"] for copied, row in zip(rows["dd"], rows[arm], strict=True)
        ]
        middle = statistics.median(ratios)
        print(f"{arm} writes at {middle:.2f} of dd's speed ({min(ratios):.2f} to {max(ratios):.2f})")


def timed(arm: str, folder: Path) -> Figures:
    for file in weights(folder / "large/base"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: Figures = json.loads(done.stdout.splitlines()[-1])
    subprocess.run(["rm", "-rf", folder / "large/out", folder / "small/out"], check=True)
    return row


def dd(folder: Path) -> Figures:
    out = folder / "large/out"
    out.mkdir()
    began = time.perf_counter()
    for file in weights(folder / "large/base"):
        command = ["dd", f"if={file}", f"of={out / file.name}", "bs=16M", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
    return {"write_s": time.perf_counter() - began}


def ours(folder: Path) -> Figures:
    merge_here(folder / "small", {})
    figures: Figures = {}
    with memory(figures):
        merge_here(folder / "large", figures)
    return figures


def merge_here(root: Path, figures: Figures) -> None:
    began, processor = time.perf_counter(), time.process_time()

    def report(done: int, total: int, note: str) -> None:
        if done == total // 2:
            sync(root / ".out.partial")
            figures["write_s"] = time.perf_counter() - began
            figures["write_cpu_s"] = time.process_time() - processor

    base = BaseModel(
        source="", architecture="LlamaForCausalLM", model_type="llama", parameters=1, vocab_size=VOCABULARY,
        context_tokens=ORIGINAL_TOKENS, head_dim=64, rope_theta=10_000.0,
    )  # fmt: skip
    patched = PatchedModel(
        method="yarn", factor=FACTOR, original_context_tokens=ORIGINAL_TOKENS,
        target_context_tokens=round(FACTOR * ORIGINAL_TOKENS), attention_factor=1.0,
        inverse_frequency_error=0.0,
    )  # fmt: skip
    adapter = Adapter(
        method="lora", steps=1, window_tokens=1, tokens_seen=1, trainable_parameters=1, first_loss=1.0,
        final_loss=1.0, seconds=1.0,
    )  # fmt: skip
    shards = ShardSet(
        tokenizer_digest="", vocab_size=VOCABULARY, train_documents=1, train_tokens=1, held_out_documents=1,
        held_out_tokens=1, longest_document_tokens=1, dropped=Dropped(), lengths=(),
    )  # fmt: skip
    merge(
        Local(base, root / "base"), Local(patched, root / "patched"), Local(adapter, root / "adapter"),
        Local(shards, root / "shards"), root / "out", device="cpu", report=report,
    )  # fmt: skip
    figures["all_s"] = time.perf_counter() - began
    figures["all_cpu_s"] = time.process_time() - processor


def whole(folder: Path) -> Figures:
    merge_whole(folder / "small", {})
    figures: Figures = {}
    with memory(figures):
        merge_whole(folder / "large", figures)
    return figures


def merge_whole(root: Path, figures: Figures) -> None:
    began, processor = time.perf_counter(), time.process_time()
    config = read_config(root / "patched")
    model = load_proven(root / "base", config, rope_spec_of(config), dtype=torch.float32, device="cpu")
    require_adapter(model, root / "adapter")
    load_trained(model, root / "adapter")
    merge_lora(model)
    with quiet_transformers():
        model.to(torch.bfloat16).save_pretrained(root / "out", max_shard_size="5GB")
    sync(root / "out")
    figures["write_s"] = figures["all_s"] = time.perf_counter() - began
    figures["write_cpu_s"] = figures["all_cpu_s"] = time.process_time() - processor


@contextmanager
def memory(figures: Figures) -> Iterator[None]:
    """How much the block made this process grow, resident and in private anonymous pages."""
    resident, anonymous = status("VmRSS"), status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    highest, over = [anonymous], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            highest[0] = max(highest[0], status("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    yield
    over.set()
    sampler.join()
    figures["resident_mb"] = (status("VmHWM") - resident) / MB
    figures["anonymous_mb"] = (highest[0] - anonymous) / MB


def status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def sync(folder: Path) -> None:
    for file in weights(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


WIDTH, MLP_WIDTH, KEY_WIDTH, VOCABULARY = 2048, 8192, 512, 32_000
LAYER_PARAMETERS = 2 * WIDTH * (WIDTH + KEY_WIDTH) + 3 * WIDTH * MLP_WIDTH
ARMS = {"dd": dd, "ours": ours, "whole": whole}


def make(root: Path, layers: int) -> None:
    """A base, its patched config, an adapter that learnt, and a few documents."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP_WIDTH, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=ORIGINAL_TOKENS,
    )  # fmt: skip
    config.save_pretrained(root / "base")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    tensors = ((name, random(shape)) for name, shape in shapes.items())
    write_weights(root / "base", shapes, tensors, SHARD_BYTES)
    sync(root / "base")
    patched, _ = patch_config(
        read_config(root / "base"),
        Rope(factor=FACTOR),
        factor=FACTOR,
        original_context_tokens=ORIGINAL_TOKENS,
    )
    (root / "patched").mkdir()
    (root / "patched/config.json").write_text(json.dumps(patched))
    make_trainable(model, Train(rank=16, targets=("all-linear",)))
    learning = trained_parameters(model)
    save_adapter(model.to_empty(device="cpu"), root / "adapter", {"method": "lora"}, [])
    learnt = {
        PEFT_PREFIX + name.replace(PEFT_NAME, ""): random(tuple(value.shape)) + value.ndim % 2
        for name, value in learning.items()
    }
    save_file(learnt, root / "adapter/adapter_model.safetensors")
    tokens, dtype = root / "shards/tokens-00000.bin", np.dtype("<u2")
    with ShardWriter(root / "shards", dtype) as writer, TokenWriter(tokens, dtype) as file:
        extent = file.append(np.random.default_rng(0).integers(0, VOCABULARY, 2_000).astype(np.uint16))
        writer.index("held_out", "only", extent)
    writer.finish([file.tokens], {})


def random(shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers, the same over and over."""
    size = math.prod(shape)
    once = torch.randn(min(size, 1 << 20)).mul_(0.02)
    return once.repeat(-(-size // len(once)))[:size].view(shape)


if __name__ == "__main__":
    main()

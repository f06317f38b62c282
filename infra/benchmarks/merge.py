"""What a merge costs: seconds, memory, bytes a second; beside a plain copy and the whole-model way.

    python infra/benchmarks/merge.py --layers 9 --rounds 3
    python infra/benchmarks/merge.py --base DIR --factor 4 --device cuda     of a model that is here

Makes a base of Llama's shape with random weights (bfloat16, shards of 400 MB), or takes the one that is
named, and an adapter on every linear layer and norm. Then takes turns, a process each: `dd` of the base's
files; our merge; and transformers + PEFT with the model in memory (load, merge, save, no proof). Before each
turn the base is put out of the page cache, and a writer is done when its files are synced. Of ours, `read_s`
is the time in which the three versions read the held-out windows, and `files_s` all else: reading the base,
folding, writing, reading back and comparing every bit. A base that is named is merged at its own context and
`factor` times that. Memory is how much a process grew over what it had after a merge of one layer: resident
(VmHWM), and private anonymous pages alone (sampled).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.models.checkpoints import quiet_transformers
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import lay_out, load_proven
from yarn_ops.recipe import Rope, Train
from yarn_ops.records import Adapter, BaseModel, Dropped, Local, PatchedModel, ShardSet
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.train.layerwise import Layerwise
from yarn_ops.train.lora import (
    PEFT_NAME,
    PEFT_PREFIX,
    attach_to_modules,
    make_trainable,
    merge_lora,
    save_adapter,
    trained_parameters,
)
from yarn_ops.train.merge import merge
from yarn_ops.train.weight_files import WeightFiles

MB = 10**6
SHARD_BYTES = 400 * MB
ORIGINAL_TOKENS = 64
SAMPLE_S = 0.02
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where it all lies (three times the base); removed")
    parser.add_argument("--base", type=Path, help="a model directory; left out: random weights")
    parser.add_argument("--factor", type=float, default=4.0, help="of the context")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(ARMS[arguments.arm](arguments.folder, arguments.device)))
        return
    with tempfile.TemporaryDirectory(prefix="merge-", dir=arguments.folder) as place:
        folder = Path(place)
        make_base(folder / "small/base", 1)
        prepare(folder / "small", 4.0)
        if arguments.base is None:
            make_base(folder / "large/base", arguments.layers)
        else:
            shutil.copytree(arguments.base, folder / "large/base")
        prepare(folder / "large", arguments.factor)
        measure(folder, arguments.rounds, arguments.device)


def measure(folder: Path, rounds: int, device: str) -> None:
    sizes = [file.stat().st_size for file in weights(folder / "large/base")]
    print(f"base {sum(sizes) / MB:,.0f} MB in {len(sizes)} files, the largest {max(sizes) / MB:.0f} MB")
    rows: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in ARMS:
            rows[arm].append(timed(arm, folder, device))
            print(f"round {number + 1}, {arm}: {rows[arm][-1]}, load {os.getloadavg()[0]:.1f}", flush=True)
    for arm, found in rows.items():
        print(arm, {key: round(statistics.median(row[key] for row in found), 1) for key in found[0]})
    for arm, figure in (("ours", "files_s"), ("ours", "all_s"), ("whole", "all_s")):
        ratios = [copied["all_s"] / row[figure] for copied, row in zip(rows["dd"], rows[arm], strict=True)]
        middle = statistics.median(ratios)
        print(f"{arm}, {figure}: {middle:.2f} of dd's speed ({min(ratios):.2f} to {max(ratios):.2f})")


def timed(arm: str, folder: Path, device: str) -> Figures:
    for file in weights(folder / "large/base"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), "--device", device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: Figures = json.loads(done.stdout.splitlines()[-1])
    subprocess.run(["rm", "-rf", folder / "large/out", folder / "small/out"], check=True)
    return row


def dd(folder: Path, device: str) -> Figures:
    out = folder / "large/out"
    out.mkdir()
    began = time.perf_counter()
    for file in weights(folder / "large/base"):
        command = ["dd", f"if={file}", f"of={out / file.name}", "bs=16M", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
    return {"all_s": time.perf_counter() - began}


def ours(folder: Path, device: str) -> Figures:
    merge_here(folder / "small", device, {})
    figures: Figures = {}
    with memory(figures):
        merge_here(folder / "large", device, figures)
    return figures


def merge_here(root: Path, device: Any, figures: Figures) -> None:
    config = read_config(root / "base")
    original = config["max_position_embeddings"]
    factor = rope_spec_of(read_config(root / "patched")).factor
    base = BaseModel(
        source="", architecture="LlamaForCausalLM", model_type="llama", parameters=1,
        vocab_size=config["vocab_size"], context_tokens=original, head_dim=64, rope_theta=10_000.0,
    )  # fmt: skip
    patched = PatchedModel(
        method="yarn", factor=factor, original_context_tokens=original,
        target_context_tokens=round(factor * original), attention_factor=1.0, inverse_frequency_error=0.0,
    )  # fmt: skip
    adapter = Adapter(
        method="lora", steps=1, window_tokens=1, tokens_seen=1, trainable_parameters=1, first_loss=1.0,
        final_loss=1.0, seconds=1.0,
    )  # fmt: skip
    shards = ShardSet(
        tokenizer_digest="", vocab_size=config["vocab_size"], train_documents=1, train_tokens=1,
        held_out_documents=1, held_out_tokens=1, longest_document_tokens=1, dropped=Dropped(), lengths=(),
    )  # fmt: skip
    with working(figures), reading_apart(figures):
        merge(
            Local(base, root / "base"), Local(patched, root / "patched"), Local(adapter, root / "adapter"),
            Local(shards, root / "shards"), root / "out", device=device, report=lambda *_: None,
        )  # fmt: skip
        sync(root / "out")
    figures["files_s"] = figures["all_s"] - figures["read_s"]
    figures["files_cpu_s"] = figures["all_cpu_s"] - figures["read_cpu_s"]


@contextmanager
def reading_apart(figures: Figures) -> Iterator[None]:
    """Add up what the versions' reading of the windows takes."""
    figures["read_s"] = figures["read_cpu_s"] = 0.0
    plain = {name: getattr(Layerwise, name) for name in ("embed", "advance", "log_probabilities")}

    def timing(call: Any) -> Any:
        def timed_call(*inputs: Any) -> Any:
            began, processor = now()
            result = call(*inputs)
            ended, used = now()
            figures["read_s"] += ended - began
            figures["read_cpu_s"] += used - processor
            return result

        return timed_call

    for name, call in plain.items():
        setattr(Layerwise, name, timing(call))
    yield
    for name, call in plain.items():
        setattr(Layerwise, name, call)


@contextmanager
def working(figures: Figures) -> Iterator[None]:
    began, processor = now()
    yield
    ended, used = now()
    figures["all_s"], figures["all_cpu_s"] = ended - began, used - processor


def now() -> tuple[float, float]:
    """Wall clock and processor, when the GPU has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def whole(folder: Path, device: str) -> Figures:
    merge_whole(folder / "small", device, {})
    figures: Figures = {}
    with memory(figures):
        merge_whole(folder / "large", device, figures)
    return figures


def merge_whole(root: Path, device: str, figures: Figures) -> None:
    config = read_config(root / "patched")
    with working(figures):
        model = load_proven(root / "base", config, rope_spec_of(config), dtype=torch.float32, device=device)
        attach_to_modules(model, root / "adapter", [""])
        merge_lora(model)
        with quiet_transformers():
            model.to(torch.bfloat16).save_pretrained(root / "out", max_shard_size="5GB")
        sync(root / "out")


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


WIDTH, MLP_WIDTH, VOCABULARY = 2048, 8192, 32_000
ARMS = {"dd": dd, "ours": ours, "whole": whole}


def make_base(path: Path, layers: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP_WIDTH, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=ORIGINAL_TOKENS,
    )  # fmt: skip
    config.save_pretrained(path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    files = WeightFiles(path, shapes, SHARD_BYTES)
    for name, shape in shapes.items():
        files.write(name, random(shape))
    sync(path)


def prepare(root: Path, factor: float) -> None:
    """A patched config, an adapter that learnt, and documents, for the base that lies there."""
    config = read_config(root / "base")
    original = config["max_position_embeddings"]
    patched, _ = patch_config(config, Rope(factor=factor), factor=factor, original_context_tokens=original)
    (root / "patched").mkdir()
    (root / "patched/config.json").write_text(json.dumps(patched))
    model = lay_out(root / "base")
    make_trainable(model, Train(rank=16, targets=("all-linear",)))
    learning = trained_parameters(model)
    save_adapter(model.to_empty(device="cpu"), root / "adapter", {"method": "lora"}, [])
    learnt = {
        PEFT_PREFIX + name.replace(PEFT_NAME, ""): random(tuple(value.shape)) + value.ndim % 2
        for name, value in learning.items()
    }
    save_file(learnt, root / "adapter/adapter_model.safetensors")
    tokens, dtype = root / "shards/tokens-00000.bin", np.dtype("<u4")
    with ShardWriter(root / "shards", dtype) as writer, TokenWriter(tokens, dtype) as file:
        ids = np.random.default_rng(0).integers(0, config["vocab_size"], round(2 * factor * original) + 2000)
        writer.index("held_out", "only", file.append(ids.astype(np.uint32)))
    writer.finish([file.tokens], {})


def random(shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers, the same over and over."""
    size = math.prod(shape)
    once = torch.randn(min(size, 1 << 20)).mul_(0.02)
    return once.repeat(-(-size // len(once)))[:size].view(shape)


if __name__ == "__main__":
    main()

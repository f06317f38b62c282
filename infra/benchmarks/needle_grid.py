"""Many questions to an 8B Llama-3 shape (random weights) at 32k: our reading against one prefill a question.

    python infra/benchmarks/needle_grid.py [--tokens 32768] [--layers 32] [--parts 8,16,32] [--naive 6]
        [--suite-lengths 8192,32768]

First the needle grid: questions a second of both, what arithmetic alone would give, the peak of memory, and
how far the answers' likelihoods are apart. Then every task of the full suite once, one text or RULER sample
each (`--suite-lengths ''` leaves it out). torch, transformers, pydantic, numpy and safetensors are enough.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.cells import ModelUnderTest, Size
from yarn_ops.evals.examples import Example, Question
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.packed import Reply
from yarn_ops.evals.plan import SIZES, CellPlan, suite_cells
from yarn_ops.evals.reader import SharedReader, WholeReader
from yarn_ops.evals.reader_choice import open_reader
from yarn_ops.evals.run import PlanRun, Worker
from yarn_ops.evals.tasks import needles
from yarn_ops.models.costs import costs, dimensions_of
from yarn_ops.rope.config import rope_spec_of

# Llama-3-8B: 32 layers of 4096, 32 heads, 8 KV heads, 14,336 wide MLP; YaRN ×4 on 8,192 tokens
VOCAB, WIDTH, MLP, HEADS, KV_HEADS = 128_256, 4096, 14_336, 32, 8
FIRST_LETTER = 1000
LEAST_RATIO = 5.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tokens", type=int, default=32_768)
    arguments.add_argument("--layers", type=int, default=32)
    arguments.add_argument("--parts", default="8,16,32", help="depths of a grid")
    arguments.add_argument("--naive", type=int, default=6, help="questions of the naive loop")
    arguments.add_argument("--suite-lengths", default="8192,32768")
    asked = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, config = built(asked.layers, device)
    text = haystack(asked.tokens)
    reader = open_reader(model, rope_spec_of(config))
    print(f"{type(reader).__name__}, attention {model.config._attn_implementation}, {device_name(device)}")
    assert isinstance(reader, SharedReader)

    first = needles.grid(("code",), text, asked.tokens, 8, 1, 1)
    began = now(device)
    read(reader, first)
    print(f"first grid, kernels chosen on the way: {now(device) - began:.1f} s")
    naive_s, naive = ask_naively(model, needles.grid(("code",), text, asked.tokens, 8, 1, 0), asked.naive)
    print(f"naive: {asked.naive} questions at {naive_s:.2f} s each, {1 / naive_s:.2f} a second\n")
    print("depths  questions  seconds  a second  ratio  by arithmetic  read s  ask s  tokens read")
    for parts in map(int, asked.parts.split(",")):
        samples = needles.grid(("code",), text, asked.tokens, parts, 1, 0)
        reader = SharedReader(model)
        reader.read(first[0].context[:8192])
        before, began = reader.read_tokens, now(device)
        replies, reading_s = read(reader, samples)
        seconds = now(device) - began
        ratio = len(replies) / seconds * naive_s
        print(
            f"{parts:>6}  {len(replies):>9}  {seconds:>7.2f}  {len(replies) / seconds:>8.2f}  {ratio:>5.1f}  "
            f"{by_arithmetic(samples, config):>13.1f}  {reading_s:>6.2f}  {seconds - reading_s:>5.2f}  "
            f"{reader.read_tokens - before:>11,}",
            flush=True,
        )
        if parts == 8:
            apart = max(abs(replies[index].nll - nll) for index, nll in naive.items())
            print(f"        nats of an answer differ by at most {apart:.3f} of {replies[0].nll:.1f}")
    print(f"wanted: {LEAST_RATIO:g}; peak memory {peak_gib(device)}")
    del reader
    if asked.suite_lengths:
        suite(model, config, [int(length) for length in asked.suite_lengths.split(",")], device)


def built(layers: int, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The model, random but for its seed, and its config's values."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=32_768,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 500_000.0, "factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return model, config.to_dict()


def haystack(tokens: int) -> Haystack:
    """Source of the running Python, a letter a token: random weights know no better tokenizer."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text("utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]

    def encode(text: str) -> list[int]:
        return [FIRST_LETTER + byte for byte in text.encode()]

    def decode(ids: Sequence[int]) -> str:
        return bytes(at - FIRST_LETTER for at in ids if 0 <= at - FIRST_LETTER < 256).decode(errors="replace")

    documents = tuple(np.asarray(encode(text), dtype=np.int64) for text in texts)
    return Haystack(tuple(texts), documents, (), encode, f"stdlib {tokens}", decode)


def read(reader: SharedReader, samples: Sequence[Example]) -> tuple[list[Reply], float]:
    """All replies, and the seconds of the texts without their questions."""
    replies: list[Reply] = []
    reading_s = 0.0
    for sample in samples:
        began = now(reader.model.device)
        reader.read(sample.context)
        reading_s += now(reader.model.device) - began
        replies += reader.ask(sample.questions)
    return replies, reading_s


def ask_naively(model: Any, samples: Sequence[Example], count: int) -> tuple[float, dict[int, float]]:
    """Seconds a question, text and prompt and true answer in one forward, no choices; nats by its number."""
    pairs = [(sample, question) for sample in samples for question in sample.questions]
    some = list(range(0, len(pairs), max(1, len(pairs) // count)))[:count]
    whole = WholeReader(model)
    ask_whole(whole, *pairs[0])
    began = now(model.device)
    nats = {index: ask_whole(whole, *pairs[index]) for index in some}
    return (now(model.device) - began) / len(some), nats


def ask_whole(reader: WholeReader, sample: Example, question: Question) -> float:
    reader.read(sample.context)
    (reply,) = reader.ask([Question(question.prompt, question.answer)])
    return reply.nll


def by_arithmetic(samples: Sequence[Example], config: dict[str, Any]) -> float:
    """The ratio were both limited by their operations alone and questions free."""
    head = config["head_dim"] or WIDTH // HEADS
    layer = WIDTH * head * (2 * HEADS + 2 * KV_HEADS) + 3 * WIDTH * MLP
    shape = dimensions_of(config, config["num_hidden_layers"] * layer)
    assert shape is not None

    def flops(tokens: int) -> float:
        return costs(shape, [tokens])[0].prefill_flops if tokens else 0.0

    ours, last = 0.0, np.empty(0, dtype=np.int64)
    for sample in samples:
        shorter = min(len(last), len(sample.context))
        different = np.flatnonzero(last[:shorter] != sample.context[:shorter])
        ours += flops(len(sample.context)) - flops(int(different[0]) if different.size else shorter)
        last = sample.context
    naive = sum(len(sample.questions) * flops(len(sample.context)) for sample in samples)
    return naive / ours


def suite(model: Any, config: dict[str, Any], lengths: Sequence[int], device: torch.device) -> None:
    """Every task of the full suite, as little of each as there is, timed cell by cell."""
    size = Size(8, 1, 4, 1, SIZES["full"].tasks)
    documents, ordered = haystack(lengths[-1]), tuple(sorted(lengths))
    cells = CellPlan(tuple(suite_cells(size, ordered, documents, seed=0)), ordered, 0, documents)
    marks: list[tuple[float, str]] = []

    def progress(done: int, total: int, note: str) -> None:
        marks.append((now(device), note))

    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(device.type, "bf16", JsonLines(Path(folder) / "cells.jsonl"), progress)
        under_test = ModelUnderTest(lambda: model, rope_spec_of(config))
        measured = PlanRun(cells, under_test, "random", worker).measure()
    print(f"\nevery task of the full suite at {' and '.join(map(str, sorted(lengths)))} tokens")
    for (began, name), (ended, _) in pairwise(marks):
        print(f"  {name:<28} {ended - began:>7.1f} s")
    counted = [score for score in measured.scores if score.depth is None]
    asked = sum(score.samples for score in counted if not score.task.endswith(("/nats", "/average")))
    print(
        f"  {len(cells.cells)} cells, {asked} questions and windows, {marks[-1][0] - marks[0][0]:.0f} s, "
        f"skipped {measured.skipped or 'none'}; peak memory {peak_gib(device)}"
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def peak_gib(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "not counted"


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


main()

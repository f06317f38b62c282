"""The needle grid of an 8B Llama-3 shape (random weights) at 32k: our reading against one prefill a question.

    python infra/benchmarks/needle_grid.py [--tokens 32768] [--layers 32] [--naive 6]

Prints samples a second of both, the peak of memory, and how far the answers' likelihoods are apart.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from yarn_ops.evals.suite import needles
from yarn_ops.evals.suite.haystack import Haystack
from yarn_ops.evals.suite.reader import SharedReader, WholeReader, open_reader
from yarn_ops.evals.suite.sample import Question
from yarn_ops.rope.config import rope_spec_of

# Llama-3-8B: 32 layers of 4096, 32 heads, 8 KV heads, 14,336 wide MLP; YaRN ×4 on 8,192 tokens
VOCAB = 128_256
LEAST_RATIO = 5.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tokens", type=int, default=32_768)
    arguments.add_argument("--layers", type=int, default=32)
    arguments.add_argument("--parts", type=int, default=8)
    arguments.add_argument("--naive", type=int, default=6, help="questions of the naive loop")
    asked = arguments.parse_args()
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=asked.layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32_768,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 500_000.0, "factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    haystack = Haystack(
        texts=(),
        documents=(np.random.default_rng(0).integers(0, VOCAB, 4 * asked.tokens),),
        prefix=(),
        encode=lambda text: [1000 + byte for byte in text.encode()],
        digest="random",
    )
    samples = needles.grid("code", haystack, asked.tokens, asked.parts, 1, 0)
    questions = [(sample, question) for sample in samples for question in sample.questions]
    reader = open_reader(model, rope_spec_of(config.to_dict()))
    print(f"{type(reader).__name__}, attention {model.config._attn_implementation}")
    assert isinstance(reader, SharedReader)

    reader.read(samples[0].context[:8192])  # warm-up: kernels are chosen
    reader.ask(samples[0].questions)
    reader = SharedReader(model)
    began = now(device)
    ours = []
    for sample in samples:
        reader.read(sample.context)
        ours += reader.ask(sample.questions)
    our_s = now(device) - began
    print(
        f"ours:  {len(questions)} questions with forced choice in {our_s:.1f} s, "
        f"{len(questions) / our_s:.2f} samples/s, {reader.read_tokens:,} tokens read"
    )
    del reader
    some = list(range(0, len(questions), max(1, len(questions) // asked.naive)))[: asked.naive]
    whole = WholeReader(model)
    theirs = []
    ask_whole(whole, *questions[0])
    began = now(device)
    theirs = [ask_whole(whole, *questions[index]) for index in some]
    their_s = (now(device) - began) / len(some)
    print(f"naive: {len(some)} questions at {their_s:.2f} s each, {1 / their_s:.2f} samples/s")
    apart = max(abs(ours[index].nll - nll) for index, nll in zip(some, theirs, strict=True))
    ratio = len(questions) / our_s * their_s
    print(
        f"ratio {ratio:.1f} (wanted {LEAST_RATIO:g}); answers' nats differ by at most {apart:.3f} of ", end=""
    )
    print(f"{ours[0].nll:.1f}")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def ask_whole(reader: WholeReader, sample: needles.Sample, question: Question) -> float:
    """The naive question: text, prompt and the true answer in one forward, no choices."""
    reader.read(sample.context)
    (reply,) = reader.ask([Question(question.prompt, question.answer)])
    return reply.nll


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


main()

"""Dynamic YaRN on a GPU: decoding across the original context with a cache is a recomputation.

    python infra/benchmarks/dynamic.py BASE TEXT_FILE [--new 192] [--device cuda]

Decodes greedily from half of the new tokens before the original context to half of them beyond it, then reads
the same tokens in one forward without a cache. float32 must choose the same tokens; bfloat16 is reported.
Exit status 1 where float32 differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.device import resolve_device
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.proof import prove

TOLERANCE = 1e-4
"""of a logit, as a share of the largest; two tokens closer than that may change places"""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--new", type=int, default=192)
    arguments.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    asked = arguments.parse_args()
    device = resolve_device(asked.device)
    checks = [check(asked, device, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return 0 if checks[0] else 1


@torch.inference_mode()
def check(asked: argparse.Namespace, device: str, dtype: torch.dtype) -> bool:
    """Print what one arithmetic gives; whether cached and recomputed tokens are the same."""
    rope = Rope(method="dynamic-yarn", factor=4)
    config, spec = patch_config(read_config(asked.base), rope, factor=4.0, original_context_tokens=None)
    original = spec.original_context_tokens
    model = load_proven(asked.base, config, rope_spec_of(config), dtype=dtype, device=device)
    first = original - asked.new // 2
    ids = load_tokenizer(asked.base).encode(asked.text.read_text("utf-8"), add_special_tokens=False)[:first]
    if len(ids) < first:
        sys.exit(f"{asked.text}: {len(ids)} tokens; {first} are needed")
    began = time.perf_counter()
    generated = model.generate(
        torch.tensor([ids], device=device),
        attention_mask=torch.ones(1, first, device=device),
        max_new_tokens=asked.new,
        min_new_tokens=asked.new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    seconds = time.perf_counter() - began
    cached = torch.cat(generated.logits).float()
    again = model(generated.sequences, use_cache=False).logits[0, first - 1 : -1].float()
    largest = float(again.abs().max())
    difference = float((cached - again).abs().max()) / largest
    best = again.topk(2).values
    decided = (best[:, 0] - best[:, 1]) > TOLERANCE * largest
    same = cached.argmax(-1) == again.argmax(-1)
    error = prove(model, spec)
    print(
        f"{device}, {dtype}: {asked.new} tokens decoded across {original}, RoPE off by {error:.1e}; "
        f"{int(same.sum())} of {len(same)} the same without a cache, {int((~same & decided).sum())} of the "
        f"decided ones not; logits differ by {difference:.1e} of the largest; {seconds:.1f} s",
        flush=True,
    )
    return bool((same | ~decided).all()) and difference < TOLERANCE


sys.exit(main())

"""The remedies side by side on a real 8k model read zero-shot at 32k, on one GPU.

    python infra/benchmarks/remedies.py BASE DOCUMENTS_GLOB OUT [--factor 4] [--windows 24] [--length 32768]

BASE: a base model. Needs torch, transformers, safetensors, pydantic, numpy and matplotlib, nothing else.
Prints one table and writes OUT/remedies.json and OUT/remedies.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from yarn_ops.data.files import LocalFiles
from yarn_ops.remedies.compare import Asked, compare
from yarn_ops.remedies.picture import draw
from yarn_ops.remedies.table import lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("documents")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--factor", type=float, default=4.0)
    arguments.add_argument("--windows", type=int, default=24)
    arguments.add_argument("--length", type=int)
    arguments.add_argument("--templates", default="code,prose")
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    last = ""

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        if note != last:
            print(f"{time.perf_counter() - began:5.0f} s  {done} of {total} documents: {note}", flush=True)
            last = note

    on_gpu = torch.cuda.is_available()
    side = compare(
        Asked(
            model=given.base, name=given.base.name, factor=given.factor, documents=(given.documents,),
            context_tokens=given.length, windows=given.windows, templates=given.templates.split(","),
        ),
        LocalFiles(),
        device="cuda" if on_gpu else "cpu",
        precision="bf16" if on_gpu else "fp32",
        progress=report,
    )  # fmt: skip
    (given.out / "remedies.json").write_text(side.model_dump_json(indent=1) + "\n", "utf-8")
    draw(side, given.out / "remedies.png")
    print(f"{side.model} ×{given.factor:g}, {side.context_tokens} tokens, {side.device}")
    print("\n".join([*lines(side), *(f"{name}: {why}" for name, why in side.unavailable.items())]))
    print(f"took {time.perf_counter() - began:.0f} s")


main()

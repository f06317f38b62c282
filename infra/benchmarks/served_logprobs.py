"""Compare what a server says of whole texts with what transformers computes of them.

    python infra/benchmarks/served_logprobs.py MODEL_DIR reference.npz --documents "books/*.txt"
    python infra/benchmarks/served_logprobs.py MODEL_DIR reference.npz --url http://127.0.0.1:8000

The first form reads texts of each length (--lengths, in original lengths) in float32 and in bfloat16, and
keeps the log-probability of each token, whether it is the likeliest, and a greedy continuation. The second
asks a server that tells a prompt's log-probabilities (`echo`) for the same and needs no GPU. It exits with 1
where the server is wrong: its tokens differ from float32 by more than 1.75 times what bfloat16's do, or
another greedy token than float32's, which float32 prefers by more than bfloat16 ever errs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.serving.client import Completion, InferenceServer
from yarn_ops.serving.verdict import ALLOWED

TEXTS, WRITTEN = 3, 32
"""of each length; greedy tokens after each, which count to its length"""
CHUNK = 1024
"""tokens read at a time, over a cache: float32 has no blocked attention for shared key heads"""
SAME_NATS = 1e-6
KEPT = ("told", "likeliest", "written", "margins")
DTYPES = {"exact": torch.float32, "rounded": torch.bfloat16}


@torch.inference_mode()
def read(model: Any, ids: list[int]) -> dict[str, Any]:
    """Of each token but the first its log-probability and whether it is the likeliest; the greedy tokens
    that follow, and by how many nats each is preferred."""
    asked, cache = torch.tensor([ids], device=model.device), None
    told, likeliest = [], []
    for start in range(0, len(ids), CHUNK):
        answer = model(asked[:, start : start + CHUNK], past_key_values=cache, use_cache=True)
        cache, likely = answer.past_key_values, answer.logits[0].float().log_softmax(-1)
        following = asked[0, start + 1 : start + 1 + len(likely)]
        values = likely[: len(following)].gather(1, following[:, None])[:, 0]
        told.append(values.cpu().numpy())
        likeliest.append((values >= likely[: len(following)].amax(-1) - SAME_NATS).cpu().numpy())
    written, margins = [], []
    for _ in range(WRITTEN):
        best = likely[-1].topk(2)
        written.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        answer = model(best.indices[None, :1], past_key_values=cache, use_cache=True)
        cache, likely = answer.past_key_values, answer.logits[0].float().log_softmax(-1)
    told, likeliest = np.concatenate(told), np.concatenate(likeliest)
    return {"told": told, "likeliest": likeliest, "written": written, "margins": margins}


def make_reference(model_dir: Path, documents: str, lengths: list[float], out: Path) -> None:
    spec, tokenizer = rope_spec_of(read_config(model_dir)), load_tokenizer(model_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = round(max(lengths) * spec.original_context_tokens)
    texts: list[list[int]] = []
    for path in sorted(Path(documents).parent.glob(Path(documents).name)):
        ids = tokenizer(path.read_text("utf-8"), verbose=False)["input_ids"]
        if len(ids) > 2 * longest and len(texts) < TEXTS:
            texts.append(ids[longest : 2 * longest])
    if len(texts) < TEXTS:
        sys.exit(f"{documents}: {len(texts)} of {TEXTS} texts have {2 * longest:,} tokens; name longer ones")
    kept: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        model = load_proven(model_dir, None, spec, dtype=dtype, device=device)
        for length in lengths:
            for number, text in enumerate(texts):
                ids = text[: round(length * spec.original_context_tokens) - WRITTEN]
                kept[f"{length:g}/{number}/ids"] = ids
                kept |= {
                    f"{length:g}/{number}/{name}/{key}": value for key, value in read(model, ids).items()
                }
        del model
    np.savez_compressed(out, **kept)


def compare(server: InferenceServer, model_dir: Path, reference: Any) -> list[dict[str, Any]]:
    """A row for each length."""
    tokenizer = load_tokenizer(model_dir)
    original = rope_spec_of(read_config(model_dir)).original_context_tokens
    rows = []
    for length in dict.fromkeys(key.split("/")[0] for key in reference.files):
        began = time.monotonic()
        parts: dict[str, list[Any]] = {"exact": [], "rounded": [], "served": []}
        top: dict[str, list[Any]] = {"exact": [], "rounded": [], "served": []}
        tokens, equal, others = 0, {"rounded": 0, "served": 0}, []
        for number in range(TEXTS):
            kept = {
                name: {key: reference[f"{length}/{number}/{name}/{key}"] for key in KEPT} for name in DTYPES
            }
            ids = reference[f"{length}/{number}/ids"].tolist()
            told = server.prompt_logprobs(ids)
            if told is None:
                sys.exit(f"{server.url}: tells no log-probabilities of a prompt")
            for name in DTYPES:
                parts[name].append(kept[name]["told"])
                top[name].append(kept[name]["likeliest"])
            parts["served"].append(np.array([value for value, _ in told[1 : len(ids)]]))
            top["served"].append(np.array([value >= best - SAME_NATS for value, best in told[1 : len(ids)]]))
            reply = server.write(ids, WRITTEN)
            if not isinstance(reply, Completion):
                sys.exit(f"{server.url}: refuses a text of {len(ids):,} tokens, it says {reply}")
            wanted, rounded = (until_end(tokenizer, kept[name]["written"].tolist()) for name in DTYPES)
            before = common(tokenizer, wanted, reply.text)
            tokens, equal["served"] = tokens + len(wanted), equal["served"] + before
            equal["rounded"] += next(
                (at for at, one in enumerate(wanted) if rounded[at : at + 1] != [one]), len(wanted)
            )
            others += [float(kept["exact"]["margins"][before])] if before < len(wanted) else []
        exact, agreed = np.concatenate(parts["exact"]), np.concatenate(top["exact"])
        apart = {name: np.abs(np.concatenate(parts[name]) - exact) for name in ("served", "rounded")}
        rows.append({
            "tokens": round(float(length) * original), "texts": TEXTS,
            "nats": float(apart["served"].mean()), "nats_of_bfloat16": float(apart["rounded"].mean()),
            "largest": float(apart["served"].max()), "largest_of_bfloat16": float(apart["rounded"].max()),
            "loss": float(-np.concatenate(parts["served"]).mean()), "loss_of_float32": float(-exact.mean()),
            "likeliest_same": float((np.concatenate(top["served"]) == agreed).mean()),
            "likeliest_same_of_bfloat16": float((np.concatenate(top["rounded"]) == agreed).mean()),
            "greedy": tokens, "greedy_same": equal["served"], "greedy_same_of_bfloat16": equal["rounded"],
            "preferred_by_where_other": others, "seconds": round(time.monotonic() - began, 1),
            "right": bool(apart["served"].mean() <= ALLOWED * apart["rounded"].mean()
                          and all(one <= apart["rounded"].max() for one in others)),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def until_end(tokenizer: Any, written: list[int]) -> list[int]:
    """Without what follows a token that ends a text, and shows nothing."""
    ends = [at for at, one in enumerate(written) if one in tokenizer.all_special_ids]
    return written[: ends[0]] if ends else written


def common(tokenizer: Any, wanted: list[int], text: str) -> int:
    """How many of the first wanted tokens a text begins with."""
    return max(
        count
        for count in range(len(wanted) + 1)
        if text.startswith(tokenizer.decode(wanted[:count], skip_special_tokens=True).rstrip("\ufffd"))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="an extended model's directory")
    parser.add_argument("reference", type=Path, help="written without --url, read with it")
    parser.add_argument("--documents", help="long texts, a glob")
    parser.add_argument("--lengths", default="0.5,1,2,4", help="of the texts, in original lengths")
    parser.add_argument("--url", help="of a server that serves the model")
    parser.add_argument("--json", type=Path, help="a line a length is added there")
    asked = parser.parse_args()
    if asked.url is None:
        if asked.documents is None:
            parser.error("give --documents to make a reference, or --url to compare with one")
        lengths = [float(one) for one in asked.lengths.split(",")]
        make_reference(asked.model, asked.documents, lengths, asked.reference)
        return 0
    with np.load(asked.reference) as reference, InferenceServer(asked.url, None, None) as server:
        rows = compare(server, asked.model, reference)
    if asked.json is not None:
        with asked.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

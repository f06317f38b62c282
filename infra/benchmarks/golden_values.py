"""How golden files keep a value: floating point as digests marked `bits:`, records without what is another
in every run, documents that are the same on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BITS = "bits:"
SYLLABLES = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "tu", "sha", "the", "ing", "ou", "er"]
UNLASTING = ("mlflow_run_id", "run", "git_commit", "recipe", "version", "seconds", "path", "size_bytes",
    "tree_digest",
)  # fmt: skip
"""of records and tags: what is another in every run, says with which words it was asked for, or covers what
is written for people"""

Values = dict[str, Any]


def lasting(value: Any, exact: bool = False) -> Any:
    """A record without what is another in every run; digests as bits unless no floating point is in it."""
    if isinstance(value, list):
        return [lasting(part, exact) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: bits_of(part) if name.endswith("digest") and not exact else lasting(part, exact)
        for name, part in value.items()
        if name not in UNLASTING and part is not None
    }


def written(work: Path) -> list[str]:
    """Sixty documents of random words, the same on every machine; many are shorter than a window."""
    rng = np.random.default_rng(1)
    folder = work / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(60):
        words = int(np.exp(rng.uniform(np.log(8), np.log(900))))
        picked = rng.integers(0, len(SYLLABLES), (words, 3))
        text = ["".join(SYLLABLES[syllable] for syllable in word) for word in picked]
        text[::30] = [f"{word}." for word in text[::30]]
        (folder / f"{number:02}.txt").write_text(" ".join(text) + "\n", "utf-8")
    return [str(folder / "*.txt")]


def card_scores(card: Any) -> list[Values]:
    return [score.model_dump(mode="json") for score in card.scores]


def table(rows: Sequence[Values]) -> Values:
    """{"task at tokens, depth": [value, low, high, samples, seed, bits of the items]}"""
    found: Values = {}
    for row in rows:
        depth = "" if row["depth"] is None else f", {row['depth']:.4f}"
        items = [bits(np.asarray(row["items"]))] if row.get("items") else []
        figures = [row[name] for name in ("value", "low", "high", "samples", "seed")]
        found[f"{row['task']} at {row['context_tokens']}{depth}"] = figures + items
    return found


def facts(record: Any) -> Values:
    return record.model_dump(mode="json", exclude={"tree", "parents"})


def without(values: Values, *names: str) -> Values:
    return {name: value for name, value in values.items() if name not in names}


def flat(value: Any) -> list[Any]:
    """What a sample or a case holds, functions left out."""
    if dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [flat(part) for part in parts if not callable(part)]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [flat(part) for part in value] if isinstance(value, tuple | list) else value


def digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().numpy()
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            sha.update(json.dumps(part).encode())
    return sha.hexdigest()[:32]


def bits(values: Any) -> str:
    return BITS + digest(values)


def bits_of(sha: str) -> str:
    return BITS + sha[:32]

"""The stage: one model measured at every length of the recipe.

The work is a list of cells. A cell is independent of the others and knows nothing of the model, so the base
and the result are asked exactly the same, and cells can be run anywhere in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.digests import digest_of
from yarn_ops.errors import EvaluationError
from yarn_ops.evals import perplexity, recall
from yarn_ops.evals.forward import Ids, require_known_head
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Evaluate
from yarn_ops.records import BaseModel, Checkpoint, Local, PatchedModel, Score, Scorecard, ShardSet
from yarn_ops.rope.config import rope_spec_of

SCORES_FILE = "scores.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLIDING_TEXT = 1.5
"""length of a sliding document in longest contexts: the window has to move, and each stride is a forward"""

Progress = Callable[[int, int, str], None]
"""(tokens read, tokens to read, what comes next)"""


@dataclass(frozen=True)
class Cell:
    """One unit of an evaluation: a task at a length, on text that is fixed before any model is loaded."""

    name: str
    forward_tokens: int
    measure: Callable[[PreTrainedModel], tuple[Score, ...]]


def evaluate(
    section: Evaluate,
    model: Local[BaseModel] | Local[Checkpoint],
    shards: Local[ShardSet],
    out: Path,
    *,
    original_context_tokens: int,
    device: str,
    dtype: Literal["fp32", "bf16"],
    report: Progress,
    patched: Local[PatchedModel] | None = None,
) -> Scorecard:
    """Measure a model as its config has it and write `scores.json` into `out`.

    A base is left as it is: beyond its window it extrapolates; with `patched` its weights are read by that
    config instead (zero-shot).
    EvaluationError when the held-out text or a length cannot serve, before the model is loaded.
    """
    tokenizer = load_tokenizer(model.path)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    cells = plan(section, ShardReader(shards.path, "held_out"), encode, original_context_tokens)
    config = read_config(patched.path if patched else model.path)
    network = load_proven(model.path, config, rope_spec_of(config), dtype=DTYPES[dtype], device=device)
    scores = run(cells, network, report)
    scorecard = Scorecard(
        parents=(model.record.digest, shards.record.digest),
        model_digest=digest_of([model.record.digest, patched.record.digest])
        if patched
        else model.record.digest,
        original_context_tokens=original_context_tokens,
        scores=scores,
    )
    _write(scorecard, out / SCORES_FILE)
    return scorecard


def plan(
    section: Evaluate, reader: ShardReader, encode: recall.Encode, original_context_tokens: int
) -> list[Cell]:
    """All cells, cheapest first, with their text drawn; every fault of the recipe is found here."""
    lengths = sorted({round(multiple * original_context_tokens) for multiple in section.lengths})
    longest = lengths[-1]
    if reader.tokens <= longest:
        raise EvaluationError(
            f"evaluate.lengths: a window of {longest} tokens does not fit {reader.tokens} held-out tokens; "
            "add documents, raise data.held_out_fraction or measure shorter windows"
        )
    windows = _texts(reader, longest, section.windows, section.seed)
    documents = _sliding_documents(reader, longest, section)
    cells: list[Cell] = []
    for length in lengths:
        cells.append(_perplexity_cell(windows, length, section.seed))
        if documents:
            cells.append(_sliding_cell(documents, length, section.sliding_stride_tokens, section.seed))
        texts = _texts(reader, length, section.recall_windows, section.seed)
        cells += [_recall_cell(texts, encode, template, length, section) for template in section.templates]
    return sorted(cells, key=lambda cell: cell.forward_tokens)


def tokens_through(section: Evaluate, length: int, lengths: Sequence[int]) -> int:
    """About how many tokens one length sends through a model; `lengths`: all that are measured, ascending.

    Held-out documents are taken to be as long as sliding windows can make use of.
    """
    longest, stride = lengths[-1], section.sliding_stride_tokens
    tokens = section.windows * (longest // length) * length
    tokens += section.recall_windows * len(section.templates) * length
    if stride:
        cut = max(round(SLIDING_TEXT * longest), longest + stride)
        windows = 1 + (cut - length) // min(stride, length)
        tokens += max(1, section.windows // 4) * windows * length
    return tokens


def run(cells: list[Cell], network: PreTrainedModel, report: Progress) -> tuple[Score, ...]:
    """Measure every cell; scores in the order of the cells."""
    require_known_head(network)
    total = sum(cell.forward_tokens for cell in cells)
    done = 0
    scores: list[Score] = []
    for cell in cells:
        report(done, total, cell.name)
        scores += cell.measure(network)
        done += cell.forward_tokens
    report(total, total, "measured")
    return tuple(scores)


def _texts(reader: ShardReader, window_tokens: int, count: int, seed: int) -> Ids:
    """int64 [count, window_tokens + 1], spread over the held-out text."""
    return np.stack([window.ids for window in spread(reader, window_tokens, count, seed)])


def _sliding_documents(reader: ShardReader, longest: int, section: Evaluate) -> list[Ids]:
    """The longest held-out documents, cut; none when no document leaves the window room for a stride."""
    if not section.sliding_stride_tokens:
        return []
    least = longest + section.sliding_stride_tokens + 1
    cut = max(round(SLIDING_TEXT * longest) + 1, least)
    by_length = np.argsort(-reader.lengths, kind="stable")[: max(1, section.windows // 4)]
    long = [int(index) for index in by_length if reader.lengths[index] >= least]
    return [reader.document(index, stop=cut).astype(np.int64) for index in long]


def _perplexity_cell(windows: Ids, length: int, seed: int) -> Cell:
    tokens = perplexity.last_quarter_chunks(windows, length)[..., 1:].size
    measure = partial(perplexity.window_scores, windows=windows, context_tokens=length, seed=seed)
    return Cell(f"perplexity at {length} tokens", tokens, measure)


def _sliding_cell(documents: list[Ids], length: int, stride: int, seed: int) -> Cell:
    windows = sum(1 + (len(document) - 1 - length) // min(stride, length) for document in documents)
    measure = partial(
        perplexity.sliding_scores, documents=documents, context_tokens=length, stride_tokens=stride, seed=seed
    )
    return Cell(f"sliding perplexity at {length} tokens", windows * length, measure)


def _recall_cell(texts: Ids, encode: recall.Encode, template: str, length: int, section: Evaluate) -> Cell:
    samples = recall.make_samples(list(texts), encode, template, length, section.recall_pairs, section.seed)
    measure = partial(
        recall.recall_scores,
        samples=samples,
        template=template,
        pairs=section.recall_pairs,
        seed=section.seed,
    )
    return Cell(f"recall of {template} pairs at {length} tokens", len(texts) * length, measure)


def _write(scorecard: Scorecard, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(scorecard.model_dump_json(exclude={"tree", "parents"}, indent=1) + "\n", "utf-8")
    part.replace(path)

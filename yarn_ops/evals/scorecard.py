"""The scorecard: perplexity and recall on held-out windows, at the lengths that a recipe names."""

from __future__ import annotations

import numpy as np

from yarn_ops.data.haystack import Decode, Encode, Ids, is_chinese
from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.cells import LEAST_TOKENS, Cell, Load, Reads, lengths_to
from yarn_ops.evals.sequential import Looks
from yarn_ops.evals.tasks import perplexity, recall
from yarn_ops.evals.tasks.needles import planted_together
from yarn_ops.recipe import Evaluate

LANGUAGE_TOKENS = 256
"""of the first document: they tell the language"""
SLIDING_TEXT = 1.5
"""length of a sliding document in longest contexts: the window has to move, and each stride is a forward"""


def scorecard_cells(
    section: Evaluate, reader: ShardReader, text: str, encode: Encode, original_context_tokens: int,
    decode: Decode | None = None, foreign_at: int | None = None,
) -> list[Cell]:  # fmt: skip
    """Perplexity and recall at the lengths of the recipe, on held-out windows; cheapest first.

    text: digest of the shards; decode: tells their language, else the needles are English; foreign_at: the
    length at which growing context wants foreign text, read with perplexity where that is the longest.
    EvaluationError for a length that the held-out text or the pairs do not fit.
    """
    lengths = scorecard_lengths(section, original_context_tokens)
    longest = lengths[-1]
    if reader.tokens <= longest:
        raise EvaluationError(
            f"evaluate.lengths: a window of {longest} tokens does not fit {reader.tokens} held-out tokens; "
            "add documents, raise data.held_out_fraction or measure shorter windows"
        )
    chinese = decode is not None and is_chinese(decode(reader.document(0, stop=LANGUAGE_TOKENS).tolist()))
    windows = _spread_windows(reader, longest, section.windows, section.seed)
    documents = _sliding_documents(reader, longest, section)
    shortest = lengths_to(max(longest, LEAST_TOKENS), original_context_tokens)[0]
    together = planted_together(section.templates, section.recall_pairs, lengths[0])
    cells: list[Cell] = []
    beside: perplexity.PerplexityCell | None = None
    for length in lengths:
        cell = perplexity.cell(
            windows, length, section.seed, text, reader.prefix, shortest=shortest, beside=beside,
            foreign=length == foreign_at,
        )  # fmt: skip
        beside = beside or cell
        cells.append(cell)
        if documents:
            stride = section.sliding_stride_tokens
            cells.append(
                perplexity.sliding_cell(documents, length, stride, section.seed, text, reader.prefix)
            )
        texts = _spread_windows(reader, length, section.recall_windows, section.seed)
        cells += [
            recall.recall_cell(
                texts,
                encode,
                templates,
                length,
                section.recall_pairs,
                section.seed,
                text,
                chinese=chinese,
                head=reader.prefix.size,
            )
            for templates in together
        ]
    return sorted(cells, key=lambda cell: cell.tokens)


def scorecard_lengths(section: Evaluate, original_context_tokens: int) -> list[int]:
    return sorted({round(multiple * original_context_tokens) for multiple in section.lengths})


def _spread_windows(reader: ShardReader, window_tokens: int, count: int, seed: int) -> Ids:
    """int64 [count, window_tokens + 1], spread over the held-out text."""
    return np.stack([window.ids for window in spread(reader, window_tokens, count, seed)])


def _sliding_documents(reader: ShardReader, longest: int, section: Evaluate) -> list[Ids]:
    """The longest held-out documents, cut; none when no document leaves the window room for a stride."""
    stride = section.sliding_stride_tokens
    if not stride:
        return []
    by_length = np.argsort(-reader.lengths, kind="stable")[: _sliding_count(section)]
    long = [int(index) for index in by_length if reader.lengths[index] > longest + stride]
    cut = _sliding_tokens(longest, stride)
    return [reader.document(index, stop=cut).astype(np.int64) for index in long]


def _sliding_count(section: Evaluate) -> int:
    return max(1, section.windows // 4)


def _sliding_tokens(longest: int, stride: int) -> int:
    return max(round(SLIDING_TEXT * longest), longest + stride) + 1


def scorecard_loads(
    section: Evaluate, original_context_tokens: int, foreign_at: int | None = None
) -> list[Load]:
    """What its cells take, foretold without their texts: held-out documents are taken to be as long as
    sliding windows can make use of. foreign_at: as in `scorecard_cells`."""
    lengths, stride = scorecard_lengths(section, original_context_tokens), section.sliding_stride_tokens
    together = planted_together(section.templates, section.recall_pairs, lengths[0])
    loads = []
    for length in lengths:
        tokens = perplexity.tokens_read(section.windows, length, lengths[-1])
        looks = perplexity.looks_of(section.windows, length, lengths[-1])
        until_look = looks.least if length > lengths[0] else 1.0
        loads.append(Load("perplexity", length, tokens, Reads.once(tokens, length, tokens, until_look)))
        if length == foreign_at == lengths[-1] and section.windows > 1:
            near = lengths_to(length, original_context_tokens)[0]
            targets = perplexity.same_targets(near)
            foreign = perplexity.foreign_reads(section.windows, near, length, targets, until_look)
            loads += [Load("foreign text", length, round(foreign.tokens), foreign)] * (near < length)
        if stride:
            documents = [_sliding_tokens(lengths[-1], stride)] * _sliding_count(section)
            tokens = perplexity.sliding_tokens_read(documents, length, stride)
            loads.append(
                Load("sliding", length, tokens, Reads.once(tokens, length, tokens / length * stride))
            )
        tokens = section.recall_windows * length
        until_look = Looks.at(section.recall_windows, section.recall_pairs).least
        reads = Reads.once(tokens, length, until_look=until_look)
        loads += [Load(recall.name_of(templates), length, tokens, reads) for templates in together]
    return loads

"""What an evaluation measures: the scorecard's cells, and those of a suite of some size.

Cells are fixed with their texts before any model is loaded, so a base and its result are asked exactly the
same. `tiny`: seconds on two cores for a model of some million parameters, for trying out; wide intervals.
`quick`: minutes; needle grids and context. `use`: what else a long window is used for, in families that no
exercise trains. `full`: 200 examples a depth, every task, RULER.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType

import numpy as np

from yarn_ops.data.haystack import Haystack, Ids
from yarn_ops.errors import DataError
from yarn_ops.evals.cells import Block, Cell, Load, ModelUnderTest, Reads, Size, Task, lengths_to
from yarn_ops.evals.names import NEEDLE_FORMS, NEEDLES, TRAINED, template_of
from yarn_ops.evals.scorecard import scorecard_lengths, scorecard_loads
from yarn_ops.evals.tasks import context, copying, facts, natural, needles, pairs, perplexity, ruler, skills
from yarn_ops.evals.tasks.grid import Make, grid_task
from yarn_ops.recipe import Evaluate, SuiteName
from yarn_ops.scores import Score

STRIDE_TOKENS = 256
"""of a suite's sliding perplexity"""

USUAL = ("skills", "context", "perplexity", "needle/code", "needle/prose")
BEYOND_NEEDLES = (
    TRAINED, "passkey", "multi-key", "key-value", "two-hop", "count", "most-frequent", "no-overlap",
    "many-shot", "hard-negative", "far-passage",
)  # fmt: skip
"""what a long window is used for beside finding one of few needles"""
SIZES: dict[SuiteName, Size] = {
    "tiny": Size(4, 2, 4, 0, ("context", "needle/code")),
    "quick": Size(8, 8, 16, 0, (*USUAL, "multi-key")),
    "use": Size(8, 16, 16, 0, (*USUAL, *BEYOND_NEEDLES)),
    "full": Size(
        8, 50, 32, 30, (*USUAL, "sliding", "long-perplexity", "copy", "mqar", *BEYOND_NEEDLES, "ruler")
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class CellPlan:
    """All that is asked of a model."""

    cells: tuple[Cell, ...]
    lengths: tuple[int, ...]
    """all that are measured, ascending"""
    seed: int
    haystack: Haystack | None = None
    """the documents of the suite's questions; None without a suite"""


def suite_cells(
    size: Size,
    lengths: Sequence[int],
    haystack: Haystack,
    seed: int,
    kinds: Mapping[str, Haystack] = MappingProxyType({}),
    beside: Sequence[Cell] = (),
) -> list[Cell]:
    """Every task at every length, cheapest first, but for those that cells `beside` measure. kinds: parts of
    the documents, by name, whose perplexity is told apart. DataError when the documents cannot fill the
    longest length."""
    cells: list[Cell] = []
    for name, length in _asked(size, lengths, {cell.name for cell in beside}):
        task = TASKS[name].cell
        if name == "context":
            task = partial(context.cell, read=perplexity.cells_by_length([*beside, *cells]))
        if name == "perplexity":
            some = next((one for one in cells if isinstance(one, perplexity.PerplexityCell)), None)
            task = partial(_perplexity, beside=some, foreign="context" in size.tasks)
        cells.append(task(haystack, size, length, lengths, seed))
        if name in OF_KINDS:
            for kind, documents in kinds.items():
                cells.append(_cell_of_kind(name, kind, documents, size, length, lengths, seed))
    return sorted(cells, key=lambda cell: cell.tokens)


def needed_tokens(size: Size, longest: int) -> int:
    """Documents' tokens that a suite can make use of."""
    return 2 * (size.windows + size.texts) * (longest + 1)


def _asked(size: Size, lengths: Sequence[int], measured: Collection[str]) -> Iterator[tuple[str, int]]:
    """Name and length of every cell, but for tasks that are measured. Growing context comes last, since it
    takes what perplexity has read; both forms of needle are one cell where texts hold both."""
    tasks = sorted((task for task in size.tasks if task not in measured), key=lambda task: task == "context")
    forms = [template_of(task) for task in NEEDLES if task in tasks]
    if len(forms) > 1 and len(needles.planted_together(forms, needles.NEEDLES, lengths[0])) == 1:
        tasks = [NEEDLE_FORMS, *(task for task in tasks if task not in NEEDLES)]
    for name in tasks:
        if name == "skills":
            yield name, lengths[0]
        elif name == "context":  # it holds all lengths
            yield name, lengths[-1]
        else:
            yield from ((name, length) for length in lengths)


def _cell_of_kind(
    task: str, kind: str, documents: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int
) -> Cell:
    """Of one kind of documents; where it is too short for a length, the cell says so when it is measured."""

    def measured(cell: Cell, block: Block, under_test: ModelUnderTest) -> tuple[Score, ...]:
        found = (
            score for score in cell.join([block.measure(under_test)]) if score.task.startswith("perplexity/")
        )
        return tuple(score.model_copy(update={"task": f"{score.task} of {kind}"}) for score in found)

    def refused(why: DataError, under_test: ModelUnderTest) -> tuple[Score, ...]:
        raise why

    name = f"{task} of {kind}"
    try:
        cell = TASKS[task].cell(documents, size, length, lengths, seed)
    except DataError as error:
        return Cell.whole(name, length, (), 0, partial(refused, error))
    (block,) = cell.blocks
    return Cell.whole(name, length, cell.asks, block.tokens, partial(measured, cell, block))


@lru_cache(maxsize=2)
def _windows(haystack: Haystack, count: int, tokens: int, seed: int) -> Ids:
    return haystack.windows(count, tokens, seed)


def _perplexity(
    haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int, *,
    beside: perplexity.PerplexityCell | None = None, foreign: bool = False,
) -> Cell:  # fmt: skip
    """Without a cell beside it, it is asked to the end."""
    windows = _windows(haystack, 2 * size.windows, lengths[-1] + 1, seed)[::2]  # between them: `context`'s
    return perplexity.cell(
        windows, length, seed, haystack.digest, shortest=lengths[0], beside=beside, foreign=foreign
    )


def _sliding(haystack: Haystack, size: Size, length: int, lengths: Sequence[int], seed: int) -> Cell:
    """Over the ends of the same texts at every length."""
    beyond = 2 * STRIDE_TOKENS + 1
    documents = _windows(haystack, _sliding_texts(size), lengths[-1] + beyond, seed)[:, -(length + beyond) :]
    return perplexity.sliding_cell(
        [np.ascontiguousarray(document) for document in documents], length, STRIDE_TOKENS, seed,
        haystack.digest,
    )  # fmt: skip


def _sliding_texts(size: Size) -> int:
    return max(4, size.windows // 8)


GRIDS: Mapping[str, Make] = {
    "needle/code": partial(needles.grid, ("code",)),
    "needle/prose": partial(needles.grid, ("prose",)),
    NEEDLE_FORMS: partial(needles.grid, ("code", "prose")),
    "passkey": needles.passkey,
    "key-value": pairs.key_value,
    "multi-key": pairs.multi_key,
    "mqar": copying.mqar,
    "copy": copying.copy,
}
FAMILIES: Mapping[str, Make] = {
    TRAINED: needles.trained,
    "two-hop": facts.two_hops,
    "count": partial(facts.ballots_of_wards, "count"),
    "most-frequent": partial(facts.ballots_of_wards, "most-frequent"),
    "no-overlap": facts.no_overlap,
    "many-shot": natural.many_shot,
    "hard-negative": natural.hard_negatives,
}
"""texts of the length at most, not to the token"""
DEEP = (*NEEDLES, NEEDLE_FORMS, "passkey", "copy", TRAINED)
OUTCOMES: Mapping[str, Callable[[Size], int]] = {
    **dict.fromkeys((*NEEDLES, NEEDLE_FORMS, TRAINED), lambda size: size.parts * needles.NEEDLES),
    "passkey": lambda size: size.parts,
    "key-value": lambda size: pairs.ASKED,
    "multi-key": lambda size: pairs.KEYS,
}
"""of a text and a form of the grids that are asked until it is decided"""
OF_KINDS = ("perplexity", "sliding")
"""tasks that tell kinds of documents apart"""
TASKS: Mapping[str, Task] = {
    "skills": Task(skills.cell, skills.tokens_read),
    "context": Task(context.cell, lambda size, length, lengths: context.load(size, lengths).tokens),
    "perplexity": Task(
        _perplexity, lambda size, length, lengths: perplexity.tokens_read(size.windows, length, lengths[-1])
    ),
    "sliding": Task(_sliding, lambda size, length, lengths: _sliding_texts(size) * 3 * length),
    "far-passage": Task(natural.far_cell, lambda size, length, lengths: 2 * size.windows * length),
    "long-perplexity": Task(context.key_cell, lambda size, length, lengths: size.windows * length),
    **{
        name: grid_task(
            name,
            make,
            tasks=NEEDLES if name == NEEDLE_FORMS else (),
            deep=name in DEEP,
            by_token=name == "copy",
            outcomes=OUTCOMES.get(name),
        )
        for name, make in {**GRIDS, **FAMILIES}.items()
    },
    "ruler": Task(
        ruler.cell,
        lambda size, length, lengths: size.ruler_samples * length * len(ruler.TASKS),
        lambda size, tokens: len(ruler.TASKS),
    ),
}


def loads(section: Evaluate, original_context_tokens: int, target_context_tokens: int) -> list[Load]:
    """What every cell of a recipe's evaluation takes, foretold without their texts."""
    if section.suite == "none":
        return scorecard_loads(section, original_context_tokens)
    size, reach = SIZES[section.suite], lengths_to(target_context_tokens, original_context_tokens)
    found = scorecard_loads(section, original_context_tokens, foreign_at=reach[-1])
    known = scorecard_lengths(section, original_context_tokens)
    read = dict.fromkeys(known, section.windows) if known[-1] == reach[-1] else {}
    for name, length in _asked(size, reach, {load.name for load in found}):
        if name == "context":
            found += [load] if (load := context.load(size, reach, read)).tokens else []
            continue
        task = TASKS[name]
        tokens = task.tokens(size, length, reach)
        reads = task.reads(size, length, reach) if task.reads else Reads.once(tokens, length)
        found.append(Load(name, length, tokens, reads, task.blocks(size, tokens)))
    return found

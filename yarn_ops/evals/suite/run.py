"""The runner: every cell of a plan, from the journal or from the model, alone or together with others.

Who measures what is agreed on in the journal, block by block: any number of processes may run the same plan
at the same time, on one machine or on many. None knows of the others, and a block's scores are the same to
the last bit whoever measures it (on the same kind of device).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yarn_ops.errors import DataError, EvaluationError, LeaseLost
from yarn_ops.evals.evaluate import Progress
from yarn_ops.evals.forward import require_known_head
from yarn_ops.evals.suite.journal import CellKey, Journal
from yarn_ops.evals.suite.plan import Block, Plan
from yarn_ops.evals.suite.reader import open_reader
from yarn_ops.records import Score
from yarn_ops.rope.methods import RopeSpec

POLL_S = 0.5
"""between looks at blocks that others measure"""


@dataclass(frozen=True)
class Measured:
    """What a suite found."""

    scores: tuple[Score, ...]
    skipped: dict[str, str]
    """cells that were not measured, `task at length`, with the reason"""
    computed: int
    """blocks that this run measured; the others were known"""
    read_tokens: int
    """by the shared reader, with its questions"""


def run_suite(
    plan: Plan,
    load: Callable[[], Any],
    spec: RopeSpec | None,
    *,
    checkpoint_digest: str,
    precision: str,
    journal: Journal,
    report: Progress,
) -> Measured:
    """Measure what the journal does not know yet, and wait for what others are measuring.

    The model is loaded when the first block needs it. A cell whose length cannot hold it is left out, with
    the reason. EvaluationError when none can be measured, or the model's figures are not finite.
    """
    worker = _Worker(plan, load, spec, checkpoint_digest, precision, journal, report)
    left = list(worker.blocks)
    while left := worker.go_through(left):
        worker.tell(f"others measure {_names(left)}")
        time.sleep(POLL_S)
    worker.tell("measured")
    return worker.measured()


def help_suite(
    plan: Plan,
    load: Callable[[], Any],
    spec: RopeSpec | None,
    *,
    checkpoint_digest: str,
    precision: str,
    journal: Journal,
    report: Progress,
) -> int:
    """Measure blocks until none is free; how many. What others measure then is theirs."""
    worker = _Worker(plan, load, spec, checkpoint_digest, precision, journal, report)
    worker.go_through(worker.blocks)
    return worker.computed


class _Worker:
    """One process that goes through a plan's blocks."""

    def __init__(
        self, plan: Plan, load: Callable[[], Any], spec: RopeSpec | None, checkpoint_digest: str,
        precision: str, journal: Journal, report: Progress,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.computed = 0
        blocks = [block for cell in plan.cells for block in cell.blocks]
        self.blocks = sorted(blocks, key=lambda block: block.weight, reverse=True)
        """the largest first: the last ones are short, so workers end at about the same time"""
        self._load, self._spec = load, spec
        self._checkpoint_digest, self._protocol = checkpoint_digest, plan.protocol(precision)
        self._journal, self._report = journal, report
        self._found: dict[CellKey, tuple[Score, ...]] = {}
        self._refused: dict[CellKey, str] = {}
        self._done, self._total = 0, sum(block.weight for block in blocks)
        self._model: Any = None
        self._reader: Any = None

    def tell(self, note: str) -> None:
        self._report(self._done, self._total, note)

    def go_through(self, blocks: Sequence[Block]) -> list[Block]:
        """Settle what can be settled; those that others are measuring."""
        busy = []
        for block in blocks:
            self.tell(f"{block.name} at {block.context_tokens}")
            if self._settle(block):
                self._done += block.weight
            else:
                busy.append(block)
        return busy

    def measured(self) -> Measured:
        """The cells' scores in the plan's order, whoever measured them and when."""
        scores: list[Score] = []
        skipped: dict[str, str] = {}
        for cell in self.plan.cells:
            keys = [self._key(block) for block in cell.blocks]
            if found := [self._found[key] for key in keys if key in self._found]:
                scores += cell.join(found)
            else:
                skipped[f"{cell.name} at {cell.context_tokens}"] = self._refused[keys[0]]
        if not scores:
            reasons = "; ".join(skipped.values())
            raise EvaluationError(f"no cell of the suite could be measured: {reasons}")
        return Measured(
            tuple(scores), skipped, self.computed, self._reader.read_tokens if self._reader else 0
        )

    def _settle(self, block: Block) -> bool:
        """Know the block's scores, or why it has none; False while another process measures it."""
        key = self._key(block)
        known = self._journal.known(key)
        if known is not None:
            self._found[key] = known
            return True
        with self._journal.claimed(key) as keep:
            if keep is None:
                return False
            try:
                found = block.measure(*self._at_hand())
                keep(found)
            except DataError as error:
                self._refused[key] = str(error)
                return True
            except LeaseLost:  # this process stood still for longer than its lease lived
                return False
        self._found[key] = found
        self.computed += 1
        return True

    def _at_hand(self) -> tuple[Any, Any]:
        """(reader, model), loaded once."""
        if self._model is None:
            self._model = self._load()
            require_known_head(self._model)
            self._reader = open_reader(self._model, self._spec)
        return self._reader, self._model

    def _key(self, block: Block) -> CellKey:
        return CellKey(
            self._checkpoint_digest, self._protocol, block.name, block.context_tokens, self.plan.seed
        )


def _names(blocks: Sequence[Block]) -> str:
    first = f"{blocks[0].name} at {blocks[0].context_tokens}"
    return first if len(blocks) == 1 else f"{first} and {len(blocks) - 1} more"

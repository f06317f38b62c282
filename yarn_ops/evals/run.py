"""The runner: every cell of a plan, from the journal or from the model, alone or together with others.

Who measures what is agreed on in the journal, block by block: any number of processes may run the same plan
at the same time, on one machine or on many. None knows of the others, and a block's scores are the same to
the last bit whoever measures it (on the same kind of device).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yarn_ops.errors import DataError, EvaluationError, LeaseLost
from yarn_ops.evals.cells import Block, ModelUnderTest
from yarn_ops.evals.journal import Journal
from yarn_ops.evals.plan import CellPlan
from yarn_ops.models.device import Dtype
from yarn_ops.progress import OnProgress
from yarn_ops.scores import CellKey, Score

log = logging.getLogger(__name__)
POLL_S = 0.5
"""between looks at blocks that others measure"""


@dataclass(frozen=True)
class Measured:
    """What a run of a plan found."""

    scores: tuple[Score, ...]
    skipped: dict[str, str]
    """cells that were not measured, `task at length`, with the reason"""
    computed: int
    """blocks that this process measured; the others were known"""
    read_tokens: int
    """by the shared reader, with its questions"""


@dataclass(frozen=True)
class Worker:
    """A process that measures: by what, and whom it tells."""

    device: str
    precision: Dtype
    journal: Journal
    progress: OnProgress
    on_family: Callable[[str], None] = lambda family: None
    """told of the family of cells that is being measured from now on, e.g. needle; "" of none"""


class PlanRun:
    """A worker going through a plan's blocks, beside others or alone."""

    def __init__(self, plan: CellPlan, model: ModelUnderTest, model_digest: str, worker: Worker) -> None:
        """model_digest: of its files and of the config that it is read by."""
        self.computed = 0
        self._plan, self._worker = plan, worker
        self._keys = {
            block: CellKey(
                model_digest, cell.protocol(worker.precision), block.name, block.context_tokens, plan.seed
            )
            for cell in plan.cells
            for block in cell.blocks
        }
        self._cells = {block: cell for cell in plan.cells for block in cell.blocks}
        self._model = model
        self._found: dict[Block, tuple[Score, ...]] = {}
        self._refused: dict[Block, str] = {}
        self._not_asked: set[Block] = set()
        self._done, self._total = 0, sum(block.tokens for block in self._keys)

    def measure(self) -> Measured:
        """Measure what the journal does not know yet, and wait for what others are measuring.

        A cell whose length cannot hold it is left out, with the reason. EvaluationError when none can be
        measured, or the model's figures are not finite.
        """
        left = self._by_size()
        while left := self._go_through(left):
            self._tell(f"others measure {_names(left)}")
            time.sleep(POLL_S)
        self._tell("measured")
        return self._measured()

    def help(self) -> int:
        """Measure blocks until none is free; how many. What others measure then is theirs."""
        self._go_through(self._by_size())
        return self.computed

    def _by_size(self) -> list[Block]:
        """The largest cells first: the last ones are short, so workers end at about the same time. Those of
        a cell that looks in between in their order, and after what it looks at in other cells; at the end
        those that follow others."""

        def place(block: Block) -> tuple[bool, bool, int]:
            cell = self._cells[block]
            looks_elsewhere = bool(cell.looks and cell.others)
            return block not in cell.follows, not looks_elsewhere, cell.tokens if cell.looks else block.tokens

        return sorted(self._keys, key=place, reverse=True)

    def _tell(self, note: str) -> None:
        self._worker.progress(self._done, self._total, note)

    def _go_through(self, blocks: Sequence[Block]) -> list[Block]:
        """Settle what can be settled; those that others are measuring."""
        busy = []
        for block in blocks:
            self._tell(f"{block.name} at {block.context_tokens}")
            if self._settle(block):
                self._done += block.tokens
            else:
                busy.append(block)
        return busy

    def _measured(self) -> Measured:
        """The cells' scores in the plan's order, whoever measured them and when."""
        scores: list[Score] = []
        skipped: dict[str, str] = {}
        for cell in self._plan.cells:
            asked = [block for block in (*cell.others, *cell.blocks) if block not in self._not_asked]
            found = [self._found[block] for block in asked if block in self._found]
            refused = [self._refused[block] for block in cell.needs or cell.blocks if block in self._refused]
            if refused and (cell.needs or not self._found.keys() & {*cell.blocks}):
                skipped[f"{cell.name} at {cell.context_tokens}"] = refused[0]
            else:
                scores += cell.join(found)
        if skipped and not scores:
            reasons = "; ".join(skipped.values())
            raise EvaluationError(f"no cell of the evaluation could be measured: {reasons}")
        return Measured(tuple(scores), skipped, self.computed, self._model.read_tokens)

    def _needed(self, block: Block) -> bool | None:
        """Whether blocks before it leave anything to ask; None while these are being measured."""
        cell = self._cells[block]
        if any(one in self._refused for one in cell.needs):
            return False
        if (before := cell.follows.get(block)) is not None:
            if before in self._not_asked:
                return False
            if before not in self._found and before not in self._refused:
                return None
        place = cell.blocks.index(block)
        for look in [look for look in cell.looks if look <= place]:
            earlier = cell.blocks[:look]
            if any(one in self._not_asked for one in earlier):
                return False
            known = *cell.others, *earlier
            if not all(one in self._found or one in self._refused for one in known):
                return None
            if cell.enough([self._found[one] for one in known if one in self._found]):
                return False
        return True

    def _settle(self, block: Block) -> bool:
        """Know the block's scores, or why it has none; False while another process measures it."""
        needed = self._needed(block)
        if needed is None:
            return False
        if not needed:
            self._not_asked.add(block)
            return True
        key = self._keys[block]
        known = self._worker.journal.known(key)
        if known is not None:
            self._found[block] = known
            return True
        with self._worker.journal.claimed(key) as keep:
            if keep is None:
                return False
            began = time.perf_counter()
            self._worker.on_family(self._cells[block].name.partition("/")[0])
            try:
                found = block.measure(self._model)
                keep(found)
            except DataError as error:
                self._refused[block] = str(error)
                return True
            except LeaseLost:  # this process stood still for longer than its lease lived
                return False
            finally:
                self._worker.on_family("")
        self._found[block] = found
        self.computed += 1
        seconds = time.perf_counter() - began
        log.info("%s at %d tokens: %.1f s", block.name, block.context_tokens, seconds)
        return True


def _names(blocks: Sequence[Block]) -> str:
    first = f"{blocks[0].name} at {blocks[0].context_tokens}"
    return first if len(blocks) == 1 else f"{first} and {len(blocks) - 1} more"

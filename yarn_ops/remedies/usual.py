"""The remedies side by side, with settings that follow from the window a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from yarn_ops.errors import EvaluationError
from yarn_ops.evals.recall import Encode
from yarn_ops.remedies.agent import Agent
from yarn_ops.remedies.blocks import BlockMemory
from yarn_ops.remedies.full import FullMemory
from yarn_ops.remedies.questions import Decode
from yarn_ops.remedies.reading import ASKED_TOKENS, Reading
from yarn_ops.remedies.remedy import Remedy
from yarn_ops.remedies.rolling import RollingMemory, require_late
from yarn_ops.remedies.search import Search

LEAST_WINDOW = 4 * ASKED_TOKENS


@dataclass(frozen=True)
class Sizes:
    """How much each remedy may see."""

    buffer_tokens: int
    block_tokens: int
    chosen_blocks: int
    near_blocks: int
    passage_tokens: int
    passages: int

    @classmethod
    def of_window(cls, window: int) -> Sizes:
        """A buffer as long as the window; blocks and passages that fill half of it at most.

        EvaluationError for a window below `LEAST_WINDOW`.
        """
        if window < LEAST_WINDOW:
            raise EvaluationError(
                f"a window of {window} tokens leaves no room to compare remedies; they need {LEAST_WINDOW}"
            )
        block = min(64, window // 16)
        quarter = window // (4 * block)
        return cls(
            buffer_tokens=window,
            block_tokens=block,
            chosen_blocks=min(8, quarter),
            near_blocks=min(16, quarter),
            passage_tokens=2 * block,
            passages=4,
        )


def usual_remedies(
    model: PreTrainedModel,
    base: PreTrainedModel,
    *,
    window: int,
    encode: Encode,
    decode: Decode,
    prefix: Sequence[int] = (),
) -> tuple[list[Remedy], dict[str, str]]:
    """Every remedy on an extended model, and last the `base` that it was, with the text cut to `window`.

    The second value names the remedies that this model cannot have, with the reason.
    """
    sizes = Sizes.of_window(window)
    device = model.device
    search = Search(model, decode, sizes.passage_tokens, sizes.passages, prefix)
    remedies: list[Remedy] = [Reading("full attention", lambda: FullMemory(model), device)]
    late = [
        Reading("rolling buffer", lambda: RollingMemory(model, buffer_tokens=sizes.buffer_tokens), device),
        Reading(
            "block selection",
            lambda: BlockMemory(
                model, block_tokens=sizes.block_tokens, chosen=sizes.chosen_blocks, near=sizes.near_blocks
            ),
            device,
        ),
    ]
    unavailable: dict[str, str] = {}
    try:
        require_late(model)
        remedies += late
    except EvaluationError as error:
        unavailable = {remedy.name: str(error) for remedy in late}
    remedies += [search, Agent(search, encode)]
    remedies.append(Reading("text cut to the window", lambda: FullMemory(base), device, cut=window))
    return remedies, unavailable

"""From replies to scores: exact recall over all depths and by depth, the forced choice, the controls.

A cell may be asked in blocks, whole texts each, by different processes: what its blocks found, outcome by
outcome, is joined to the scores that it would have had whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedModel

from yarn_ops.evals.examples import Example, Question
from yarn_ops.evals.forward import correct_predictions
from yarn_ops.evals.intervals import ERROR, mean_interval, shares_interval
from yarn_ops.evals.names import CHOICE, NATS, NO_NEEDLE, template_of
from yarn_ops.evals.packed import Reply
from yarn_ops.evals.reader import Reader
from yarn_ops.evals.sequential import Looks, exact_interval
from yarn_ops.scores import Score

Answered = tuple[Question, Reply]
Group = tuple[str, float | None, Sequence[float]]
"""task, depth (None: all) and outcomes, of which a score is the mean"""
Keeps = Callable[[str, float | None], bool]
"""(task, depth) -> whether a score keeps its outcomes"""


def ask_all(reader: Reader, texts: Iterable[Sequence[Example]]) -> list[Answered]:
    """Every question with the model's reply, in order. texts: examples that begin alike; nothing read before
    a text counts."""
    texts = [*texts]
    side_by_side = reader.ask_side_by_side([example for text in texts for example in text])
    replies = _one_by_one(reader, texts) if side_by_side is None else iter(side_by_side)
    return [
        pair
        for text in texts
        for example in text
        for pair in zip(example.questions, next(replies), strict=True)
    ]


def _one_by_one(reader: Reader, texts: Iterable[Sequence[Example]]) -> Iterator[list[Reply]]:
    for text in texts:
        reader.forget()
        for example in text:
            reader.read(example.context)
            yield reader.ask(example.questions)


def ask_in_turn(model: PreTrainedModel, examples: Sequence[Example]) -> list[Answered]:
    """Every question with the model's reply, by example and by part, the control last.

    An example is one forward over its context and all its questions; all examples are equally long. Replies
    say what is right and no more.
    """
    laid_out = [example.in_turn() for example in examples]
    ids, first = np.stack([ids for ids, _ in laid_out]), min(starts[0] for _, starts in laid_out)
    asked: list[Answered] = []
    for example, (_, starts), right in zip(
        examples, laid_out, correct_predictions(model, ids, ids.shape[1] - first), strict=True
    ):
        replies = [
            (question, Reply(tuple(right[start - first : start - first + len(question.answer)].tolist())))
            for question, start in zip(example.questions, starts, strict=True)
        ]
        asked += sorted(replies, key=lambda pair: len(replies) if pair[0].part is None else pair[0].part)
    return asked


def recall(
    task: str, asked: Sequence[Answered], context_tokens: int, parts: int, seed: int,
    keeps: Keeps | None = None, *, by_token: bool = False,
) -> tuple[Score, ...]:  # fmt: skip
    """Shares of answers recalled exactly and chosen rightly; `/no-needle` is what is guessed.

    keeps: left out, scores over all depths keep their outcomes. by_token: shares of answer tokens that are
    the likeliest ones, with intervals over answers, and no choice.
    """
    planted = [pair for pair in asked if pair[0].planted]
    control = [pair for pair in asked if not pair[0].planted]
    right = _right if by_token else _exact
    groups: list[Group] = [
        (task, None, right(planted)),
        *((task, depth, right(pairs)) for depth, pairs in _by_depth(planted, parts)),
        (f"{task}{CHOICE}", None, [] if by_token else _chosen(planted)),
        (f"{task}{NO_NEEDLE}", None, right(control)),
        (f"{task}{CHOICE}{NO_NEEDLE}", None, [] if by_token else _chosen(control)),
        (f"{task}{NATS}", None, _nats(planted)),
    ]
    return _scores(groups, context_tokens, seed, keeps)


def recall_of(
    tasks: Sequence[str], asked: Sequence[Answered], context_tokens: int, parts: int, seed: int,
    keeps: Keeps | None = None, *, by_token: bool = False,
) -> tuple[Score, ...]:  # fmt: skip
    """As `recall`, of one task, or of several that are each asked in a form of their own."""
    of_tasks = {
        task: [pair for pair in asked if len(tasks) == 1 or pair[0].form == template_of(task)]
        for task in tasks
    }
    return tuple(
        score
        for task, some in of_tasks.items()
        for score in recall(task, some, context_tokens, parts, seed, keeps, by_token=by_token)
    )


def mean_score(
    task: str,
    context_tokens: int,
    values: Sequence[float],
    seed: int,
    *,
    shares: bool = False,
    keep: bool = True,
    error: float = ERROR,
    stopped: str = "",
) -> Score:
    """The mean of independent values with its interval. shares: each is 0..1; keep: as the score's items;
    error, stopped: as in `Score`."""
    interval = (shares_interval if shares else mean_interval)(values, error)
    return Score.of(
        task, context_tokens, float(np.mean(values)), interval, len(values), seed,
        items=values if keep else (), error=error, stopped=stopped,
    )  # fmt: skip


def every_outcome(task: str, depth: float | None) -> bool:
    """Each score keeps its outcomes: what `joined` needs of a block."""
    return True


def joined(
    tasks: Sequence[str],
    blocks: Sequence[tuple[Score, ...]],
    keeps: Keeps | None = None,
    looks: Looks | None = None,
) -> tuple[Score, ...]:
    """The scores of a cell's tasks from those of its blocks, in order, with every outcome.

    looks: of a cell that may have been stopped at one of them; a task's first score is over all depths.
    """
    first = blocks[0][0]
    outcomes: dict[tuple[str, float | None], list[float]] = {}
    for block in blocks:
        for score in block:
            outcomes.setdefault((score.task, score.depth), []).extend(score.items)
    groups = [(name, depth, values) for (name, depth), values in outcomes.items()]
    return tuple(
        score
        for task in tasks
        for score in _scores(
            [group for group in groups if group[0] == task or group[0].startswith(f"{task}/")],
            first.context_tokens, first.seed, keeps, looks,
        )
    )  # fmt: skip


def decided(looks: Looks, tasks: Sequence[str], blocks: Sequence[tuple[Score, ...]]) -> bool:
    """Whether what blocks found, in order, with every outcome, leaves nothing to ask of any of the tasks."""
    scores = [score for block in blocks for score in block if score.depth is None]
    return all(
        looks.why_enough([item for score in scores if score.task == task for item in score.items])
        for task in tasks
    )


def depth_of(part: int, parts: int) -> float:
    """The middle of one of so many equal parts of a text."""
    return (part + 0.5) / parts


def _by_depth(planted: Sequence[Answered], parts: int) -> Iterable[tuple[float, list[Answered]]]:
    for part in range(parts):
        yield depth_of(part, parts), [pair for pair in planted if pair[0].part == part]


def _exact(pairs: Sequence[Answered]) -> list[float]:
    return [float(reply.exact) for _, reply in pairs]


def _chosen(pairs: Sequence[Answered]) -> list[float]:
    return [float(reply.chosen) for _, reply in pairs if reply.chosen is not None]


def _right(pairs: Sequence[Answered]) -> list[float]:
    return [float(np.mean(reply.right)) for _, reply in pairs]


def _nats(planted: Sequence[Answered]) -> list[float]:
    """Mean nats a token of each true answer."""
    return [reply.nll / len(reply.right) for _, reply in planted if reply.nll is not None]


def _scores(
    groups: Sequence[Group],
    context_tokens: int,
    seed: int,
    keeps: Keeps | None = None,
    looks: Looks | None = None,
) -> tuple[Score, ...]:
    """The mean of every group that has outcomes, with its interval."""
    asked = groups[0][2]
    error = ERROR if looks is None else looks.error(len(asked))
    stopped = "" if looks is None else looks.why_enough(asked)
    scores = []
    for task, depth, values in groups:
        if not values:
            continue
        if task.endswith(NATS):
            interval = mean_interval(values, error)
        elif looks is not None and stopped:
            interval = exact_interval(round(sum(values)), len(values), error)
        else:
            interval = shares_interval(values, error)
        kept = depth is None if keeps is None else keeps(task, depth)
        scores.append(
            Score.of(task, context_tokens, float(np.mean(values)), interval, len(values), seed, depth=depth,
                     items=values if kept else (), error=error, stopped=stopped)
        )  # fmt: skip
    return tuple(scores)

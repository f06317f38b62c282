"""What pages and pictures call the scores, which `evals.names` names for machines."""

from __future__ import annotations

from yarn_ops.evals import names
from yarn_ops.evals.report.families import FAMILIES, SHORT_SKILLS

TITLES = {
    names.SAME_TARGETS: "loss of the same tokens (nats)",
    names.GAIN: "gain over the shortest context (nats)",
    names.RISE: "loss above the best with less context (nats)",
    names.FAR_TEXT: "lost with foreign far text (nats)",
    names.LAST_QUARTER: "perplexity, last quarter",
    names.SINGLE_PASS: "perplexity, single pass",
    names.SLIDING: "perplexity, sliding window",
    names.LONG_PERPLEXITY: "perplexity of far-repeated tokens",
    "recall/code": "pairs recalled, code form",
    "recall/prose": "pairs recalled, prose",
    **SHORT_SKILLS,
    **{task: name for task, (name, _) in FAMILIES.items()},
    "copy": "random runs continued, by token",
    "mqar": "pairs of single tokens (MQAR)",
    names.RULER_AVERAGE: "RULER, mean of its tasks",
}
ASKED_OTHERWISE = {names.NO_NEEDLE: "without a needle", names.CHOICE: "chosen from four"}


def title_of(task: str) -> str:
    """needle/code/choice: "needles found, code form; chosen from four"."""
    for ending, asked in ASKED_OTHERWISE.items():
        if task.endswith(ending):
            return f"{title_of(task.removesuffix(ending))}; {asked}"
    task, of, documents = task.partition(" of ")
    return f"{TITLES.get(task, task)}{of}{documents}"

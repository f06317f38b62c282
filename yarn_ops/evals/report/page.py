"""The capacity report: one HTML page with everything in it, and the picture beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from yarn_ops import __version__
from yarn_ops.evals import names
from yarn_ops.evals.attention import Diagnosis
from yarn_ops.evals.capacity import Capacity, interval, tokens
from yarn_ops.evals.conditions import compared
from yarn_ops.evals.intervals import bounds, figure
from yarn_ops.evals.reach import KEPT
from yarn_ops.evals.report.capacity_picture import draw_capacity
from yarn_ops.evals.report.families import family_rows, skill_rows, told
from yarn_ops.evals.report.titles import TITLES, title_of
from yarn_ops.evals.sequential import stopped_early
from yarn_ops.scores import BeforeAfter, Score
from yarn_ops.shown import counted, size

PAGE, PICTURE = "capacity.html", "capacity.png"
# RULER's averages as published: Hsieh et al., RULER: What's the Real Context Size of Your Long-Context
# Language Models? (2024), and its repository's table.
RULER_THRESHOLD = 85.6
"""per cent: Llama-2-7B (chat) at 4k"""
PUBLISHED_LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
PUBLISHED: dict[str, tuple[float, ...]] = {
    "Llama-3.1-8B": (95.5, 93.8, 91.6, 87.4, 84.7, 77.0),
    "Qwen2.5-7B-1M": (96.8, 95.3, 93.0, 91.1, 90.4, 84.4),
    "ProLong-8B": (94.5, 92.5, 92.3, 89.3),
    "Together-7B-32K": (88.2, 81.1, 69.4, 63.0, 0.0, 0.0),
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2328;max-width:1060px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.9rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2rem 0 .4rem}
.lead{font-size:1.15rem;color:#6a737d;margin:0 0 1rem}
.cards{display:flex;gap:1rem;margin:1rem 0}
.card{flex:1;border:1px solid #e4e7eb;border-radius:10px;padding:.8rem 1rem}
.card b{display:block;font-size:2rem;line-height:1.2}.card span{color:#6a737d}
img{max-width:100%}table{border-collapse:collapse;margin:.4rem 0}
table{font-size:13px}.scroll{overflow-x:auto}
td,th{padding:.2rem .6rem .2rem 0;text-align:right;border-bottom:1px solid #e4e7eb;white-space:nowrap}
td:first-child,th:first-child{text-align:left}th{color:#6a737d;font-weight:500}
small{color:#6a737d}
"""


def write_page(
    models: Sequence[Capacity], out: Path, trained: Sequence[str] | None = None, asked: str = ""
) -> tuple[Path, Path]:
    """Write capacity.html and capacity.png into `out`; the paths of both.

    models: the one under test, then, if there is one, the base it is compared with. trained: the kinds of
    exercises that it was trained on; None: not known. asked: what was measured how, for who finds the page
    alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    draw_capacity(models, out / PICTURE)
    (out / PAGE).write_text(html(models, (out / PICTURE).read_bytes(), trained, asked), "utf-8")
    return out / PAGE, out / PICTURE


def html(
    models: Sequence[Capacity], picture: bytes, trained: Sequence[str] | None = None, asked: str = ""
) -> str:
    """The page; nothing in it points outside."""
    model = models[0]
    sections = (
        _head(model),
        _asked(models, asked),
        image(model.verdict, picture),
        _definitions(model),
        *(_measured(one) for one in models),
        _families(models, trained),
        *(_stopped(one) for one in models),
        _short(models),
        _ruler(model),
        _attention(model.diagnosis),
        _costs(model),
        _skipped(model),
    )
    return whole_page(f"{model.name}: {model.verdict}", sections)


def whole_page(title: str, sections: Iterable[Iterable[str]]) -> str:
    """One HTML document of sections, each of lines."""
    body = "\n".join(line for section in sections for line in section)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _head(model: Capacity) -> Iterator[str]:
    reach = model.reach
    yield f"<h1>{escape(model.name)}</h1>"
    yield f'<p class="lead">{escape(model.verdict[0].upper() + model.verdict[1:])}.</p>'
    yield '<div class="cards">'
    yield _card("trained on", tokens(model.card.original_context_tokens), "tokens, before any scaling")
    yield _card("sees to", tokens(reach.sees), f"tokens {interval(reach.sees)}")
    yield _card("uses to", tokens(reach.uses), f"tokens {interval(reach.uses)}")
    yield "</div>"


def _asked(models: Sequence[Capacity], asked: str) -> Iterator[str]:
    """What was measured, how much of it, and by which version."""
    samples = sum(score.samples for model in models for score in model.card.scores if score.depth is None)
    told = [asked] if asked else []
    told.append(f"{counted(len(models), 'model')}, {counted(samples, 'sample')} in all")
    told.append(f"yarn-ops {__version__}")
    yield f"<p><small>{escape('; '.join(told))}</small></p>"


def image(told: str, picture: bytes) -> Iterator[str]:
    """A PNG within the page; told: what it shows."""
    data = base64.b64encode(picture).decode()
    yield f'<img alt="{escape(told)}" src="data:image/png;base64,{data}">'


def _card(name: str, value: str, note: str) -> str:
    inside = f"<span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span>"
    return f'<div class="card">{inside}</div>'


def _definitions(model: Capacity) -> Iterator[str]:
    reach = model.reach
    yield "<p><small>Sees: the loss of the same tokens is at most a tenth of perplexity above the best with "
    yield f"less context. Uses: needles that far back are still found, at {KEPT:.0%} of the model's own "
    asked = escape(title_of(reach.task or ""))
    short = "" if reach.short_score is None else f" ({reach.short_score:.2f}, {asked})"
    yield f"recall in its shortest text{short} or better. "
    if reach.by_length is not None:
        whole = f"{tokens(reach.by_length)} {interval(reach.by_length)}"
        yield f"Over all depths together, that share is kept up to {whole} tokens. "
    yield "Brackets: 95 % intervals.</small></p>"


def _measured(model: Capacity) -> Iterator[str]:
    yield f"<h2>Measured: {escape(model.name)}</h2>"
    tasks = dict.fromkeys(score.task for score in model.card.scores if score.depth is None)
    hidden = ("loss-by", "capacity/")
    shown = [task for task in tasks if not task.startswith(hidden) and not task.endswith(names.NATS)]
    shown.sort(key=_order)
    rows = [
        [title_of(task), *(figure_of(model.card.score(task, length)) for length in model.lengths)]
        for task in shown
    ]
    yield from table(["", *(tokens(length) for length in model.lengths)], rows)


def _order(task: str) -> tuple[int, str]:
    known = [title for title in TITLES if task.startswith(title)]
    return list(TITLES).index(known[0]) if known else len(TITLES), task


def figure_of(score: Score | None) -> str:
    if score is None:
        return ""
    return figure(score, 0 if abs(score.value) >= 100 else 2)


def _families(models: Sequence[Capacity], trained: Sequence[str] | None) -> Iterator[str]:
    if len(models) < 2:
        return
    cards = BeforeAfter(models[1].card, models[0].card)
    heads, rows = family_rows(cards, trained)
    if rows:
        yield "<h2>Use beyond needles</h2>"
        yield from table(heads, rows)
        yield f"<p>{escape(' '.join(told(cards)))}</p>"


def _short(models: Sequence[Capacity]) -> Iterator[str]:
    """What the extension cost where the base was at home."""
    if len(models) < 2:
        return
    model, base = models
    lengths = [length for length in model.lengths if length <= base.card.original_context_tokens]
    rows = []
    for length in lengths:
        after, before = (one.card.score(names.LAST_QUARTER, length) for one in (model, base))
        found = [one.card.score(base.reach.task or "", length) for one in (model, base)]
        if after is None or before is None:
            continue
        recalled = [f"{score.value:.2f}" if score else "" for score in (found[1], found[0])]
        value, low_high = compared(after, before, "ratio")
        ratio = f"{value:.3f}{bounds(low_high, 3)}"
        rows.append([tokens(length), f"{before.value:.2f}", f"{after.value:.2f}", ratio, *recalled])
    skills = skill_rows(BeforeAfter(base.card, model.card))
    if rows or skills:
        yield "<h2>What short texts pay</h2>"
    if rows:
        heads = ["", "perplexity before", "after", "ratio", "needles before", "after"]
        yield from table(heads, rows)
    if skills:
        yield from table(["skill", "before", "after", "change"], skills)


def _ruler(model: Capacity) -> Iterator[str]:
    found = (score for score in model.card.by_length(names.RULER_AVERAGE))
    mine = dict(sorted((score.context_tokens, 100 * score.value) for score in found))
    if not mine:
        return
    yield "<h2>RULER beside published models</h2>"
    models = {f"<b>{escape(model.name)}</b>": mine} | {
        escape(name): dict(zip(PUBLISHED_LENGTHS, values, strict=False)) for name, values in PUBLISHED.items()
    }
    lengths = sorted({*mine, *PUBLISHED_LENGTHS})
    rows = []
    for name, averages in models.items():
        effective = effective_tokens(tuple(averages.values()), tuple(averages))
        shown = (f"{averages[length]:.1f}" if length in averages else "" for length in lengths)
        rows.append([name, *shown, tokens(effective) if effective else "none"])
    heads = ["", *(tokens(length) for length in lengths), f"effective, by {RULER_THRESHOLD}"]
    yield from table(heads, rows, escaped=True)
    yield (
        f"<p><small>RULER calls a length effective from {RULER_THRESHOLD} on. The tasks here are "
        "rewritten, over other documents, with cloze questions in place of its two question sets: read the "
        "rows beside one another, do not rank by them.</small></p>"
    )


def effective_tokens(averages: Sequence[float], lengths: Sequence[int] = PUBLISHED_LENGTHS) -> int:
    """The longest length such that every length up to it is at RULER's threshold; 0 when none is."""
    effective = 0
    for length, average in zip(lengths, averages, strict=False):
        if average < RULER_THRESHOLD:
            break
        effective = length
    return effective


def _attention(diagnosis: Diagnosis | None) -> Iterator[str]:
    if diagnosis is None:
        return
    yield f"<h2>Where it looks when it answers, at {tokens(diagnosis.context_tokens)} tokens</h2>"
    rows = [["first token (sink)", f"{diagnosis.sink:.1%}"]]
    rows += [[f"{low:,} to {high:,} tokens back", f"{share:.1%}"] for low, high, share in diagnosis.mass]
    yield from table(["attention", "share"], rows)
    heads = ", ".join(f"{layer}.{head} ({share:.2f})" for layer, head, share in diagnosis.heads) or "none"
    yield (
        f"<p>Entropy is {diagnosis.entropy:.2f} of a uniform one. Heads that retrieve: "
        f"{diagnosis.retrieval_heads} of {diagnosis.all_heads} (layer.head): {heads}.</p>"
    )
    if diagnosis.recall_without is not None and diagnosis.recall_without_others is not None:
        one = diagnosis.silenced == 1
        best = "the best head" if one else f"the {diagnosis.silenced} best heads"
        others = "another" if one else f"{diagnosis.silenced} others"
        yield (
            f"<p>Recall of these needles is {diagnosis.recall:.2f}; with {best} silenced "
            f"{diagnosis.recall_without:.2f}, with {others} silenced "
            f"{diagnosis.recall_without_others:.2f}.</p>"
        )


def _costs(model: Capacity) -> Iterator[str]:
    if (decoder := model.dimensions) is None:
        return
    yield "<h2>What a length costs</h2>"
    rows = [
        [
            tokens(cost.context_tokens),
            *map(size, (cost.kv_bytes, cost.kv_bytes_mha, cost.kv_bytes_mqa)),
            f"{cost.prefill_flops / 1e12:,.3g}",
            f"{cost.attention_share:.0%}",
        ]
        for cost in model.costs
    ]
    own = f"KV cache, as it is ({decoder.sharing}, {decoder.kv_heads} of {decoder.heads} heads)"
    heads = ["", own, "were it MHA", "were it MQA", "prefill (TFLOP)", "of that attention"]
    yield from table(heads, rows)


def _stopped(model: Capacity) -> Iterator[str]:
    if stopped := stopped_early(model.card.scores):
        yield f"<p>Of {escape(model.name)}, no more was asked than decides:</p><ul>"
        yield from (f"<li>{escape(reason)}</li>" for reason in stopped)
        yield "</ul>"


def _skipped(model: Capacity) -> Iterator[str]:
    if model.skipped:
        yield "<h2>Not measured</h2><ul>"
        yield from (f"<li>{escape(cell)}: {escape(why)}</li>" for cell, why in model.skipped.items())
        yield "</ul>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, escaped: bool = False) -> Iterator[str]:
    """A table that scrolls by itself; escaped: its cells are HTML already."""

    def cell(text: str) -> str:
        return text if escaped else escape(text)

    yield '<div class="scroll"><table><tr>' + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>"
    yield "</table></div>"

"""The model card: what was done and measured, as a README.md that the Hugging Face Hub understands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from yarn_ops.data.audit import in_words
from yarn_ops.evals.advice import advise
from yarn_ops.evals.capacity import Capacity
from yarn_ops.evals.intervals import figure
from yarn_ops.evals.names import LAST_QUARTER, NO_NEEDLE, RECALL, SINGLE_PASS, SLIDING, template_of
from yarn_ops.evals.report.families import family_rows, skill_rows, told
from yarn_ops.evals.report.verdict import Rows, as_markdown, verdict_rows
from yarn_ops.evals.sequential import stopped_early
from yarn_ops.exercises import FAMILIES
from yarn_ops.recipe import Recipe
from yarn_ops.records import Adapter, BaseModel, Checkpoint, PatchedModel, ShardSet
from yarn_ops.scores import BeforeAfter, Score, Scorecard, Verdict
from yarn_ops.shown import counted, markdown_table, one_line

TRANSFORMERS_FLOOR = "4.51"
"""earlier ones ignore original_max_position_embeddings or take it from the field that the patch moves"""

NOT_STATIC = ("none", "dynamic-ntk", "dynamic-yarn")
"""methods that leave texts within the original context as they were"""

LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
```"""

NAMES = {
    LAST_QUARTER: "perplexity, last quarter of the window",
    SINGLE_PASS: "perplexity, single pass",
    SLIDING: "perplexity, sliding window",
    **{task: f"recall, {template_of(task)} pairs" for task in RECALL},
    **{f"{task}{NO_NEEDLE}": f"guessed without a pair, {template_of(task)}" for task in RECALL},
}


@dataclass(frozen=True)
class Extension:
    """Everything recorded about one extended model."""

    recipe: Recipe
    base: BaseModel
    shards: ShardSet
    patched: PatchedModel
    adapters: tuple[Adapter, ...]
    """of each leg"""
    checkpoint: Checkpoint
    scores: BeforeAfter[Scorecard]
    verdict: Verdict
    capacities: BeforeAfter[Capacity]
    language: str = "en"
    """of its verdict card"""

    @property
    def rows(self) -> Rows:
        """Its verdict card."""
        asked = self.recipe.publish
        return verdict_rows(
            asked.name, asked.alias, self.verdict, self.scores, self.capacities,
            self.patched.target_context_tokens, self.patched.factor, approval=asked.approval,
        )  # fmt: skip

    @property
    def asked(self) -> str:
        """What it was measured by."""
        documents = ", ".join(_source_name(source) for source in self.recipe.data.sources)
        suite = self.recipe.evaluate.suite
        how = f"suite {suite}" if suite != "none" else "scorecard without a suite"
        return f"{how}; {self.shards.held_out_documents:,} held-out documents of {documents}"

    @property
    def trained_kinds(self) -> tuple[str, ...]:
        """Families of the exercises that it was trained on."""
        asked = self.recipe.train.exercises
        return (asked.families or tuple(FAMILIES)) if asked.share else ()


def model_card(extension: Extension) -> str:
    """The card as markdown with YAML front matter; pictures are named as `report` writes them."""
    sections = (
        _front_matter, _summary, _measured, _families, _skills, _gate, _advice, _made, _loading, _caveats,
    )  # fmt: skip
    parts = (part for section in sections for part in section(extension))
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(extension: Extension) -> Iterator[str]:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if extension.base.source.startswith("hf:"):
        lines.append(f"base_model: {extension.base.source.removeprefix('hf:').partition('@')[0]}")
    tags = _listed("long-context", "rope-scaling", extension.patched.method, "yarn-ops")
    yield "\n".join(["---", *lines, "tags:", tags, "---"])


def _summary(extension: Extension) -> Iterator[str]:
    patched = extension.patched
    yield f"# {extension.recipe.publish.name}"
    yield as_markdown(extension.rows, extension.language)
    yield (
        f"{_base_name(extension.base)}, extended from {patched.original_context_tokens:,} to "
        f"{patched.target_context_tokens:,} tokens of context "
        f"({patched.method}, factor {patched.factor:g})."
    )
    yield "![Perplexity and recall against length, before and after](overview.png)"
    yield "More on the page `pictures/capacity.html` among the files of its run in MLflow."
    yield "![How far it sees and uses, before and after](capacity.png)"


def _measured(extension: Extension) -> Iterator[str]:
    before, after = extension.scores
    lengths = sorted({score.context_tokens for score in after.scores if score.task in NAMES})
    rows = [["", "tokens", "base", "extended"]]  # four, however many lengths: no page hides the longest
    for task, name in NAMES.items():
        for length in lengths:
            scores = [card.score(task, length) for card in (before, after)]
            if any(scores):
                rows.append([name, f"{length:,}", *map(_figure, scores)])
                name = ""
    yield "## Measured"
    yield markdown_table(rows)
    lines = [
        "Held-out documents, 95 % intervals in brackets. The base is measured as it is, beyond its "
        f"window of {extension.patched.original_context_tokens:,} tokens too. Perplexity of the last quarter "
        "scores the same tokens at every length. Recall is the exact match of random values planted in it."
    ]
    for model, card in (("the base", before), ("the result", after)):
        if stopped := stopped_early(card.scores):
            lines.append(f"Of {model}, no more was asked than decides: {'; '.join(stopped)}.")
    yield "\n".join(lines)
    yield "![Recall by length and depth](recall.png)"


def _skills(extension: Extension) -> Iterator[str]:
    before, after = extension.capacities
    if rows := skill_rows(BeforeAfter(before.card, after.card)):
        yield "## Short skills kept"
        yield markdown_table([("skill", "base", "extended", "change"), *rows])


def _families(extension: Extension) -> Iterator[str]:
    before, after = extension.capacities
    cards = BeforeAfter(before.card, after.card)
    heads, rows = family_rows(cards, extension.trained_kinds)
    if rows:
        yield "## Use beyond needles"
        yield markdown_table([heads, *rows], words=2)
        yield (
            f"Kinds of exercises trained: {', '.join(extension.trained_kinds) or 'none'}. No task here but "
            "the first has a form, a key or a range of values that was trained. " + " ".join(told(cards))
        )


def _gate(extension: Extension) -> Iterator[str]:
    verdict = extension.verdict
    yield f"## Gate: {'passed' if verdict.passed else 'failed'}"
    yield _listed(
        *(f"{'passed' if check.passed else '**failed**'}: {check.reason}" for check in verdict.checks)
    )


def _advice(extension: Extension) -> Iterator[str]:
    if not extension.verdict.passed:
        return
    if reasons := advise(extension.scores, extension.patched.target_context_tokens).reasons:
        yield "## Advice"
        yield _listed(*(f"{reason[0].upper()}{reason[1:]}." for reason in reasons))


def _made(extension: Extension) -> Iterator[str]:
    patched, adapters, shards = extension.patched, extension.adapters, extension.shards
    training, legs = extension.recipe.train, extension.recipe.curriculum(patched.original_context_tokens)
    rates = dict.fromkeys(f"{leg.learning_rate:g}" for leg in legs)
    in_legs = f" in {len(adapters)} legs" if len(adapters) > 1 else ""
    how = f"LoRA rank {training.rank}" if training.method == "lora" else "all parameters"
    how += {"nf4": " on weights in 4 bits", "fp8": " with products in 8 bits"}.get(training.precision, "")
    yield "## How it was made"
    yield _listed(
        f"**Position encoding:** {patched.method}, factor {patched.factor:g}, attention factor "
        f"{patched.attention_factor:.4f}; the loaded model's frequencies equal the float64 reference within "
        f"{patched.inverse_frequency_error:.0e}.",
        f"**Training:** {how}, {adapters[-1].trainable_parameters:,} trained parameters, "
        f"{counted(sum(one.steps for one in adapters), 'step')}{in_legs} at learning rate "
        f"{', then '.join(rates)}, "
        f"windows of up to {max(one.window_tokens for one in adapters):,} tokens, "
        f"{sum(one.tokens_seen for one in adapters):,} tokens seen; loss {adapters[0].first_loss:.3f} at the "
        f"first step, {adapters[-1].final_loss:.3f} on average at the end.",
        "**Merge:** in float32, stored in bfloat16; log-probabilities, merged against unmerged, differ by "
        f"at most {extension.checkpoint.merge_difference:.3g}.",
        f"**Data:** {', '.join(_code(_source_name(source)) for source in extension.recipe.data.sources)}; "
        f"{counted(shards.train_documents, 'document')} ({shards.train_tokens:,} tokens) to train on, "
        f"{shards.held_out_documents:,} ({shards.held_out_tokens:,} tokens) held out, split by document; "
        f"left out: {in_words(shards.dropped)}.",
        "**Share of tokens in documents longer than** "
        + ", ".join(f"{share.longer_than_tokens:,}: {share.token_share:.0%}" for share in shards.lengths)
        + f"; the longest has {shards.longest_document_tokens:,} tokens.",
    )
    yield "![Training loss](training-loss.png)"


def _loading(extension: Extension) -> Iterator[str]:
    yield "## Loading"
    if extension.patched.method == "dynamic-yarn":
        yield (
            "Only with yarn-ops (`yarn_ops.models.loading.load_proven`): no other loader or server knows "
            "dynamic YaRN, and all of them refuse this configuration."
        )
        return
    yield f"Plain transformers {TRANSFORMERS_FLOOR} or later; the configuration carries the longer context."
    yield LOADING


def _caveats(extension: Extension) -> Iterator[str]:
    caveats = [
        "**Seeing is not using.** Flat perplexity shows that a long window does no harm; recall shows that "
        "something far away changes the answer. Where the two disagree, believe recall."
    ]
    if extension.patched.method not in NOT_STATIC:
        caveats.append(
            "**Short texts pay.** The scaling is static: it acts on texts of "
            f"{extension.patched.original_context_tokens:,} tokens and fewer too. Compare these columns "
            "above; keep the base for short work if they are worse."
        )
    caveats.append(
        "**Perplexity also falls by adapting to the training text.** A base that has seen such text before "
        "looks better on it than on yours; the planted values are fresh."
    )
    yield "## Before you rely on it"
    yield _listed(*caveats)


def _listed(*points: str) -> str:
    return "\n".join(f"- {point}" for point in points)


def _figure(score: Score | None) -> str:
    if score is None:
        return "not measured"
    return figure(score, 1 if score.task.startswith("perplexity") else 2)


def _base_name(base: BaseModel) -> str:
    made_of = f"{base.architecture}, {base.parameters / 1e6:,.1f} M parameters"
    return f"{_code(_source_name(base.source))} ({made_of})"


def _code(name: str) -> str:
    """A name that may hold anything, as markdown shows it letter by letter."""
    return f"`{one_line(name).replace('`', '´')}`"


def _source_name(source: str) -> str:
    """A source without the directories of the machine that read it."""
    return "/".join(PurePosixPath(source).parts[-2:]) if source.startswith(("/", "~")) else source

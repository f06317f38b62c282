"""The sections of a recipe, but for training. Titles and descriptions are what the run form shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from yarn_ops.errors import RecipeError
from yarn_ops.recipe.section import NO_PASSWORD, Fraction, Positive, RopeMethod, Section, SuiteChoice

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ALIAS = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
LANGUAGE = r"^[a-z]{2,3}$"
TAG = r"^[A-Za-z0-9_][A-Za-z0-9_./ -]{0,249}$"
TagValue = Annotated[str, Field(max_length=5000, json_schema_extra=NO_PASSWORD)]


def _trimmed(place: str) -> str:
    """A place as it was given; ValueError where blanks or line breaks came along, or it is nothing else."""
    if place and not place.strip():
        raise ValueError("is blank; fill it in")
    if place != place.strip():
        raise ValueError(f"{place!r} begins or ends with a blank; remove it")
    return place


Source = Annotated[
    str, Field(min_length=1, max_length=4096, json_schema_extra=NO_PASSWORD), AfterValidator(_trimmed)
]


class Base(Section):
    """The model to extend."""

    model: Annotated[str, AfterValidator(_trimmed)] = Field(
        "", title="Base model", min_length=1, max_length=1024, json_schema_extra=NO_PASSWORD,
        description="A directory; hf:org/name@revision; models:/name@alias or models:/name/version (MLflow); "
        "s3://bucket/prefix; or shipped:base512, the demo's. Safetensors only.",
    )  # fmt: skip
    original_context_tokens: Positive | None = Field(
        None, title="Original context (tokens)",
        description="What the base was trained on. Needed only if its config already carries RoPE scaling.",
    )  # fmt: skip


class Rope(Section):
    """How positions beyond the original context are made readable: a target context, a factor, or both."""

    method: RopeMethod = Field("yarn", title="Method", description="yarn unless you compare methods.")
    factor: float | None = Field(
        None, ge=1, le=1024, title="Factor",
        description="Empty: target context / original context. Twice that has a model find more of what is "
        "far away, and costs near texts a little.",
    )  # fmt: skip
    target_context_tokens: Positive | None = Field(
        None, title="Target context (tokens)",
        description="To train on, measure and serve, e.g. 32768. Empty: factor * original context.",
    )  # fmt: skip
    beta_fast: float = Field(
        32.0, gt=0, title="beta_fast",
        description="Turns in the original context above which a dimension is kept.",
    )  # fmt: skip
    beta_slow: float = Field(
        1.0, gt=0, title="beta_slow", description="Turns below which a dimension is fully interpolated."
    )
    attention_factor: float | None = Field(
        None, gt=0, title="Attention factor",
        description="Empty: 0.1 ln(factor) + 1 for yarn. Not portable to all servers.",
    )  # fmt: skip
    theta: float | None = Field(
        None, gt=1, title="theta", description="abf only: the replaced base frequency."
    )
    low_freq_factor: float = Field(1.0, gt=0, title="low_freq_factor", description="llama3 only.")
    high_freq_factor: float = Field(4.0, gt=0, title="high_freq_factor", description="llama3 only.")
    short_factors: tuple[float, ...] = Field(
        (), title="Short factors", description="longrope only, head_dim/2 numbers."
    )
    long_factors: tuple[float, ...] = Field(
        (), title="Long factors", description="longrope only, head_dim/2 numbers."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Rope:
        if self.factor is None and self.target_context_tokens is None and self.method != "none":
            raise ValueError(f"method {self.method!r} needs factor or target_context_tokens")
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast:g}) must be above beta_slow ({self.beta_slow:g})")
        if self.method == "abf" and self.theta is None:
            raise ValueError("method 'abf' needs theta")
        if self.method == "longrope" and not (self.short_factors and self.long_factors):
            raise ValueError("method 'longrope' needs short_factors and long_factors")
        return self

    def resolve_factor(self, original_context_tokens: int) -> float:
        """What positions are scaled by: as given, else target context / original context.

        RecipeError where the target is below the original context, or the factor does not reach it.
        """
        target = self.target_context_tokens
        if target is None:
            return self.factor or 1.0
        if target < original_context_tokens:
            raise RecipeError(
                f"rope.target_context_tokens: {target} is below the base's original "
                f"context of {original_context_tokens}; ask for a longer one"
            )
        if self.factor is not None and self.factor * original_context_tokens < target:
            raise RecipeError(
                f"rope.factor: {self.factor:g} times the original context of {original_context_tokens} is "
                f"less than rope.target_context_tokens ({target}); give {target / original_context_tokens:g} "
                "or more, or leave it out"
            )
        return self.factor or target / original_context_tokens

    def target_tokens(self, original_context_tokens: int) -> int:
        """The context to train on, measure and serve. RecipeError as `resolve_factor`."""
        factor = self.resolve_factor(original_context_tokens)
        return self.target_context_tokens or round(factor * original_context_tokens)


class Data(Section):
    """The documents to train on and to measure with."""

    sources: tuple[Source, ...] = Field(
        (), min_length=1, title="Sources",
        description="Files or globs: text, JSON (lines, an array), Parquet, packed or not; local or s3://; "
        "stdlib:**/*.py is the running Python's own source.",
    )  # fmt: skip
    follow_links: bool = Field(
        False, title="Follow links",
        description="Also out of the folder that a source begins with. Otherwise such a link is refused.",
    )  # fmt: skip
    text_field: str = Field(
        "text", title="Text field", min_length=1, json_schema_extra=NO_PASSWORD,
        description="Of rows. Where one lacks it, its messages or conversations are read as a chat.",
    )  # fmt: skip
    languages: tuple[Annotated[str, Field(pattern=LANGUAGE)], ...] = Field(
        (), title="Languages",
        description="Documents in others are left out: codes like en, de, zh. Empty: all are kept.",
    )  # fmt: skip
    min_document_tokens: int = Field(
        0, ge=0, title="Shortest document (tokens)", description="Shorter documents are left out."
    )
    max_document_tokens: Positive | None = Field(
        None, title="Longest document (tokens)", description="Longer documents are left out. Empty: none is."
    )
    near_duplicate_similarity: float | None = Field(
        None, ge=0.5, le=1, title="Near duplicates from",
        description="Documents that share so much of their runs of five words with an earlier one are left "
        "out, e.g. 0.8. Empty: only equal ones are.",
    )  # fmt: skip
    shared_words: int | None = Field(
        None, ge=13, le=1024, title="Shared words",
        description="Documents that have a passage of so many words in common with held-out or evaluation "
        "documents are not trained on, e.g. 50. Empty: not looked for.",
    )  # fmt: skip
    evaluation_sources: tuple[Source, ...] = Field(
        (), title="Evaluation sources",
        description="Like sources: documents of other evaluations, whose passages are kept from training.",
    )  # fmt: skip
    held_out_fraction: Fraction = Field(
        0.125, title="Held-out fraction",
        description="Share of documents kept for measuring, chosen by document.",
    )  # fmt: skip
    prefer_long: float = Field(
        1.0, ge=0, le=4, title="Prefer long documents",
        description="0: windows uniform over tokens; above: a document longer than a window weighs more.",
    )  # fmt: skip
    document_mask: bool = Field(
        False, title="Mask between documents",
        description="Attention stays within a document of a packed window.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, title="Seed", description="Of the split and of the sampling of windows.")

    def of_shards(self) -> Data:
        """The section with the fields that shards do not depend on at their defaults."""
        return self.with_defaults("prefer_long", "document_mask")

    def of_windows(self) -> Data:
        """How windows are drawn and masked: all that training reads of the section beside its shards."""
        drawn = {name: getattr(self, name) for name in ("seed", "prefer_long", "document_mask")}
        drawn["sources"] = ("stdlib:**/*.py",)  # as keys of trained legs have it, whatever it is trained on
        return Data().model_copy(update=drawn)

    @model_validator(mode="after")
    def _sound(self) -> Data:
        if self.max_document_tokens is not None and self.max_document_tokens < self.min_document_tokens:
            raise ValueError("max_document_tokens is below min_document_tokens")
        if self.evaluation_sources and self.shared_words is None:
            raise ValueError("evaluation_sources needs shared_words, e.g. 50")
        return self


class Evaluate(Section):
    """What to measure, on the base and on the result."""

    lengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0, 4.0), min_length=1, title="Lengths",
        description="In multiples of the original context.",
    )  # fmt: skip
    windows: Positive = Field(16, title="Windows", description="Held-out windows for each perplexity.")
    sliding_stride_tokens: int = Field(
        0, ge=0, title="Stride (tokens)",
        description="Of sliding-window perplexity, e.g. 256; 0: it is left out.",
    )  # fmt: skip
    recall_windows: Positive = Field(
        24, title="Recall windows", description="Windows with planted pairs at each length."
    )
    recall_pairs: Positive = Field(
        4, title="Pairs a window", description="One in each equal part of the window."
    )
    templates: tuple[Literal["code", "prose"], ...] = Field(
        ("code", "prose"), title="Templates", description="Shapes of the planted key-value pairs."
    )
    suite: SuiteChoice = Field(
        "none", title="Suite",
        description="How far the model sees and uses, with needle grids up to the target: tiny in seconds, "
        "quick in minutes, use for tasks beyond needles, full with every one (a GPU); none: judged by the "
        "scores above alone.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, title="Seed")

    @property
    def scores_alone(self) -> Evaluate:
        """Without the suite: to ask for one leaves what was scored as it is."""
        return self.model_copy(update={"suite": "none"})


class Condition(Section):
    """One more condition of the gate, over any score of the evaluation."""

    score: str = Field(
        title="Score", min_length=1, json_schema_extra=NO_PASSWORD,
        description="As in the scorecard: perplexity/last-quarter, perplexity/single-pass, recall/code, "
        "recall/prose, recall/code/no-needle, …; capacity/sees and capacity/uses in tokens.",
    )  # fmt: skip
    length: float | None = Field(
        None, gt=0, title="Length", description="In multiples of the original context; empty: the target."
    )
    depth: float | None = Field(
        None, ge=0, le=1, title="Depth", description="0 farthest from the question; empty: over all depths."
    )
    measure: Literal["result", "ratio", "difference"] = Field(
        "result", title="Measure", description="The result's score; result / base; result less base."
    )
    at_least: float | None = Field(None, title="At least")
    at_most: float | None = Field(None, title="At most")
    evidence: Literal["value", "sure", "unrefuted"] = Field(
        "value", title="Evidence",
        description="value: the figure itself. sure: its whole 95 % interval must hold. unrefuted: it fails "
        "only where the whole interval does, so equals rarely fail.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _bounded(self) -> Condition:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of them")
        return self


class Gate(Section):
    """What a release must pass. An empty threshold is not checked."""

    min_recall_kept: float | None = Field(
        0.85, ge=0, title="Least recall kept",
        description="Result's recall at the target / base's at the original context, each of its best "
        "template: the lower end of the 95 % interval.",
    )  # fmt: skip
    min_uses_share: float | None = Field(
        0.85, ge=0, le=1, title="Least share used",
        description="How far back the result finds needles (capacity/uses) / the target context.",
    )  # fmt: skip
    min_recall: float | None = Field(
        None, ge=0, le=1, title="Least recall at the target",
        description="Of the best template, whatever the base recalls, e.g. 0.9.",
    )  # fmt: skip
    min_long_gain: float | None = Field(
        1.5, gt=0, title="Least long gain",
        description="Perplexity of the base / of the result at the target context.",
    )  # fmt: skip
    max_long_growth: float | None = Field(
        1.1, gt=0, title="Most growth",
        description="Result's perplexity at the target / at the original context.",
    )  # fmt: skip
    max_short_growth: float | None = Field(
        1.05, gt=0, title="Most short growth",
        description="Result's perplexity / base's, at every length up to the original.",
    )  # fmt: skip
    max_short_recall_loss: float | None = Field(
        0.1, ge=0, le=1, title="Most recall lost",
        description="Base's recall less the result's, up to the original context.",
    )  # fmt: skip
    max_skill_loss: float | None = Field(
        None, ge=0, title="Most short skill lost",
        description="Share of short items: cloze, order, chats that end. Fails where the whole 95 % "
        "interval, item by item, is above. Needs a suite (quick, use, full); e.g. 0.02.",
    )  # fmt: skip
    conditions: tuple[Condition, ...] = Field(
        (), title="More conditions", description="Over any score; one that cannot be evaluated fails."
    )

    @classmethod
    def unasked(cls) -> dict[str, None]:
        """Every threshold, empty."""
        return {name: None for name in cls.model_fields if name != "conditions"}


class Publish(Section):
    """How the result is registered in MLflow."""

    LATER = frozenset({"approval"})

    name: str = Field("", title="Model name", description="Registered model in MLflow.", pattern=MODEL_NAME)
    alias: str = Field(
        "champion", title="Alias", description="Moved to the new version when the gate passes.", pattern=ALIAS
    )
    approval: bool = Field(
        False, title="Approval",
        description="A person promotes it: the run waits, in Prefect with a form, until somebody decides.",
    )  # fmt: skip
    experiment: str = Field("yarn-ops", title="Experiment", description="In MLflow.", pattern=MODEL_NAME)
    tags: dict[Annotated[str, Field(pattern=TAG)], TagValue] = Field(
        default_factory=dict, title="More tags", description="Put on the model version.", max_length=100
    )
    fingerprint: bool = Field(
        False, title="Fingerprint",
        description="Put what serve-check compares a server with into a release that passed: some dozen "
        "readings of four texts of the target length.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _not_reserved(self) -> Publish:
        alias = self.alias.lower()
        if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()):
            raise ValueError(f"alias {self.alias!r} is reserved by MLflow; choose another")
        return self

"""A whole recipe: its digest and its curriculum."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, model_validator

from yarn_ops.digests import digest_of
from yarn_ops.errors import RecipeError
from yarn_ops.recipe.section import LENGTH_DEPENDENT, Section
from yarn_ops.recipe.sections import Base, Condition, Data, Evaluate, Gate, Publish, Rope
from yarn_ops.recipe.training import NOT_IN_LOSSES, Leg, Train, loss_inputs

NAMED = {
    "base.model": "name the model to extend",
    "data.sources": "name the documents to train on and to measure with",
    "publish.name": "name the model that is registered",
}
"""fields without a default: a form that is emptied asks for nothing"""
WITHOUT_SUITE = (
    "perplexity/last-quarter", "perplexity/single-pass", "loss-by-position", "capacity/sees", "capacity/uses",
)  # fmt: skip
"""scores of every evaluation, beside those of the templates and of a sliding window"""
WITH_SKILLS = ("quick", "use", "full")
"""suites that measure short skills"""


RAISE_BUDGET = "the next would pass its budget: raise budget.dollars or budget.hours and run again to go on"


class Budget(Section):
    """What a run may use, over all its attempts; it stops before that is passed, and can go on."""

    dollars: float | None = Field(
        None, gt=0, title="Dollars", description="By YARN_OPS_GPU_HOUR and YARN_OPS_NODE_HOUR. Empty: any."
    )
    hours: float | None = Field(
        None, gt=0, title="Hours", description="Without what it waits for the device. Empty: any."
    )

    @property
    def asks(self) -> bool:
        """Whether there is one."""
        return self != Budget()


class Recipe(Section):
    """Everything one run is asked to do."""

    base: Base = Base()
    rope: Rope = Field(title="RoPE")
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    publish: Publish = Publish()
    budget: Budget = Budget()

    LATER = frozenset({"budget"})

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if fault := next(self._faults(), None):
            raise ValueError(fault)
        if self.base.original_context_tokens is not None:
            try:
                self.curriculum(self.base.original_context_tokens)
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return self

    def _faults(self) -> Iterator[str]:
        """What contradicts itself, whatever the base's original context is; each begins with its key."""
        for key, remedy in NAMED.items():
            section, name = key.split(".")
            if not getattr(getattr(self, section), name):
                yield f"{key}: is empty; {remedy}"
        target, last = self.rope.target_context_tokens, self.train.legs[-1:]
        if target is not None and last and last[0].factor is None and last[0].context_tokens != target:
            yield (
                f"train.legs: the last leg has {last[0].context_tokens} tokens and rope asks for {target}; "
                "let the last leg reach the target context"
            )
        if target is not None and not last and (self.train.context_tokens or 0) > target:
            yield (
                f"train.context_tokens: {self.train.context_tokens} is above rope.target_context_tokens "
                f"({target}); train on windows of the target context at most"
            )
        if self.publish.fingerprint and self.rope.method in LENGTH_DEPENDENT:
            yield (
                f"publish.fingerprint: no engine serves {self.rope.method}, which turns heads by the length "
                "of the text, so there is nothing to compare with; leave it out"
            )
        yield from self._unmeasured()

    def _unmeasured(self) -> Iterator[str]:
        """Of the gate: what it asks for and the evaluation does not measure."""
        gate, asked = self.gate, self.evaluate
        if not asked.templates and asked.suite == "none":
            thresholds = ("min_recall_kept", "min_uses_share", "min_recall", "max_short_recall_loss")
            found = [f"gate.{name}" for name in thresholds if getattr(gate, name) is not None]
            legs = enumerate(self.train.legs)
            found += [f"train.legs.{n}.gate.min_recall" for n, leg in legs if leg.gate.min_recall is not None]
            if found:
                yield f"{found[0]}: asks for recall, and evaluate.templates is empty; name one, or empty it"
        if gate.max_skill_loss is not None and asked.suite not in WITH_SKILLS:
            yield f"gate.max_skill_loss: needs evaluate.suite {', '.join(WITH_SKILLS)}; name one, or empty it"
        for number, condition in enumerate(gate.conditions if asked.suite == "none" else ()):
            if missing := self._not_measured(condition):
                yield f"gate.conditions.{number}: {missing}"

    def _not_measured(self, condition: Condition) -> str | None:
        """Why an evaluation without a suite does not have the score of a condition."""
        asked, task = self.evaluate, condition.score.removesuffix("/no-needle")
        known = {*WITHOUT_SUITE, *(f"recall/{template}" for template in asked.templates)}
        if asked.sliding_stride_tokens:
            known.add("perplexity/sliding")
        if task not in known:
            return f"score {condition.score!r} is not measured; known here: {', '.join(sorted(known))}"
        of_target = self.rope.factor if self.rope.target_context_tokens is None else condition.length
        lengths = {1.0, of_target}
        if condition.length is not None and condition.length not in {*asked.lengths, *lengths}:
            return f"length {condition.length:g} is not among evaluate.lengths; add it there"
        return None

    def measured(self, original_context_tokens: int) -> Evaluate:
        """What to measure: as asked for, at the original and the target context in any case."""
        asked, original = self.evaluate, original_context_tokens
        there = {round(length * original) for length in asked.lengths}
        ends = (1.0, self.rope.target_tokens(original) / original)
        missing = {length for length in ends if round(length * original) not in there}
        lengths = tuple(sorted({*asked.lengths, *missing}))
        return asked.model_copy(update={"lengths": lengths}) if missing else asked

    def digest(self) -> str:
        """sha256 of the resolved recipe's canonical JSON, without its budget: a run goes on with another."""
        return digest_of(self.with_defaults("budget").key_values())

    def curriculum(self, original_context_tokens: int) -> tuple[Leg, ...]:
        """The legs to train, every field set; one leg at the target context unless legs are given.

        The first one carries nothing over, whatever it says.
        """
        factor = self.rope.resolve_factor(original_context_tokens)
        target = self.rope.target_tokens(original_context_tokens)
        if not self.train.legs:
            window = self.train.context_tokens or target
            if window > target:
                raise RecipeError(
                    f"train.context_tokens: {window} is above the target context of {target}; train on "
                    "windows of the target context at most"
                )
            leg = Leg(
                context_tokens=window,
                steps=self.train.steps,
                factor=factor,
                learning_rate=self.train.learning_rate,
            )
            return (leg,)
        beyond = factor / (target / original_context_tokens)
        legs = tuple(
            leg.model_copy(
                update={
                    "factor": leg.factor or max(1.0, leg.context_tokens / original_context_tokens * beyond),
                    "learning_rate": leg.learning_rate or self.train.learning_rate,
                    "carry": leg.carry if number else "adapter",
                }
            )
            for number, leg in enumerate(self.train.legs)
        )
        if legs[-1].factor != factor:
            raise RecipeError(
                f"train.legs: the last leg's factor is {legs[-1].factor:g} but rope asks for {factor:g}; "
                "let the last leg reach the target context"
            )
        return legs

    def training_inputs(self) -> tuple[Section, ...]:
        """What the whole recipe's training depends on: equal ones train the same."""
        legs = [loss_inputs(self.train, leg, self.data)[1] for leg in self.train.legs]
        train = self.train.with_defaults(*NOT_IN_LOSSES).model_copy(update={"legs": tuple(legs)})
        return self.base, self.rope, self.data, train

    def evaluation_of(self, leg: Leg, original_context_tokens: int) -> Evaluate:
        """What the gate of a leg needs measured: perplexity at both ends, recall where it asks for it."""
        lengths = sorted({1.0, leg.context_tokens / original_context_tokens})
        templates = () if leg.gate.min_recall is None else self.evaluate.templates
        changes = {
            "lengths": tuple(lengths), "templates": templates, "sliding_stride_tokens": 0, "suite": "none",
        }  # fmt: skip
        return self.evaluate.model_copy(update=changes)

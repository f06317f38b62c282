"""A whole recipe: its digest and its curriculum."""

from __future__ import annotations

from pydantic import Field

from yarn_ops.digests import digest_of
from yarn_ops.errors import RecipeError
from yarn_ops.recipe.section import Section
from yarn_ops.recipe.sections import Base, Data, Evaluate, Gate, Publish, Rope
from yarn_ops.recipe.training import NOT_IN_LOSSES, Leg, Train, loss_inputs


class Recipe(Section):
    """Everything one run is asked to do."""

    base: Base = Base()
    rope: Rope = Field(title="RoPE")
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    publish: Publish = Publish()

    def digest(self) -> str:
        """sha256 of the resolved recipe's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))

    def curriculum(self, original_context_tokens: int) -> tuple[Leg, ...]:
        """The legs to train, every field set; one leg at the target context unless legs are given.

        The first one carries nothing over, whatever it says.
        """
        factor = self.rope.resolve_factor(original_context_tokens)
        target = round(factor * original_context_tokens)
        if not self.train.legs:
            window = self.train.context_tokens or target
            leg = Leg(
                context_tokens=window,
                steps=self.train.steps,
                factor=factor,
                learning_rate=self.train.learning_rate,
            )
            return (leg,)
        legs = tuple(
            leg.model_copy(
                update={
                    "factor": leg.factor or max(1.0, leg.context_tokens / original_context_tokens),
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

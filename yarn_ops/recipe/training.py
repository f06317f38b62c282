"""The training section: what learns, how fast, and the legs of a curriculum."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from yarn_ops.recipe.section import Positive, Section
from yarn_ops.recipe.sections import Data, Gate

FamilyName = Literal[
    "lookup",
    "lookalikes",
    "table",
    "values",
    "updates",
    "chain",
    "count",
    "ordinal",
    "association",
    "passage",
    "section",
]
Carry = Literal["adapter", "adapter+optimizer", "weights"]
"""what a leg takes over from the leg before"""
OF_LEGS = ("steps", "context_tokens", "legs", "learning_rate")
"""fields of `train` that each leg says itself"""
NOT_IN_LOSSES = ("checkpoint_every", "context_parallel", "shard_base")
"""fields of `train` that change how a loss is computed, not which"""


class LegGate(Section):
    """What a leg must show at its own context before the next begins. An empty threshold is not checked."""

    max_long_growth: float | None = Field(
        None, gt=0, title="Most growth",
        description="Perplexity at this leg's context / at the original context.",
    )  # fmt: skip
    min_recall: float | None = Field(
        None, ge=0, le=1, title="Least recall", description="Of the best template, at this leg's context."
    )

    @property
    def asks(self) -> bool:
        """Whether there is anything to measure."""
        return self != LegGate()

    def at_target(self) -> Gate:
        """The same thresholds as a gate whose target is the leg's context."""
        asked = {"min_recall": self.min_recall, "max_long_growth": self.max_long_growth}
        return Gate.model_validate(Gate.unasked() | asked)


class Leg(Section):
    """One leg of a curriculum."""

    context_tokens: Positive = Field(title="Context (tokens)", description="Window length of this leg.")
    steps: Positive = Field(title="Steps")
    factor: float | None = Field(
        None, ge=1, title="Factor",
        description="RoPE factor of this leg; empty: rope's, by this leg's share of the target context.",
    )  # fmt: skip
    learning_rate: float | None = Field(None, gt=0, title="Learning rate", description="Empty: the recipe's.")
    prefer_long: float | None = Field(
        None, ge=0, le=4, title="Prefer long documents",
        description="How this leg draws its windows; empty: as the recipe's data section says.",
    )  # fmt: skip
    carry: Carry = Field(
        "adapter", title="Carry over",
        description="From the leg before. adapter: trained on with a new optimizer; adapter+optimizer: "
        "with its own; weights: merged, and a fresh adapter begins on the result.",
    )  # fmt: skip
    gate: LegGate = Field(
        LegGate(), title="Gate",
        description="Checked after this leg; a leg that fails ends the run, and nothing is registered.",
    )  # fmt: skip

    def data_of(self, data: Data) -> Data:
        """How this leg draws its windows."""
        return data if self.prefer_long is None else data.model_copy(update={"prefer_long": self.prefer_long})

    def ungated(self) -> Leg:
        """The leg without its gate, on which its training does not depend."""
        return self.model_copy(update={"gate": LegGate()})


class Exercises(Section):
    """Facts planted in the documents and asked for later: what makes a model use its window."""

    share: float = Field(
        1.0, ge=0, le=1, title="Share",
        description="Of the training windows that hold exercises; 0: text alone, which adds no use.",
    )  # fmt: skip
    answer_share: float = Field(
        0.67, gt=0, lt=1, title="Weight of answers",
        description="What the answers of a window's exercises make up of its loss; the text is the rest.",
    )  # fmt: skip
    families: tuple[FamilyName, ...] = Field(
        (), title="Families", description="Kinds of exercises; empty: all of them."
    )


class Train(Section):
    """How the model learns to use the longer context."""

    method: Literal["lora", "full"] = Field(
        "lora", title="Method", description="LoRA adapters, or all parameters."
    )
    rank: int = Field(16, ge=1, le=1024, title="LoRA rank")
    alpha: float = Field(32.0, gt=0, title="LoRA alpha")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1, title="LoRA targets",
        description="Names of linear layers; all-linear for every one but the head "
        "and the fused experts of a mixture.",
    )  # fmt: skip
    train_norms: bool = Field(
        True, title="Train norms", description="LongLoRA's finding: cheap and it helps."
    )
    train_embeddings: bool = Field(False, title="Train embeddings")
    exercises: Exercises = Field(Exercises(), title="Exercises in the windows")
    steps: Positive = Field(50, title="Steps", description="Optimizer steps. Ignored when legs are given.")
    context_tokens: Positive | None = Field(
        None, title="Window (tokens)", description="Length of training windows; empty: the target context."
    )
    legs: tuple[Leg, ...] = Field(
        (), title="Curriculum", description="Legs of growing context, e.g. 16384 then 32768. Empty: one leg."
    )
    batch_windows: Positive = Field(1, title="Windows a batch")
    gradient_accumulation_steps: Positive = Field(
        1, title="Batches a step", description="Gradient accumulation."
    )
    learning_rate: float = Field(5e-4, gt=0, le=1, title="Learning rate")
    warmup_steps: int = Field(5, ge=0, title="Warm-up steps")
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, title="Final learning rate", description="As a fraction, reached by cosine."
    )
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    clip_norm: float = Field(1.0, gt=0, title="Gradient clipping", description="Largest gradient norm.")
    precision: Literal["auto", "fp32", "bf16", "fp8", "nf4"] = Field(
        "auto", title="Precision",
        description="auto: bf16 on a GPU, fp32 on a CPU. fp8: bf16, and products of frozen weights in "
        "8 bits; Hopper or newer, LoRA only. nf4: as auto, and frozen weights held in 4 bits; LoRA only, "
        "merged into the base in full precision.",
    )  # fmt: skip
    context_parallel: Positive | None = Field(
        None, title="GPUs a window",
        description="Of several GPUs, how many share each window's tokens; empty: the planner chooses.",
    )  # fmt: skip
    shard_base: Literal["auto", "yes", "no"] = Field(
        "auto", title="Shard the base",
        description="Whether several GPUs share the frozen layers; auto: where it is faster, or must be.",
    )  # fmt: skip
    checkpoint_every: Positive = Field(10, title="Checkpoint every (steps)")
    seed: int = Field(0, ge=0, title="Seed")

    @model_validator(mode="after")
    def _frozen_in_few_bits(self) -> Train:
        if self.quantised and self.method == "full":
            raise ValueError(
                f"precision {self.precision} holds frozen weights, and with method full none is; use bf16"
            )
        return self

    @property
    def quantised(self) -> bool:
        """Whether frozen weights are held in 8 or 4 bits: on each device whole, for our own layers."""
        return self.precision in ("fp8", "nf4")

    def shared_by_legs(self) -> Train:
        """The section without what each leg says itself: a change to one leg leaves the others alone."""
        return self.with_defaults(*OF_LEGS)


def loss_inputs(train: Train, leg: Leg, data: Data) -> tuple[Train, Leg, Data]:
    """The three sections with every field at its default on which a leg's losses do not depend.

    What training depends on is said here alone: the key of the `train` stage, a snapshot's identity and the
    search for a run that has trained the same are made of it.
    """
    leg = leg.ungated().model_copy(update={"learning_rate": leg.learning_rate or train.learning_rate})
    return train.shared_by_legs().with_defaults(*NOT_IN_LOSSES), leg, leg.data_of(data).of_windows()

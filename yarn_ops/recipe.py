"""The recipe: WHAT to do, never where. Frozen pydantic models, read from TOML.

`Recipe.digest()` is canonical: key order, `4` against `4.0`, defaults written out or left out make no
difference. The Prefect run form is made from these models, so titles and descriptions here are what a
person reads there.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yarn_ops.digests import digest_of
from yarn_ops.errors import RecipeError

RopeMethod = Literal[
    "none", "linear", "ntk", "dynamic-ntk", "by-parts", "yarn", "dynamic-yarn", "llama3", "longrope", "abf"
]
FittedMethod = Literal["yarn", "longrope"]
"""methods with parameters that can be searched for"""
Arm = Literal["zero-shot", "lora", "full"]
"""of a comparison: patched and not trained, trained adapters, all parameters trained"""
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ALIAS = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"


class Section(BaseModel):
    """Part of a recipe: frozen; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Base(Section):
    """The model to extend."""

    model: str = Field(
        "shipped:base512",
        title="Base model",
        description="A directory; hf:org/name@revision; models:/name@alias or models:/name/version (MLflow); "
        "s3://bucket/prefix; or shipped:base512, the demo's. Safetensors only.",
        min_length=1,
        max_length=1024,
    )
    original_context_tokens: Positive | None = Field(
        None,
        title="Original context (tokens)",
        description="What the base was trained on. Needed only if its config already carries RoPE scaling.",
    )


class Rope(Section):
    """How positions beyond the original context are made readable. Give a factor or a target context."""

    method: RopeMethod = Field("yarn", title="Method", description="yarn unless you compare methods.")
    factor: float | None = Field(
        None, ge=1, le=1024, title="Factor", description="Target context / original context, e.g. 4."
    )
    target_context_tokens: Positive | None = Field(
        None,
        title="Target context (tokens)",
        description="Instead of a factor (leave that empty), e.g. 32768.",
    )
    beta_fast: float = Field(
        32.0,
        gt=0,
        title="beta_fast",
        description="Turns in the original context above which a dimension is kept.",
    )
    beta_slow: float = Field(
        1.0, gt=0, title="beta_slow", description="Turns below which a dimension is fully interpolated."
    )
    attention_factor: float | None = Field(
        None,
        gt=0,
        title="Attention factor",
        description="Empty: 0.1 ln(factor) + 1 for yarn. Not portable to all servers.",
    )
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
        if self.factor is not None and self.target_context_tokens is not None:
            raise ValueError("give factor or target_context_tokens, not both")
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
        """Target context / original context. RopeError-free arithmetic; raises RecipeError below 1."""
        if self.factor is not None:
            return self.factor
        if self.target_context_tokens is None:
            return 1.0
        if self.target_context_tokens < original_context_tokens:
            raise RecipeError(
                f"rope.target_context_tokens: {self.target_context_tokens} is below the base's original "
                f"context of {original_context_tokens}; ask for a longer one"
            )
        return self.target_context_tokens / original_context_tokens


class Data(Section):
    """The documents to train on and to measure with."""

    sources: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(
        ("stdlib:**/*.py",),
        min_length=1,
        title="Sources",
        description="Files or globs: text, .jsonl(.gz/.zst), .parquet; local or s3://; stdlib:**/*.py is the "
        "running Python's own source.",
    )
    text_field: str = Field(
        "text", title="Text field", description="Of .jsonl and .parquet rows.", min_length=1
    )
    held_out_fraction: Fraction = Field(
        0.125,
        title="Held-out fraction",
        description="Share of documents kept for measuring, chosen by document.",
    )
    prefer_long: float = Field(
        1.0, ge=0, le=4, title="Prefer long documents",
        description="0: windows uniform over tokens; above: a document longer than a window weighs more.",
    )  # fmt: skip
    document_mask: bool = Field(
        False,
        title="Mask between documents",
        description="Attention stays within a document of a packed window.",
    )
    seed: int = Field(0, ge=0, title="Seed", description="Of the split and of the sampling of windows.")


class Stage(Section):
    """One leg of a curriculum."""

    context_tokens: Positive = Field(title="Context (tokens)", description="Window length of this leg.")
    steps: Positive = Field(title="Steps")
    factor: float | None = Field(
        None, ge=1, title="Factor", description="RoPE factor of this leg; empty: context / original context."
    )
    learning_rate: float | None = Field(None, gt=0, title="Learning rate", description="Empty: the recipe's.")


class Train(Section):
    """How the model learns to use the longer context."""

    method: Literal["lora", "full"] = Field(
        "lora", title="Method", description="LoRA adapters, or all parameters."
    )
    rank: int = Field(16, ge=1, le=1024, title="LoRA rank")
    alpha: float = Field(32.0, gt=0, title="LoRA alpha")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1, title="LoRA targets",
        description="Names of linear layers; all-linear for every one but the head.",
    )  # fmt: skip
    train_norms: bool = Field(
        True, title="Train norms", description="LongLoRA's finding: cheap and it helps."
    )
    train_embeddings: bool = Field(False, title="Train embeddings")
    steps: Positive = Field(50, title="Steps", description="Optimizer steps. Ignored when stages are given.")
    context_tokens: Positive | None = Field(
        None, title="Window (tokens)", description="Length of training windows; empty: the target context."
    )
    stages: tuple[Stage, ...] = Field(
        (), title="Curriculum", description="Legs of growing context, e.g. 16384 then 32768. Empty: one leg."
    )
    batch_windows: Positive = Field(1, title="Windows a batch")
    accumulate: Positive = Field(1, title="Batches a step", description="Gradient accumulation.")
    learning_rate: float = Field(5e-4, gt=0, le=1, title="Learning rate")
    warmup_steps: int = Field(5, ge=0, title="Warm-up steps")
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, title="Final learning rate", description="As a fraction, reached by cosine."
    )
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    clip_norm: float = Field(1.0, gt=0, title="Gradient clipping", description="Largest gradient norm.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto: bf16 on a GPU, fp32 on a CPU."
    )
    checkpoint_every: Positive = Field(10, title="Checkpoint every (steps)")
    seed: int = Field(0, ge=0, title="Seed")


class Evaluate(Section):
    """What to measure, on the base and on the result."""

    lengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 2.0, 4.0),
        min_length=1,
        title="Lengths",
        description="In multiples of the original context.",
    )
    windows: Positive = Field(16, title="Windows", description="Held-out windows for each perplexity.")
    sliding_stride_tokens: int = Field(
        256, ge=0, title="Stride (tokens)", description="Of sliding-window perplexity; 0: it is left out."
    )
    recall_windows: Positive = Field(
        24, title="Recall windows", description="Windows with planted pairs at each length."
    )
    recall_pairs: Positive = Field(
        4, title="Pairs a window", description="One in each equal part of the window."
    )
    templates: tuple[Literal["code", "prose"], ...] = Field(
        ("code", "prose"), title="Templates", description="Shapes of the planted key-value pairs."
    )
    seed: int = Field(0, ge=0, title="Seed")


class Gate(Section):
    """What a release must pass. An empty threshold is not checked."""

    min_recall: float | None = Field(
        0.9,
        ge=0,
        le=1,
        title="Least recall at the target",
        description="Of the best template, at the target context.",
    )
    min_long_gain: float | None = Field(
        1.5,
        gt=0,
        title="Least long gain",
        description="Perplexity of the base / of the result at the target context.",
    )
    max_long_growth: float | None = Field(
        1.1,
        gt=0,
        title="Most growth",
        description="Result's perplexity at the target / at the original context.",
    )
    max_short_loss: float | None = Field(
        1.05,
        gt=0,
        title="Most short loss",
        description="Result's perplexity / base's, at every length up to the original.",
    )
    max_short_recall_loss: float | None = Field(
        0.1,
        ge=0,
        le=1,
        title="Most recall lost",
        description="Base's recall less the result's, up to the original context.",
    )


class Publish(Section):
    """How the result is registered in MLflow."""

    name: str = Field(
        "demo-long", title="Model name", description="Registered model in MLflow.", pattern=MODEL_NAME
    )
    alias: str = Field(
        "champion", title="Alias", description="Moved to the new version when the gate passes.", pattern=ALIAS
    )
    experiment: str = Field("yarn-ops", title="Experiment", description="In MLflow.", pattern=MODEL_NAME)
    tags: dict[str, str] = Field(
        default_factory=dict, title="More tags", description="Put on the model version."
    )

    @model_validator(mode="after")
    def _not_reserved(self) -> Publish:
        if self.alias == "latest" or (self.alias[0] == "v" and self.alias[1:].isdigit()):
            raise ValueError(f"alias {self.alias!r} is reserved by MLflow; choose another")
        return self


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

    def curriculum(self, original_context_tokens: int) -> tuple[Stage, ...]:
        """The legs to train, every field set; one leg at the target context unless stages are given."""
        factor = self.rope.resolve_factor(original_context_tokens)
        target = round(factor * original_context_tokens)
        if not self.train.stages:
            window = self.train.context_tokens or target
            leg = Stage(
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
                }
            )
            for leg in self.train.stages
        )
        if legs[-1].factor != factor:
            raise RecipeError(
                f"train.stages: the last leg's factor is {legs[-1].factor:g} but rope asks for {factor:g}; "
                "let the last leg reach the target context"
            )
        return legs


def parse_methods(names: Sequence[str]) -> list[RopeMethod]:
    """The RoPE methods of these names; RecipeError for an unknown one."""
    return _known(names, RopeMethod, "method")


def parse_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of these names; RecipeError for an unknown one."""
    return _known(names, Arm, "arm")


def _known(names: Sequence[str], kind: Any, what: str) -> Any:
    for name in names:
        if name not in get_args(kind):
            raise RecipeError(f"{what} {name!r} is unknown; known are {', '.join(get_args(kind))}")
    return list(names)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in TOML, bare words as strings).

    Relative paths in `base.model` and `data.sources` are meant from the file's directory.
    Raises RecipeError in one line that names the file, the key and the nearest known key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `yarn-ops recipe list` names the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a text file ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    _anchor_paths(values, path.parent)
    for override in overrides:
        _apply(values, override)
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Recipe from plain values; RecipeError in one line, naming `where` and the key."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from None


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    def anchored(text: Any) -> Any:
        if not isinstance(text, str) or ":" in text.split("/")[0] or text.startswith(("/", "~")) or not text:
            return text
        return str(folder.resolve() / text)

    base, data = values.get("base"), values.get("data")
    if isinstance(base, dict) and "model" in base:
        base["model"] = anchored(base["model"])
    if isinstance(data, dict) and isinstance(data.get("sources"), list):
        data["sources"] = [anchored(source) for source in data["sources"]]


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise RecipeError(f"--set {override}: write section.key=value, e.g. --set train.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section = values.setdefault(path[0], {})
    if not isinstance(section, dict):
        raise RecipeError(f"--set {override}: {path[0]!r} is not a section")
    section[path[1]] = value


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "recipe"
    if first["type"] == "extra_forbidden":
        text = f"{where}: unknown key{_nearest(first['loc'])}"
    elif first["type"] == "missing":
        text = f"{where}: missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{where}: {message[:1].lower()}{message[1:]} (found {_shorten(first['input'])})"
        if first["type"] == "value_error":
            text = f"{where}: {message}"
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *_inner_types(field.annotation)]
        model = next(
            (kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), model
        )
    wrong = str(location[-1])
    close = difflib.get_close_matches(wrong, model.model_fields, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    homes = [name for name, field in Recipe.model_fields.items() if wrong in _keys(field.annotation)]
    if homes:
        return f"; it belongs in [{homes[0]}]"
    return f"; known here: {', '.join(model.model_fields)}"


def _keys(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from annotation.model_fields


def _inner_types(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ()))

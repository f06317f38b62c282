"""Settings under which an inference engine rotates as a config asks, or the reason why it cannot.

Plain YaRN (betas 32 and 1, rounded ramp, attention factor of its own) is read alike by all engines.
Whatever else an engine reads differently is translated where that is exact, and refused where it is not:

                     transformers,
                     vLLM ≥ 0.30   vLLM ≤ 0.29          SGLang      MLX         TGI         GGUF
    attention_factor as written    becomes attn_factor  refused     refused     refused     attn_factor
    mscale pair      their ratio   becomes attn_factor  as written  as written  as written  attn_factor
    betas            as written    as written           as written  as written  refused     frequency factors
    truncate=false   as written    as written, ≥ 0.13   as written  refused     refused     frequency factors
    llama3           as written    as written           as written  as written  as written  frequency factors
    linear           as written    as written           as written  as written  refused     as written

`attn_factor` multiplies YaRN's own 0.1 ln(s) + 1 where attention_factor replaces it. Frequency factors
divide the base's frequencies one by one; llama.cpp has them for its llama class alone (llama, mistral). It
reads the GGUF for Ollama and LM Studio, too.

An engine's own classes of models may read no scaling at all: `engines` says which do, and what was read.
"""

from __future__ import annotations

import copy
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yarn_ops.errors import RopeError
from yarn_ops.export import engines
from yarn_ops.rope.architectures import require_full_attention
from yarn_ops.rope.config import DUAL_CHUNK, rope_spec_of
from yarn_ops.rope.fields import RopeFields, optional_number, read_fields
from yarn_ops.rope.methods import (
    BETA_FAST,
    BETA_SLOW,
    LENGTH_DEPENDENT,
    Array,
    RopeSpec,
    attention_factor,
    inverse_frequencies,
    yarn_scale,
)

EXACT = 1e-6
"""relative; what a loaded model may differ from the reference (`proof.RTOL`)"""


@dataclass(frozen=True)
class GgufRope:
    """The rotary embedding in llama.cpp's terms."""

    architecture: str
    dim: int
    """rotated dimensions of a head, here all of them"""
    scaling: Literal["none", "linear", "yarn"]
    theta: float
    factor: float
    original_context_tokens: int
    attn_factor: float
    """multiplies cos and sin, on top of YaRN's own factor where `scaling` is yarn"""
    frequency_factors: Array | None
    """float64[d/2], divisors of the base's frequencies"""


@dataclass(frozen=True)
class ServingSettings:
    """How an engine is started so that it rotates as the config asks."""

    engine: engines.Engine
    requires: str
    """the versions this holds for"""
    context_tokens: int
    config: dict[str, Any] | None = None
    """the config.json that this engine needs instead of the model's own; None: the model's own"""
    gguf: GgufRope | None = None

    def command(self, model: str, *, adapter: str | None = None, rank: int | None = None) -> str:
        """The command line, quoted for a shell. `adapter`: a LoRA directory (vLLM, SGLang) of that rank."""
        model, tokens, lora = _no_option(model), str(self.context_tokens), []
        match self.engine:
            case "transformers":
                words = ["transformers", "serve", model]
            case "vllm" | "vllm-0.29":
                words = ["vllm", "serve", model, "--max-model-len", tokens]
                lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"adapter={adapter}"]
            case "sglang":
                words = ["python", "-m", "sglang.launch_server", "--model-path", model]
                words += ["--context-length", tokens]
                lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-paths", f"adapter={adapter}"]
            case "llama.cpp":  # one slot: more would share the context out
                words = ["llama-server", "--model", model, "--ctx-size", tokens, "--parallel", "1"]
            case "ollama":
                modelfile = _no_option(str(modelfile_of(Path(model))))
                words = ["ollama", "create", _plain_name(model), "--file", modelfile]
            case "lm-studio":
                folder = f"yarn-ops/{_plain_name(model)}"
                placed = shlex.join(["lms", "import", "--hard-link", "--user-repo", folder, model])
                words = ["lms", "load", "--exact", f"{folder}/{Path(model).name}", "--context-length", tokens]
                return f"{placed} && {shlex.join(words)}"
            case "mlx":
                words = ["mlx_lm.server", "--model", model]
            case "tgi":
                words = ["text-generation-launcher", "--model-id", model, "--max-total-tokens", tokens]
                words += ["--max-input-tokens", str(self.context_tokens - 1)]
            case "tensorrt-llm":
                raise AssertionError(self.engine)
        return shlex.join(words if adapter is None else words + lora)


def _no_option(path: str) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def modelfile_of(gguf: Path) -> Path:
    """Where Ollama's settings for a GGUF lie."""
    return gguf.with_suffix(".Modelfile")


def _plain_name(model: str) -> str:
    """A name of a model in letters that Ollama and LM Studio take."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(model).stem.lower()).strip("-.") or "model"


def serving_settings(
    config: Mapping[str, Any], engine: engines.Engine, context_tokens: int | None = None
) -> ServingSettings:
    """Settings under which `engine` rotates as `config` (a config.json) asks. RopeError: it cannot.

    context_tokens: that the model is made for, where it is not what the config says (`context_tokens_of`).
    """
    fields, spec = read_fields(config), rope_spec_of(config)
    require_full_attention(config, fields.context_tokens)
    if spec.method in LENGTH_DEPENDENT:
        raise RopeError(
            f"rope_type: {fields.kind} cannot be served by {engine}: its frequencies change with the length, "
            "but the cache holds keys turned by the earlier ones; extend with yarn to serve"
        )
    if engine in engines.REFUSED:
        raise RopeError(f"{engines.REFUSED[engine]}; {_elsewhere(str(config.get('model_type')))}")
    requires, served, gguf = engines.REQUIRES[engine], None, None
    if engine in engines.READS:
        _require_read(str(config.get("model_type")), engine, config, spec)
    match engine:
        case "vllm-0.29":
            requires = engines.OLD_VLLM.get(str(config.get("model_type")), requires)
            if not spec.truncate:
                requires = engines.VLLM_WITH_TRUNCATE  # earlier ones do not know the key
            served = _config_of_old_vllm(config, fields, spec)
        case "sglang" | "mlx" | "tgi":
            _require_attention_as_applied(engine, fields, spec)
            _require_ramp(engine, spec)
        case _ if engine in engines.OF_A_GGUF:
            gguf = _gguf_rope(config, fields, spec)
    return ServingSettings(engine, requires, context_tokens or fields.context_tokens, served, gguf)


def _require_read(model_type: str, engine: engines.Engine, config: Mapping[str, Any], spec: RopeSpec) -> None:
    """RopeError where an engine would rotate as if nothing were scaled."""
    if DUAL_CHUNK in config:
        raise RopeError(
            f"{DUAL_CHUNK}: {engine} attends in chunks by it and ignores any scaling; take it out"
        )
    if spec.method != "none" and model_type not in engines.READS[engine]:
        raise RopeError(
            f"model_type: {model_type}: {engine} reads no scaling of this class; {_elsewhere(model_type)}"
        )


def _elsewhere(model_type: str) -> str:
    """The remedy: what reads this class's scaling from a config."""
    readers = [name for name, read in engines.READS.items() if model_type in read]
    return f"serve with {' or '.join((*readers, 'transformers'))}"


def _config_of_old_vllm(
    config: Mapping[str, Any], fields: RopeFields, spec: RopeSpec
) -> dict[str, Any] | None:
    """With `attn_factor` in place of what vLLM up to 0.29 ignores; None where it would ignore nothing."""
    is_own = math.isclose(attention_factor(spec), yarn_scale(spec.factor), rel_tol=EXACT)
    if spec.method != "yarn" or is_own:
        return None
    served = copy.deepcopy(dict(config))
    for name in ("rope_scaling", "rope_parameters"):
        if served.get(name):
            for ignored in ("attention_factor", "mscale", "mscale_all_dim"):
                served[name].pop(ignored, None)
            served[name]["attn_factor"] = attention_factor(spec) / yarn_scale(spec.factor)
    return served


def _require_attention_as_applied(engine: engines.Engine, fields: RopeFields, spec: RopeSpec) -> None:
    """RopeError where an engine that reads no attention_factor would apply another one."""
    if spec.method != "yarn":
        return
    above, below = (optional_number(fields.scaling, key) for key in ("mscale", "mscale_all_dim"))
    if engine == "sglang" and not (above and below):
        above, below = None, None
    applied = yarn_scale(spec.factor, 1.0 if above is None else above) / yarn_scale(spec.factor, below or 0.0)
    wanted = attention_factor(spec)
    if not math.isclose(applied, wanted, rel_tol=EXACT):
        raise RopeError(
            f"attention_factor: {wanted:g} is ignored by {engine}, which would take {applied:.6g}; "
            "serve with vllm, or extend without it"
        )


def _require_ramp(engine: engines.Engine, spec: RopeSpec) -> None:
    """RopeError where an engine would scale other dimensions."""
    fault = None
    if engine == "tgi" and spec.method == "linear":
        fault = "linear"
    elif (
        engine == "tgi"
        and spec.method == "yarn"
        and (spec.beta_fast, spec.beta_slow) != (BETA_FAST, BETA_SLOW)
    ):
        fault = f"beta_fast {spec.beta_fast:g} and beta_slow {spec.beta_slow:g}"
    elif engine in ("mlx", "tgi") and spec.method == "yarn" and not spec.truncate:
        fault = "truncate false"
    if fault is not None:
        raise RopeError(f"{fault}: ignored by {engine}; serve with vllm or transformers")


def _gguf_rope(config: Mapping[str, Any], fields: RopeFields, spec: RopeSpec) -> GgufRope:
    architecture = _gguf_architecture(config, fields)
    factors = None
    scaling: Literal["none", "linear", "yarn"] = "none"
    attn_factor = 1.0
    match spec.method:
        case "linear":
            scaling = "linear"
        case "yarn" if (spec.beta_fast, spec.beta_slow, spec.truncate) == (BETA_FAST, BETA_SLOW, True):
            scaling = "yarn"
            attn_factor = attention_factor(spec) / yarn_scale(spec.factor)
        case "yarn" | "llama3":
            factors = _frequency_factors(architecture, spec)
            attn_factor = attention_factor(spec)
    if math.isclose(attn_factor, 1.0, rel_tol=EXACT):
        attn_factor = 1.0
    return GgufRope(
        architecture=architecture,
        dim=spec.dim,
        scaling=scaling,
        theta=spec.theta,
        factor=spec.factor,
        original_context_tokens=spec.original_context_tokens,
        attn_factor=attn_factor,
        frequency_factors=factors,
    )


def _gguf_architecture(config: Mapping[str, Any], fields: RopeFields) -> str:
    model_type = str(config.get("model_type"))
    elsewhere, written = _elsewhere(model_type), ", ".join(engines.GGUF_ARCHITECTURES)
    if fields.rotary_fraction != 1:
        raise RopeError(
            f"partial_rotary_factor: {fields.rotary_fraction:g}: a GGUF of {model_type} cannot carry scaling "
            f"of heads that are rotated in part; {elsewhere}"
        )
    if model_type in engines.WITHOUT_YARN_IN_GGUF:
        raise RopeError(f"model_type: {model_type}: llama.cpp drops the scaling of this class; {elsewhere}")
    if model_type not in engines.GGUF_ARCHITECTURES:
        raise RopeError(f"model_type: {model_type}: a GGUF is written of {written} only; {elsewhere}")
    return engines.GGUF_ARCHITECTURES[model_type]


def _frequency_factors(architecture: str, spec: RopeSpec) -> Array:
    if architecture not in engines.FREQUENCY_FACTORS_IN_GGUF:
        asked = "llama3" if spec.method == "llama3" else "truncate false"
        if spec.method == "yarn" and spec.truncate:
            asked = f"beta_fast {spec.beta_fast:g} and beta_slow {spec.beta_slow:g}"
        raise RopeError(
            f"{asked}: llama.cpp reads neither this nor frequency factors for {architecture}, and would turn "
            "its heads by other frequencies; serve with vllm or sglang, or extend with the default betas"
        )
    base = RopeSpec(
        method="none",
        dim=spec.dim,
        theta=spec.theta,
        original_context_tokens=spec.original_context_tokens,
    )
    return inverse_frequencies(base) / inverse_frequencies(spec)

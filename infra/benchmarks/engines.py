"""Which engine serves which class by which RoPE, from which version on: a table from the product's rules.

python infra/benchmarks/engines.py          writes infra/benchmarks/results/engines.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yarn_ops.errors import RopeError
from yarn_ops.export.engines import GGUF_ARCHITECTURES, READS, REFUSED, REQUIRES
from yarn_ops.export.serving import serving_settings

PAGE = Path(__file__).with_name("results") / "engines.md"
ROPE_OF_EACH_LAYER_TYPE = ("gemma3_text", "mellum")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
METHODS: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn, `attention_factor` its own": {**YARN, "attention_factor": 1.2},
    "yarn, `mscale` and `mscale_all_dim`": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, other `beta_fast`": {**YARN, "beta_fast": 16.0},
    "yarn, `truncate` false": {**YARN, "truncate": False},
    "by-parts (yarn, `attention_factor` 1)": {**YARN, "attention_factor": 1.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "ntk, abf (another base)": {"rope_type": "default"},
    "dynamic-ntk": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 8192},
}


def config_of(model_type: str, scaling: dict[str, Any]) -> dict[str, Any]:
    """Of a model of 8,192 tokens extended to 32,768, that attends everywhere and turns whole heads."""
    per_layer = model_type in ROPE_OF_EACH_LAYER_TYPE
    parameters: dict[str, Any] = {**scaling, "rope_theta": 1e4}
    return {
        "model_type": model_type,
        "sliding_window": None,
        "rotary_pct": 1.0,
        "rotary_emb_base": 10000,
        "layer_types": ["full_attention"] * 4,
        "max_position_embeddings": 32768,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": 4,
        "head_dim": 64,
        "rope_theta": 1e4,
        "rope_scaling": scaling,
        "rope_parameters": {"full_attention": parameters} if per_layer else parameters,
    }


def cell(engine: Any, model_type: str, scaling: dict[str, Any]) -> str:
    try:
        requires = serving_settings(config_of(model_type, scaling), engine).requires
    except RopeError:
        return "–"
    floor = requires.partition(";")[0].partition(" with ")[0]
    return floor.lstrip("abcdefghijklmnopqrstuvwxyz.-") or "yes"


def table() -> str:
    engines = list(REQUIRES)
    lines = [
        "# Which engine serves what",
        "",
        "Written by `python infra/benchmarks/engines.py` from the rules of `yarn-ops export`, which refuses",
        "what has a – here, with the reason in one line. A figure is the version from which on, and the one",
        "before which, an engine turns the heads as the reference does; *yes* is of one without a version.",
        "What was read: transformers 5.23, vLLM 0.10 to 0.33, SGLang 0.5.23, llama.cpp of llama-cpp-python",
        "0.3.36, Ollama 0.24 to 0.33 (up to 0.24 its own engine reads YaRN's factor as linear; from 0.30 on",
        "it runs llama.cpp's server), the source of LM Studio's `lms` (GGUF files, by its llama.cpp), mlx-lm",
        "0.32.2, text-generation-inference (tgi) 3.3.7, which is maintained and no more. What was really run",
        "is in [serve-check](serve-check.md): llama.cpp and transformers.",
        "",
        *(f"Refused: {reason}." for reason in REFUSED.values()),
        "",
        "## Methods, of a model of Llama's class",
        "",
        f"| method | {' | '.join(engines)} |",
        "|---" * (len(engines) + 1) + "|",
        *(
            f"| {method} | {' | '.join(cell(engine, 'llama', scaling) for engine in engines)} |"
            for method, scaling in METHODS.items()
        ),
        "",
        "## Classes, of a model extended by yarn",
        "",
        f"| model_type | {' | '.join(engines)} |",
        "|---" * (len(engines) + 1) + "|",
        *(
            f"| {model_type} | {' | '.join(cell(engine, model_type, YARN) for engine in engines)} |"
            for model_type in sorted(frozenset().union(GGUF_ARCHITECTURES, *READS.values()))
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(), "utf-8")

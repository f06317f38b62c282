"""Inference engines: the versions that were read, and whose RoPE scaling each of them reads.

Read from transformers 5.23, vLLM 0.10 to 0.33, SGLang 0.5.23, llama.cpp of llama-cpp-python 0.3.36, Ollama
0.24 to 0.33 (up to 0.24 its own engine reads YaRN's factor as linear; from 0.30 on it runs llama-server),
`lms` of LM Studio of 2026 (GGUF files by its llama.cpp), mlx-lm 0.32.2, text-generation-inference 3.3.7,
TensorRT-LLM 1.2.
"""

from __future__ import annotations

from typing import Literal

Engine = Literal[
    "transformers", "vllm", "vllm-0.29", "sglang", "llama.cpp", "ollama", "lm-studio", "mlx", "tgi",
    "tensorrt-llm",
]  # fmt: skip
"""vllm-0.29: vLLM up to 0.29; tgi: text-generation-inference"""

REQUIRES: dict[Engine, str] = {
    "transformers": "transformers>=5",
    "vllm": "vllm>=0.30",
    "vllm-0.29": "vllm>=0.10,<0.30",
    "sglang": "sglang>=0.5.23",
    "llama.cpp": "llama-cpp-python>=0.3.36",
    "ollama": "ollama>=0.30",
    "lm-studio": "lm-studio with its llama.cpp runtime; read from the source of lms, not run",
    "mlx": "mlx-lm>=0.32.2",
    "tgi": "text-generation-inference>=3.3.7",
}
"""versions that a command holds for, of the engines that have one"""
REFUSED: dict[Engine, str] = {
    "tensorrt-llm": "tensorrt-llm: 1.2 hands YaRN's table to fused kernels, and whether these multiply by "
    "its attention factor was not found in its source and not run",
}
"""engines without settings, and why"""
OF_A_GGUF: tuple[Engine, ...] = ("llama.cpp", "ollama", "lm-studio")
VLLM_WITH_TRUNCATE = "vllm>=0.13,<0.30"
_EVERYWHERE = (
    "cohere", "deepseek_v3", "glm4", "glm4_moe", "granite", "hunyuan_v1_dense", "hunyuan_v1_moe", "llama",
    "minicpm3", "mistral", "olmoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
)  # fmt: skip
OLD_VLLM: dict[str, str] = {
    **dict.fromkeys((*_EVERYWHERE, "arcee", "dots1", "ernie4_5_moe", "granitemoe"), REQUIRES["vllm-0.29"]),
    **dict.fromkeys((
        "apertus", "cwm", "gpt_oss", "lfm2", "minimax_m2", "olmo2", "qwen3_next", "seed_oss",
    ), "vllm>=0.11.2,<0.30"),
    **dict.fromkeys((
        "gemma", "gemma2", "gpt_neox", "minimax", "mixtral", "olmo", "persimmon", "phi", "stablelm",
        "starcoder2",
    ), "vllm>=0.12,<0.30"),
}  # fmt: skip
"""versions up to 0.29 that read a class's scaling; those before ignore it"""
READS: dict[Engine, frozenset[str]] = {
    "vllm-0.29": frozenset(OLD_VLLM),
    "vllm": frozenset((
        *_EVERYWHERE, "apertus", "arcee", "axk1", "cwm", "ernie4_5", "ernie4_5_moe", "flex_olmo", "gemma",
        "gemma2", "gemma3_text", "glm", "glm4_moe_lite", "gpt_neox", "gpt_oss", "granitemoe",
        "granitemoeshared", "hy_v3", "hyperclovax", "jais2", "lfm2", "mellum", "minimax_m2", "mixtral",
        "olmo", "olmo2", "olmo3", "olmo_hybrid", "phi", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
        "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma",
    )),
    "sglang": frozenset((
        *_EVERYWHERE, "apertus", "arcee", "gpt_oss", "hy_v3", "lfm2", "minimax_m2", "olmo2", "qwen3_next",
    )),
    "mlx": frozenset((
        "apertus", "granite", "llama", "mistral", "olmo2", "olmoe", "qwen2", "qwen3", "qwen3_next",
        "seed_oss",
    )),
    "tgi": frozenset((
        "granite", "llama", "mistral", "mixtral", "qwen2",
    )),
}  # fmt: skip
"""model_types whose scaling an engine reads, one RoPE a layer type included where they have that"""
GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> llama.cpp's name; these a GGUF can be written of"""
WITHOUT_YARN_IN_GGUF = ("gemma", "gemma2")
FREQUENCY_FACTORS_IN_GGUF = ("llama",)

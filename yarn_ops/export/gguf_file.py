"""GGUF, llama.cpp's file format: one file with weights, tokenizer and every setting, the RoPE among them.

Keys and tensor names are those of llama.cpp's own converter. Matrices are stored in the asked type, norms
and biases in float32. Axes: H heads, D dimensions of a head, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
    quant_shape_to_byte_shape,
)
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open

from yarn_ops.atomic import atomic_write
from yarn_ops.errors import ExportError
from yarn_ops.export.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from yarn_ops.export.serving import GgufRope
from yarn_ops.models.checkpoints import OUTPUT_HEADS, built_config, weight_files
from yarn_ops.models.files import CONFIG, read_config
from yarn_ops.progress import OnProgress

WeightType = Literal["f16", "bf16", "q8_0"]

TYPES: dict[WeightType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
FREQUENCY_FACTORS = "rope_freqs.weight"
DERIVED = ".rotary_emb.inv_freq"  # kept by old checkpoints, and computed from the config by every loader
INTERLEAVED = "llama"  # llama.cpp turns neighbours (2i, 2i+1) there; transformers turns (i, i + D/2)
LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the checkpoint, and its name and type in the GGUF."""

    file: Path
    source: str
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    heads: int | None
    """of a query or key projection whose rows are reordered for llama.cpp; None: rows stay"""

    @property
    def size_bytes(self) -> int:
        return math.prod(quant_shape_to_byte_shape(self.shape, self.type))


def write_gguf(model: Path, rope: GgufRope, out: Path, *, weights: WeightType, report: OnProgress) -> None:
    """Write a model directory (safetensors, tokenizer.json) as `out`, whole or not at all.

    `rope` is what `export.serving` found for its config. Memory: one tensor in float32, twice. A matrix whose
    rows are no multiple of 32 is float16 in a q8_0 file. Raises ExportError: no tokenizer, activation,
    tensor or value that llama.cpp could not read.
    """
    stated = read_config(model)
    config = built_config(stated, str(model / CONFIG))
    if config.hidden_act != "silu":
        raise ExportError(
            f"{model}: hidden_act is {config.hidden_act}, and llama.cpp computes silu; use transformers"
        )
    tokenizer = gguf_tokenizer(model, stated)
    tensors = list(_plan(model, config, rope.architecture, TYPES[weights][0]))
    try:
        with (
            atomic_write(out, durable=True) as partial,
            closing(GGUFWriter(partial, rope.architecture)) as writer,
        ):
            writer.add_name(model.resolve().name)
            writer.add_file_type(TYPES[weights][1])
            writer.add_quantization_version(GGML_QUANT_VERSION)
            _add_shape(writer, config)
            _add_rope(writer, rope)
            _add_tokenizer(writer, tokenizer)
            _write(writer, rope, tensors, report)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error}); make room there and run again") from error


def _plan(model: Path, config: Any, architecture: str, matrices: GGMLQuantizationType) -> Iterator[_Tensor]:
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for file in (model / name for name in weight_files(model)):
        with safe_open(file, framework="pt") as opened:
            for source in opened.keys():  # noqa: SIM118
                if source.endswith(DERIVED) or (config.tie_word_embeddings and source in OUTPUT_HEADS):
                    continue
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ExportError(f"{file}: llama.cpp's {architecture} has no tensor {source}; use vllm")
                shape = tuple(opened.get_slice(source).get_shape())
                turned = heads.get(source.split(".")[-2]) if architecture == INTERLEAVED else None
                yield _Tensor(file, source, name, shape, _type(shape, matrices), turned)


def _type(shape: tuple[int, ...], matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if matrices is GGMLQuantizationType.Q8_0 and shape[-1] % GGML_QUANT_SIZES[matrices][0]:
        return GGMLQuantizationType.F16
    return matrices


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_rope(writer: GGUFWriter, rope: GgufRope) -> None:
    writer.add_key_length(rope.dim)
    writer.add_value_length(rope.dim)
    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_scaling_type(RopeScalingType(rope.scaling))
    if rope.scaling != "none":
        writer.add_rope_scaling_factor(rope.factor)
    if rope.scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context_tokens)
        writer.add_rope_scaling_finetuned(True)
    writer.add_rope_scaling_attn_factors(rope.attn_factor)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(tokenizer.adds_eos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _write(writer: GGUFWriter, rope: GgufRope, tensors: list[_Tensor], report: OnProgress) -> None:
    factors = rope.frequency_factors
    if factors is not None:
        writer.add_tensor_info(FREQUENCY_FACTORS, factors.shape, np.dtype(np.float32), 4 * factors.size)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.astype(np.float32))
    done, total = 0, sum(tensor.size_bytes for tensor in tensors)
    for tensor in tensors:
        report(done, total, tensor.name)
        writer.write_tensor_data(_values(tensor))
        done += tensor.size_bytes
    report(total, total, "")


def _values(tensor: _Tensor) -> NDArray[Any]:
    """A tensor's values as they lie in the GGUF."""
    with safe_open(tensor.file, framework="pt") as opened:
        values: NDArray[np.float32] = opened.get_tensor(tensor.source).to(torch.float32).numpy()
    if tensor.type is GGMLQuantizationType.F16 and np.abs(values).max() > LARGEST_FLOAT16:
        raise ExportError(f"{tensor.file}: {tensor.source} does not fit float16; write --type bf16")
    if tensor.heads is not None:
        values = _interleaved(values, tensor.heads)
    return quantize(values, tensor.type)


def _interleaved(values_HDE: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows i and i + D/2 of each head, which are turned together, become neighbours 2i and 2i + 1."""
    halves = values_HDE.reshape(heads, 2, -1, *values_HDE.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values_HDE.shape)

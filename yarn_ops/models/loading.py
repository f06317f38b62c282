"""Models built from a directory: with their weights, or laid out without data; their RoPE is proven.

The one place that loads a model. A config alone says nothing about a model that is already built, and a cast
of the model rounds its frequencies, so the live buffers are compared with the reference (`rope.proof`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from yarn_ops.errors import BaseModelError, YarnOpsError
from yarn_ops.models.checkpoints import (
    INDEX,
    WEIGHTS,
    built_config,
    quiet_transformers,
    tensor_shapes,
    weight_files,
    weight_map,
)
from yarn_ops.models.files import CONFIG, GENERATION_CONFIG, read_config, write_object
from yarn_ops.processes import scratch
from yarn_ops.rope import dynamic
from yarn_ops.rope.methods import RopeSpec
from yarn_ops.rope.proof import prove


def load_proven(
    weights: Path,
    config: Mapping[str, Any] | None,
    spec: RopeSpec | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """A transformers causal model in evaluation mode, its rotary embedding proven against `spec` if given.

    `weights` holds the safetensors; `config` replaces its config.json unless None. Local files only, no
    pickles, no code. Parameters are `dtype`, frequencies stay float32. Every tensor must find its place:
    a missing or left-over one raises BaseModelError. Raises ProofError where the RoPE is not `spec`'s.
    """
    weight_files(weights)
    config = copy.deepcopy(dict(read_config(weights) if config is None else config))
    with quiet_transformers():
        model = _load(weights, config, dtype, device)
    model.to(device)  # a device alone: a dtype here would round the frequencies
    model.eval()
    if spec is not None:
        prove(model, spec)
    return model


def require_loadable(path: Path) -> None:
    """BaseModelError unless transformers builds a directory's model, and every tensor has its place in it.

    Reads config and headers alone.
    """
    config = read_config(path)
    held = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(path).items()}
    with _blaming(f"{path}: no model can be built from it"), quiet_transformers():
        built, attention = _build(config, str(path / CONFIG))
        _, report = _class_of(built).from_pretrained(
            None, config=built, state_dict=held, dtype=torch.float32, device_map={"": "meta"},
            attn_implementation=attention, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    _require_places(path, report)


def lay_out_proven(config: Mapping[str, Any], spec: RopeSpec, *, device: torch.device | str) -> Any:
    """The model that `load_proven` gives, in float32, but no parameter has data yet (meta device).

    Buffers are on `device` with their values. Raises ProofError where the RoPE is not `spec`'s.
    """
    model = _without_data(config, dtype=torch.float32)
    for module in model.modules():
        if buffers := dict(module.named_buffers(recurse=False)):
            for name, buffer in buffers.items():
                setattr(module, name, torch.empty_like(buffer, device=device))
            model._init_weights(module)
    if dynamic.is_dynamic(config):
        dynamic.install(model, config)
        model.base_model.rotary_emb.to(device)
    model.eval()
    prove(model, spec)
    return model


def lay_out(path: Path) -> Any:
    """The transformers model that a directory's config asks for, without data (on the meta device). Its RoPE
    is not proven."""
    config = read_config(path)
    model = _without_data(config, str(path / CONFIG))
    if dynamic.is_dynamic(config):
        dynamic.install(model, config)
    return model


def _without_data(config: Mapping[str, Any], where: str = CONFIG, dtype: torch.dtype | None = None) -> Any:
    """The transformers model of a config on the meta device, dynamic YaRN not installed."""
    fault = f"{where}: no model can be built from it"
    with _blaming(fault), quiet_transformers(), torch.device("meta"):
        built, attention = _build(config, where)
        return AutoModelForCausalLM.from_config(built, dtype=dtype, attn_implementation=attention)


@contextmanager
def weights_alone(path: Path) -> Iterator[Path]:
    """A directory of links to a checkpoint's weights, for transformers to read: nothing else is there."""
    names = weight_files(path)
    with scratch() as folder:
        for weights in names:
            (folder / weights).symlink_to(os.path.realpath(path / weights))
        (folder / GENERATION_CONFIG).write_text("{}")
        if names != [WEIGHTS]:
            # transformers needs its metadata, which published ones may lack
            write_object(folder, INDEX, {"metadata": {}, "weight_map": weight_map(path)})
        yield folder


@contextmanager
def _blaming(fault: str) -> Iterator[None]:
    """Whatever transformers raises over a stranger's config and weights, as a BaseModelError."""
    try:
        yield
    except (YarnOpsError, torch.OutOfMemoryError):
        raise
    except KeyError as error:
        raise BaseModelError(f"{fault}: nothing is known as {error}") from None
    except (TypeError, AttributeError, ZeroDivisionError, IndexError):  # says nothing of the file
        raise BaseModelError(
            f"{fault}: a value in its config.json is missing, null, zero or of another kind than "
            "transformers expects; compare it with the published model's"
        ) from None
    except Exception as error:
        raise BaseModelError(f"{fault}: {error}") from None


def _by_number(device: torch.device | str) -> torch.device:
    """A device with its number: the threads that load do not know this thread's current GPU."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _build(config: Mapping[str, Any], where: str = CONFIG) -> tuple[Any, str]:
    """The transformers config object, and the attention implementation that its model runs with."""
    if dynamic.is_dynamic(config):
        return built_config(dynamic.unscaled(config), where), dynamic.register_attention()
    built = built_config(config, where)
    # Implementations other than eager drop a soft cap without a warning.
    eager = getattr(built, "attn_logit_softcapping", None) or not _class_of(built)._supports_sdpa
    return built, "eager" if eager else "sdpa"


def _class_of(built: Any) -> Any:
    """The causal model's class of a transformers config."""
    if type(built) not in AutoModelForCausalLM._model_mapping:
        raise BaseModelError(f"{CONFIG}: model_type {built.model_type!r} has no causal language model")
    return AutoModelForCausalLM._model_mapping[type(built)]


def _load(weights: Path, config: dict[str, Any], dtype: torch.dtype, device: torch.device | str) -> Any:
    with _blaming(f"{weights}: cannot be loaded"), weights_alone(weights) as alone:
        built, attention = _build(config)
        model, report = AutoModelForCausalLM.from_pretrained(
            alone,
            config=built,
            dtype=dtype,
            # A tensor at a time: host memory never holds a model that goes to a GPU.
            device_map={"": _by_number(device)},
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    _require_places(weights, report)
    if dynamic.is_dynamic(config):
        dynamic.install(model, config)
    return model


def _require_places(weights: Path, report: Mapping[str, Any]) -> None:
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if tensors := sorted(key if isinstance(key, str) else key[0] for key in report[fault]):
            raise BaseModelError(
                f"{weights}: {fault.replace('_keys', '')} tensor {tensors[0]} ({len(tensors)} in all); "
                "weights and config are not of one model, download both again"
            )

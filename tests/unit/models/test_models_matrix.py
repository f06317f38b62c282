"""Every causal class of transformers that rotates goes the whole way, or is refused when it is fetched."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bases import CONTEXT, ENGINES, REFUSED, TARGETS, go, lay_down, lay_shards, rotating, small_config
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from yarn_ops.errors import UnprovenRope
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Rope
from yarn_ops.records import Local
from yarn_ops.rope.architectures import ARCHITECTURES, architecture_of
from yarn_ops.rope.architectures import REFUSED as ARCHITECTURES_REFUSED

FEW = ("gemma3_text", "gpt_oss", "mixtral", "qwen3_5_text")
OWN_NAMES = ("axk1", "deepseek_v3", "glm4_moe_lite", "youtu", "gpt_neox", "persimmon", "bitnet", "jetmoe")
"""may have no layers of the default names; the rehearsal says which they have"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "shards"
    lay_shards(folder)
    return folder


def check(model_type: str, asked: str, tmp_path: Path, shards: Path) -> None:
    found = go(model_type, TARGETS[asked], tmp_path, shards)
    if asked == "default" and found.stage == "rehearsal":
        assert re.match("train.targets: no linear layer is named '[qo]_proj'; choose from", found.why)
    else:
        assert found.stage == "merged", found
        assert found.engines.startswith("transformers") and tuple(found.exports) == ENGINES
        for told in found.exports.values():
            if told.startswith(REFUSED):  # a remedy names engines that do serve it
                named = re.search("serve with (.+)$", told)
                assert named and set(named[1].split(" or ")) <= set(found.engines.split(", ")), told


@pytest.mark.parametrize("model_type", FEW)
def test_a_few_go_the_whole_way(model_type: str, tmp_path: Path, shards: Path) -> None:
    check(model_type, "all-linear", tmp_path, shards)


@pytest.mark.slow
@pytest.mark.parametrize("asked", TARGETS)
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_known_class_goes_the_whole_way(
    model_type: str, asked: str, tmp_path: Path, shards: Path
) -> None:
    check(model_type, asked, tmp_path, shards)


def test_every_other_class_is_refused_with_a_reason() -> None:
    others = [name for name in rotating() if name not in ARCHITECTURES]
    assert len(rotating()) > 100 and len(ARCHITECTURES) >= 60
    for name in others:
        with pytest.raises(
            UnprovenRope, match=f"model_type: {name} cannot be extended: .+; choose another base"
        ):
            architecture_of({"model_type": name})


INDEXED = {
    "dots3_note_text": {},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "model_type", [pytest.param("dots3_note_text", marks=pytest.mark.slow), "qwen4_exp_text"]
)
def test_an_indexer_gets_no_gradient_of_the_loss_of_a_text(model_type: str) -> None:
    model = AutoModelForCausalLM.from_config(small_config(model_type, **INDEXED[model_type]))
    model.train()(input_ids=torch.arange(2, 2 + 2 * CONTEXT)[None]).logits.float().logsumexp(
        -1
    ).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    indexers = {name for name, _ in model.named_parameters() if ".indexer." in name}
    assert indexers and with_gradient and not indexers & with_gradient
    assert "indexer that learns by a loss of its own" in ARCHITECTURES_REFUSED[model_type]


def test_what_else_is_said_of_refused_classes_is_so() -> None:
    stated = CONFIG_MAPPING["bailing_hybrid"]().to_dict()
    assert "model_max_length" in stated and "max_position_embeddings" not in stated
    assert "emu3" in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert "emu3_text_model" not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert CONFIG_MAPPING["emu3"]().to_dict().keys() >= {"text_config", "vq_config"}
    moshi = CONFIG_MAPPING["moshi"]().to_dict()
    assert moshi.keys() >= {"audio_encoder_config", "depth_decoder_config"} and moshi["num_codebooks"] > 1
    for kind in ("linear", "dynamic", "yarn"):
        with pytest.raises(Exception, match="longrope"):
            CONFIG_MAPPING["phi4_multimodal"](rope_parameters={"rope_type": kind, "factor": 4.0})
    for model_type in ("bailing_hybrid", "emu3", "moshi", "phi4_multimodal"):
        assert model_type in ARCHITECTURES_REFUSED


def frequencies(theta: float, dim: int, factor: float, rounded: bool) -> tuple[np.ndarray, float]:
    """YaRN in float64, written anew: ramp between 32 and 1 turns, rounded outwards or not."""
    pairs = np.arange(0, dim, 2) / dim
    plain = theta**-pairs
    at = [dim * math.log(CONTEXT / (2 * math.pi * turns)) / (2 * math.log(theta)) for turns in (32, 1)]
    at = [math.floor(at[0]), math.ceil(at[1])] if rounded else at
    low, high = max(at[0], 0), min(at[1], dim - 1)
    share = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain * (1 - share) + plain / factor * share, 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3", "smollm3", "gpt_oss", "cwm"])
def test_each_layer_rotates_by_the_frequencies_of_its_type(model_type: str, tmp_path: Path) -> None:
    """What the layers of the reloaded model are given, against cos and sin in float64."""
    asked = lay_down(model_type, tmp_path / "base")
    base = inspect_checkpoint(tmp_path / "base", source="tiny", original_context_tokens=asked)
    patch(Rope(method="yarn", factor=4.0), Local(base, tmp_path / "base"), tmp_path / "patched", factor=4.0)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "base").config
    model = AutoModelForCausalLM.from_config(type(config).from_pretrained(tmp_path / "patched"))
    told: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, __, named: told.append(named["position_embeddings"]), with_kwargs=True
        )
    positions = torch.arange(4 * CONTEXT)
    with torch.inference_mode():
        model(input_ids=torch.ones(1, len(positions), dtype=torch.long))
    by_type = architecture_of({"model_type": model_type}).by_layer_type
    rope = config.rope_parameters
    rounded = rope.get("truncate", True)
    for (cos, sin), kind in zip(told, config.layer_types, strict=True):
        dim = 2 * model.model.rotary_emb.get_buffer(f"{kind}_inv_freq" if by_type else "inv_freq").numel()
        theta = rope[kind]["rope_theta"] if by_type else rope["rope_theta"]
        reference, scale = theta ** -(np.arange(0, dim, 2) / dim), 1.0
        if kind == "full_attention" or not by_type:
            reference, scale = frequencies(theta, dim, 4.0 * (asked or CONTEXT) / CONTEXT, rounded)
        angles = np.outer(positions.numpy(), reference)
        for given, wanted in ((cos, np.cos(angles)), (sin, np.sin(angles))):
            np.testing.assert_allclose(given[0, :, : dim // 2].numpy(), wanted * scale, atol=1e-4)
    live = dict(model.named_buffers())
    prefix = "full_attention_" if by_type else ""
    reference, _ = frequencies(
        rope["full_attention"]["rope_theta"] if by_type else rope["rope_theta"],
        2 * len(live[f"model.rotary_emb.{prefix}inv_freq"]), 4.0 * (asked or CONTEXT) / CONTEXT, rounded,
    )  # fmt: skip
    np.testing.assert_allclose(live[f"model.rotary_emb.{prefix}inv_freq"].numpy(), reference, rtol=1e-6)
    assert model.config.sliding_window == config.sliding_window

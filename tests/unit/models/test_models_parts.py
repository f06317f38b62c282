"""A model filled part by part is the model loaded whole: its weights, its files, its answers."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from yarn_ops.errors import BaseModelError
from yarn_ops.models.loading import load_proven
from yarn_ops.models.parts import PartedModel, PartWeights
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.train.layerwise import Layerwise, repeat_key_heads

LENGTHS = (1, 40, 300)
POSITIONS = 16


def windows_of(lengths=LENGTHS):
    """Tokens and positions: each length without gaps, and the last one spread over three times as much."""
    spread = [(length, torch.arange(length)) for length in lengths]
    spread.append((lengths[-1], 3 * torch.arange(lengths[-1])))
    return [(torch.randint(0, 128, (1, length)), positions[None]) for length, positions in spread]


def saved(config, path, base=None):
    """A checkpoint with random weights of a config, or of the base it was made from; what it loads as."""
    torch.manual_seed(0)
    built = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(base or config))
    AutoModelForCausalLM.from_config(built, dtype=torch.bfloat16).save_pretrained(path)
    return load_proven(path, config, rope_spec_of(config), dtype=torch.float32, device="cpu")


def patched(base, method="yarn"):
    config, _ = patch_config(base, Rope(method=method, factor=4.0), factor=4.0, original_context_tokens=None)
    if config["model_type"] == "ministral":
        config["sliding_window"] = 1024  # without one it builds and does not run
    return config


def parted_of(config, path):
    parted = PartedModel(config, rope_spec_of(config), device="cpu")
    return parted, PartWeights(parted, path)


def read_by_parts(parted, weights, windows):
    reading = Layerwise(parted, windows)
    parted.fill(parted.front, weights)
    reading.embed("only")
    for number, part in enumerate(parted.middle):
        parted.fill(part, weights)
        reading.advance("only", number)
        parted.release(part)
    parted.fill(parted.back, weights)
    return reading.log_probabilities("only", POSITIONS)


@torch.inference_mode()
def read_whole(model, window):
    ids, positions = window
    mask = torch.ones_like(ids)
    output = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    at = torch.linspace(0, ids.shape[1] - 1, min(POSITIONS, ids.shape[1])).long()
    if not positions.diff().gt(1).any():
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, output.logits)
    return output.logits[0].log_softmax(-1)[at]


def test_weights_files_and_answers_are_those_of_the_whole(every_config, tmp_path):
    config = patched(every_config)
    whole = saved(config, tmp_path / "base")
    parted, weights = parted_of(config, tmp_path / "base")
    kept = {}
    for part in parted.parts:
        parted.fill(part, weights)
        kept |= parted.published(parted.values(part))
        for name, value in parted.values(part).items():
            assert torch.equal(value, whole.get_parameter_or_buffer(name)), name
        parted.release(part)
    assert not any(parameter.device.type == "cpu" for parameter in parted.model.parameters())

    whole.save_pretrained(tmp_path / "again")
    expected = load_file(tmp_path / "again/model.safetensors")
    assert kept.keys() == expected.keys()
    assert all(value.shape == expected[name].shape for name, value in kept.items())

    windows = windows_of()
    found = read_by_parts(parted, weights, windows)
    repeat_key_heads(parted.model)  # as on a GPU
    repeated = read_by_parts(parted, weights, windows)
    for window, *both in zip(windows, found, repeated, strict=True):
        for log_probabilities in both:
            torch.testing.assert_close(log_probabilities, read_whole(whole, window), rtol=0, atol=1e-6)


def test_a_part_in_the_memory_of_the_one_before_has_its_own_numbers(every_config, tmp_path):
    config = patched(every_config)
    whole = saved(config, tmp_path / "base")
    parted, weights = parted_of(config, tmp_path / "base")
    for part, following in zip(parted.parts, [*parted.parts[1:], None], strict=True):
        parted.fill(part, weights)
        for name, value in parted.values(part).items():
            assert torch.equal(value, whole.get_parameter_or_buffer(name)), name
        parted.hand_over(part, following)
    assert not any(parameter.device.type == "cpu" for parameter in parted.model.parameters())


def test_a_layer_leaves_its_memory_to_the_next_alone(config_of, tmp_path):
    config = patched(config_of("llama"))
    saved(config, tmp_path)
    parted, weights = parted_of(config, tmp_path)
    front, first, second, *_ = parted.parts
    addresses = []
    for part, following in ((front, first), (first, second), (second, None)):
        parted.fill(part, weights)
        addresses.append([value.data_ptr() for value in parted.values(part).values()])
        parted.hand_over(part, following)
        assert all(value.device.type == "meta" for value in parted.values(part).values())
    assert addresses[2] == addresses[1]


@pytest.mark.parametrize("method", ["dynamic-ntk", "dynamic-yarn"])
def test_a_rope_that_grows_reads_as_in_the_whole(method, config_of, tmp_path):
    config = patched(config_of("qwen3"), method)
    windows = windows_of()
    whole = saved(config, tmp_path / "base", config_of("qwen3"))
    found = read_by_parts(*parted_of(config, tmp_path / "base"), windows)
    for window, log_probabilities in zip(windows, found, strict=True):
        torch.testing.assert_close(log_probabilities, read_whole(whole, window), rtol=0, atol=1e-6)


def test_a_tied_head_is_kept_once(config_of, tmp_path):
    config = patched({**config_of("llama"), "tie_word_embeddings": True})
    whole = saved(config, tmp_path / "base")
    parted, weights = parted_of(config, tmp_path / "base")
    assert "lm_head.weight" not in {name for part in parted.parts for name in part.names}
    (window, _) = windows_of((40,))
    (found,) = read_by_parts(parted, weights, [window])
    torch.testing.assert_close(found, read_whole(whole, window), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: None, r"missing tensor model\.layers\.1\.mlp\.up_proj\.weight \(1 in all\)"),
        (lambda tensor: tensor[:5].contiguous(), r"mismatched tensor model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(config_of, tmp_path, change, message):
    config = patched(config_of("llama"))
    saved(config, tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file({name: value for name, value in tensors.items() if value is not None}, file)
    parted, weights = parted_of(config, tmp_path)
    parted.fill(parted.parts[1], weights)
    with pytest.raises(BaseModelError, match=message):
        parted.fill(parted.parts[2], weights)


def test_a_truncated_file_is_one_line(config_of, tmp_path):
    config = patched(config_of("llama"))
    saved(config, tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BaseModelError, match=r"truncated or corrupt .*; fetch it again") as caught:
        parted_of(config, tmp_path)
    assert "\n" not in str(caught.value)

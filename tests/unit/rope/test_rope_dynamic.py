"""Dynamic YaRN: a cache that grows across the original context is a recomputation, in any chunks."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from yarn_ops.errors import ProofError, RopeError
from yarn_ops.export.serving import serving_settings
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_config
from yarn_ops.models.loading import load_proven
from yarn_ops.models.patch import prove_directory
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.rope.methods import RopeSpec, attention_factor, inverse_frequencies
from yarn_ops.rope.proof import prove
from yarn_ops.shipped import MODELS

DYNAMIC, STATIC = Rope(method="dynamic-yarn", factor=4), Rope(method="yarn", factor=4)
ORIGINAL = 24
"""of the tiny models"""


def patched(config, rope=DYNAMIC, factor=4.0):
    return patch_config(config, rope, factor=factor, original_context_tokens=None)[0]


def tiny(config_of, model_type):
    return {**config_of(model_type), "max_position_embeddings": ORIGINAL, "rope_theta": 100.0}


@pytest.fixture(params=["llama", "qwen2", "qwen3", "mistral"])
def saved(request, config_of, tmp_path):
    """(config, directory) of a tiny random model with large weights: attention that is far from uniform."""
    config = tiny(config_of, request.param)
    built = CONFIG_MAPPING[request.param].from_dict({**config, "initializer_range": 0.3})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(built).save_pretrained(tmp_path / "tiny")
    return config, tmp_path / "tiny"


@pytest.fixture
def loaded(saved):
    """The tiny model as dynamic YaRN in float64, where equal means equal to 1e-10."""
    config, directory = saved
    config = patched(config)
    model = load_proven(directory, config, rope_spec_of(config), dtype=torch.float32, device="cpu")
    return model.double()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # hundreds of small products: handing them to threads costs more
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base512():
    directory = MODELS / "base512"
    config = patched(read_config(directory))
    return load_proven(directory, config, rope_spec_of(config), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def text():
    tokenizer = load_tokenizer(MODELS / "base512")
    return torch.tensor([tokenizer.encode(Path("yarn_ops/recipe/sections.py").read_text())[:700]])


def tokens(count, rows=1):
    return torch.randint(0, 128, (rows, count), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def read_in_chunks(model, ids, first, chunk):
    """Logits of all positions, read through one cache."""
    cache = DynamicCache(config=model.config)
    edges = [0, *range(first, ids.shape[1], chunk), ids.shape[1]]
    parts = [model(ids[:, start:end], past_key_values=cache).logits for start, end in pairwise(edges)]
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def read_at_once(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs).logits


def test_the_reference_is_yarn_at_the_scale_of_every_length():
    base = {"dim": 64, "theta": 1e4, "original_context_tokens": 512}
    dynamic = RopeSpec(method="dynamic-yarn", factor=4.0, **base)
    for length, scale in ((None, 1.0), (1, 1.0), (512, 1.0), (513, 513 / 512), (1024, 2.0), (4096, 8.0)):
        static = RopeSpec(method="yarn", factor=scale, **base)
        assert_allclose(inverse_frequencies(dynamic, length), inverse_frequencies(static), rtol=1e-15)
        assert attention_factor(dynamic, length) == attention_factor(static)


def test_a_ramp_that_is_not_rounded_stays_so(config_of):
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 24, "truncate": False}
    config = {**tiny(config_of, "llama"), "max_position_embeddings": 48, "rope_scaling": scaling}
    once, spec = patch_config(config, DYNAMIC, factor=4.0, original_context_tokens=24)
    assert not spec.truncate and rope_spec_of(once) == spec
    again, static = patch_config(once, STATIC, factor=8.0, original_context_tokens=24)
    assert not static.truncate and rope_spec_of(again) == static


def test_an_attention_factor_that_does_not_grow_is_refused():
    with pytest.raises(RopeError, match=r"^attention_factor: dynamic-yarn's grows with the length"):
        patched(
            {**read_config(MODELS / "base512")},
            DYNAMIC.model_copy(update={"attention_factor": 1.1}),
        )


@pytest.mark.parametrize("chunk", [1, 5, 17, 60])
def test_any_chunks_through_a_cache_are_one_forward(loaded, chunk):
    ids = tokens(80, rows=2)
    chunks = read_in_chunks(loaded, ids, ORIGINAL - 4, chunk)
    assert_close(chunks, read_at_once(loaded, ids), rtol=0, atol=1e-10)


def test_the_last_token_reads_as_a_static_model_of_its_length(saved):
    """One layer: no token below it that another scale has touched."""
    config, directory = saved
    single = {**config, "num_hidden_layers": 1, "layer_types": None}
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=CONFIG_MAPPING[config["model_type"]].from_dict(single)
    )
    model.save_pretrained(directory.with_name("single"))
    logits = {}
    for name, asked in (("dynamic", DYNAMIC), ("static", STATIC.model_copy(update={"factor": 3.0}))):
        wanted = patched(single, asked, asked.factor)
        model = load_proven(
            directory.with_name("single"), wanted, rope_spec_of(wanted), dtype=torch.float32, device="cpu"
        )
        logits[name] = read_at_once(model, tokens(3 * ORIGINAL))[:, -1]
    assert_close(logits["dynamic"], logits["static"], rtol=1e-5, atol=1e-5)


def test_within_the_original_context_it_is_the_base(saved):
    config, directory = saved
    base = AutoModelForCausalLM.from_pretrained(directory)
    wanted = patched(config)
    model = load_proven(directory, wanted, rope_spec_of(wanted), dtype=torch.float32, device="cpu")
    ids = tokens(ORIGINAL)
    assert_close(read_at_once(model, ids), read_at_once(base, ids), rtol=1e-5, atol=1e-5)


def test_padding_in_front_changes_nothing(loaded):
    ids = tokens(60)
    padded = torch.cat((torch.zeros(1, 9, dtype=torch.long), ids), dim=1)
    mask = torch.ones_like(padded).index_fill(1, torch.arange(9), 0)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = read_at_once(loaded, padded, attention_mask=mask, position_ids=places)[:, 9:]
    assert_close(logits, read_at_once(loaded, ids), rtol=0, atol=1e-10)


def test_packed_documents_are_read_as_if_alone(loaded):
    first, second = tokens(40), tokens(30, rows=2)[1:]
    places = torch.cat((torch.arange(40), torch.arange(30)))[None]
    packed = read_at_once(loaded, torch.cat((first, second), dim=1), position_ids=places)
    alone = torch.cat((read_at_once(loaded, first), read_at_once(loaded, second)), dim=1)
    assert_close(packed, alone, rtol=0, atol=1e-10)


def test_gradients_reach_every_weight(loaded):
    loaded(tokens(60), use_cache=False).logits.square().mean().backward()
    assert all(
        parameter.grad.abs().max() > 0
        for name, parameter in loaded.named_parameters()
        if "k_proj.bias" not in name
    )


def test_greedy_generation_across_the_original_context_equals_recomputation(base512, text):
    """The cache decodes 300 tokens one at a time; one forward without it must choose the same."""
    generated = base512.generate(
        text[:, :400], attention_mask=torch.ones(1, 400), max_new_tokens=300, min_new_tokens=300,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    cached = torch.cat(generated.logits)
    recomputed = read_at_once(base512, generated.sequences)[0, 399:-1]
    assert torch.equal(cached.argmax(-1), recomputed.argmax(-1))
    assert_close(cached, recomputed, rtol=0, atol=1e-5 * float(recomputed.abs().max()))
    for length in (512, 513, 600, 699):  # and so must one over just what was there
        again = read_at_once(base512, generated.sequences[:, :length])[0, -1]
        assert_close(cached[length - 400], again, rtol=0, atol=1e-5 * float(recomputed.abs().max()))


@pytest.mark.parametrize("chunk", [7, 64, 300])
def test_real_text_across_the_original_context_in_chunks(base512, text, chunk):
    whole = read_at_once(base512, text)
    assert_close(
        read_in_chunks(base512, text, 400, chunk), whole, rtol=0, atol=1e-5 * float(whole.abs().max())
    )


def test_real_text_beyond_the_original_context_stays_readable(base512, text):
    """Where the base itself falls apart: loss of the last 100 of 700 tokens."""
    directory = MODELS / "base512"
    base = load_proven(
        directory, None, rope_spec_of(read_config(directory)), dtype=torch.float32, device="cpu"
    )

    def loss(model):
        return torch.nn.functional.cross_entropy(read_at_once(model, text)[0, -101:-1], text[0, -100:]).item()

    assert loss(base512) < loss(base) - 0.5


def test_the_patch_stage_proves_it_and_a_cast_is_caught(saved, tmp_path):
    config, directory = saved
    wanted = patched(config)
    model = load_proven(directory, wanted, rope_spec_of(wanted), dtype=torch.bfloat16, device="cpu")
    assert prove(model, rope_spec_of(wanted)) < 1e-6
    with pytest.raises(ProofError, match="not float32"):
        prove(model.to(torch.bfloat16), rope_spec_of(wanted))
    with pytest.raises(ProofError, match="yarn"):
        prove(model, rope_spec_of(patched(config, STATIC)))


def test_a_saved_model_says_what_it_is_and_comes_back(saved, tmp_path):
    config, directory = saved
    wanted = patched(config)
    spec = rope_spec_of(wanted)
    model = load_proven(directory, wanted, spec, dtype=torch.float32, device="cpu")
    model.save_pretrained(tmp_path / "again")
    assert rope_spec_of(read_config(tmp_path / "again")) == spec
    assert prove_directory(tmp_path / "again", spec) < 1e-6
    again = load_proven(tmp_path / "again", None, spec, dtype=torch.float32, device="cpu")
    assert_close(read_at_once(again, tokens(60)), read_at_once(model, tokens(60)), rtol=0, atol=0)


def test_plain_transformers_fails_instead_of_misreading(saved, tmp_path):
    config, _ = saved
    AutoConfig.for_model(**patched(config)).save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="dynamic-yarn"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))


def test_no_engine_is_given_settings(saved):
    for engine in ("transformers", "vllm", "sglang", "llama.cpp"):
        with pytest.raises(RopeError, match="cannot be served"):
            serving_settings(patched(saved[0]), engine)


def test_a_cache_that_does_not_grow_is_refused(loaded):
    cache = StaticCache(config=loaded.config, max_cache_len=64)
    with pytest.raises(RopeError, match="use DynamicCache"):
        loaded(tokens(8), past_key_values=cache)


def test_another_attention_is_refused(loaded):
    loaded.set_attn_implementation("eager")
    with pytest.raises(RopeError, match="leave a dynamic-yarn model the attention"):
        loaded(tokens(8))


@pytest.mark.parametrize("model_type", ["olmo2", "gpt_neox", "qwen3_moe", "gemma2"])
def test_other_architectures_are_refused(model_type, config_of):
    with pytest.raises(RopeError, match=rf"^model_type: {model_type} cannot run dynamic-yarn"):
        patched(config_of(model_type))


def test_a_sliding_window_is_refused(config_of):
    with pytest.raises(RopeError, match=r"^sliding_window: dynamic-yarn needs the whole context"):
        patched({**config_of("mistral"), "sliding_window": 8192})

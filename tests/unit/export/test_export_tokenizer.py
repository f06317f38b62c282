"""The pre-tokenizer is named for what tokenizer.json does, and nothing is guessed."""

from __future__ import annotations

import json
import shutil

import pytest
from gguf import TokenType

from yarn_ops.errors import ExportError
from yarn_ops.export.gguf_tokenizer import PATTERNS, gguf_tokenizer
from yarn_ops.models.files import read_config

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PATTERN_OF = {name: pattern for pattern, name in PATTERNS.items()}


def split(pattern, **changes):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
        **changes,
    }


def sequence(*steps, use_regex):
    return {"type": "Sequence", "pretokenizers": [*steps, {**BYTES, "use_regex": use_regex}]}


@pytest.fixture
def tokenizer_of(base512, tmp_path):
    """tokenizer_of(config=…, model=…, **changes): base512's, parts of tokenizer.json changed."""

    def read(*, model=None, config=None, **changes):
        directory = tmp_path / "model"
        shutil.copytree(base512, directory, dirs_exist_ok=True)
        described = json.loads((base512 / "tokenizer.json").read_bytes())
        described |= changes
        described["model"] |= model or {}
        (directory / "tokenizer.json").write_text(json.dumps(described))
        return gguf_tokenizer(directory, read_config(base512) | (config or {}))

    return read


def test_byte_level_with_its_own_pattern_is_gpt_2(tokenizer_of):
    assert tokenizer_of().pre == "gpt-2"


@pytest.mark.parametrize(
    ("pre", "pre_tokenizer", "ignore_merges"),
    [
        ("qwen2", sequence(split(PATTERN_OF["qwen2"]), use_regex=False), False),
        ("llama-bpe", sequence(split(PATTERN_OF["llama-bpe"]), use_regex=False), True),
        ("tekken", sequence(split(PATTERN_OF["tekken"]), use_regex=False), True),
        ("smollm", sequence({"type": "Digits", "individual_digits": True}, use_regex=True), False),
    ],
)
def test_patterns_that_llama_cpp_knows(tokenizer_of, pre, pre_tokenizer, ignore_merges):
    found = tokenizer_of(pre_tokenizer=pre_tokenizer, model={"ignore_merges": ignore_merges})
    assert found.pre == pre


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pre_tokenizer": sequence(split(r"\w+|\W"), use_regex=False)}, r"no pre-tokenizer for .*w\+"),
        (
            {"pre_tokenizer": sequence(split(PATTERN_OF["qwen2"], invert=True), use_regex=False)},
            "no pre-tokenizer",
        ),
        (
            {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, use_regex=True)},
            "no pre-tokenizer",
        ),
        ({"pre_tokenizer": {**BYTES, "use_regex": False}}, "no pre-tokenizer"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "only byte-level BPE"),
        ({"pre_tokenizer": None}, "only byte-level BPE"),
        ({"model": {"byte_fallback": True}}, "only byte-level BPE"),
        ({"model": {"ignore_merges": True}}, r"ignore_merges is not what llama\.cpp does for gpt-2"),
        ({"normalizer": {"type": "Lowercase"}}, "does not apply the normalizer Lowercase"),
    ],
)
def test_anything_else_is_refused(tokenizer_of, changes, named):
    with pytest.raises(
        ExportError, match=rf"model: tokenizer: .*{named}.*; use transformers, vllm, sglang or"
    ):
        tokenizer_of(**changes)


def test_nfc_is_what_qwen2_brings(tokenizer_of):
    assert tokenizer_of(normalizer={"type": "NFC"}).pre == "gpt-2"


def test_rows_without_a_token_are_unused(tokenizer_of):
    found = tokenizer_of(config={"vocab_size": 8200})
    assert found.tokens[8191:8194] == (found.tokens[8191], "[PAD8192]", "[PAD8193]")
    assert found.types[8191:8193] == (TokenType.NORMAL, TokenType.UNUSED)


def test_added_tokens_are_control_or_the_user_s(tokenizer_of):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": 0, "content": "<|eos|>", "special": True, **flags},
        {"id": 8192, "content": "<tool>", "special": False, **flags},
    ]
    found = tokenizer_of(config={"vocab_size": 8193}, added_tokens=added)
    assert (found.types[0], found.types[8192]) == (TokenType.CONTROL, TokenType.USER_DEFINED)
    assert found.tokens[8192] == "<tool>"


def template(single):
    return {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}]
        if single is None
        else [{part: {"id": "A" if part == "Sequence" else "<|eos|>", "type_id": 0}} for part in single],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|eos|>": {"id": "<|eos|>", "ids": [0], "tokens": ["<|eos|>"]}},
    }


@pytest.mark.parametrize(
    ("single", "adds_bos", "adds_eos"),
    [
        (["Sequence"], False, False),
        (["SpecialToken", "Sequence"], True, False),
        (["SpecialToken", "Sequence", "SpecialToken"], True, True),
    ],
)
def test_tokens_around_a_text_are_those_of_the_tokenizer(tokenizer_of, single, adds_bos, adds_eos):
    found = tokenizer_of(post_processor=template(single))
    assert (found.adds_bos, found.adds_eos, found.bos_id, found.eos_id) == (adds_bos, adds_eos, 0, 0)


def test_more_tokens_around_a_text_are_refused(tokenizer_of):
    with pytest.raises(ExportError, match=r"puts tokens \[0, 0, 0\] around a text"):
        tokenizer_of(post_processor=template(["SpecialToken"] * 3 + ["Sequence"]))


def test_steps_that_transformers_puts_in_place_are_the_ones_named(random_model):
    model = random_model("qwen2")  # whose class splits by Qwen2's pattern, whatever tokenizer.json says
    assert gguf_tokenizer(model, read_config(model)).pre == "qwen2"


def test_a_model_that_never_ends_is_refused(base512, tmp_path):
    shutil.copy(base512 / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ExportError, match="no end-of-text token"):
        gguf_tokenizer(tmp_path, {"vocab_size": 8192})
    assert gguf_tokenizer(tmp_path, {"vocab_size": 8192, "eos_token_id": [5, 6]}).eos_id == 5


def test_a_chat_template_comes_along(base512, tmp_path):
    shutil.copytree(base512, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    found = gguf_tokenizer(tmp_path / "model", read_config(base512))
    assert found.chat_template == "{{ messages }}"

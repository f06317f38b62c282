"""What of a stranger's config reaches transformers: no key by which it would fetch, open or run something.

transformers takes such keys for arguments of its own: an attention may name a repository of kernels, a
tokenizer's settings a GGUF file of another model, an index its weights. The product chooses these itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from yarn_ops.errors import BaseModelError

FETCHES = re.compile(
    "auto_map|implementation|kernel|trust_remote_code|name_or_path|commit_hash|gguf|transformers_weights|"
    "custom_|adapter|pretrained|quantization_config|(^|_)(path|file|files|dir|folder|url|repo|repo_id|hub)$"
)
TOKENIZER_KEYS = frozenset(
    (
        *(
            "tokenizer_class",
            "backend",
            "model_max_length",
            "padding_side",
            "truncation_side",
            "chat_template",
        ),
        *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
        *("add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens", "legacy", "errors"),
        *("spaces_between_special_tokens", "use_default_system_prompt", "do_lower_case", "strip_accents"),
        *("model_input_names", "trim_offsets", "tokenize_chinese_chars", "fix_mistral_regex"),
    )
)
"""of tokenizer_config.json, besides …_token"""
MOST_NUMBER = 10**31
"""a tokenizer without a limit says 10**30"""


def harmless_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of config.json or generation_config.json without such keys, in objects within it as well."""
    return {key: _within(item) for key, item in config.items() if not FETCHES.search(key)}


def harmless_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of tokenizer_config.json says how text becomes tokens."""
    return {key: item for key, item in config.items() if key in TOKENIZER_KEYS or key.endswith("_token")}


def harmless_tokens(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens in special_tokens_map.json, whose other keys would count as in tokenizer_config.json."""
    return {key: item for key, item in tokens.items() if key.endswith(("_token", "_special_tokens"))}


def _within(value: Any) -> Any:
    if isinstance(value, Mapping):
        return harmless_config(value)
    return [_within(item) for item in value] if isinstance(value, list) else value


def require_finite(value: Any, where: str) -> None:
    """BaseModelError where a number is none that every program can hold."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_finite(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            require_finite(item, where)
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise BaseModelError(f"{where} is a number of {len(hex(value)) - 2} hexadecimal digits; correct it")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BaseModelError(f"{where} is {value}, which is no number; correct it")

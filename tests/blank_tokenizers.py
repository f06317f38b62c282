"""Tokenizers that put a blank before every text, as published ones say it; a token a character."""

from __future__ import annotations

import string
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _prepending(fast: Tokenizer) -> None:
    """Llama 2's and Mistral's tokenizer.json."""
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _prepending_alone(fast: Tokenizer) -> None:
    fast.normalizer = normalizers.Prepend("▁")
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)


def _metaspace(scheme: str) -> Callable[[Tokenizer], None]:
    """As transformers 5 builds a LlamaTokenizer."""

    def put(fast: Tokenizer) -> None:
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)

    return put


def _in_sequence(fast: Tokenizer) -> None:
    digits, metaspace = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace()
    fast.pre_tokenizer = pre_tokenizers.Sequence([metaspace, digits])


def _byte_level(fast: Tokenizer) -> None:
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


WAYS: dict[str, Callable[[Tokenizer], None]] = {
    "Prepend": _prepending,
    "Prepend alone": _prepending_alone,
    "Metaspace always": _metaspace("always"),
    "Metaspace first": _metaspace("first"),
    "Metaspace in a sequence": _in_sequence,
    "ByteLevel": _byte_level,
}


def blank_tokenizer(way: str) -> Tokenizer:
    letters = sorted({*string.printable, "▁", *pre_tokenizers.ByteLevel.alphabet()})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *BYTES, *letters, "▁▁", "ĠĠ"])}
    merges = [("▁", "▁"), ("Ġ", "Ġ")]
    fast = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    WAYS[way](fast)
    fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL["<s>"])])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if way == "ByteLevel":
        fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([*SPECIAL])
    return fast

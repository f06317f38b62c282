"""A byte-level BPE tokenizer in llama.cpp's terms, or a refusal where llama.cpp would split text otherwise.

llama.cpp knows pre-tokenizers by name alone. The name follows from what the tokenizer does, never from the
model it came with: transformers loads it, since some of its classes put steps of their own in place of
those in tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from yarn_ops.errors import ExportError
from yarn_ops.models.checkpoints import load_tokenizer

BYTES = "ByteLevel"
GPT2 = "gpt-2"  # ByteLevel's own pattern, the one GPT-2 came with
SMOLLM = "smollm"  # the same after single digits are cut off

PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""patterns of Split, by llama.cpp's name; from the tokenizer.json of Qwen2, Llama 3 and Mistral Nemo"""
IGNORES_MERGES = ("llama-bpe", "tekken")
"""llama.cpp takes a word that is in the vocabulary whole there, and only there"""


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF says of a byte-level BPE tokenizer."""

    pre: str
    """llama.cpp's name of the pre-tokenizer"""
    tokens: tuple[str, ...]
    """one for every row of the embedding"""
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    """"left right", most wanted first"""
    bos_id: int
    eos_id: int
    adds_bos: bool
    adds_eos: bool
    chat_template: str | list[dict[str, str]] | None
    """several by name, where the model has them"""


def gguf_tokenizer(model: Path, config: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer of a model directory; ExportError where it is no byte-level BPE that llama.cpp knows."""
    tokenizer = load_tokenizer(model)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise _unknown(model, "only byte-level BPE can be written")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(model, described)
    tokens, types = _vocabulary(described, int(config["vocab_size"]))
    eos_id = _special_id(tokenizer.eos_token_id, config.get("eos_token_id"))
    if eos_id is None:
        raise ExportError(
            f"{model}: no end-of-text token, and llama.cpp would take token 11 for it; "
            "write eos_token_id into config.json"
        )
    bos_id = _special_id(tokenizer.bos_token_id, config.get("bos_token_id"))
    around = tokenizer("").input_ids
    adds_bos = bos_id is not None and around[:1] == [bos_id]
    after = around[adds_bos:]
    if after not in ([], [eos_id]):
        raise ExportError(
            f"{model}: the tokenizer puts tokens {around} around a text, and llama.cpp only knows one "
            "begin-of-text and one end-of-text; use transformers, vllm or sglang"
        )
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return GgufTokenizer(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(_merge(merge) for merge in described["model"]["merges"]),
        bos_id=eos_id if bos_id is None else bos_id,
        eos_id=eos_id,
        adds_bos=adds_bos,
        adds_eos=after == [eos_id],
        chat_template=template,
    )


def _pre_tokenizer(model: Path, described: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut into words; ExportError where it has none."""
    bpe = described["model"]
    steps = _steps(described.get("pre_tokenizer"))
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or not _is_byte_level(steps):
        raise _unknown(model, "only byte-level BPE can be written")
    cuts, bytes_step = steps[:-1], steps[-1]
    pre = _named(cuts, own_pattern=bytes_step.get("use_regex", True))
    if pre is None:
        raise _unknown(model, f"llama.cpp has no pre-tokenizer for {json.dumps(cuts or bytes_step)[:200]}")
    if bool(bpe.get("ignore_merges")) != (pre in IGNORES_MERGES):
        raise _unknown(model, f"ignore_merges is not what llama.cpp does for {pre}")
    normalizer = (described.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # NFC: text is nearly always in it, and llama.cpp leaves it out
        raise _unknown(model, f"llama.cpp does not apply the normalizer {normalizer}")
    return pre


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [dict(step) for step in pre_tokenizer["pretokenizers"]]
    return [dict(pre_tokenizer)]


def _is_byte_level(steps: Sequence[Mapping[str, Any]]) -> bool:
    return bool(steps) and steps[-1].get("type") == BYTES and not steps[-1].get("add_prefix_space")


def _named(cuts: Sequence[Mapping[str, Any]], *, own_pattern: bool) -> str | None:
    if own_pattern:
        kinds = [(cut.get("type"), cut.get("individual_digits")) for cut in cuts]
        return GPT2 if not kinds else SMOLLM if kinds == [("Digits", True)] else None
    if len(cuts) != 1 or cuts[0].get("type") != "Split":
        return None
    split = cuts[0]
    if split.get("invert") or split.get("behavior") != "Isolated":
        return None
    return PATTERNS.get((split.get("pattern") or {}).get("Regex", ""))


def _unknown(model: Path, fault: str) -> ExportError:
    return ExportError(
        f"{model}: tokenizer: {fault}; use transformers, vllm, sglang or llama.cpp's own converter"
    )


def _vocabulary(described: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Token and type of every row of the embedding; rows that no token has are unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    for token, row in described["model"]["vocab"].items():
        tokens[row], types[row] = token, TokenType.NORMAL
    for added in described.get("added_tokens") or ():
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tuple(tokens), tuple(types)


def _merge(merge: str | Sequence[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _special_id(of_tokenizer: int | None, of_config: Any) -> int | None:
    """The tokenizer's; else the config's, the first where it lists several."""
    if of_tokenizer is not None:
        return of_tokenizer
    first = of_config[0] if isinstance(of_config, list) and of_config else of_config
    return first if isinstance(first, int) else None

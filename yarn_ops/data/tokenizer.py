"""A base's tokenizer for preparing documents: text to token ids, in bounded memory, from many threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from yarn_ops.data.chats import Chat, read_chat_template
from yarn_ops.data.text import CUT, CUT_CHARS
from yarn_ops.digests import digest_of
from yarn_ops.errors import BaseModelError, DataError
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import read_model_file, read_object

PIECE_CHARS = 1 << 18
"""Longer texts are encoded in pieces: the Rust encoder holds about 400 bytes a token while it works."""

PREFIX_CHARS = 256
BLANKS = ("▁", "Ġ")
"""by which a token begins that holds a blank"""


class Tokenizer:
    """Encodes with the rules of `tokenizer.json`, or of transformers where a base has no such file.

    prefix: token ids the tokenizer puts before a document (often one BOS, often none).
    eos:    token id appended to a document; None when the tokenizer names none.
    digest: sha256 of the definition.
    chat_digest: of what chats are rendered by; None without a chat template.
    Text that looks like a special token is encoded as text: a document must not end itself.
    """

    def __init__(self, base: Path, vocab_size: int) -> None:
        self._definition, self._eos_token = definition, eos_token = _read_definition(base)
        self.digest = hashlib.sha256(definition.encode()).hexdigest()
        self._fast = _parse_definition(definition, base)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        self._template = read_chat_template(base)
        self.chat_digest = None if self._template is None else digest_of(self._template.stated)
        self._vocab_size = vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.eos: int | None = None if eos_token is None else self._fast.token_to_id(eos_token)
        special: list[int] = self._fast.encode("").ids
        self.prefix = self._narrow([token for token in special if token != self.eos])
        self.suffix = self._narrow([] if self.eos is None else [self.eos])

    def save(self, folder: Path) -> None:
        """Write all that makes an equal tokenizer into the new directory `folder`."""
        folder.mkdir()
        (folder / "tokenizer.json").write_text(self._definition, "utf-8")
        stated = {"eos_token": self._eos_token, **(self._template.stated if self._template else {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(stated), "utf-8")

    def encode(self, texts: list[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        """Token ids of each text, without prefix and EOS. Releases the GIL; one core a call."""
        # A batch of one: `encode` holds the GIL, and a larger batch would occupy every core of the machine.
        batches = (self._fast.encode_batch_fast([text], add_special_tokens=False) for text in texts)
        return [self._narrow(batch[0].ids) for batch in batches]

    def render(self, chat: Chat) -> str:
        """A chat as the base's template has it, special tokens as text; DataError where it cannot be."""
        if self._template is None:
            raise DataError("a chat, and the base has no chat template; give texts, or another base")
        return self._template.render(chat)

    def encode_chat(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        """Token ids of a rendered chat, or a part of one: its special tokens are such."""
        return self._narrow(self._chats.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def begins(self, chat: str) -> bool:
        """Whether a rendered chat begins with the prefix by itself."""
        return self.encode_chat(chat[:PREFIX_CHARS])[: len(self.prefix)].tolist() == self.prefix.tolist()

    def ends(self, chat: str) -> bool:
        """Whether a rendered chat ends with EOS by itself."""
        return self._eos_token is not None and chat.rstrip().endswith(self._eos_token)

    @cached_property
    def _chats(self) -> FastTokenizer:
        chats = FastTokenizer.from_str(self._definition)
        chats.no_truncation()
        chats.no_padding()
        return chats

    @cached_property
    def _within(self) -> FastTokenizer:
        return within_texts(self._fast)

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(ids [n], offsets [n, 2]: first and last character + 1) of texts that go on within others."""
        return [
            (self._narrow(encoding.ids).astype(np.int64), np.array(encoding.offsets, np.int64).reshape(-1, 2))
            for encoding in self._within.encode_batch(texts, add_special_tokens=False)
        ]

    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._fast.decode(ids.tolist()))

    def _narrow(self, ids: list[int]) -> NDArray[np.unsignedinteger[Any]]:
        wide = np.array(ids, dtype=np.uint32)
        largest = int(wide.max(initial=0))
        if largest >= self._vocab_size:
            raise DataError(
                f"tokenizer: makes token {largest} but the model's vocabulary has {self._vocab_size}; "
                "give the base the tokenizer it was trained with"
            )
        return wide.astype(self.dtype)


def within_texts(tokenizer: FastTokenizer) -> FastTokenizer:
    """A tokenizer for what goes on within a text: without the blank that some (Llama 2's) put before all they
    encode, which would stand nowhere in a text. One that puts none is returned as it is."""
    tokens = tokenizer.encode("0", add_special_tokens=False).tokens
    if not tokens or not tokens[0].startswith(BLANKS):
        return tokenizer
    within = FastTokenizer.from_str(json.dumps(_without_blank(json.loads(tokenizer.to_str()))))
    within.encode_special_tokens = tokenizer.encode_special_tokens
    return within


def _without_blank(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules of a tokenizer.json, or of a part of it, that put no blank before a text."""
    kept = dict(rules)
    if rules.get("type") == "Metaspace":
        kept.pop("add_prefix_space", None)  # the older name of the same
        kept["prepend_scheme"] = "never"
    if rules.get("type") == "ByteLevel":
        kept["add_prefix_space"] = False
    if rules.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    for part in ("normalizer", "pre_tokenizer"):
        if rules.get(part):
            kept[part] = _without_blank(rules[part])
    for parts in ("normalizers", "pretokenizers"):
        if parts in rules:
            kept[parts] = [_without_blank(part) for part in rules[parts]]
    return kept


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces of at most PIECE_CHARS whose tokens, joined, are those of the whole text.

    Where no good place lies within CUT_CHARS of a piece's end, it is cut there, and the tokens around that
    cut may differ. So may they for tokenizers that add a blank before every text (Llama 2's): one token.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = start + PIECE_CHARS
        places = [match.start() for match in CUT.finditer(text, end - CUT_CHARS, end)]
        stop = places[-1] if places else end
        yield start, stop
        start = stop
    yield start, len(text)


def _read_definition(base: Path) -> tuple[str, str | None]:
    if (base / "tokenizer.json").is_file():
        return read_model_file(base, "tokenizer.json"), _eos_token(base)
    slow = load_tokenizer(base)
    try:
        return slow.backend_tokenizer.to_str(), slow.eos_token
    except AttributeError as error:
        raise BaseModelError(f"{base.name}: no usable tokenizer ({error}); add its tokenizer.json") from None


def _parse_definition(definition: str, base: Path) -> FastTokenizer:
    try:
        return FastTokenizer.from_str(definition)
    except BaseException as error:  # tokenizers raises bare Exception, and Rust's panics are none
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise BaseModelError(f"{base.name}/tokenizer.json: not a tokenizer ({error}); replace it") from None


def _eos_token(base: Path) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (base / name).is_file():
            continue
        token = read_object(base, name).get("eos_token")
        if token is not None:
            return token["content"] if isinstance(token, dict) else token
    return None

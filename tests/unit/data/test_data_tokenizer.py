"""The tokenizer's ids are the library's own, in pieces or whole, on any base."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from blank_tokenizers import WAYS, blank_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing

from yarn_ops.data import tokenizer as module
from yarn_ops.data.tokenizer import Tokenizer, pieces, within_texts
from yarn_ops.errors import BaseModelError, DataError
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"

WORD = st.text(st.sampled_from("abz09_.(:é中\u0301🌍'"), min_size=1, max_size=6)
BLANK = st.sampled_from([" ", "\n", "  ", "\n\n", "\t", " \n", "\r\n"])


def joined(tokenizer: Tokenizer, text: str) -> list[int]:
    texts = [text[start:stop] for start, stop in pieces(text)]
    assert "".join(texts) == text
    return [int(token) for run in tokenizer.encode(texts) for token in run]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORD, BLANK), min_size=50, max_size=150))
def test_pieces_have_the_tokens_of_the_whole(parts: list[tuple[str, str]]) -> None:
    text = "ab cd ".join(word + blank for word, blank in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARS", 200)
        patch.setattr(module, "CUT_CHARS", 100)
        assert len(list(pieces(text))) > 1
        assert joined(Tokenizer(BASE512, 8192), text) == Tokenizer(BASE512, 8192).encode([text])[0].tolist()


@pytest.mark.parametrize("length", [0, 1, module.PIECE_CHARS, module.PIECE_CHARS + 1, 3 * module.PIECE_CHARS])
def test_a_text_without_a_good_place_is_cut_all_the_same(length: int) -> None:
    bounds = list(pieces("." * length))
    assert bounds[0][0] == 0 and bounds[-1][1] == length
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert max(stop - start for start, stop in bounds) <= module.PIECE_CHARS


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = Tokenizer(BASE512, 8192)
    (ids,) = tokenizer.encode(["a <|eos|> b"])
    assert tokenizer.eos == 0 and 0 not in ids
    assert FastTokenizer.from_file(str(BASE512 / "tokenizer.json")).decode(ids.tolist()) == "a <|eos|> b"


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    fast = FastTokenizer.from_file(str(BASE512 / "tokenizer.json"))
    fast.enable_truncation(4)
    fast.enable_padding(length=8)
    fast.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six seven eight nine ten"
    expected = Tokenizer(BASE512, 8192).encode([text, "a"])
    for ours, theirs in zip(Tokenizer(tmp_path, 8192).encode([text, "a"]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_beginning_token_is_the_prefix(tmp_path: Path) -> None:
    fast = FastTokenizer.from_file(str(BASE512 / "tokenizer.json"))
    fast.add_special_tokens(["<s>"])
    fast.post_processor = TemplateProcessing(
        single="<s> $A <|eos|>", special_tokens=[("<s>", 8192), ("<|eos|>", 0)]
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|eos|>"}}))
    tokenizer = Tokenizer(tmp_path, 8200)
    assert (tokenizer.prefix.tolist(), tokenizer.suffix.tolist()) == ([8192], [0])
    assert tokenizer.encode(["a"])[0].tolist() == Tokenizer(BASE512, 8192).encode(["a"])[0].tolist()


def test_no_end_token_is_none(tmp_path: Path) -> None:
    shutil.copy(BASE512 / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer(tmp_path, 8192)
    assert tokenizer.eos is None and tokenizer.suffix.size == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(8192, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: str) -> None:
    assert Tokenizer(BASE512, vocab_size).dtype == np.dtype(dtype)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(DataError, match=r"makes token \d+ but the model's vocabulary has 100"):
        Tokenizer(BASE512, 100).encode(["The quick brown fox"])


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(tmp_path, 8192)


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no tokenizer"):
        Tokenizer(tmp_path, 8192)


@pytest.mark.parametrize("way", WAYS)
def test_within_a_text_no_blank_is_put_before_what_goes_on(way: str, tmp_path: Path) -> None:
    fast = blank_tokenizer(way)
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer, text = Tokenizer(tmp_path, fast.get_vocab_size()), "a text\nof 7 words, 第一"
    (whole,) = tokenizer.encode([text])
    assert whole.tolist() == fast.encode(text, add_special_tokens=False).ids
    for cut in range(1, len(text) - 1):
        (end, offsets), (begin, _) = tokenizer.encode_with_offsets([text[cut:], text[:cut]])
        assert [*begin, *end] == whole.tolist()[1:], text[cut:]
        assert offsets[0].tolist() == [0, 1]


def test_a_tokenizer_that_puts_no_blank_is_as_it_was() -> None:
    fast = FastTokenizer.from_file(str(BASE512 / "tokenizer.json"))
    assert within_texts(fast) is fast

"""An answer's tokens are those that were planted, also by tokenizers that put a blank before every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blank_tokenizers import SPECIAL, WAYS, blank_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.haystack import Haystack
from yarn_ops.evals.plan import FAMILIES, GRIDS
from yarn_ops.evals.subject import Subject, open_subject
from yarn_ops.evals.tasks.recall import recall_examples

LENGTH = 6000
WRITTEN_IN_WORDS = ("count", "most-frequent", "copy", "mqar", "many-shot")
"""whose answers stand nowhere as they are asked for, or are runs of tokens"""
TEXTS = {
    "English": "The miller of {n} sold flour to strangers. Nobody at station {n} heard the bell. ",
    "Chinese": "船长望着港口第{n}根桅杆，那里什么也没有动；随后他走下甲板，写了一封信。",
}


@pytest.fixture(params=[*WAYS, "Llama"])
def subject(request: Any, tmp_path: Path) -> Subject:
    way = "Prepend" if request.param == "Llama" else request.param
    fast = blank_tokenizer(way)
    config = LlamaConfig(
        vocab_size=fast.get_vocab_size(), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    fast.save(str(tmp_path / "tokenizer.json"))
    kind = "LlamaTokenizer" if request.param == "Llama" else "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}), "utf-8")
    return open_subject(tmp_path)


def holds(text: list[int], run: list[int]) -> bool:
    return any(text[at : at + len(run)] == run for at in range(len(text) - len(run) + 1))


def haystack(subject: Subject, language: str) -> Haystack:
    texts = [" ".join(TEXTS[language].format(n=n + 1000 * at) for n in range(200)) for at in range(5)]
    ids = tuple(np.asarray(subject.encode_whole(text), dtype=np.int64) for text in texts)
    return Haystack(tuple(texts), ids, (SPECIAL["<s>"],), subject.encode, language)


@pytest.mark.parametrize("language", TEXTS)
def test_every_answer_stands_in_its_text(subject: Subject, language: str) -> None:
    documents = haystack(subject, language)
    for task, make in {**GRIDS, **FAMILIES}.items():
        if task in WRITTEN_IN_WORDS:
            continue
        asked = [(e, q) for e in make(documents, LENGTH, 2, 1, 0) for q in e.questions if q.distance]
        assert asked, task
        for example, question in asked:
            assert holds(example.context.tolist(), list(question.answer)), task


@pytest.mark.parametrize("language", TEXTS)
def test_every_pair_that_is_recalled_stands_in_its_text(subject: Subject, language: str) -> None:
    texts = [haystack(subject, language).ids[:LENGTH]]
    for templates in (("code",), ("prose",)):
        (example,) = recall_examples(
            texts, subject.encode, templates, LENGTH, 4, 0, chinese=language == "Chinese"
        )
        for question in example.questions:
            assert holds(example.context.tolist(), list(question.answer)) == question.planted

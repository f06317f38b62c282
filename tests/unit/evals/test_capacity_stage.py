"""The suite as a stage: on held-out documents alone, resumed by cell, with all that a page needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader
from yarn_ops.errors import DataError
from yarn_ops.evals.capacity.reading import read_capacity
from yarn_ops.evals.capacity.stage import measure_capacity
from yarn_ops.evals.suite.haystack import BETWEEN, held_out_haystack
from yarn_ops.evals.suite.journal import JsonLines
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local, Scorecard, ShardSet
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"


@pytest.fixture(scope="module")
def base() -> Local[BaseModel]:
    record = BaseModel(
        source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_047_552,
        vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=10_000.0,
    )  # fmt: skip
    return Local(record, BASE512)


@pytest.fixture(scope="module")
def prepared(base: Local[BaseModel], tmp_path_factory: pytest.TempPathFactory) -> Local[ShardSet]:
    """Eight documents of numbered sentences, about 1,400 tokens each; half of them held out."""
    folder = tmp_path_factory.mktemp("prepared")
    for document in range(8):
        lines = [f"Line {line} of document {document} says {line * document}.\n" for line in range(120)]
        (folder / f"{document}.txt").write_text("".join(lines), "utf-8")
    data = Data(sources=(f"{folder}/*.txt",), held_out_fraction=0.5)
    found = Local(corpus.survey(data, LocalFiles(), folder / "corpus"), folder / "corpus")
    record = shards.prepare(
        data, found, base, folder / "shards",
        units=shards.LocalUnits(folder / "units", LocalFiles(), 1), report=lambda *_: None,
    )  # fmt: skip
    return Local(record, folder / "shards")


def documents_of(prepared: Local[ShardSet], encode, tokenizer, tokens: int, seed: int = 0):
    return held_out_haystack(
        ShardReader(prepared.path, "held_out"), Tokenizer(BASE512, 8192), encode=encode,
        decode=tokenizer.decode, tokens=tokens, seed=seed,
    )  # fmt: skip


def test_held_out_documents_are_a_haystack(prepared, encode, base512_tokenizer):
    whole = documents_of(prepared, encode, base512_tokenizer, 10**6)
    assert len(whole.texts) == prepared.record.held_out_documents
    eos = base512_tokenizer.eos_token_id
    assert eos is not None and eos not in whole.ids
    for text, ids in zip(whole.texts, whole.documents, strict=True):
        assert text.startswith("Line 0 of document") and text.endswith(BETWEEN)
        assert encode(text[: -len(BETWEEN)]) == ids[: -len(encode(BETWEEN))].tolist()
    assert documents_of(prepared, encode, base512_tokenizer, 10**6).digest == whole.digest
    assert documents_of(prepared, encode, base512_tokenizer, 10**6, seed=1).digest != whole.digest
    assert len(documents_of(prepared, encode, base512_tokenizer, 100).documents) == 1


class Killed(JsonLines):
    """Its process ends as the third cell is kept."""

    def keep(self, key, scores) -> None:
        if len(self._known) == 2:
            raise KeyboardInterrupt
        super().keep(key, scores)


def measured(base, prepared, journal, out: Path, notes: list[str]) -> Scorecard:
    out.mkdir()
    return measure_capacity(
        "tiny", 0, base, prepared, 256, out, original_context_tokens=512, device="cpu", precision="fp32",
        journal=journal, report=lambda done, total, note: notes.append(note),
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_says_how_far(base, prepared, tmp_path):
    journal = tmp_path / "cells.jsonl"
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        measured(base, prepared, Killed(journal), tmp_path / "killed", notes)
    first = journal.read_text("utf-8").splitlines()
    card = measured(base, prepared, JsonLines(journal), tmp_path / "out", notes)
    assert len(first) == 2 and journal.read_text("utf-8").splitlines()[:2] == first
    value = {score.task: score.value for score in card.scores if score.depth is None}
    assert value["capacity/sees"] == value["capacity/uses"] == 256
    assert card.value("needle/code", 256) > 0.8 and card.value("needle/code/no-needle", 256) == 0
    capacity = read_capacity(tmp_path / "out", "again")
    assert capacity.scores == tuple(s for s in card.scores if not s.task.startswith("capacity/"))
    assert capacity.diagnosis is not None and capacity.diagnosis.retrieval_heads >= 1
    assert notes[-1] == "measured"


def test_text_too_short_for_the_target_is_said_before_a_model_is_loaded(base, prepared, tmp_path):
    with pytest.raises(DataError, match="give more documents"):
        measure_capacity(
            "tiny", 0, base, prepared, 1 << 20, tmp_path, original_context_tokens=512, device="nowhere",
            precision="fp32", journal=JsonLines(tmp_path / "j"), report=lambda *_: None,
        )  # fmt: skip

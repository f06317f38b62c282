"""The stage on the shipped base and text written here; every model is asked the same."""

from __future__ import annotations

import json

import pytest

from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.haystack import BETWEEN, held_out_haystack
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader
from yarn_ops.errors import DataError, EvaluationError
from yarn_ops.evals import measure
from yarn_ops.evals.capacity import read_capacity
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import EvaluationRequest, evaluate
from yarn_ops.evals.run import Worker
from yarn_ops.evals.scorecard import scorecard_cells
from yarn_ops.evals.tasks import recall
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.recipe import Data, Evaluate
from yarn_ops.records import BaseModel, Local, ShardSet
from yarn_ops.scores import Scorecard
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"
SECTION = Evaluate(lengths=(0.5, 1), windows=4, recall_windows=3, recall_pairs=2, sliding_stride_tokens=128)


@pytest.fixture(scope="module")
def base() -> Local[BaseModel]:
    record = BaseModel(
        source="shipped:base512", architecture="LlamaForCausalLM", model_type="llama", parameters=5_047_552,
        vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=10_000.0,
    )  # fmt: skip
    return Local(record, BASE512)


@pytest.fixture(scope="module")
def held_out(base: Local[BaseModel], tmp_path_factory: pytest.TempPathFactory) -> Local[ShardSet]:
    """Eight documents of numbered sentences, about 1,400 tokens each; half of them held out."""
    folder = tmp_path_factory.mktemp("held_out")
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


def planned(held_out: Local[ShardSet], section: Evaluate):
    tokenizer = load_tokenizer(BASE512)
    reader = ShardReader(held_out.path, "held_out")
    return scorecard_cells(
        section, reader, "t", lambda text: tokenizer.encode(text, add_special_tokens=False), 512
    )


@pytest.fixture(scope="module")
def result(base: Local[BaseModel], held_out: Local[ShardSet], tmp_path_factory: pytest.TempPathFactory):
    out, heard = tmp_path_factory.mktemp("scores") / "out", []
    worker = Worker("cpu", "fp32", JsonLines(out / "../cells"), lambda *step: heard.append(step))
    card = evaluate(EvaluationRequest(SECTION, base, held_out, 512), out, worker)
    return card, out, heard


def test_every_task_is_measured_at_every_length(result) -> None:
    card, _, _ = result
    for task in (
        "perplexity/last-quarter", "perplexity/single-pass", "perplexity/sliding",
        "recall/code", "recall/code/no-needle", "recall/prose", "recall/prose/no-needle",
    ):  # fmt: skip
        assert card.value(task, 256) is not None, task
        assert card.value(task, 512) is not None, task
    depths = {score.depth for score in card.scores if score.task == "recall/code"}
    assert depths == {None, 0.25, 0.75}


def test_the_base_recalls_within_its_window_and_guesses_nothing(result) -> None:
    card, _, _ = result
    assert card.value("recall/code", 256) >= 0.8
    assert card.value("recall/code/no-needle", 256) == 0.0


def test_scores_are_written_whole(result) -> None:
    card, out, _ = result
    assert [path.name for path in out.iterdir()] == ["scores.json"]
    written = json.loads((out / "scores.json").read_text("utf-8"))["card"]
    assert written["model_digest"] == card.model_digest
    assert len(written["scores"]) == len(card.scores)
    assert read_capacity(out, "any").card.scores == card.scores


def test_progress_counts_to_its_total(result) -> None:
    _, _, heard = result
    done = [step[0] for step in heard]
    assert done == sorted(done) and done[0] == 0 and done[-1] == heard[-1][1]


def test_the_plan_knows_nothing_of_the_model(held_out, monkeypatch) -> None:
    """Two plans of one recipe ask the same pairs of the same text; another seed asks others."""
    made, examples = [], recall.recall_examples
    monkeypatch.setattr(recall, "recall_examples", lambda *asked: made.append(examples(*asked)) or made[-1])

    def texts(section: Evaluate) -> list:
        made.clear()
        planned(held_out, section)
        return [list(example.in_turn()[0]) for some in made for example in some]

    once = texts(SECTION)
    assert len(once) == 2 * 2 * 3 and once == texts(SECTION)
    assert once != texts(SECTION.model_copy(update={"seed": 1}))


def test_a_length_beyond_the_held_out_text_is_refused(held_out) -> None:
    expected = rf"a window of 512000 tokens does not fit {held_out.record.held_out_tokens} held-out tokens"
    with pytest.raises(EvaluationError, match=expected):
        planned(held_out, SECTION.model_copy(update={"lengths": (1000.0,)}))


def test_a_length_below_its_pairs_is_refused(held_out) -> None:
    with pytest.raises(EvaluationError, match="16 tokens cannot hold 2 code pairs"):
        planned(held_out, SECTION.model_copy(update={"lengths": (1 / 32,)}))


def test_no_document_longer_than_the_window_leaves_sliding_out(held_out) -> None:
    cells = planned(held_out, SECTION.model_copy(update={"lengths": (1.0, 4.0)}))
    assert not any(cell.name.startswith("sliding") for cell in cells)


def test_a_suite_adds_tasks_to_the_scorecard_and_replaces_none(base, held_out) -> None:
    """What the scorecard measures is measured once; what it leaves out, the suite measures."""
    full = EvaluationRequest(SECTION.model_copy(update={"suite": "full"}), base, held_out, 512, 512)
    _, plan = full.plan()
    names = [(cell.name, cell.context_tokens) for cell in plan.cells]
    assert len(set(names)) == len(names)
    alone = planned(held_out, SECTION)
    assert names[: len(alone)] == [(cell.name, cell.context_tokens) for cell in alone]
    assert {"needle/code", "context", "ruler"} <= {name for name, _ in names}
    assert ("perplexity", 128) not in names and ("needle/code", 128) in names
    unmoved = EvaluationRequest(
        full.section.model_copy(update={"sliding_stride_tokens": 0}), base, held_out, 512, 512
    )
    assert ("sliding", 128) in [(cell.name, cell.context_tokens) for cell in unmoved.plan()[1].cells]


TINY = SECTION.model_copy(update={"windows": 2, "recall_windows": 1, "suite": "tiny"})


class Killed(JsonLines):
    """Its process ends as the third cell is kept."""

    def keep(self, key, scores) -> None:
        if len(self._known) == 2:
            raise KeyboardInterrupt
        super().keep(key, scores)


@pytest.mark.slow
def test_a_killed_stage_goes_on_says_how_far_and_loads_a_model_once(
    base, held_out, tmp_path, monkeypatch
) -> None:
    """Scorecard, suite and the look at attention: one load for all of it, and none where all is known."""
    journal, notes, loads = tmp_path / "cells.jsonl", [], []
    load = measure.Subject.load
    monkeypatch.setattr(
        measure.Subject, "load", lambda self, *how: loads.append(self.path) or load(self, *how)
    )

    def measured(kept: JsonLines, out: str) -> Scorecard:
        worker = Worker("cpu", "fp32", kept, lambda done, total, note: notes.append(note))
        return evaluate(EvaluationRequest(TINY, base, held_out, 512, 256), tmp_path / out, worker)

    with pytest.raises(KeyboardInterrupt):
        measured(Killed(journal), "killed")
    first = journal.read_text("utf-8").splitlines()
    loads.clear()
    card = measured(JsonLines(journal), "out")
    assert len(loads) == 1
    assert len(first) == 2 and journal.read_text("utf-8").splitlines()[:2] == first
    value = {score.task: score.value for score in card.scores if score.depth is None}
    assert value["capacity/sees"] == value["capacity/uses"] == 256
    assert card.value("needle/code", 256) > 0.8 and card.value("needle/code/no-needle", 256) == 0
    assert card.value("recall/code", 512) is not None
    capacity = read_capacity(tmp_path / "out", "again")
    assert capacity.card.scores == card.scores
    assert capacity.diagnosis is not None and capacity.diagnosis.retrieval_heads >= 1
    assert notes[-1] == "measured"
    again = measured(JsonLines(journal), "again")
    assert len(loads) == 1
    assert again.scores == card.scores
    assert read_capacity(tmp_path / "again", "again") == capacity


def test_text_too_short_for_the_target_is_said_before_a_model_is_loaded(base, held_out, tmp_path) -> None:
    worker = Worker("nowhere", "fp32", JsonLines(tmp_path / "j"), lambda *_: None)
    with pytest.raises(DataError, match="give more documents"):
        evaluate(EvaluationRequest(TINY, base, held_out, 512, 1 << 20), tmp_path, worker)


def documents_of(held_out: Local[ShardSet], tokens: int, seed: int = 0):
    tokenizer = load_tokenizer(BASE512)
    return held_out_haystack(
        ShardReader(held_out.path, "held_out"), Tokenizer(BASE512, 8192),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False), decode=tokenizer.decode,
        tokens=tokens, seed=seed,
    )  # fmt: skip


def test_held_out_documents_are_a_haystack(held_out, encode, base512_tokenizer) -> None:
    whole = documents_of(held_out, 10**6)
    assert len(whole.texts) == held_out.record.held_out_documents
    eos = base512_tokenizer.eos_token_id
    assert eos is not None and eos not in whole.ids
    for text, ids in zip(whole.texts, whole.documents, strict=True):
        assert text.startswith("Line 0 of document") and text.endswith(BETWEEN)
        assert encode(text[: -len(BETWEEN)]) == ids[: -len(encode(BETWEEN))].tolist()
    assert documents_of(held_out, 10**6).digest == whole.digest
    assert documents_of(held_out, 10**6, seed=1).digest != whole.digest
    assert len(documents_of(held_out, 100).documents) == 1

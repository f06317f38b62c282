"""The stage on the shipped base and text written here; every model is asked the same."""

from __future__ import annotations

import json

import pytest

from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.windows import ShardReader
from yarn_ops.errors import EvaluationError
from yarn_ops.evals.evaluate import evaluate, plan
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.recipe import Data, Evaluate
from yarn_ops.records import BaseModel, Local, ShardSet
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
    return plan(section, reader, lambda text: tokenizer.encode(text, add_special_tokens=False), 512)


@pytest.fixture(scope="module")
def result(base: Local[BaseModel], held_out: Local[ShardSet], tmp_path_factory: pytest.TempPathFactory):
    out, heard = tmp_path_factory.mktemp("scores") / "out", []
    card = evaluate(
        SECTION, base, held_out, out, original_context_tokens=512, device="cpu", dtype="fp32",
        report=lambda *step: heard.append(step),
    )  # fmt: skip
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
    written = json.loads((out / "scores.json").read_text("utf-8"))
    assert written["model_digest"] == card.model_digest
    assert len(written["scores"]) == len(card.scores)


def test_progress_counts_to_its_total(result) -> None:
    _, _, heard = result
    done = [step[0] for step in heard]
    assert done == sorted(done) and done[0] == 0 and done[-1] == heard[-1][1]


def test_the_plan_knows_nothing_of_the_model(held_out) -> None:
    """Two plans of one recipe ask the same pairs of the same text; another seed asks others."""
    once, again = planned(held_out, SECTION), planned(held_out, SECTION)
    other = planned(held_out, SECTION.model_copy(update={"seed": 1}))

    def texts(cells) -> dict:
        samples = {cell.name: cell.measure.keywords.get("samples") for cell in cells}
        return {name: [list(sample.ids) for sample in some] for name, some in samples.items() if some}

    assert texts(once) == texts(again)
    assert texts(once) != texts(other)


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

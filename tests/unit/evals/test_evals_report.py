"""The card equals its golden copy; the pictures have a useful size and are the same every time."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from yarn_ops import __version__
from yarn_ops.evals.capacity import Capacity
from yarn_ops.evals.gate import judge
from yarn_ops.evals.reach import Length, reach_of
from yarn_ops.evals.report.card import Extension, model_card
from yarn_ops.evals.report.verdict import _remedies
from yarn_ops.evals.report.write import write_report
from yarn_ops.recipe import Base, Data, Gate, Leg, Publish, Recipe, Rope, Train
from yarn_ops.records import Adapter, BaseModel, Checkpoint, Dropped, LengthShare, PatchedModel, ShardSet
from yarn_ops.scores import BeforeAfter, Check, Scorecard, Verdict

GOLDEN = Path(__file__).with_name("golden_card.md")
"""made by model_card(extension) below and read by a person; delete it and run this test to make it again"""


ADAPTER = Adapter(
    method="lora", steps=50, window_tokens=2048, tokens_seen=102_400, trainable_parameters=231_680,
    first_loss=2.31, final_loss=2.04, seconds=41.0,
)  # fmt: skip


def capacity_of(card: Scorecard, name: str) -> Capacity:
    """As an evaluation without a suite finds it."""
    lengths = tuple(score.context_tokens for score in card.by_length("perplexity/last-quarter"))
    return Capacity(name, card, lengths[-1], lengths, {}, reach_of(card), None, ())


@pytest.fixture
def extension(scorecard) -> Extension:
    before = scorecard(
        perplexity={256: 9.3, 512: 9.1, 1024: 117.0, 2048: 271.0},
        code={256: 0.98, 512: 0.95, 1024: 0.0, 2048: 0.0},
        depths={512: (0.9, 1.0), 2048: (0.0, 0.0)},
    )
    after = scorecard(
        perplexity={256: 9.2, 512: 8.9, 1024: 7.3, 2048: 6.8},
        code={256: 0.98, 512: 0.97, 1024: 0.98, 2048: 0.85},
        depths={512: (0.94, 1.0), 2048: (0.8, 0.9)},
    )
    return Extension(
        capacities=BeforeAfter(capacity_of(before, "base"), capacity_of(after, "demo-long")),
        recipe=Recipe(
            base=Base(model="hf:org/base@main"), rope=Rope(factor=4), publish=Publish(name="demo-long"),
            data=Data(sources=("stdlib:**/*.py", "/srv/private/texts/*.txt")),
        ),
        base=BaseModel(
            source="hf:org/base@main", architecture="LlamaForCausalLM", model_type="llama",
            parameters=5_047_552, vocab_size=8192, context_tokens=512, head_dim=64, rope_theta=10_000.0,
        ),
        shards=ShardSet(
            tokenizer_digest="1" * 64, vocab_size=8192, train_documents=1537, train_tokens=8_689_483,
            held_out_documents=202, held_out_tokens=1_035_239, longest_document_tokens=193_629,
            dropped=Dropped(duplicates=19),
            lengths=(
                LengthShare(longer_than_tokens=512, documents=1323, token_share=0.99),
                LengthShare(longer_than_tokens=2048, documents=877, token_share=0.94),
            ),
        ),
        patched=PatchedModel(
            method="yarn", factor=4.0, original_context_tokens=512, target_context_tokens=2048,
            attention_factor=1.1386294361119891, inverse_frequency_error=5e-8,
        ),
        adapters=(ADAPTER,),
        checkpoint=Checkpoint(
            method="yarn", factor=4.0, original_context_tokens=512, context_tokens=2048, parameters=5_047_552,
            merge_difference=0.031,
        ),
        scores=BeforeAfter(before, after),
        verdict=judge(Gate(), BeforeAfter(before, after), 2048),
    )  # fmt: skip


def test_card_equals_golden(extension: Extension) -> None:
    card = model_card(extension)
    if not GOLDEN.exists():
        GOLDEN.write_text(card, "utf-8")
        pytest.fail(f"{GOLDEN.name} was missing and has been written; read it and run again")
    assert card == GOLDEN.read_text("utf-8")


@pytest.mark.parametrize(
    ("precision", "told"), [("nf4", "on weights in 4 bits"), ("fp8", "with products in 8 bits")]
)
def test_card_tells_in_how_few_bits_weights_were_held(
    extension: Extension, precision: str, told: str
) -> None:
    train = extension.recipe.train.model_copy(update={"precision": precision})
    asked = extension.recipe.model_copy(update={"train": train})
    assert f"LoRA rank 16 {told}, " in model_card(replace(extension, recipe=asked))


def test_card_names_no_directory_of_this_machine(extension: Extension) -> None:
    assert "/srv/private" not in model_card(extension)


def test_a_base_of_ones_own_is_not_named_as_a_hub_model(extension: Extension) -> None:
    own = extension.base.model_copy(update={"source": "/srv/private/models/base"})
    card = model_card(Extension(**{**vars(extension), "base": own}))
    assert "base_model:" not in card
    assert "`models/base`" in card


def test_a_hostile_name_stays_a_name(extension: Extension) -> None:
    own = extension.base.model_copy(update={"source": "/models/a`<img src=x onerror=alert(1)>\x1b[2J\n# x"})
    card = model_card(Extension(**{**vars(extension), "base": own}))
    assert "`models/a´<img src=x onerror=alert(1)>�[2J # x`" in card


def test_report_writes_card_and_pictures(extension: Extension, tmp_path: Path) -> None:
    losses = [(step, 2.3 - 0.005 * step) for step in range(1, 51)]
    record = write_report(extension, losses, tmp_path / "a")
    write_report(extension, losses, tmp_path / "b")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "README.md",
        "capacity.md",
        *record.pictures,
        *record.pages,
    }
    page = (tmp_path / "a" / "capacity.html").read_text("utf-8")
    documents = "202 held-out documents of stdlib:**/*.py, texts/*.txt"
    asked = f"scorecard without a suite; {documents}; {date.today()}; 2 models, "
    assert asked in page and f"yarn-ops {__version__}" in page
    card = (tmp_path / "a" / "README.md").read_text("utf-8")
    for picture in record.pictures:
        png = (tmp_path / "a" / picture).read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        least = (700, 250) if picture == "glance.png" else (900, 500)
        assert least[0] <= width <= 2400 and least[1] <= height <= 1400, picture
        assert png == (tmp_path / "b" / picture).read_bytes()
        assert picture in ("perplexity.png", "glance.png") or f"]({picture})" in card


def test_pictures_stand_without_recall_or_losses(extension: Extension, scorecard, tmp_path: Path) -> None:
    bare = scorecard(perplexity={512: 8.9})
    record = write_report(Extension(**{**vars(extension), "scores": BeforeAfter(bare, bare)}), [], tmp_path)
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in record.pictures)


def test_a_card_tells_the_training_of_all_legs(extension: Extension) -> None:
    legs = (Leg(context_tokens=1024, steps=30, learning_rate=1e-3), Leg(context_tokens=2048, steps=50))
    recipe = extension.recipe.model_copy(update={"train": Train(legs=legs)})
    first = ADAPTER.model_copy(
        update={"steps": 30, "window_tokens": 1024, "tokens_seen": 30_720, "first_loss": 3.0}
    )
    legged = {**vars(extension), "recipe": recipe, "adapters": (first, ADAPTER)}
    assert (
        "80 steps in 2 legs at learning rate 0.001, then 0.0005, windows of up to 2,048 tokens, 133,120 "
        "tokens seen; loss 3.000 at the first step, 2.040 on average at the end."
    ) in model_card(Extension(**legged))


@pytest.mark.parametrize("original", [512, 300, 8192])
def test_what_is_advised_where_a_model_does_not_use_its_target_can_be_asked_for(original: int) -> None:
    checks = (Check(name="share used", measured=0.5, threshold=0.85, passed=False, reason=""),)
    rejected = Verdict(passed=False, checks=checks)
    given = [{"factor": 4.0}, {"target_context_tokens": 4 * original}]
    for uses in (original + 1, round(8 / 3 * original), 3 * original - 1):
        steps = list(_remedies(rejected, Length(uses, uses, uses), original, 4 * original, 4.0))
        further, shorter = (dict(re.findall(r"rope\.(\w+)=([0-9.]+)", step)) for step in steps[1:])
        assert further == {"factor": "8", "target_context_tokens": str(4 * original)}
        assert shorter == {"target_context_tokens": str(uses)}
        for asked in ({**one, **changes} for one in given for changes in (further, shorter)):
            assert Rope.model_validate(asked).resolve_factor(original) >= uses / original
    steps = [list(_remedies(rejected, None, original, 4 * original, factor)) for factor in (8.0, 16.0)]
    assert [len(some) for some in steps] == [2, 1] and "rope.factor=16" in steps[0][1]

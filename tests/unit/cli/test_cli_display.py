"""What a person reads at 80 columns: whole run ids, before and after side by side, nothing cut off."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from small_recipe import asked

from yarn_ops.catalogue import ModelVersion
from yarn_ops.cli import display
from yarn_ops.records import BaseModel, Checkpoint, Record, Tree
from yarn_ops.registry import ReleaseView, RunSummary, RunView, ScoreView, StageView
from yarn_ops.scores import Comparison, Contender, Score, Scorecard, Verdict
from yarn_ops.shown import size

STARTED = datetime(2026, 11, 23, 18, 34, tzinfo=UTC)
NAME = "[bold] name"  # no markup
ID = "20261123-183436-664890"
BASE = "/models/of/[somebody]/with/a/long/path/llama-8k"

BEFORE = {512: (10.69, 0.98), 2048: (285.17, 0.0)}
AFTER = {512: (10.88, 0.98), 2048: (9.99, 0.979)}

SCORE = ScoreView(
    stage="evaluate",
    checkpoint_digest="c",
    task="loss-by-position",
    context_tokens=512,
    depth=None,
    seed=0,
    value=2.0,
    low=None,
    high=None,
    samples=1,
)


BASE_RECORD = BaseModel(
    source=BASE, architecture="LlamaForCausalLM", model_type="llama", parameters=1, vocab_size=1,
    context_tokens=512, head_dim=1, rope_theta=1.0,
)  # fmt: skip
MERGED = Checkpoint(
    method="yarn", factor=4, original_context_tokens=512, context_tokens=2048, parameters=1,
    merge_difference=0,
)  # fmt: skip


def scorecard(model: Record, values: dict[int, tuple[float, float]]) -> Scorecard:
    scores = [
        Score(task=task, context_tokens=tokens, value=value, samples=1, seed=0)
        for tokens, pair in values.items()
        for task, value in zip(("perplexity/last-quarter", "recall/code"), pair, strict=True)
    ]
    return Scorecard(model_digest=model.digest, original_context_tokens=512, scores=tuple(scores))


def stage(name: str, status: str = "completed", kept: Record | None = None, **record: Any) -> StageView:
    record = record if kept is None else kept.model_dump(mode="json")
    done = status == "completed"
    return StageView(
        stage=name,
        key="k",
        status=status,
        reused=False if done else None,
        seconds=61.5 if done else None,
        attempts=1,
        holder=None,
        started_at=STARTED,
        finished_at=STARTED,
        record=record if done else None,
        error=None if done else "because",
    )


def run(*stages: StageView, status: str = "completed", reason: str | None = None) -> RunView:
    release = ReleaseView(
        name="llama-32k",
        version=12,
        mlflow_run_id="m",
        gate="passed",
        alias="champion",
        tags={},
        released_at=STARTED,
    )
    return RunView(
        id=ID,
        name="a name",
        recipe={"base": {"model": BASE}, "rope": {"method": "by-parts"}},
        recipe_digest="d",
        status=status,
        reason=reason,
        attempts=1,
        git_commit=None,
        flow_run_id=None,
        mlflow_run_id=None,
        started_at=STARTED,
        finished_at=STARTED + timedelta(minutes=17.3),
        release=release if status == "completed" else None,
        stages=stages,
        scores=(SCORE,),
    )


@pytest.fixture(autouse=True, params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def measured() -> list[StageView]:
    """The result first: which is which does not depend on what was measured first."""
    return [
        stage("base", kept=BASE_RECORD), stage("merge", kept=MERGED),
        stage("evaluate", kept=scorecard(MERGED, AFTER)),
        stage("evaluate", kept=scorecard(BASE_RECORD, BEFORE)),
    ]  # fmt: skip


def test_before_and_after_stand_side_by_side(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    display.show_run(run(*measured()))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    start = next(number for number, line in enumerate(lines) if line.startswith("tokens"))
    assert lines[start - 1 : start + 3] == [
        "            perplexity       recall code",
        "tokens      before → after   before → after",
        "512 (1×)     10.69 →  10.88  0.98 → 0.98",
        "2,048 (4×)  285.17 →   9.99  0.00 → 0.98",
    ]


def test_a_run_that_measured_the_base_alone(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "train.targets: no layer is named ['q'], :smile:"
    failed = run(
        stage("base", kept=BASE_RECORD),
        stage("evaluate", kept=scorecard(BASE_RECORD, BEFORE)),
        stage("train", "failed"),
        status="failed",
        reason=reason,
    )
    display.show_run(failed)
    out = capsys.readouterr().out
    assert f"run {ID}, extend a name: failed\n{reason}\n" in out
    assert "tokens      before      before" in out
    assert "after" not in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("train ")] == [
        ["train", "failed"]
    ]


def test_a_stage_is_named_by_what_tells_it_from_others_of_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in Prefect: which evaluation is the base's, which that of a config or of a merged model."""
    tree = Tree(uri="file:///store/artifacts/p", digest="p" * 64, files=1, size_bytes=1)
    config = stage("patch", method="ntk", factor=2.0, tree=tree.model_dump())
    before = scorecard(BASE_RECORD, BEFORE)
    parents = (BASE_RECORD.digest, "shards", tree.digest)
    merged = MERGED.model_copy(update={"tree": tree.model_copy(update={"digest": "m" * 64})})
    display.show_run(
        run(
            stage("base", kept=BASE_RECORD), config, stage("train", window_tokens=2048),
            stage("merge", kept=merged),
            stage("evaluate", kept=before.model_copy(update={"parents": parents[:2]})),
            stage("evaluate", kept=before.model_copy(update={"parents": parents})),
            stage("evaluate", kept=scorecard(merged, AFTER).model_copy(update={"parents": (merged.digest,)})),
        )
    )  # fmt: skip
    out = capsys.readouterr().out
    names = [line.partition("  ")[0] for line in out.splitlines() if "computed" in line]
    assert names == [
        "base", "patch ntk ×2", "train 2,048 tokens", "merge yarn ×4", "evaluate base",
        "evaluate ntk ×2, zero-shot", "evaluate yarn ×4, trained",
    ]  # fmt: skip


def test_a_list_of_runs_keeps_every_id_whole(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    whole = run().model_copy(update={"name": NAME})
    display.show_runs([RunSummary(**whole.model_dump(exclude={"stages", "scores"}))], as_json=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    assert lines[1] == f"{ID}  {NAME}  extend  promoted  17.3 min  llama-32k 12"


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences in tags, names, a recipe's base and tags, a reason: as signs, in every table."""
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil"
    failed = run(stage("train", "failed"), status="failed", reason=hostile)
    summary = RunSummary(**failed.model_dump(exclude={"stages", "scores"}))
    display.show_run(failed)
    display.show_runs([summary.model_copy(update={"name": hostile})], as_json=False)
    tags = {"base": hostile, "gate": hostile}
    version = ModelVersion(hostile, 1, "", "", tags, (hostile,), hostile, STARTED)
    display.show_models([version], as_json=False)
    display.show_recipe(asked(rope={"factor": 2}, publish={"tags": {"x": hostile}}), as_json=False)
    display.show_models([version], as_json=True)
    told = capsys.readouterr().out
    assert "owned" in told and "evil" in told
    assert not {sign for sign in told if unicodedata.category(sign) == "Cc"} - {"\n"}
    assert "\u202e" not in told


def test_a_leg_s_verdict_is_told_before_the_run_s(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"passed": False, "checks": [{"passed": False, "reason": "growth is 3, above 1.1"}]}
    display.show_run(run(stage("leg-gate", **failed), status="rejected", reason="leg 1 of 2"))
    assert "leg gate: failed\n  ✗ growth is 3, above 1.1\n" in capsys.readouterr().out


def test_a_comparison_fits(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    def scores(perplexities: tuple[float, ...], recalls: tuple[float, ...]) -> Scorecard:
        found = [
            Score(task=task, context_tokens=256 << place, value=value, samples=1, seed=0)
            for task, values in (
                ("perplexity/last-quarter", perplexities),
                ("recall/code", recalls),
                ("recall/prose", recalls),
            )
            for place, value in enumerate(values)
        ]  # fmt: skip
        return Scorecard(model_digest="d", original_context_tokens=512, scores=tuple(found))

    contenders = [
        ("none", "zero-shot", False, scores((10.9, 10.4, 118.6, 275.1), (0.98, 1.0, 0.004, 0.0))),
        (
            "by-parts",
            "lora+norms+embeddings",
            True,
            scores((11.0, 10.5, 10.1, 9.74), (1.0, 0.997, 0.98, 0.9)),
        ),
    ]
    record = Comparison(
        tree=Tree(uri="file:///there", digest="d" * 64, files=1, size_bytes=1), pictures=("comparison.png",),
        winner="by-parts, lora+norms+embeddings", original_context_tokens=512, target_context_tokens=2048,
        contenders=tuple(
            Contender(
                method=method, arm=arm, trained_parameters=0, scores=card,
                verdict=Verdict(passed=passed, checks=()),
            )
            for method, arm, passed, card in contenders
        ),
    )  # fmt: skip
    display.show_comparison(run(stage("compare", kept=record)))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    assert lines[0] == "at 256 / 512 / 1,024 / 2,048 tokens"
    none, by_parts = (next(line for line in lines if line.startswith(name)) for name in ("none", "by-parts"))
    assert none.endswith("10.9 10.4 119 275   .98 1.0 .00 .00  .98 1.0 .00 .00  ✗")
    assert by_parts.endswith("11.0 10.5 10.1 9.7  1.0 1.0 .98 .90  1.0 1.0 .98 .90  ✓")
    assert lines[-2:] == [
        "✓ passed the gate; winner: by-parts, lora+norms+embeddings", "picture: /there/comparison.png",
    ]  # fmt: skip


def test_a_run_of_an_earlier_version_shows_its_suite(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose scores were a stage beside the scorecard's."""
    found = [("capacity/sees", 2048), ("capacity/uses", 1536), ("recall/code", 0)]
    scores = tuple(
        Score(task=task, context_tokens=2048, value=value, low=512, high=2048, samples=1, seed=0)
        for task, value in found
    )
    suite = Scorecard(model_digest=MERGED.digest, original_context_tokens=512, scores=scores)
    display.show_run(run(*measured(), stage("suite", kept=suite)))
    out = capsys.readouterr().out
    assert "result: sees 2,048 tokens [512, 2,048], uses 1,536 tokens [512, 2,048]\n" in out
    assert "base: sees" not in out and "0.00 → 0.98" in out


@pytest.mark.parametrize(
    ("count", "shown"),
    [(900, "0.9 KiB"), (528 << 10, "528.0 KiB"), (10 << 20, "10.0 MiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown

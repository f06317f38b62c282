"""Training on windows with exercises: to the bit after a kill, and as one process whatever the number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exercise_texts import ENGLISH_TEXT
from jobs import PROGRAM, TOLERANCE, StopAfter, together
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.digests import digest_tree
from yarn_ops.errors import Stopped
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config
from yarn_ops.shipped import MODELS
from yarn_ops.train.events import EventLog
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job

MakeJob = Callable[..., Job]
Trained = Callable[[Job], Job]
ORIGINAL_TOKENS, FACTOR = 128, 4.0


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a real tokenizer: base/, patched/, shards/."""
    root = tmp_path_factory.mktemp("speaking")
    vocabulary = json.loads((MODELS / "base512/config.json").read_bytes())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=ORIGINAL_TOKENS,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "base512" / name, root / "base")
    plain = json.loads((root / "base/config.json").read_bytes())
    rope = Rope(method="yarn", factor=FACTOR)
    patched, _ = patch_config(plain, rope, factor=FACTOR, original_context_tokens=ORIGINAL_TOKENS)
    (root / "patched").mkdir()
    (root / "patched/config.json").write_text(json.dumps(patched))
    tokenizer = Tokenizer(root / "base", vocabulary)
    with (
        ShardWriter(root / "shards", tokenizer.dtype) as writer,
        TokenWriter(root / "shards/tokens-00000.bin", tokenizer.dtype) as file,
    ):
        for number in range(8):
            text = "".join(f"{number}.{sentence} {ENGLISH_TEXT}" for sentence in range(40))
            extent = file.append(tokenizer.encode([text])[0])
            writer.index("held_out" if number == 0 else "train", f"document-{number}", extent)
    writer.finish([file.tokens], {})
    return root


@pytest.fixture
def job_of(make_job: MakeJob, speaking: Path) -> Callable[..., Job]:
    def make(name: str, share: float = 0.5, **changes: Any) -> Job:
        return make_job(
            name,
            leg={"context_tokens": round(ORIGINAL_TOKENS * FACTOR), "factor": FACTOR},
            base_dir=speaking / "base", patched_dir=speaking / "patched", shards_dir=speaking / "shards",
            exercises={"share": share}, **{"batch_windows": 2} | changes,
        )  # fmt: skip

    return make


def test_a_stopped_run_goes_on_to_the_same_adapter(job_of: Callable[..., Job], trained: Trained) -> None:
    whole, left = trained(job_of("whole", steps=4)), job_of("left", steps=4)
    left.work_dir.mkdir(parents=True)
    with pytest.raises(Stopped, match="after step 2 of 4"):
        run_job(left, EventLog(left.events, steps=4, through_step=0), StopAfter(2), None)
    assert digest_tree(trained(left).out_dir) == digest_tree(whole.out_dir)


def test_the_loss_of_answers_is_told(job_of: Callable[..., Job], trained: Trained) -> None:
    with_exercises, without = (trained(job_of(f"share-{share}", share, steps=1)) for share in (1.0, 0.0))
    (step,) = events(with_exercises)
    assert step["answer_loss"] > 0
    assert "answer_loss" not in events(without)[0]


def events(job: Job) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in job.events.read_text("utf-8").splitlines()]
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_weigh_answers_as_one_does(
    processes: int, job_of: Callable[..., Job], tmp_path: Path
) -> None:
    """After one step: Adam's first update takes a gradient's sign, even of one that is rounding alone."""
    jobs = {}
    for context in (1, 2):
        for packed in (True, False):
            job = job_of(
                f"{context}-{packed}", steps=1, gradient_accumulation_steps=2, context_parallel=context,
                data={"document_mask": packed, "prefer_long": 0.0}, targets=["all-linear"],
            )  # fmt: skip
            jobs[f"{context}{packed}"] = job.model_dump(mode="json")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    together(processes, PROGRAM, tmp_path / "jobs.json", tmp_path)
    for name in jobs:
        for rank in range(processes):
            found = json.loads((tmp_path / f"{name}-{rank}.json").read_bytes())
            assert found["compared"] > 10
            assert found["loss"] < TOLERANCE, name
            assert found["gradient"] < TOLERANCE, name

"""A tiny random Llama with tied embeddings, its patched config, shards of random tokens, and jobs on them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exercise_texts import ENGLISH_TEXT
from forked import forked_trainers
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config
from yarn_ops.shipped import MODELS
from yarn_ops.train.events import EventLog
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job
from yarn_ops.train.snapshot import newest_snapshot

VOCABULARY = 96
ORIGINAL_TOKENS, SPEAKING_TOKENS, FACTOR = 32, 128, 4.0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base/, patched/ and shards/."""
    root = tmp_path_factory.mktemp("tiny")
    lay_down(root, heads=2, kv_heads=1)
    random = np.random.default_rng(0)
    dtype = np.dtype("<u2")
    with (
        ShardWriter(root / "shards", dtype) as writer,
        TokenWriter(root / "shards/tokens-00000.bin", dtype) as file,
    ):
        for number in range(24):
            length = int(random.integers(40, 400))
            extent = file.append(random.integers(0, VOCABULARY, length).astype(np.uint16))
            split = "held_out" if number % 4 == 0 else "train"
            writer.index(split, f"document-{number}", extent)
    writer.finish([file.tokens], {})
    return root


@pytest.fixture(scope="session")
def four_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base/ and patched/: four heads, two of keys and values."""
    root = tmp_path_factory.mktemp("four-heads")
    lay_down(root, heads=4, kv_heads=2)
    return root


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base/, patched/ and shards/ of words: the base has a real tokenizer."""
    root = tmp_path_factory.mktemp("speaking")
    vocabulary = json.loads((MODELS / "base512/config.json").read_bytes())["vocab_size"]
    lay_down(root, heads=4, kv_heads=2, vocabulary=vocabulary, original_tokens=SPEAKING_TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "base512" / name, root / "base")
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


def lay_down(
    root: Path,
    *,
    heads: int,
    kv_heads: int,
    vocabulary: int = VOCABULARY,
    original_tokens: int = ORIGINAL_TOKENS,
) -> None:
    """A random model in root/base, its patched config in root/patched."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=original_tokens,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    plain = json.loads((root / "base/config.json").read_bytes())
    rope = Rope(method="yarn", factor=FACTOR)
    patched, _ = patch_config(plain, rope, factor=FACTOR, original_context_tokens=original_tokens)
    (root / "patched").mkdir()
    (root / "patched/config.json").write_text(json.dumps(patched))


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tiny: Path, tmp_path: Path) -> MakeJob:
    """make_job(name, steps=…, data=…, leg=…, base_dir=…, keep_optimizer=…, **train)"""

    def make(
        name: str = "run",
        *,
        steps: int = 6,
        data: dict[str, Any] | None = None,
        leg: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Job:
        paths = {key: changes.pop(key) for key in list(changes) if key in Job.model_fields}
        text_alone = {"exercises": {"share": 0}}  # the base has no tokenizer
        train = (
            {"rank": 4, "warmup_steps": 2, "learning_rate": 1e-2, "checkpoint_every": 2}
            | text_alone
            | changes
        )
        context_tokens = round(ORIGINAL_TOKENS * FACTOR)
        return Job.model_validate(
            {
                "train": train,
                "leg": {"context_tokens": context_tokens, "steps": steps, "factor": FACTOR} | (leg or {}),
                "data": {"sources": ["text"], **(data or {})},
                "base_dir": tiny / "base",
                "patched_dir": tiny / "patched",
                "shards_dir": tiny / "shards",
                "out_dir": tmp_path / name / "adapter",
                "work_dir": tmp_path / name / "work",
                "device": "cpu",
                "threads": 1,
            }
            | paths
        )

    return make


@pytest.fixture
def job_of(make_job: MakeJob, speaking: Path) -> MakeJob:
    """job_of(name, share=…, **as of make_job): windows with exercises, of the base that has a tokenizer."""

    def make(name: str, share: float = 0.5, **changes: Any) -> Job:
        return make_job(
            name,
            leg={"context_tokens": round(SPEAKING_TOKENS * FACTOR), "factor": FACTOR},
            base_dir=speaking / "base", patched_dir=speaking / "patched", shards_dir=speaking / "shards",
            exercises={"share": share}, **{"batch_windows": 2} | changes,
        )  # fmt: skip

    return make


def train_here(job: Job) -> Job:
    """Run a job in this process, from its newest snapshot when it has one."""
    job.work_dir.mkdir(parents=True, exist_ok=True)
    snapshot = newest_snapshot(job.snapshots, job.identity())
    events = EventLog(job.events, steps=job.leg.steps, through_step=snapshot.step if snapshot else 0)
    run_job(job, events, threading.Event(), snapshot)
    return job


@pytest.fixture
def forked() -> Iterator[None]:
    """A trainer's process is a fork: for what does not depend on how it begins."""
    with forked_trainers():
        yield


@pytest.fixture
def trained() -> Callable[[Job], Job]:
    return train_here

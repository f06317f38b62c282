"""The stage `merge` on a job's directories, with records written by hand."""

from __future__ import annotations

from pathlib import Path

from yarn_ops.records import Adapter, BaseModel, Checkpoint, Dropped, Local, PatchedModel, ShardSet
from yarn_ops.train import merge as merging
from yarn_ops.train.job import Job


def merge(job: Job, out: Path) -> Checkpoint:
    base = BaseModel(
        source="tiny", architecture="LlamaForCausalLM", model_type="llama", parameters=1, vocab_size=96,
        context_tokens=32, head_dim=16, rope_theta=10_000.0,
    )  # fmt: skip
    patched = PatchedModel(
        method="yarn", factor=4.0, original_context_tokens=32, target_context_tokens=128,
        attention_factor=1.1386, inverse_frequency_error=0.0,
    )  # fmt: skip
    adapter = Adapter(
        method=job.train.method, steps=1, window_tokens=128, tokens_seen=1, trainable_parameters=1,
        first_loss=1.0, final_loss=1.0, seconds=1.0,
    )  # fmt: skip
    shards = ShardSet(
        tokenizer_digest="", vocab_size=96, train_documents=1, train_tokens=1, held_out_documents=1,
        held_out_tokens=1, longest_document_tokens=1, dropped=Dropped(), lengths=(),
    )  # fmt: skip
    return merging.merge(
        Local(base, job.base_dir),
        Local(patched, job.patched_dir),
        Local(adapter, job.out_dir),
        Local(shards, job.shards_dir),
        out,
        device="cpu",
        report=lambda *_: None,
    )

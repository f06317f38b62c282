"""Records: the frozen results that stages hand on. They carry references and facts, never tensors.

documents → Corpus → ShardSet ─┐
base → BaseModel → PatchedModel ┴→ Adapter → Checkpoint → Scorecard → Verdict → Release

A record whose `tree` is set points at a directory in object storage; its digest is that of the files.
A record without a tree is facts alone; its digest is that of the facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel as Pydantic
from pydantic import ConfigDict

from yarn_ops.digests import digest_of


class Frozen(Pydantic):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tree(Frozen):
    """A directory in object storage."""

    uri: str
    digest: str  # of file names and contents (`digests.tree_digest`)
    files: int
    size_bytes: int


class Record(Frozen):
    tree: Tree | None = None
    parents: tuple[str, ...] = ()  # digests of the records it was made from

    @property
    def digest(self) -> str:
        if self.tree is not None:
            return self.tree.digest
        return digest_of(self.model_dump(mode="json", exclude={"tree", "parents"}))


def records_in(inputs: Iterable[Any]) -> Iterator[Record]:
    """The records among them, within lists and tuples too."""
    for value in inputs:
        if isinstance(value, Record):
            yield value
        elif isinstance(value, tuple | list):
            yield from records_in(value)


class Corpus(Record):
    """The documents as found: the tree holds `sources.jsonl`, one fingerprinted source file a line."""

    files: int
    size_bytes: int


class LengthShare(Frozen):
    longer_than_tokens: int
    documents: int
    token_share: float  # of all tokens, 0..1, those in documents longer than that


class Dropped(Frozen):
    """Documents that were left out, by the first reason in this order."""

    empty: int = 0
    no_text: int = 0  # rows that lack the text field, or have null there
    not_text: int = 0
    language: int = 0  # none of those asked for
    length: int = 0  # shorter or longer than asked for
    duplicates: int = 0  # equal to an earlier document
    near_duplicates: int = 0
    contaminated: int = 0  # a passage in common with documents that are measured with


class ShardSet(Record):
    """Tokenised documents, split by document into `train` and `held_out` (see data/shards.py)."""

    tokenizer_digest: str
    vocab_size: int
    train_documents: int
    train_tokens: int
    held_out_documents: int
    held_out_tokens: int
    longest_document_tokens: int
    dropped: Dropped
    lengths: tuple[LengthShare, ...]


class BaseModel(Record):
    """A checked causal language model directory: safetensors, tokenizer, config; no code."""

    source: str
    architecture: str
    model_type: str
    parameters: int
    vocab_size: int
    context_tokens: int  # what the base was trained on: the original context L
    head_dim: int
    rope_theta: float

    @property
    def digest(self) -> str:
        """Of files and original context: the same files, said to be trained on another, are another base."""
        return digest_of([super().digest, self.context_tokens])


class PatchedModel(Record):
    """A base's config and tokenizer rewritten for a longer context; the tree holds no weights."""

    method: str
    factor: float
    original_context_tokens: int
    target_context_tokens: int
    attention_factor: float
    inverse_frequency_error: float
    """largest relative difference, model against float64 reference"""


class Rehearsal(Record):
    """Training as asked can begin: windows, layers and arithmetic are there."""

    trainable_parameters: int


class Adapter(Record):
    """What training made: PEFT's adapter directory, or all parameters (`method` full)."""

    method: Literal["lora", "full"]
    steps: int
    window_tokens: int
    tokens_seen: int
    trainable_parameters: int
    first_loss: float
    final_loss: float
    """mean of the last five steps, nats a token"""
    seconds: float


class Checkpoint(Record):
    """A complete model directory, merged, in bfloat16 safetensors, with the patched config."""

    method: str
    factor: float
    original_context_tokens: int
    context_tokens: int
    parameters: int
    merge_difference: float
    """largest absolute difference of log-probabilities, merged against adapter, held-out windows"""


CARD, SUMMARY = "README.md", "capacity.md"
"""files of a report: the model card, and in a few lines how far the model sees and uses"""
CLAIM, FINGERPRINT = "claim.intoto.json", "fingerprint.json"
"""files of a release: its signed claim (claim.py), what serve-check compares with (serving/fingerprint.py)"""


class Report(Record):
    """Pictures (PNG), pages (HTML), model card (`CARD`), and the verdict card (evals/report/verdict.py)."""

    pictures: tuple[str, ...]
    pages: tuple[str, ...] = ()
    verdict: tuple[tuple[str, str], ...] = ()


class ServingReference(Record):
    """The fingerprint of a model; the tree holds fingerprint.json."""

    texts: int
    faults: int


class Release(Record):
    """A model version in MLflow."""

    name: str
    version: int
    mlflow_run_id: str
    gate: Literal["passed", "failed"]
    alias: str | None  # the alias that was moved here; None when none was
    tags: dict[str, str]


AnyRecord = TypeVar("AnyRecord", bound=Record)
LocalRecord = TypeVar("LocalRecord", bound=Record, covariant=True)


@dataclass(frozen=True)
class Local(Generic[LocalRecord]):
    """A record whose tree lies, verified and read-only, in a local directory."""

    record: LocalRecord
    path: Path

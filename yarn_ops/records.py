"""Records: the frozen results that stages hand on. They carry references and facts, never tensors.

documents → Corpus → ShardSet ─┐
base → BaseModel → PatchedModel ┴→ Adapter → Checkpoint → Scorecard → Verdict → Release

A record whose `tree` is set points at a directory in object storage; its digest is that of the files.
A record without a tree is facts alone; its digest is that of the facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel as Pydantic
from pydantic import ConfigDict

from yarn_ops.digests import digest_of


class _Frozen(Pydantic):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tree(_Frozen):
    """A directory in object storage."""

    uri: str
    digest: str  # of file names and contents (`digests.tree_digest`)
    files: int
    size_bytes: int


class Record(_Frozen):
    tree: Tree | None = None
    parents: tuple[str, ...] = ()  # digests of the records it was made from

    @property
    def digest(self) -> str:
        if self.tree is not None:
            return self.tree.digest
        return digest_of(self.model_dump(mode="json", exclude={"tree", "parents"}))


class Corpus(Record):
    """The documents as found: the tree holds `sources.jsonl`, one fingerprinted source file a line."""

    files: int
    size_bytes: int


class LengthShare(_Frozen):
    longer_than_tokens: int
    documents: int
    token_share: float  # of all tokens, 0..1, those in documents longer than that


class Dropped(_Frozen):
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


class Score(_Frozen):
    """One cell of an evaluation."""

    task: str
    """perplexity/single-pass, perplexity/sliding, loss-by-position, recall/code, recall/prose, …"""
    context_tokens: int
    depth: float | None = None
    """where the answer lies, 0 = farthest from the question, 1 = nearest; None: over all depths"""
    value: float
    low: float | None = None
    high: float | None = None  # 95 % interval
    samples: int
    seed: int
    items: tuple[float, ...] = ()
    """what `value` sums up, in an order that is the same for every model: the mean loss of each window in
    nats, or 1 and 0 for each pair found or not; empty where only the sum was kept"""
    error: float = 0.05
    """how often the interval may miss; less where what was asked was looked at several times"""
    stopped: str = ""
    """why fewer samples were asked than might have been; empty: all were"""

    @classmethod
    def of(
        cls, task: str, context_tokens: int, value: float, interval: tuple[float, float] | None,
        samples: int, seed: int, *, depth: float | None = None, items: Sequence[float] = (),
        error: float = 0.05, stopped: str = "",
    ) -> Score:  # fmt: skip
        """With the bounds of its interval, or none."""
        low, high = interval or (None, None)
        return cls(
            task=task, context_tokens=context_tokens, depth=depth, value=value, low=low, high=high,
            samples=samples, seed=seed, items=tuple(items), error=error, stopped=stopped,
        )  # fmt: skip

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; where there is none, the value twice."""
        return self.interval or (self.value, self.value)


@dataclass(frozen=True)
class CellKey:
    """One cell of an evaluation, or a block of one: the same key is the same figures."""

    checkpoint_digest: str
    protocol: str
    """digest of everything else that moves the figures: documents, precision, how much is asked"""
    cell: str
    context_tokens: int
    seed: int


class Scorecard(Record):
    model_digest: str
    original_context_tokens: int
    scores: tuple[Score, ...]

    def score(self, task: str, context_tokens: int, depth: float | None = None) -> Score | None:
        """Of a task at a length, over all depths or at one; None when it was not measured."""
        wanted = (task, context_tokens, depth)
        return next((s for s in self.scores if (s.task, s.context_tokens, s.depth) == wanted), None)

    def value(self, task: str, context_tokens: int) -> float | None:
        """What `score` says over all depths."""
        score = self.score(task, context_tokens)
        return None if score is None else score.value

    def by_length(self, task: str) -> list[Score]:
        """Over all depths, the shortest length first."""
        found = [score for score in self.scores if score.task == task and score.depth is None]
        return sorted(found, key=lambda score: score.context_tokens)

    def by_depth(self, task: str, context_tokens: int) -> list[Score]:
        """At a length, the farthest from the question first."""
        wanted = (task, context_tokens)
        found = [s for s in self.scores if (s.task, s.context_tokens) == wanted and s.depth is not None]
        return sorted(found, key=lambda score: score.depth or 0.0)


Each = TypeVar("Each")


class BeforeAfter(NamedTuple, Generic[Each]):
    """The same of a base, before, and of what was made of it, after."""

    before: Each
    after: Each


class Check(_Frozen):
    """One condition of the gate, as decided."""

    name: str
    measured: float | None
    threshold: float
    passed: bool
    reason: str


class Share(Record):
    """How much of an evaluation one helper has measured; the scores are the evaluation's."""

    blocks: int


class Verdict(Record):
    passed: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> str:
        """The failed checks' reasons in one line; the passed ones' when all passed."""
        return "; ".join(check.reason for check in self.checks if check.passed == self.passed)


class Contender(_Frozen):
    """One arm of a comparison: a method, zero-shot or trained."""

    method: str
    arm: str
    trained_parameters: int
    scores: Scorecard
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.method}, {self.arm}"


class Comparison(Record):
    """Methods side by side; the tree holds table, picture and rows."""

    original_context_tokens: int
    target_context_tokens: int
    contenders: tuple[Contender, ...]
    winner: str | None
    """name of the contender; None when none passed the gate"""
    pictures: tuple[str, ...]


class Fit(Record):
    """Parameters of a RoPE method searched on held-out text; gains are of loss, in nats a token."""

    rope: dict[str, Any]
    """values of a recipe's rope section: what was found, or the method's defaults"""
    adopted: bool
    """whether `rope` is what was found: its gain on fresh text is above 0 with its whole interval"""
    found: dict[str, Any]
    search_gain_nats: float
    """on the text it was chosen by: too good to be true"""
    gain_nats: float
    """of `found` against the defaults, on documents the search has not seen"""
    low_nats: float
    high_nats: float  # 95 % interval of `gain_nats`, over windows
    short_gain_nats: float  # the part of it within the original context
    default_loss_nats: float
    windows: int
    target_context_tokens: int
    unservable: dict[str, str]
    """engines that cannot serve `rope`, with their reasons"""
    evaluations: int
    tokens: int
    seconds: float


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

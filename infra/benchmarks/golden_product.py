"""All that the golden files need of the product, in one place: whoever renames something mends it here.

Nothing here compares or digests; what is kept, golden_topics.py says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from yarn_ops import fit as fitting
from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.haystack import Haystack, held_out_haystack
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader, Window, WindowSampler, spread
from yarn_ops.digests import digest_tree
from yarn_ops.evals import gate as gates
from yarn_ops.evals.capacity import write_capacity
from yarn_ops.evals.cells import lengths_to
from yarn_ops.evals.journal import JsonLines
from yarn_ops.evals.measure import EvaluationRequest, evaluate, measure
from yarn_ops.evals.plan import GRIDS, SIZES, CellPlan, needed_tokens, suite_cells
from yarn_ops.evals.reach import capacity_scores
from yarn_ops.evals.reader import Reader, WholeReader
from yarn_ops.evals.reader_choice import open_reader
from yarn_ops.evals.run import Worker
from yarn_ops.evals.subject import open_subject
from yarn_ops.evals.tasks.recall import recall_examples
from yarn_ops.models.files import read_config
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.loading import load_proven
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Recipe, Rope, parse_recipe
from yarn_ops.records import Adapter, BaseModel, Local, PatchedModel, ShardSet
from yarn_ops.remedies.compare import remedies_of
from yarn_ops.remedies.search import Agent
from yarn_ops.remedies.side_by_side import cases
from yarn_ops.rope.config import patch_config, rope_spec_of
from yarn_ops.scores import BeforeAfter, Scorecard
from yarn_ops.settings import Settings, child_environment
from yarn_ops.shipped import MODELS
from yarn_ops.train.backbone import Backbone, TransformersBackbone
from yarn_ops.train.batches import make_batch
from yarn_ops.train.events import NoEvents
from yarn_ops.train.job import Job
from yarn_ops.train.loop import run_job
from yarn_ops.train.lora import make_trainable, read_facts, read_losses, trained_parameters
from yarn_ops.train.loss import CausalLoss
from yarn_ops.train.merge import merge
from yarn_ops.train.plan import LayerPolicy

__all__ = ["digest_tree"]

BASE512 = MODELS / "base512"
SUITE_TASKS = tuple(GRIDS)


def quiet(done: int, total: int, note: str) -> None: ...


def worker(cells: Path) -> Worker:
    return Worker("cpu", "fp32", JsonLines(cells), quiet)


def cli(state: Path, *arguments: object) -> str:
    """What `yarn-ops …` prints, in a process of its own on a state directory."""
    environment = child_environment({"YARN_OPS_STATE_DIR": str(state), "YARN_OPS_DEVICE": "cpu"})
    command = [sys.executable, "-m", "yarn_ops.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def last_run(state: Path) -> dict[str, Any]:
    """A state directory's last run as `runs show` tells it; every record's tree as a `path` here."""
    run: dict[str, Any] = json.loads(cli(state, "runs", "show", "--last", "--json"))
    for stage in run["stages"]:
        if tree := stage["record"].get("tree"):
            tree["path"] = unquote(urlsplit(tree.pop("uri")).path)
    return run


def mlflow_metrics(state: Path, run_id: str) -> dict[str, float]:
    from mlflow import MlflowClient

    uri = Settings(state_dir=state).mlflow
    return dict(MlflowClient(uri, uri).get_run(run_id).data.metrics)


class Project:
    """What a recipe asks for on the demo's base, done stage by stage in this process, in one directory."""

    def __init__(self, root: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self.root = root
        publish = {"name": "golden"}
        asked = {"base": {"model": "shipped:base512"}, "publish": publish, **sections}
        self.recipe: Recipe = parse_recipe(asked, "golden")
        record = inspect_checkpoint(BASE512, source="shipped:base512", original_context_tokens=None)
        self.base: Local[BaseModel] = Local(record, BASE512)
        self.legs = self.recipe.curriculum(record.context_tokens)

    def prepare(self) -> Local[ShardSet]:
        data, folder = self.recipe.data, self.root / "shards"
        found = Local(corpus.survey(data, LocalFiles(), self.root / "corpus"), self.root / "corpus")
        units = shards.LocalUnits(self.root / "units", LocalFiles(), 1)
        return Local(shards.prepare(data, found, self.base, folder, units=units, report=quiet), folder)

    def patch(self, factor: float) -> Local[PatchedModel]:
        out = self.root / f"patched-{factor:g}"
        return Local(patch(self.recipe.rope, self.base, out, factor=factor), out)

    def train(self, shards: Local[ShardSet]) -> list[tuple[Path, Local[PatchedModel]]]:
        """Every leg's adapter directory, with its patched config; weights are not carried over."""
        done: list[tuple[Path, Local[PatchedModel]]] = []
        for number, leg in enumerate(self.legs):
            patched, folder = self.patch(leg.factor or 1.0), self.root / f"leg-{number}"
            (folder / "work").mkdir(parents=True)
            job = Job(
                train=self.recipe.train.shared_by_legs(), leg=leg, data=leg.data_of(self.recipe.data),
                base_dir=self.base.path, patched_dir=patched.path, shards_dir=shards.path,
                previous_dir=done[-1][0] if done else None,
                keep_optimizer=any(later.carry == "adapter+optimizer" for later in self.legs[number + 1 :]),
                out_dir=folder / "adapter", work_dir=folder / "work", device="cpu", threads=1,
            )  # fmt: skip
            run_job(job, NoEvents(), threading.Event(), None)  # type: ignore[arg-type]
            done.append((job.out_dir, patched))
        return done

    def merge(self, adapter: Path, patched: Local[PatchedModel], shards: Local[ShardSet]) -> tuple[Path, Any]:
        """The merged directory, and the largest difference that rounding made."""
        fields = {name: value for name, value in read_facts(adapter).items() if name in Adapter.model_fields}
        record, out = Adapter(**fields, seconds=0), self.root / "merged"
        made = merge(self.base, patched, Local(record, adapter), shards, out, device="cpu", report=quiet)
        return out, made.merge_difference

    def evaluate(
        self, shards: Local[ShardSet], out: Path, patched: Local[PatchedModel] | None = None
    ) -> Scorecard:
        """The base's scorecard, or what it scores when it is read by a patched config."""
        original = self.base.record.context_tokens
        asked = EvaluationRequest(self.recipe.evaluate, self.base, shards, original, patched=patched)
        return evaluate(asked, out, worker(self.root / f"{out.name}.jsonl"))

    def judge(self, before: Scorecard, after: Scorecard) -> dict[str, Any]:
        original = self.base.record.context_tokens
        target = round(original * self.recipe.rope.resolve_factor(original))
        verdict = gates.judge(self.recipe.gate, BeforeAfter(before, after), target)
        return verdict.model_dump(mode="json", exclude={"tree", "parents"}) | {"reasons": verdict.reasons}

    def fit(self, shards: Local[ShardSet], method: Any, evaluations: int) -> dict[str, Any]:
        found = fitting.fit(
            self.recipe.evaluate, self.recipe.rope, method, self.base, shards, device="cpu",
            precision="fp32", progress=quiet, evaluations=evaluations,
        )  # fmt: skip
        return found.model_dump(mode="json", exclude={"tree", "parents", "seconds"})

    def readable(self, patched: Local[PatchedModel]) -> Path:
        """A model directory: the base's weights with a patched config."""
        shutil.copyfile(self.base.path / "model.safetensors", patched.path / "model.safetensors")
        return patched.path

    def measure_suite(self, suite: Any, model: Path, shards: Local[ShardSet], longest: int) -> SuiteResult:
        """Its scorecard, and its cells by name and length with all their scores."""
        cells, out, subject = self.root / "cells.jsonl", self.root / "capacity", open_subject(model)
        size, lengths = SIZES[suite], lengths_to(longest, self.base.record.context_tokens)
        documents = self.haystack(shards, needed_tokens(size, lengths[-1]))
        plan = CellPlan(tuple(suite_cells(size, lengths, documents, 0)), lengths, 0, documents)
        capacity = measure(subject, plan, subject.digest(), worker(cells))
        write_capacity(capacity, out)
        card = capacity.card.model_copy(
            update={"scores": capacity.card.scores + capacity_scores(capacity.card)}
        )
        return card, cells, out / "scores.json"

    def haystack(self, shards: Local[ShardSet], tokens: int) -> Haystack:
        subject = open_subject(BASE512)
        return held_out_haystack(
            ShardReader(shards.path, "held_out"), Tokenizer(BASE512, subject.vocab_size),
            encode=subject.encode, decode=subject.tokenizer.decode, tokens=tokens,
        )  # fmt: skip


SuiteResult = tuple[Scorecard, Path, Path]


def training_windows(shards: Local[ShardSet], tokens: int, prefer_long: float, count: int) -> list[Window]:
    reader = ShardReader(shards.path, "train")
    sampler = WindowSampler(reader, window_tokens=tokens, seed=0, prefer_long=prefer_long)
    return [sampler.window(number) for number in range(count)]


def held_out_windows(shards: Local[ShardSet], tokens: int, count: int) -> list[Window]:
    return spread(ShardReader(shards.path, "held_out"), tokens, count, 0)


def batch_of(windows: Sequence[Window], document_mask: bool) -> Any:
    return make_batch(windows, device="cpu", document_mask=document_mask)


def config_of(method: str, factor: float, **values: Any) -> dict[str, Any]:
    """base512's config.json patched by a method."""
    rope = Rope.model_validate({"method": method, "factor": factor, **values})
    return patch_config(read_config(BASE512), rope, factor=factor, original_context_tokens=None)[0]


def gradients(
    project: Project, patched: Local[PatchedModel], batch: Any, layers: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch from a seeded start. layers: "own", or those of "transformers"."""
    config = read_config(patched.path)
    model = load_proven(project.base.path, config, rope_spec_of(config), dtype=torch.float32, device="cpu")
    torch.manual_seed(0)
    make_trainable(model, project.recipe.train)
    parameters = trained_parameters(model)
    for name, parameter in parameters.items():
        if "lora_B" in name:  # zero at the start: no gradient would reach lora_A
            torch.nn.init.normal_(parameter, std=0.02)
    model.train()
    windows, tokens = batch.inputs_BT.shape
    backbone: Any = TransformersBackbone(model, torch.float32)
    if layers == "own":
        policies = [LayerPolicy("everything")] * model.config.num_hidden_layers  # however full the machine is
        backbone = Backbone(model, torch.float32, windows=windows, window=tokens, policies=policies)
        assert backbone.fallback_reason is None
    loss = CausalLoss(model, backbone, torch.float32)(batch).total / batch.target_tokens
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in parameters.items()}  # type: ignore[misc]


def losses_of(adapter: Path) -> list[float]:
    return read_losses(adapter)


def recall_samples(texts: Any, template: str, tokens: int) -> list[Any]:
    """Tokens, and (part, start, end) of every answer."""
    subject = open_subject(BASE512)
    examples = recall_examples(list(texts), subject.encode, (template,), tokens, 4, 0)
    found = []
    for example in examples:
        ids, starts = example.in_turn()
        answers = zip(example.questions, starts, strict=True)
        found.append((ids, [(asked.part, at, at + len(asked.answer)) for asked, at in answers]))
    return found


def suite_samples(task: str, haystack: Haystack, tokens: int) -> Sequence[Any]:
    return GRIDS[task](haystack, tokens, 4, 2, 0)


def plain(example: Any) -> Any:
    """Context and questions of one of a suite's examples."""
    names = ("prompt", "answer", "choices", "part", "distance", "planted")
    return example.context, [[getattr(asked, name) for name in names] for asked in example.questions]


class Answering:
    """A model directory that is asked; loaded once."""

    def __init__(self, model_dir: Path) -> None:
        self._subject, self._base = open_subject(model_dir), open_subject(BASE512)
        self._model, self._base_model = self._subject.load("cpu", "fp32"), self._base.load("cpu", "fp32")

    def replies(self, samples: Sequence[Any], shared: bool) -> Iterator[Any]:
        """To every question of some texts, by the reader that shares texts or the one that reads anew."""
        reader: Reader = WholeReader(self._model)
        if shared:
            reader = open_reader(self._model, self._subject.spec)
            assert not isinstance(reader, WholeReader)
        for sample in samples:
            reader.read(sample.context)
            yield from reader.ask(sample.questions)

    def by_remedy(self, cases: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
        """(remedy, question, reply) of every question, and (remedy, None, losses) where a text goes on."""
        remedies, _ = remedies_of(
            self._model, self._base_model, window=self._base.context_tokens, encode=self._subject.encode,
            decode=self._subject.tokenizer.decode,
        )  # fmt: skip
        for remedy in remedies:
            for case in cases:
                remedy.read(case.example.context)
                for question in case.example.questions:
                    (reply,) = remedy.ask([question])
                    yield remedy.name, question.prompt, [*_to_first_wrong(remedy, reply), remedy.seen]
                if len(case.continuation):
                    losses = remedy.losses(case.continuation)
                    yield remedy.name, None, None if losses is None else losses.tolist()


def _to_first_wrong(remedy: Any, reply: Any) -> tuple[int, ...]:
    """What was written, up to and with the first token that is wrong; an agent's whole."""
    if reply.exact or isinstance(remedy, Agent):
        return tuple(reply.written)
    return tuple(reply.written[: reply.right.index(False) + 1])


def remedy_cases(texts: Any, tokens: int) -> Mapping[str, Sequence[Any]]:
    """By task, in the order that they are asked in."""
    subject = open_subject(BASE512)
    found: dict[str, list[Any]] = {}
    for case in cases(texts, subject.encode, ("code", "prose"), tokens, 0):
        found.setdefault(case.task, []).append(case)
    return found


def plain_case(case: Any) -> Any:
    """Document, questions and what the text goes on with."""
    decode = open_subject(BASE512).tokenizer.decode
    asked = [
        [decode(one.prompt), one.prompt, one.answer, one.part, one.planted] for one in case.example.questions
    ]
    return case.example.context, asked, case.continuation

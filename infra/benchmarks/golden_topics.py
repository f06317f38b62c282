"""What the golden files keep, a function a topic. Its values are dicts of numbers, texts and digests.

A digest of what floating point had a part in is marked as `bits:`: it is compared only on a machine like
the one that made it.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden_product as product
import numpy as np
from golden_values import (
    Values,
    bits,
    bits_of,
    card_scores,
    digest,
    facts,
    flat,
    lasting,
    table,
    without,
    written,
)

SMALL_RECIPE = Path(__file__).parents[2] / "tests" / "small_recipe.py"
STDLIB = ("stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py")
LORA: Mapping[str, Any] = {"warmup_steps": 5, "learning_rate": 2e-3, "exercises": {"share": 0.0}}
FULL = {**LORA, "method": "full", "learning_rate": 3e-4, "weight_decay": 0.1}
SHOWN = (".md", ".png", ".html", "manifest.json")
"""files of a release that people read, and the list of all of them: their words are held by unit tests"""
MEASURED_TIMES = (
    "tokens_per_s", "step_s", "data_wait_s", "peak_bytes", "flops_per_s", "mfu", "gpu_utilisation",
)  # fmt: skip
"""of the figures of a step"""
CHANGES = (
    "train.steps=5", "train.checkpoint_every=1", "train.learning_rate=1e-3", "train.context_tokens=128",
    "data.document_mask=false", "data.prefer_long=1", "data.seed=1", "rope.factor=3 evaluate.lengths=[1,3]",
    "evaluate.recall_windows=3", "evaluate.suite=tiny", "gate.min_recall=0.01", "publish.name=other",
)  # fmt: skip
"""of one recipe: after each, which stages run again"""


def data(work: Path) -> Values:
    """Shards, windows, batches, questions, patched configs: no floating point but in the configs."""
    project = product.Project(work, {"data": {"sources": written(work)}, "rope": {"factor": 4}})
    shards = project.prepare()
    haystack = project.haystack(shards, 8000)
    long = product.held_out_windows(shards, 1024, 4)
    texts = np.stack([window.ids for window in long])
    batches = product.training_windows(shards, 256, 0.0, 8)
    return {
        "shards": product.digest_tree(shards.path),
        "shards record": facts(shards.record),
        "patched": product.digest_tree(project.patch(4.0).path),
        "patched by": {
            method: digest(json.dumps(product.config_of(method, 4.0, **values)))
            for method, values in {
                "linear": {}, "ntk": {}, "dynamic-ntk": {}, "by-parts": {}, "yarn": {}, "dynamic-yarn": {},
                "llama3": {},
            }.items()
        },
        "training windows": {
            f"{tokens} tokens, prefer_long {prefer:g}": digest(
                *(part for w in product.training_windows(shards, tokens, prefer, 50)
                  for part in (w.ids, w.segments, w.document_ids))
            )
            for tokens in (256, 1024) for prefer in (0.0, 1.0)
        },
        "held-out windows": {
            tokens: digest(*(window.ids for window in product.held_out_windows(shards, tokens, 20)))
            for tokens in (512, 1024)
        },
        "batches": {
            "document mask" if mask else "no mask": digest(
                batch.inputs_BT, batch.targets_BT, batch.positions_BT, batch.target_tokens
            )
            for mask in (True, False)
            for batch in [product.batch_of(batches, mask)]
        },
        "recall samples": {
            f"{template} at {tokens}": digest(*map(flat, product.recall_samples(texts, template, tokens)))
            for template in ("code", "prose") for tokens in (512, 1024)
        },
        "suite samples": {
            f"{task} at {tokens}": digest(
                *(flat(product.plain(example)) for example in product.suite_samples(task, haystack, tokens))
            )
            for task in product.SUITE_TASKS for tokens in (512, 1024)
        },
        "remedies' cases": {
            task: digest(*(flat(product.plain_case(case)) for case in cases))
            for task, cases in product.remedy_cases(texts, 1024).items()
        },
    }  # fmt: skip


def gradients(work: Path) -> Values:
    """Of one step: own layers and transformers', LoRA and all parameters, with and without document mask."""
    sections = {"data": {"sources": written(work)}, "rope": {"factor": 4}}
    shards = product.Project(work, sections).prepare()
    windows = product.training_windows(shards, 256, 0.0, 2)
    found: Values = {}
    for method, train in {
        "lora": LORA,
        "full": FULL,
        "lora and embeddings": {**LORA, "train_embeddings": True},
    }.items():
        project = product.Project(work / method, {**sections, "train": train})
        patched = project.patch(4.0)
        for mask in (True, False):
            for layers in ("own", "transformers"):
                batch = product.batch_of(windows, mask)
                loss, tensors = product.gradients(project, patched, batch, layers)
                found[f"{method}, {layers} layers, {'document mask' if mask else 'no mask'}"] = {
                    "loss": loss,
                    **{name: [bits(grad), grad.norm().item()] for name, grad in tensors.items()},
                }
    return found


def losses(work: Path) -> Values:
    """50 steps: packed with document mask, then a merge; two legs."""
    legs = [
        {"context_tokens": 128, "steps": 25, "factor": 2},
        {"context_tokens": 192, "steps": 25, "factor": 4, "carry": "adapter+optimizer", "prefer_long": 0.5},
    ]
    return {
        "packed, document mask": _trained(
            work / "packed",
            {"document_mask": True},
            {**LORA, "steps": 50, "context_tokens": 192},
            merged=True,
        ),
        "two legs": _trained(work / "legs", {}, {**LORA, "legs": legs}),
    }


def losses_more(work: Path) -> Values:
    """50 steps: packed without a mask; all parameters, then a merge."""
    full = {**FULL, "steps": 50, "context_tokens": 96, "gradient_accumulation_steps": 2}
    return {
        "packed, no mask": _trained(
            work / "packed", {"document_mask": False}, {**LORA, "steps": 50, "context_tokens": 192}
        ),
        "all parameters": _trained(work / "full", {"prefer_long": 1}, full, merged=True),
    }


def _trained(work: Path, data: Values, train: Mapping[str, Any], *, merged: bool = False) -> Values:
    """Losses and adapters of every leg; the merged files' digests where asked for."""
    sections = {"data": {"sources": written(work), **data}, "rope": {"factor": 4}, "train": train}
    project = product.Project(work, sections)
    shards = project.prepare()
    done = project.train(shards)
    found: Values = {
        "losses": [loss for adapter, _ in done for loss in product.losses_of(adapter)],
        "adapters": [
            {file: bits_of(digest) for file, digest in product.digest_tree(adapter).items()}
            for adapter, _ in done
        ],
    }
    if merged:
        folder, difference = project.merge(*done[-1], shards)
        files = {file: bits_of(digest) for file, digest in product.digest_tree(folder).items()}
        found["merged"] = files | {"largest difference": bits(np.asarray(difference))}
    return found


def scores(work: Path) -> Values:
    """The scorecards of base512 and of it read by YaRN ×2, and what a gate says to them."""
    sections = {
        "data": {"sources": written(work), "held_out_fraction": 0.3},
        "rope": {"factor": 2},
        "evaluate": {
            "lengths": [0.5, 1, 2], "windows": 3, "recall_windows": 2, "sliding_stride_tokens": 128,
            "templates": ["code", "prose"],
        },
    }  # fmt: skip
    project = product.Project(work, sections)
    shards = project.prepare()
    before = project.evaluate(shards, work / "before")
    after = project.evaluate(shards, work / "after", project.patch(2.0))
    return {
        "before": table(card_scores(before)),
        "after": table(card_scores(after)),
        "gate": project.judge(before, after),
    }


def answers(work: Path) -> Values:
    """Replies to questions, one by one: of the suite's readers, and of every remedy."""
    project = product.Project(work, {"data": {"sources": written(work)}, "rope": {"factor": 2}})
    shards = project.prepare()
    asked = product.Answering(project.readable(project.patch(2.0)))
    haystack = project.haystack(shards, 8000)
    texts = np.stack([window.ids for window in product.held_out_windows(shards, 1024, 1)])
    found: Values = {}
    for task in ("needle/code", "needle/prose", "multi-key", "copy"):
        samples = product.suite_samples(task, haystack, 600)[2:4]
        for shared, some in ((True, samples), (False, samples[:1])):  # whole reading takes long
            found[f"{task}, {'shared' if shared else 'whole'} reading"] = [
                [*reply.right, reply.nll, reply.chosen] for reply in asked.replies(some, shared)
            ]
    for task, cases in product.remedy_cases(texts, 1024).items():
        for remedy, question, reply in asked.by_remedy(cases[:1]):
            row = reply if question is None else [digest(question), *reply]
            found.setdefault(f"{remedy}, {task}", []).append(row)
    return found


def suite_tiny(work: Path) -> Values:
    """The tiny suite on base512 read by YaRN ×4, and a fit of few evaluations, on standard modules."""
    sections: Values = {
        "data": {"sources": STDLIB, "held_out_fraction": 0.5}, "rope": {"factor": 4},
        "evaluate": {"windows": 4},
    }  # fmt: skip
    project = product.Project(work, sections)
    shards = project.prepare()
    fitted = {method: project.fit(shards, method, 5) for method in ("yarn", "longrope")}
    model = project.readable(project.patch(4.0))
    card, cells, capacity = project.measure_suite("tiny", model, shards, 2048)
    rows = [json.loads(line) for line in cells.read_text("utf-8").splitlines()]
    return {
        "shards": product.digest_tree(shards.path),
        "scores": table(card_scores(card)),
        "cells": {
            f"{row['key']['cell']} at {row['key']['context_tokens']}": {
                "key": row["key"], "scores": table(row["scores"])
            }
            for row in rows
        },
        "capacity": without(json.loads(capacity.read_text("utf-8")), "scores", "name"),
        "fit": fitted,
    }  # fmt: skip


def demo(work: Path) -> Values:
    """`yarn-ops extend demo`, whole: every record, the losses, and the released files."""
    product.cli(work, "extend", "demo")
    return ran(work)


def quick(work: Path) -> Values:
    """The same with the quick suite of base and result; `demo` in the same directory is reused."""
    product.cli(work, "extend", "demo", "--set", "evaluate.suite=quick")
    return ran(work)


def remedies(work: Path) -> Values:
    """`yarn-ops remedies` on base512 read by YaRN ×4."""
    shown = product.cli(
        work, "remedies", "shipped:base512", "--factor", 4, "--length", 1536, "--windows", 4, "--documents",
        STDLIB[1], "--documents", STDLIB[2], "--templates", "code,prose", "--json",
    )  # fmt: skip
    side = json.loads(shown)
    kept = ("prepare_tokens", "answer_tokens", "seen_tokens")
    return {
        row["remedy"]: {"scores": table(row["scores"]), **{name: row[name] for name in kept}}
        for row in side["rows"]
    }


def stages(work: Path) -> Values:
    """Which stages run again after a change of the small recipe that tests use; the others are reused."""
    recipe = work / "small.toml"
    recipe.write_text(runpy.run_path(str(SMALL_RECIPE))["SMALL"], "utf-8")
    found = {}
    for change in ("", *CHANGES):
        product.cli(work, "extend", recipe, *(word for part in change.split() for word in ("--set", part)))
        used = product.last_run(work)["stages"]
        found[change or "nothing was there"] = [stage["stage"] for stage in used if not stage["reused"]]
    return found


TOPICS: dict[str, Callable[[Path], Values]] = {
    "data": data, "gradients": gradients, "losses": losses, "losses-more": losses_more,
    "scores": scores, "answers": answers, "suite-tiny": suite_tiny, "remedies": remedies, "demo": demo,
    "quick": quick, "stages": stages,
}  # fmt: skip
READS_STDLIB = ("suite-tiny", "remedies", "demo", "quick", "stages")
"""topics whose documents are the running Python's own source"""


def ran(state: Path) -> Values:
    """The last run of a state directory: of its stages what lasts, scores by model and stage."""
    run = product.last_run(state)
    records = {stage["stage"]: stage["record"] for stage in run["stages"]}
    result = records["merge"]["tree"]["digest"]

    def whose(digest: str, stage: str) -> str:
        return f"{'after' if digest == result else 'before'}, {stage}"

    found: Values = {"status": run["status"], "scores": {}, "capacity": {}}
    for stage in run["stages"]:
        record = stage["record"]
        if "scores" in record:
            name = whose(record["model_digest"], stage["stage"])
            found["scores"][name] = table(record["scores"])
            page = Path(record["tree"]["path"]) / "capacity.json"
            if page.is_file():
                capacity = json.loads(page.read_text("utf-8"))
                found["capacity"][name] = lasting(without(capacity, "scores", "name"))
    found["scores in the registry"] = dict(
        Counter(whose(score["checkpoint_digest"], score["stage"]) for score in run["scores"])
    )
    found["records"] = {
        name: lasting(without(record, "parents"), exact=name in ("base", "documents", "shards"))
        for name, record in records.items()
        if "scores" not in record and name != "report"
    }
    found["MLflow"] = {
        name: value
        for name, value in sorted(product.mlflow_metrics(state, run["mlflow_run_id"]).items())
        if name.startswith("train/") and name.rpartition("/")[2] not in MEASURED_TIMES
    }
    curve = Path(records["train"]["tree"]["path"]) / "curve.jsonl"
    found["curve"] = [json.loads(line) for line in curve.read_text("utf-8").splitlines()]
    release, pulled = records["publish"], state / f"pulled-{run['id']}"
    product.cli(state, "pull", release["name"], "--version", release["version"], "--to", pulled)
    files = product.digest_tree(pulled).items()
    found["released"] = {file: bits_of(sha) for file, sha in files if not file.endswith(SHOWN)}
    return found

"""With a document mask a class reads packed documents as it reads each alone, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bases import TARGETS, lay_down, small_config
from transformers import AutoModelForCausalLM

from yarn_ops.data.layout import ShardWriter, TokenWriter
from yarn_ops.errors import TrainError
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.loading import _build
from yarn_ops.models.patch import patch
from yarn_ops.recipe import Leg, Rope, Train
from yarn_ops.records import Local
from yarn_ops.rope.architectures import ARCHITECTURES
from yarn_ops.train.backbone import SEES_PAST_DOCUMENTS, TransformersBackbone
from yarn_ops.train.job import Job
from yarn_ops.train.rehearsal import rehearse

FEW = ("gemma2", "gpt_oss", "mixtral", "qwen3_next")
LENGTHS = ((20, 28), (7, 41))
HYBRID = {"lfm2": {"layer_types": ["conv", "full_attention"] * 2}}
"""what a small config of the class would leave out"""


def largest_difference(model_type: str) -> float:
    """Of hidden states: documents packed into windows, and each alone."""
    torch.manual_seed(0)
    config = small_config(model_type, **HYBRID.get(model_type, {}))
    built, attention = _build(json.loads(config.to_json_string(use_diff=False)))
    model: Any = AutoModelForCausalLM.from_config(built, attn_implementation=attention).eval()
    backbone = TransformersBackbone(model, torch.float32)
    ids = torch.randint(3, 500, (len(LENGTHS), sum(LENGTHS[0])))
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    with torch.no_grad():
        packed = backbone(ids, positions)
        alone = [
            torch.cat([backbone(document[None], None)[0] for document in row.split(list(lengths))])
            for row, lengths in zip(ids, LENGTHS, strict=True)
        ]
    return float((packed - torch.stack(alone)).abs().max())


def check(model_type: str) -> None:
    stays = largest_difference(model_type) < 1e-4
    assert stays == (model_type not in SEES_PAST_DOCUMENTS)


@pytest.mark.parametrize("model_type", FEW)
def test_a_few_classes_are_told_right(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_class_is_told_right(model_type: str) -> None:
    check(model_type)


def test_a_class_that_sees_past_documents_is_refused_before_they_are_read(tmp_path: Path) -> None:
    asked = lay_down("qwen3_next", tmp_path / "base")
    base = inspect_checkpoint(tmp_path / "base", source="base", original_context_tokens=asked)
    patched = patch(Rope(factor=4.0), Local(base, tmp_path / "base"), tmp_path / "patched", factor=4.0)
    legs = [Leg(context_tokens=256, steps=2, factor=4.0)]
    train, local = Train(targets=TARGETS["all-linear"]), Local(patched, tmp_path / "patched")
    rehearse(train, legs, local, device="cpu", processes=1)
    with pytest.raises(TrainError, match=r"^data\.document_mask: layers of qwen3_next see past .+ to false$"):
        rehearse(train, legs, local, True, device="cpu", processes=1)


@pytest.fixture
def one_token_documents(tmp_path: Path) -> Path:
    folder, dtype = tmp_path / "one-token-documents", np.dtype("<u2")
    folder.mkdir()
    with ShardWriter(folder, dtype) as writer, TokenWriter(folder / "tokens-00000.bin", dtype) as file:
        for number in range(400):
            writer.index("train", f"document-{number:03}", file.append(np.array([number % 90], dtype)))
        writer.index("held_out", "held-out", file.append(np.arange(200, dtype=dtype) % 90))
    writer.finish([file.tokens], {})
    return folder


def test_documents_of_one_token_leave_nothing_to_predict_behind_a_mask(
    make_job: Callable[..., Job], trained: Callable[[Job], Job], one_token_documents: Path
) -> None:
    shards = {"shards_dir": one_token_documents}
    with pytest.raises(
        TrainError, match=r"^training: nothing is to be predicted in step 1, .+ one token each"
    ):
        trained(make_job(**shards, data={"document_mask": True}))


def test_a_fault_names_a_few_of_many_documents(
    make_job: Callable[..., Job], trained: Callable[[Job], Job], one_token_documents: Path
) -> None:
    with pytest.raises(TrainError, match=r"document-\d+ and \d+ more: look at them") as fault:
        trained(make_job(shards_dir=one_token_documents, alpha=1e38, warmup_steps=0))
    assert str(fault.value).count("document-") == 8

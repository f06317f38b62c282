"""Fixtures of the data path: the shipped base, and a corpus prepared in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yarn_ops.data.corpus import survey
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local, ShardSet
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"

Prepare = Callable[..., Local[ShardSet]]


@pytest.fixture(scope="session")
def base() -> Local[BaseModel]:
    record = BaseModel(
        source="shipped:base512",
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=5_000_000,
        vocab_size=8192,
        context_tokens=512,
        head_dim=64,
        rope_theta=10_000.0,
    )
    return Local(record, BASE512)


@pytest.fixture
def prepare_sources(tmp_path: Path, base: Local[BaseModel]) -> Prepare:
    """prepare_sources(*patterns, workers=2, **data) surveys and prepares into a new directory."""
    runs = iter(range(1000))

    def run(*patterns: Path | str, workers: int = 2, **data: object) -> Local[ShardSet]:
        recipe = Data.model_validate({"sources": tuple(map(str, patterns)), **data})
        place = tmp_path / f"prepared-{next(runs)}"
        corpus = Local(survey(recipe, LocalFiles(), place / "corpus"), place / "corpus")
        out = place / "shards"
        shards = prepare(
            recipe,
            corpus,
            base,
            out,
            units=LocalUnits(place / "units", LocalFiles(), workers),
            report=lambda *_: None,
        )
        return Local(shards, out)

    return run

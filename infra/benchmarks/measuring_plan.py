"""What a recipe asks of a base of some shape and of its result, and the part of it that is measured."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train_step import SHAPES, SMALL
from transformers import LlamaConfig

from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.haystack import Haystack, held_out_haystack
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import ShardReader
from yarn_ops.evals.cells import Cell, lengths_to
from yarn_ops.evals.plan import SIZES, needed_tokens, suite_cells
from yarn_ops.evals.scorecard import scorecard_cells
from yarn_ops.evals.subject import Subject
from yarn_ops.models.checkpoints import load_tokenizer
from yarn_ops.models.files import CONFIG
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.recipe import Recipe
from yarn_ops.records import Local
from yarn_ops.rope.config import rope_spec_of

BASE, RESULT = "base", "result"
NAMED = {**SHAPES, "small": SMALL | {"vocab_size": 49_152}}
"""small: to try the script"""
CellKey = tuple[str, int]


@dataclass(frozen=True)
class Plan:
    """What is asked of both models, and the part of it that is measured."""

    subject: Subject
    """of the base's shape"""
    haystack: Haystack
    whole: dict[CellKey, Cell]
    part: dict[CellKey, Cell]
    made_s: float
    """of making the texts of the whole plan, once a model"""
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, asked: argparse.Namespace, folder: Path) -> Plan:
        model = folder / "model"
        shutil.copytree(asked.tokenizer, model, ignore=shutil.ignore_patterns("*.safetensors", "*.jinja"))
        config = config_of(asked, 1)
        (model / CONFIG).write_text(json.dumps(config.to_dict()))
        original, target = asked.original, round(recipe.rope.resolve_factor(asked.original) * asked.original)
        local = LocalFiles()
        of = inspect_checkpoint(asked.tokenizer, source="", original_context_tokens=None)
        documents = Local(corpus.survey(recipe.data, local, folder / "corpus"), folder / "corpus")
        units = shards.LocalUnits(folder / "units", local, 1)
        shards.prepare(
            recipe.data, documents, Local(of, asked.tokenizer), folder / "shards", units=units,
            report=lambda *_: None,
        )  # fmt: skip
        tokenizer = load_tokenizer(asked.tokenizer)

        def encode(text: str) -> Any:
            return tokenizer.encode(text, add_special_tokens=False, verbose=False)

        values = json.loads((model / CONFIG).read_text())
        subject = Subject(
            model, asked.shape, values, rope_spec_of(values), True, original, original, encode, tokenizer
        )
        section, reader = recipe.measured(original), ShardReader(folder / "shards", "held_out")
        began = time.perf_counter()
        scorecard = scorecard_cells(section, reader, "", encode, original, tokenizer.decode, target)
        size, reach = SIZES[section.suite], lengths_to(target, original)
        haystack = held_out_haystack(
            reader, Tokenizer(asked.tokenizer, of.vocab_size), encode=encode, decode=tokenizer.decode,
            tokens=needed_tokens(size, reach[-1]), seed=section.seed,
        )  # fmt: skip
        haystack = replace(haystack, chat=subject.chat)
        whole = [*scorecard, *suite_cells(size, reach, haystack, section.seed, beside=scorecard)]
        made_s = time.perf_counter() - began
        less = section.model_copy(update={"windows": 2, "recall_windows": 1})  # of one, no other is foreign
        part = scorecard_cells(less, reader, "", encode, original, tokenizer.decode, target)
        part += suite_cells(replace(size, texts=1, windows=1), reach, haystack, section.seed, beside=part)
        return cls(
            subject, haystack, *({(cell.name, cell.context_tokens): cell for cell in cells} for cells in
            (whole, part)), made_s, section.seed,
        )  # fmt: skip

    def asked(self, key: CellKey, model: str) -> int:
        """Tokens that the plan asks of a cell."""
        cell = self.whole[key]
        undecided = model == RESULT or cell.context_tokens <= self.subject.original_context_tokens
        some = cell.blocks if undecided or not cell.looks else cell.blocks[: cell.looks[0]]
        return sum(block.tokens for block in some)


def family(key: CellKey) -> CellKey:
    """Cells whose templates differ alone: they take the same."""
    return key[0].partition("/")[0], key[1]


def config_of(asked: argparse.Namespace, factor: float) -> LlamaConfig:
    """Of the shape: the base's (factor 1), or its result's."""
    shape = NAMED[asked.shape] | ({"num_hidden_layers": asked.layers} if asked.layers else {})
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e5}
    if factor != 1:
        rope |= {"rope_type": "yarn", "factor": factor}
        rope["original_max_position_embeddings"] = asked.original
    config = LlamaConfig(
        **shape, max_position_embeddings=round(factor * asked.original), rope_parameters=rope,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config

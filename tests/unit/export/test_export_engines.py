"""What is said of engines: the classes that each reads, and the page of all of them."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from gguf import MODEL_ARCH_NAMES
from pages import CHECKOUT

from yarn_ops.export.engines import GGUF_ARCHITECTURES, OLD_VLLM, READS


def test_every_engine_registers_the_classes_that_it_is_said_to_read():
    """Against lists that infra/benchmarks/engine_classes.py reads off the engines' own sources."""
    known = json.loads(Path(__file__).with_name("engine_classes.json").read_text())
    assert READS["vllm"] <= set(known["vllm-0.30.0"]) & set(known["vllm-0.33.0"])
    assert READS["vllm-0.29"] <= set(known["vllm-0.29.0"])
    assert READS["sglang"] <= set(known["sglang-0.5.23"])
    assert READS["mlx"] <= set(known["mlx_lm-0.32.2"])
    for model_type, requires in OLD_VLLM.items():
        floor = re.search(r">=([\d.]+)", requires)[1]
        assert model_type in known[f"vllm-{floor if floor.count('.') > 1 else f'{floor}.0'}"]
    assert set(GGUF_ARCHITECTURES.values()) <= set(MODEL_ARCH_NAMES.values())


def test_the_page_of_engines_is_what_the_rules_say():
    written = runpy.run_path(str(CHECKOUT / "infra/benchmarks/engines.py"))
    assert written["PAGE"].read_text("utf-8") == written["table"]()

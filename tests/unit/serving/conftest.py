"""base512, taken for a model of 64 tokens and extended ×4 to 256, with its fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yarn_ops.recipe import Rope
from yarn_ops.rope.config import patch_config
from yarn_ops.serving.fingerprint import FINGERPRINT, Fingerprint
from yarn_ops.serving.measure import make_fingerprint

ORIGINAL_TOKENS, FACTOR = 64, 4.0


@pytest.fixture(scope="session")
def measured(base512: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a fingerprint."""
    out = tmp_path_factory.mktemp("served") / "measured"
    shutil.copytree(base512, out, ignore=shutil.ignore_patterns("pretrain.json"))
    config = {**json.loads((out / "config.json").read_bytes()), "max_position_embeddings": ORIGINAL_TOKENS}
    patched, _ = patch_config(
        config, Rope(method="yarn", factor=FACTOR), factor=FACTOR, original_context_tokens=ORIGINAL_TOKENS
    )
    (out / "config.json").write_text(json.dumps(patched))
    made = make_fingerprint(out, device="cpu", report=lambda done, total, note: None)
    (out / FINGERPRINT).write_bytes(made.to_bytes())
    return out


@pytest.fixture(scope="session")
def fingerprint(measured: Path) -> Fingerprint:
    return Fingerprint.model_validate_json((measured / FINGERPRINT).read_bytes())

"""A writable copy of the shipped base, and ways to change it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yarn_ops.shipped import MODELS

BASE = MODELS / "base512"


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model"
    return shutil.copytree(BASE, path)


@pytest.fixture
def edit():
    def edit(file: Path, **changes: object) -> None:
        """Change a JSON object on disk; ... removes a key."""
        value = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: kept for key, kept in value.items() if kept is not ...}))

    return edit


@pytest.fixture
def replace_weights():
    def replace(path: Path, change) -> None:
        """Rewrite model.safetensors through `change(tensors)`, which edits the dict in place."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(path / "model.safetensors")
        change(tensors)
        (path / "model.safetensors").unlink()
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    return replace


@pytest.fixture
def shard():
    def shard(path: Path) -> dict:
        """Split model.safetensors in two with an index, as large models come; returns the index."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        names = sorted(tensors)
        weight_map = {}
        for number, part in enumerate((names[:10], names[10:]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, path / file, {"format": "pt"})
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return index

    return shard

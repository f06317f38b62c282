"""A recipe that runs whole in seconds, for whoever runs one; and the least that a recipe says."""

from __future__ import annotations

from typing import Any

from yarn_ops.recipe import Recipe, parse_recipe

SMALL = """\
[base]
model = "shipped:base512"
[rope]
factor = 2
[data]
sources = ["stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py"]
[train]
steps = 4
checkpoint_every = 2
context_tokens = 256
[evaluate]
lengths = [1, 2]
windows = 2
recall_windows = 2
templates = ["code"]
[gate]
min_recall_kept = 0
min_uses_share = 0
max_short_growth = 2
max_long_growth = 3
max_short_recall_loss = 1
[publish]
name = "small"
"""
"""A whole extension in seconds: base512 ×2, four steps on a few modules, two windows a cell."""

NAMED = {
    "base": {"model": "shipped:base512"},
    "data": {"sources": ["stdlib:json/*.py"]},
    "publish": {"name": "small"},
}
"""What every recipe has to name."""


def asked(**sections: Any) -> Recipe:
    """A recipe of these sections' values, with what has to be named where they leave it out."""
    return parse_recipe(
        {name: NAMED.get(name, {}) | sections.get(name, {}) for name in {**NAMED, **sections}}
    )

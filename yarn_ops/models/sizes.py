"""Sizes that config.json states, held against those of the tensors, before anything is made by them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yarn_ops.errors import BaseModelError

Shapes = Mapping[str, tuple[int, ...]]

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
SIZE = re.compile(r"^(num|n)_(?!param)|(^|_)(size|dim|heads|layers|layer|experts|rank|width|embd|inner)$")
MOST_CONTEXT_TOKENS = 1 << 30
CONTEXTS = re.compile(r"max_position_embeddings|n_positions|max_seq_len|n_ctx")


def check_sizes(where: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """BaseModelError where a size is larger than any tensor has, or there are more layers than tensors.

    Sizes of objects within the config count as well.
    """
    longest = max((max(shape, default=0) for shape in shapes.values() if math.prod(shape)), default=0)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(where, value, shapes)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        most = len(shapes) if key in LAYERS else max(longest, len(shapes))
        if CONTEXTS.search(key):
            most = MOST_CONTEXT_TOKENS
        elif not SIZE.search(key):
            continue
        if value > most:
            raise BaseModelError(
                f"{where}: {key} is {value}, and the weights have room for {most}; "
                "weights and config are not of one model, download both again"
            )

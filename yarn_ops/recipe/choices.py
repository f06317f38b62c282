"""Names that a recipe or a command chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from yarn_ops.errors import RecipeError

RopeMethod = Literal[
    "none", "linear", "ntk", "dynamic-ntk", "by-parts", "yarn", "dynamic-yarn", "llama3", "longrope", "abf"
]
SuiteName = Literal["tiny", "quick", "full"]
SuiteChoice = Literal["none", "tiny", "quick", "full"]
"""one flat list: a run form shows a union as alternatives"""
FittedMethod = Literal["yarn", "longrope"]
"""methods with parameters that can be searched for"""


def parse_methods(names: Sequence[str]) -> list[RopeMethod]:
    """The RoPE methods of these names; RecipeError for an unknown one, or one that is there twice."""
    known: tuple[Any, ...] = get_args(RopeMethod)
    for place, name in enumerate(names):
        if name not in known:
            raise RecipeError(f"method {name!r} is unknown; known are {', '.join(known)}")
        if name in names[:place]:
            raise RecipeError(f"method {name!r} is named twice; name it once")
    return [known[known.index(name)] for name in names]

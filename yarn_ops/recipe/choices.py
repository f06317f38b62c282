"""Names that a recipe or a command chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from yarn_ops.errors import RecipeError

RopeMethod = Literal[
    "none", "linear", "ntk", "dynamic-ntk", "by-parts", "yarn", "dynamic-yarn", "llama3", "longrope", "abf"
]
FittedMethod = Literal["yarn", "longrope"]
"""methods with parameters that can be searched for"""
Arm = Literal["zero-shot", "lora", "full"]
"""of a comparison: patched and not trained, trained adapters, all parameters trained"""


def parse_methods(names: Sequence[str]) -> list[RopeMethod]:
    """The RoPE methods of these names; RecipeError for an unknown one."""
    return _known(names, RopeMethod, "method")


def parse_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of these names; RecipeError for an unknown one."""
    return _known(names, Arm, "arm")


def _known(names: Sequence[str], kind: Any, what: str) -> Any:
    for name in names:
        if name not in get_args(kind):
            raise RecipeError(f"{what} {name!r} is unknown; known are {', '.join(get_args(kind))}")
    return list(names)

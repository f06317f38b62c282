"""What an action is refused with."""

from __future__ import annotations

from collections.abc import Callable

from yarn_ops.errors import YarnOpsError


def told_of(action: Callable[[], object]) -> YarnOpsError | None:
    """The refusal, None where there is none; anything else fails the test."""
    try:
        action()
    except YarnOpsError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return error
    return None

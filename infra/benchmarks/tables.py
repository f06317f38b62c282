"""Exercises other than the product's, to find out what finds rows of a table far away.

    python infra/benchmarks/tables.py BASE DOCUMENTS_GLOB OUT exercises:table=1:codes=long [ARM …] --batch 1

An ARM as in use.py, with further keys; where one is left out it is the product's.

    table     weight of tables among the families
    codes     long: all codes have 6 to 32 symbols instead of 6 to 11
    far       1: facts nearer to the window's begin, questions nearer to its end
    quoted, continued    tokens of a passage that are quoted, and that are asked for

With `--factor 8` and the key context=32768 windows are as long as a factor of 4 has them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from yarn_ops.exercises import draw, families, windows

KEYS = ("table", "codes", "far", "quoted", "continued")
LENGTHS = (6, 9, 12, 16, 20, 24, 32)
"""of long codes: evaluations ask for eight symbols, and for five and seven digits"""
FAR = (2.5, 5)
OWN: dict[str, Any] = {
    "families": dict(families.FAMILIES),
    "alphabets": draw.ALPHABETS,
    "places": (draw.TOWARDS_BEGIN, draw.TOWARDS_END),
    "passage": (families.QUOTED_TOKENS, families.CONTINUED_TOKENS),
}


def apply(keys: dict[str, str]) -> None:
    """Draw exercises as an arm's keys say, and the product's in all else."""
    table, weight = OWN["families"]["table"]
    changed = OWN["families"] | {"table": (table, float(keys.get("table") or weight))}
    for module in (families, windows):
        module.FAMILIES = changed  # type: ignore[misc]
    long = keys.get("codes") == "long"
    alphabets = (replace(one, lengths=LENGTHS) if long else one for one in OWN["alphabets"])
    draw.ALPHABETS = tuple(alphabets)  # type: ignore[misc]
    draw.TOWARDS_BEGIN, draw.TOWARDS_END = FAR if keys.get("far") else OWN["places"]
    quoted, continued = OWN["passage"]
    families.QUOTED_TOKENS = int(keys.get("quoted") or quoted)
    families.CONTINUED_TOKENS = int(keys.get("continued") or continued)


# Windows are made in a process of its own, which reads this file again: its arm is in the environment.
apply({key: os.environ.get(f"TABLES_{key}", "") for key in KEYS})

if __name__ == "__main__":
    from use import Bench, main

    class TableBench(Bench):
        """Trains on the exercises that an arm names."""

        def train(self, name: str, keys: dict[str, str]) -> tuple[Any, list[dict[str, Any]]]:
            os.environ.update({f"TABLES_{key}": keys.get(key, "") for key in KEYS})
            apply(keys)
            return super().train(name, keys)

    main(TableBench, __doc__)

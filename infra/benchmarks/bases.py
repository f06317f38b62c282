"""Which classes of transformers can be extended: each on its way, random and small.

python infra/benchmarks/bases.py          writes infra/benchmarks/results/bases.md
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers  # noqa: E402
from tiny_bases import REFUSED, TARGETS, Outcome, go, lay_shards, rotating  # noqa: E402
from transformers.utils import logging  # noqa: E402

from yarn_ops.export.engines import REFUSED as NOWHERE  # noqa: E402

PAGE = Path(__file__).with_name("results") / "bases.md"


def main() -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        lay_shards(Path(name) / "shards")
        for model_type in sorted(rotating()):
            found[model_type] = [
                go(model_type, targets, Path(name) / model_type / asked, Path(name) / "shards")
                for asked, targets in TARGETS.items()
            ]
            print(model_type, *(outcome.stage for outcome in found[model_type]), flush=True)
    merged = [name for name, outcomes in found.items() if any(one.stage == "merged" for one in outcomes)]
    late = [
        name
        for name, outcomes in found.items()
        if any(one.stage in ("training", "merge") for one in outcomes)
    ]
    lines = [
        "# Classes of bases",
        "",
        f"{len(found)} causal classes of transformers {transformers.__version__} rotate. A small random "
        "model of each is read, patched (YaRN ×4), proven, trained for two steps, merged and reloaded with "
        "equal logits: "
        f"{len(merged)} go the whole way, {len(found) - len(merged)} are refused when the base is fetched, "
        f"{len(late)} are refused later. {time.monotonic() - started:.0f} s on one core; "
        "written by `python infra/benchmarks/bases.py`.",
        "",
        "| model_type | default targets | all-linear | served by | asked for another engine |",
        "|---|---|---|---|---|",
    ]
    for model_type in merged:
        default, linear = found[model_type]
        lines.append(
            f"| {model_type} | {_told(default)} | {_told(linear)} | {linear.engines} | {_reasons(linear)} |"
        )
    lines += ["", "Refused:", "", "| model_type | why |", "|---|---|"]
    for model_type in found:
        if model_type not in merged:
            why = found[model_type][0].why.partition(": known are ")[0].partition("; known are ")[0]
            lines.append(f"| {model_type} | {why} |")
    PAGE.write_text("\n".join(lines) + "\n", "utf-8")
    return bool(late)


def _reasons(outcome: Outcome) -> str:
    """Why the engines that do not serve it refuse, each reason once."""
    by_reason: dict[str, list[str]] = {}
    for engine, told in outcome.exports.items():
        if told.startswith(REFUSED):
            reason = told.removeprefix(REFUSED).rpartition(": ")[2].partition(";")[0]
            by_reason.setdefault(reason.replace(f"{engine} ", "it "), []).append(engine)
    everywhere = set(NOWHERE)
    named = {
        reason: [one for one in engines if one not in everywhere] for reason, engines in by_reason.items()
    }
    return "; ".join(f"{', '.join(engines)}: {reason}" for reason, engines in named.items() if engines)


def _told(outcome: Outcome) -> str:
    return "merged" if outcome.stage == "merged" else "has other names: name its layers, or all-linear"


if __name__ == "__main__":
    sys.exit(main())

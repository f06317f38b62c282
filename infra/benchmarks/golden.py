"""Keep today's figures in tests/golden, or tell what has changed.   golden.py --make|--check [TOPIC …]

On a machine like the one that made a file (torch, processor, threads) values are compared to the last bit.
Elsewhere numbers may differ by the file's tolerance, and digests of floating point (`bits:`) are not
compared; integers, texts and digests of samples are. `--into FOLDER` makes or compares others.

Exit status: 0 all equal, 1 something differs, 3 nothing differs, but a topic was left out because its
documents are the standard library of another Python.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
TOLERANCE = {
    "gradients": 1e-4,
    "losses": 1e-3,
    "losses-more": 1e-3,
    "scores": 1e-4,
    "answers": 1e-3,
    "suite-tiny": 1e-3,
    "remedies": 1e-3,
    "demo": 0.02,
    "quick": 0.05,
}
"""relative, of topics that compute longer than the usual 1e-5 leaves room for"""
DIFFERENCES_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", action="store_true")
    what.add_argument("--check", action="store_true")
    parser.add_argument("--into", type=Path, default=GOLDEN, metavar="FOLDER")
    parser.add_argument("topics", nargs="*", metavar="TOPIC")
    asked = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: part of what is compared
    from golden_topics import READS_STDLIB, TOPICS

    topics = asked.topics or list(TOPICS)
    if unknown := set(topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    here, differ, left_out = environment(), False, False
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        for topic in topics:
            place = asked.into / f"values_{topic.replace('-', '_')}.json"
            kept = None if asked.make else json.loads(place.read_text("utf-8"))
            if kept and topic in READS_STDLIB and kept["made"]["python"] != here["python"]:
                print(f"{topic}: left out, its documents are those of Python {kept['made']['python']}")
                left_out = True
                continue
            started = time.process_time()
            work = Path(folder) / ("demo" if topic == "quick" else topic)  # quick goes on from demo
            work.mkdir(exist_ok=True)
            values = json.loads(json.dumps(TOPICS[topic](work)))
            took_s = time.process_time() - started
            if kept is None:
                made = {"made": here, "tolerance": TOLERANCE.get(topic, 1e-5), "values": values}
                place.write_text(lines_of(made) + "\n", "utf-8")
                print(f"{topic}: made in {took_s:.1f} s of this process", flush=True)
                continue
            exact = kept["made"] == here
            found = list(differences("", kept["values"], values, None if exact else kept["tolerance"]))
            how = "to the last bit" if exact else f"within {kept['tolerance']:g}, made elsewhere"
            print(f"{topic}: {len(found)} differences ({how}; {took_s:.1f} s of this process)", flush=True)
            for line in found[:DIFFERENCES_SHOWN]:
                print(f"   {line}")
            differ |= bool(found)
    return 1 if differ else 3 if left_out else 0


def environment() -> dict[str, Any]:
    """What the last bit depends on."""
    import torch

    torch.set_num_threads(1)
    info = Path("/proc/cpuinfo")
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in (info.read_text() if info.exists() else "").splitlines()
        if ":" in line
    )
    flags = sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy", "peft")},
        "processor": " ".join(
            facts.get(name, "?") for name in ("vendor_id", "cpu family", "model", "model name")
        ),
        "instructions": " ".join(flags),
        "kernels": " ".join(
            [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
        ).strip(),
        "threads": torch.get_num_threads(),
    }


def differences(place: str, kept: Any, now: Any, tolerance: float | None) -> Iterator[str]:
    """Where two values differ. tolerance: relative, of numbers with a fraction; None: to the last bit."""
    if isinstance(kept, dict) and isinstance(now, dict):
        for name in {**kept, **now}:
            inner = f"{place} / {name}".removeprefix(" / ")
            if name not in kept or name not in now:
                yield f"{inner}: only {'now' if name in now else 'before'}"
            else:
                yield from differences(inner, kept[name], now[name], tolerance)
    elif isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for number, pair in enumerate(zip(kept, now, strict=True)):
            yield from differences(f"{place} [{number}]", *pair, tolerance)
    elif tolerance is not None and str(kept).startswith("bits:") and str(now).startswith("bits:"):
        return
    elif tolerance is not None and isinstance(kept, float) and isinstance(now, float):
        if not math.isclose(kept, now, rel_tol=tolerance, abs_tol=tolerance * 1e-2):
            yield f"{place}: {kept!r} before, {now!r} now"
    elif type(kept) is not type(now) or kept != now:
        yield f"{place}: {kept!r} before, {now!r} now"


def lines_of(value: Any, indent: str = "") -> str:
    """JSON with an entry of a dict, or a list of plain values, on a line of its own."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        entries = (f"{deeper}{json.dumps(name)}: {lines_of(part, deeper)}" for name, part in value.items())
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(part, list | dict) for part in value):
        return "[\n" + ",\n".join(deeper + lines_of(part, deeper) for part in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())

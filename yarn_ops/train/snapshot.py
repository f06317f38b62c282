"""Snapshots, from which a stopped or killed trainer resumes: one directory a step, of which two are kept.

snapshots/step-00000010/state.safetensors   trained tensors, optimizer moments, random state
snapshots/step-00000010/snapshot.json       step, identity of the job, digest of the tensors, loss curve
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yarn_ops.atomic import atomic_write
from yarn_ops.digests import file_digest
from yarn_ops.errors import TrainError

KEPT = 2
TENSORS = "state.safetensors"
FACTS = "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """The state after `step` optimizer steps."""

    step: int
    identity: str
    curve: list[dict[str, Any]]
    """a point for each step so far: step, loss, learning_rate, gradient_norm, answer_loss"""
    seconds: float
    tensors: dict[str, Tensor]


def save_snapshot(directory: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot atomically, then remove all but the newest `KEPT`; its directory. TrainError: disk
    full."""
    final = directory / f"step-{snapshot.step:08d}"
    try:
        with atomic_write(final, replacing=True) as draft:
            draft.mkdir()
            save_file(snapshot.tensors, draft / TENSORS)
            facts = {
                "step": snapshot.step,
                "identity": snapshot.identity,
                "seconds": snapshot.seconds,
                "tensors_sha256": file_digest(draft / TENSORS),
                "curve": snapshot.curve,
            }
            (draft / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{final}: the snapshot cannot be written ({error}); free disk space") from error
    for old in sorted(directory.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def newest_snapshot(directory: Path, identity: str) -> Snapshot | None:
    """The newest intact snapshot of the job with this identity, or None. Others are reported on stderr."""
    for candidate in sorted(directory.glob("step-*"), reverse=True):
        try:
            return _read(candidate, identity)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            print(f"{candidate}: passed over: {error}", file=sys.stderr)
    return None


def _read(directory: Path, identity: str) -> Snapshot:
    facts = json.loads((directory / FACTS).read_bytes())
    if facts["identity"] != identity:
        raise ValueError("it belongs to another job")
    if file_digest(directory / TENSORS) != facts["tensors_sha256"]:
        raise ValueError(f"{TENSORS} is not what was written")
    return Snapshot(
        step=facts["step"],
        identity=identity,
        curve=facts["curve"],
        seconds=facts["seconds"],
        tensors=load_file(directory / TENSORS),
    )

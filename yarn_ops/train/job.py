"""What one trainer process is asked to do: a JSON file, everything in it, nothing from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from yarn_ops.digests import digest_of
from yarn_ops.errors import TrainError
from yarn_ops.recipe import Data, Leg, Section, Train, loss_inputs

LOG = "trainer.log"
"""in the working directory"""


class Job(Section):
    """One leg of training: where it reads and writes, and the recipe's words for how."""

    train: Train
    leg: Leg
    data: Data
    """only how windows are sampled: seed, prefer_long, document_mask"""
    base_dir: Path
    patched_dir: Path
    """holds this leg's patched config"""
    shards_dir: Path
    previous_dir: Path | None = None
    """the adapter that this leg goes on with; with its optimizer if the leg carries that over"""
    keep_optimizer: bool = False
    """whether the optimizer is kept beside the adapter, for the next leg"""
    out_dir: Path
    """becomes the adapter directory, whole or not at all"""
    work_dir: Path
    """snapshots, events.jsonl, trainer.log; survives the process, a later one goes on from it"""
    device: Literal["auto", "cpu", "cuda"]
    threads: int = Field(gt=0)
    """of all processes together"""
    processes: int = Field(1, gt=0)
    """that train together, at most: fewer where the step cannot be shared so"""

    @property
    def events(self) -> Path:
        return self.work_dir / "events.jsonl"

    @property
    def snapshots(self) -> Path:
        return self.work_dir / "snapshots"

    @property
    def peak_learning_rate(self) -> float:
        return self.leg.learning_rate or self.train.learning_rate

    @property
    def global_batch_windows(self) -> int:
        return self.train.batch_windows * self.train.gradient_accumulation_steps

    def identity(self) -> str:
        """Digest of what was asked for, as far as losses depend on it: a snapshot of another is not ours."""
        sections = loss_inputs(self.train, self.leg, self.data)
        return digest_of([section.model_dump(mode="json") for section in sections])


def read_job(path: Path) -> Job:
    """The job in a JSON file; TrainError in one line that names the field."""
    try:
        return Job.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}; give the path of a job file") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainError(f"{path}: {field}: {first['msg']}; correct the job file") from None

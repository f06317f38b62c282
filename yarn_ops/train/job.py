"""The job of a trainer process: a JSON file that says all it needs, so that it reads no environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from yarn_ops.digests import digest_of
from yarn_ops.errors import TrainError
from yarn_ops.exercises import VERSION as EXERCISES_VERSION
from yarn_ops.recipe import Data, Leg, Section, Train, loss_inputs

LOG = "trainer.log"
"""the trainer's output, in the working directory"""


class Job(Section):
    """One leg of training: the recipe's sections, and where to read and write."""

    train: Train
    leg: Leg
    data: Data
    """of which only seed, prefer_long and document_mask are read"""
    base_dir: Path
    patched_dir: Path
    """holds this leg's patched config"""
    shards_dir: Path
    previous_dir: Path | None = None
    """the adapter that this leg continues, and its optimizer if the leg carries that over"""
    keep_optimizer: bool = False
    """whether the optimizer is kept beside the adapter, for the next leg"""
    out_dir: Path
    """becomes the adapter directory, atomically"""
    work_dir: Path
    """holds snapshots, events.jsonl and trainer.log; a later process resumes from it"""
    device: Literal["auto", "cpu", "cuda"]
    deadline: float | None = None
    """by time.monotonic(), which all processes of a machine share: no step begins that would end later"""
    threads: int = Field(gt=0)
    """of all processes together"""
    processes: int = Field(1, gt=0)
    """at most so many train together; fewer where they cannot share a step"""

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
        """Digest of the sections that losses depend on; snapshots of another identity are not used."""
        sections = loss_inputs(self.train, self.leg, self.data)
        return digest_of([EXERCISES_VERSION, *(section.model_dump(mode="json") for section in sections)])


def read_job(path: Path) -> Job:
    """Read a job file; TrainError in one line that names path and field."""
    try:
        return Job.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}; give the path of a job file") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainError(f"{path}: {field}: {first['msg']}; correct the job file") from None

"""What one trainer process is asked to do: a JSON file, everything in it, nothing from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from yarn_ops.digests import digest_of
from yarn_ops.errors import TrainError
from yarn_ops.recipe import Section, Stage, Train


class Sampling(Section):
    """How windows are drawn from the training shards; the fields are those of the recipe's data section."""

    seed: int = 0
    prefer_long: float = 0.0
    document_mask: bool = False


class Job(Section):
    """One leg of training: where it reads and writes, and the recipe's words for how."""

    weights: Path
    """directory of the base model"""
    patched: Path
    """directory of this leg's patched config"""
    shards: Path
    previous: Path | None = None
    """adapter directory of the leg before"""
    output: Path
    """becomes the adapter directory, whole or not at all"""
    work: Path
    """snapshots, events.jsonl, trainer.log; survives the process, a later one goes on from it"""
    train: Train
    leg: Stage
    sampling: Sampling = Sampling()
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)

    @property
    def events(self) -> Path:
        return self.work / "events.jsonl"

    @property
    def snapshots(self) -> Path:
        return self.work / "snapshots"

    @property
    def peak_learning_rate(self) -> float:
        return self.leg.learning_rate or self.train.learning_rate

    @property
    def windows_a_step(self) -> int:
        return self.train.batch_windows * self.train.accumulate

    def identity(self) -> str:
        """Digest of all that the losses depend on, but for the inputs' bytes: a snapshot of another is not ours."""
        return digest_of(
            {
                "train": self.train.model_dump(mode="json", exclude={"checkpoint_every"}),
                "leg": self.leg.model_dump(mode="json"),
                "sampling": self.sampling.model_dump(mode="json"),
            }
        )


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

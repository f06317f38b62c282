"""The kill matrix: SIGKILL of each part of the stack in each stage of a run, and what comes of it."""

from __future__ import annotations

import time

from service import Missed, Outcome, Service, Submitted, is_trainer

VICTIMS = ("trainer", "flow", "worker", "worker+flow", "prefect", "mlflow", "s3", "postgres")
PARTS = {
    "worker": ("worker-yarn-ops-gpu",),
    "prefect": ("prefect",),
    "mlflow": ("mlflow",),
    "s3": ("s3",),
    "postgres": ("postgres",),
}
TRIES = 3
"""runs that may be through a stage before they can be held in it"""


def kill(service: Service, victim: str, stage: str) -> Outcome | None:
    """End `victim` in the midst of `stage` of a run of its own; None where there is nothing to end."""
    if victim == "trainer" and stage != "train":
        return None
    for _ in range(TRIES):
        submitted = service.submit(stage)
        try:
            with service.held_in(submitted, stage):
                _kill(service, submitted, victim)
            return service.ended(submitted, service.let_it_end(submitted))
        except Missed:
            service.let_it_end(submitted)
        except TimeoutError as late:
            return Outcome(time.monotonic() - submitted.began, fault=str(late))
    return Outcome(0, fault=f"was never held in {stage}")


def _kill(service: Service, submitted: Submitted, victim: str) -> None:
    trainers = service.trainers(submitted)
    for part in PARTS.get(victim.removesuffix("+flow"), ()):
        service.kill_part(part)
    if victim == "trainer":
        for process in trainers:
            process.kill()
    if victim in ("flow", "worker+flow"):
        for process in service.processes(submitted):
            if not is_trainer(process):
                process.kill()

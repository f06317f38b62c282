"""The windows of a training job: a pure function of the job and a window's number."""

from __future__ import annotations

import os
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Lock
from typing import Protocol

from yarn_ops.data.layout import ShardReader
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.data.windows import Window, WindowSampler
from yarn_ops.errors import TrainError
from yarn_ops.exercises import FAMILIES, ExerciseSampler
from yarn_ops.models.files import read_config
from yarn_ops.train.job import Job


def window_sampler(job: Job) -> Windows:
    """The job's training windows: text alone, or a share of them with exercises. DataError: shards too
    short."""
    windows = WindowSampler(
        ShardReader(job.shards_dir, "train"),
        window_tokens=job.leg.context_tokens,
        seed=job.data.seed,
        prefer_long=job.data.prefer_long,
    )
    exercises = job.train.exercises
    if not exercises.share:
        return windows
    return ExerciseSampler(
        windows,
        Tokenizer(job.base_dir, read_config(job.patched_dir)["vocab_size"]),
        seed=job.data.seed,
        share=exercises.share,
        document_mask=job.data.document_mask,
        families=exercises.families or tuple(FAMILIES),
    )


class Windows(Protocol):
    """Training windows by their number."""

    def window(self, index: int) -> Window: ...


def open_windows(job: Job) -> Windows:
    """The job's windows; those with exercises are made in a process of their own, which begins now."""
    return WindowProcess(job) if job.train.exercises.share else window_sampler(job)


class WindowProcess:
    """`window_sampler` in a process of its own, which ends with this one.

    Exercises take Python for as long as a small model's step takes a GPU. In a thread they would hold up the
    launches of its kernels.
    """

    def __init__(self, job: Job) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_make_windows, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self._lock = Lock()

    def window(self, index: int) -> Window:
        """Window number `index`, from any thread; the sampler's own errors."""
        with self._lock:
            try:
                self._connection.send(index)
                found: Window | Exception = self._connection.recv()
            except (EOFError, OSError):
                raise TrainError(
                    "training: the process that makes windows was ended; give the machine more memory and "
                    "run again to go on"
                ) from None
        if isinstance(found, Exception):
            raise found
        return found


def _make_windows(connection: Connection, job: Job) -> None:
    """Answer numbers with windows until the other end is closed."""
    os.setsid()  # what asks the trainer's group to stop is for the trainer, which finishes its step
    sampler: Windows | None = None
    with suppress(Exception):  # before it is asked for the first; then a fault is told
        sampler = window_sampler(job)
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        try:
            sampler = sampler or window_sampler(job)
            connection.send(sampler.window(index))
        except BrokenPipeError:
            return
        except Exception as error:
            connection.send(error)

"""Which run, stage and key a log line is about, in front of every line: `run=… stage=… key=… message`."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError
from rich.console import Console

from yarn_ops.secrecy import without_secrets

LoggerOrAdapter = logging.Logger | logging.LoggerAdapter[Any]
OURS = ("yarn_ops", "flows", "prefect.flow_runs", "prefect.task_runs")
ASKED_TO_END = re.compile(r"Crash detected! Execution was (aborted by an? (termination|interrupt)|cancelled)")
"""what Prefect logs of a run that was stopped by a person or by the service"""
STOPPED = "asked to stop: finished stages are kept, and the same recipe goes on from them"
_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


def run_logger() -> LoggerOrAdapter:
    """Of the flow or task run in progress; without one, ours."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("flows")


@contextmanager
def about(**facts: str) -> Iterator[None]:
    """Within the block, lines of ours say these facts too."""
    _install()
    token = _ABOUT.set({**_ABOUT.get(), **facts})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _install() -> None:
    """Once a process: what makes log records says the facts first, no secret, and outlives the reader."""
    standard = logging.getLogRecordFactory()
    if getattr(standard, "says_what_it_is_about", False):
        return
    outlive_readers()

    def make(*args: Any, **values: Any) -> logging.LogRecord:
        record = standard(*args, **values)
        if record.name.startswith("prefect.") and ASKED_TO_END.match(str(record.msg)):
            record.msg, record.levelno, record.levelname = STOPPED, logging.WARNING, "WARNING"
        facts = _ABOUT.get()
        if facts and record.name.startswith(OURS):
            told = " ".join(f"{name}={value}" for name, value in facts.items()).replace("%", "%%")
            record.msg = f"{told} {record.msg}" if record.args else f"{told.replace('%%', '%')} {record.msg}"
            for name, value in facts.items():
                setattr(record, f"about_{name}", value)
        _mask(record)
        return record

    make.says_what_it_is_about = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


def _mask(record: logging.LogRecord) -> None:
    """Take the secrets out of a record's message and traceback."""
    try:
        told = record.getMessage()
    except (TypeError, ValueError):  # its arguments do not fit: the logger says so
        return
    if (shown := without_secrets(told)) != told:
        record.msg, record.args = shown, ()
    if record.exc_info and record.exc_info[0]:
        told = "".join(traceback.format_exception(*record.exc_info))
        record.exc_text = without_secrets(told).rstrip()


def outlive_readers() -> None:
    """From now on a broken pipe on output silences this process and does not end it.

    A worker reads what its runs print: killed, it would take them along, because Prefect and we print by
    rich, which exits on a broken pipe.
    """
    setattr(Console, "on_broken_pipe", _be_silent)  # noqa: B010  (a method of somebody else's class)


def _be_silent(console: Console) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

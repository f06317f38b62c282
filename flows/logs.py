"""Which run, stage and key a log line is about, in front of every line: `run=… stage=… key=… message`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

OURS = ("yarn_ops", "flows", "prefect.flow_runs", "prefect.task_runs")
_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


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
    """Once a process: what makes log records says the facts first."""
    usual = logging.getLogRecordFactory()
    if getattr(usual, "says_what_it_is_about", False):
        return

    def make(*args: Any, **values: Any) -> logging.LogRecord:
        record = usual(*args, **values)
        facts = _ABOUT.get()
        if facts and record.name.startswith(OURS):
            told = " ".join(f"{name}={value}" for name, value in facts.items()).replace("%", "%%")
            record.msg = f"{told} {record.msg}" if record.args else f"{told.replace('%%', '%')} {record.msg}"
            for name, value in facts.items():
                setattr(record, f"about_{name}", value)
        return record

    make.says_what_it_is_about = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)

"""Prefect's own command line, its server repaired: `python -m flows.prefect_server server start …`.

Prefect 3.8 hands the computed attribute `state` of a flow run to a bulk INSERT. SQLAlchemy 2.0 ignored it
there; 2.1 refuses, so that no schedule ever makes a run. Told to do nothing with it, 2.1 ignores it too.
"""

from __future__ import annotations

from typing import Any


def repair() -> None:
    """Let schedules make runs; nothing to do where SQLAlchemy is older than 2.1."""
    from prefect.server.database.orm_models import FlowRun

    inplace = vars(FlowRun)["state"].inplace
    if hasattr(inplace, "bulk_dml"):
        inplace.bulk_dml(_nothing)


def _nothing(cls: Any, mapping: Any, value: Any) -> None:
    """`state` has a table of its own, which Prefect fills in its next statement."""


def main() -> None:
    from prefect.cli import app

    repair()
    app()


if __name__ == "__main__":
    main()

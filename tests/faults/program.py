"""What breaks, on a running stack, and what comes of it.   infra/faults [--victims …] [--stages …]

Every cell is a run of its own. It is good when, by itself or by the reconciler, the run is finished once,
with one model version, one MLflow run, no orphan process, no stale lease and no lost artifact.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clock import KINDS, jump
from disk import fill_up
from kills import VICTIMS, kill
from network import FAULTS, trouble
from rich.console import Console
from rich.table import Table
from service import STAGES, Outcome, Service

TABLES = ("kill", "network", "disk")
"""`clock` too, where clocks can be set"""
Cells = dict[tuple[str, str], Outcome | None]


class Report:
    """Outcomes as they come, and as tables."""

    def __init__(self, until_s: float) -> None:
        self._console = Console()
        self._deadline = time.monotonic() + until_s
        self._tables: dict[str, tuple[Sequence[str], Sequence[str], Cells]] = {}

    def fill(
        self,
        title: str,
        rows: Sequence[str],
        columns: Sequence[str],
        cell: Callable[[str, str], Outcome | None],
    ) -> None:
        """One table, column by column; cells that the time does not reach stay open."""
        outcomes: Cells = {}
        self._tables[title] = rows, columns, outcomes
        for column in columns:
            for row in rows:
                if time.monotonic() > self._deadline:
                    return
                outcomes[row, column] = outcome = cell(row, column)
                if outcome is not None:
                    told = f"{outcome}; {outcome.attempts} attempts, load {os.getloadavg()[0]:.1f}"
                    print(f"{title}: {row} in {column}: {told}", flush=True)

    def show(self) -> None:
        """In the terminal, then in Markdown."""
        for title, (rows, columns, outcomes) in self._tables.items():
            table = Table(title, *columns, show_lines=True)
            for row in rows:
                table.add_row(row, *(_told(outcomes, row, column) for column in columns))
            self._console.print(table)
        for title, (rows, columns, outcomes) in self._tables.items():
            print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
            for row in rows:
                print(f"| {row} | {' | '.join(_told(outcomes, row, column) for column in columns)} |")

    @property
    def well(self) -> bool:
        found = [outcome for _, _, outcomes in self._tables.values() for outcome in outcomes.values()]
        return not any(outcome is not None and outcome.fault for outcome in found)


def closed_environment() -> dict[str, str]:
    """This process's environment without what would turn a command to other services."""
    ours = ("YARN_OPS_", "PREFECT_", "MLFLOW_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _told(outcomes: Cells, row: str, column: str) -> str:
    outcome = outcomes.get((row, column), "not run")
    return "–" if outcome is None else str(outcome)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True, help="state directory of a running stack")
    parser.add_argument("--victims", default=",".join(VICTIMS), help="%(default)s")
    parser.add_argument("--stages", default=",".join(STAGES), help="%(default)s")
    parser.add_argument("--faults", default=";".join(FAULTS), help="of the network: %(default)s")
    parser.add_argument("--tables", default=",".join(TABLES), help="%(default)s; or clock")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds; no cell begins later")
    asked = parser.parse_args()
    victims, stages = asked.victims.split(","), asked.stages.split(",")
    tables, faults = asked.tables.split(","), asked.faults.split(";")
    service, report = Service(asked.state.absolute()), Report(asked.until)
    try:
        if "network" in tables:
            report.fill("network", faults, ["the whole run"], lambda fault, _: trouble(service, fault))
        if "disk" in tables:
            report.fill("disk", ["full"], stages, lambda _, stage: fill_up(stage, closed_environment()))
        if "clock" in tables:
            report.fill("clock", [*KINDS], ["the whole run"], lambda kind, _: jump(service, kind))
        if "kill" in tables:
            report.fill("killed", victims, stages, lambda victim, stage: kill(service, victim, stage))
    finally:
        report.show()
    sys.exit(not report.well)


if __name__ == "__main__":
    main()

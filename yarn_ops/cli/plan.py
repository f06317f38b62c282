"""`yarn-ops plan`: what a recipe will take, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from yarn_ops.bill import BillItem
from yarn_ops.cli.display import CONSOLE
from yarn_ops.planning import GIB, RunPlan


def show(plan: RunPlan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(plan), "job_variables": plan.job_variables()}, indent=2))
        return
    learn = f"{plan.trained / 1e6:,.1f} M of {plan.parameters / 1e6:,.1f} M parameters learn"
    several = f"{plan.processes} × " if plan.processes > 1 else ""
    CONSOLE.print(f"{several}{plan.device}: {learn}, {plan.disk_bytes / GIB:,.1f} GiB on disk")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("tokens", "steps", "kept by the layers", "GPU GiB", "host GiB", "s/step", "minutes", "MFU"):
        table.add_column(head, justify="left" if head == "kept by the layers" else "right")
    for leg in plan.legs:
        table.add_row(
            f"{leg.context_tokens:,}",
            str(leg.steps),
            "; ".join(part for part in (leg.keeps, leg.shared) if part),
            f"{leg.peak_bytes / GIB:.1f}",
            f"{leg.host_bytes / GIB:.1f}",
            f"{leg.step_s:.2f}",
            f"{leg.seconds / 60:.1f}",
            "" if leg.mfu is None else f"{leg.mfu:.2f}",
        )
    CONSOLE.print(table)
    _show_parts(plan.parts)
    took = {part.name: part.seconds / 60 for part in plan.parts}
    CONSOLE.print(
        f"training {took['training']:,.1f} minutes, measuring base and result {took['evaluation']:,.1f}: "
        f"{took['evaluation'] / took['training']:.2f} of it"
    )
    CONSOLE.print(f"{plan.models_a_night:,} such models in a night of ten hours on all of these machines")


def _show_parts(parts: Sequence[BillItem]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("part", "hours", "GPU hours", "$", "limited by", "to change"):
        number = head in ("hours", "GPU hours", "$")
        whole, least = (True, len(head)) if number or head == "part" else (False, None)
        justify: Any = "right" if number else "left"
        table.add_column(head, justify=justify, no_wrap=whole, min_width=least, overflow="fold")
    for part in parts:
        hours = (f"{part.seconds / 3600:,.2f}", f"{part.gpu_s / 3600:,.2f}", f"{part.money:,.2f}")
        table.add_row(part.name, *hours, part.limit, part.setting)
    CONSOLE.print(table, soft_wrap=False)

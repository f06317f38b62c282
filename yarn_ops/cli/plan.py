"""`yarn-ops plan`: what a recipe will take, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from yarn_ops.cli.display import CONSOLE, print_table
from yarn_ops.errors import TrainError
from yarn_ops.planning import GIB, RunPlan


def show(plan: RunPlan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_values(plan), indent=2))
        return
    learn = f"{plan.trained / 1e6:,.1f} M of {plan.parameters / 1e6:,.1f} M parameters learn"
    several = f"{plan.processes} × " if plan.processes > 1 else ""
    CONSOLE.print(f"{several}{plan.device}: {learn}, {plan.disk_bytes / GIB:,.1f} GiB on disk")
    keeps = "kept by the layers"
    legs = [("tokens", "steps", keeps, "GPU GiB", "host GiB", "s/step", "minutes", "MFU")]
    for leg in plan.legs:
        memory = (f"{leg.peak_bytes / GIB:.1f}", f"{leg.host_bytes / GIB:.1f}")
        mfu = "" if leg.mfu is None else f"{leg.mfu:.2f}"
        kept = "; ".join(part for part in (leg.keeps, leg.shared) if part)
        time = (_step(leg.step_s), f"{leg.seconds / 60:.1f}")
        legs.append((f"{leg.context_tokens:,}", str(leg.steps), kept, *memory, *time, mfu))
    print_table(legs, shortened=(keeps,), numbers={*legs[0]} - {keeps})
    parts = [("part", "hours", "GPU hours", "$", "limited by", "to change")]
    for part in plan.parts:
        figures = (f"{part.seconds / 3600:,.2f}", f"{part.gpu_s / 3600:,.2f}", f"{part.money:,.2f}")
        parts.append((part.name, *figures, part.limit, part.setting))
    print_table(parts, shortened=parts[0][4:], numbers=parts[0][1:4])
    took = {part.name: part.seconds / 60 for part in plan.parts}
    CONSOLE.print(
        f"training {took['training']:,.1f} minutes, measuring base and result {took['evaluation']:,.1f}: "
        f"{took['evaluation'] / took['training']:.2f} of it"
    )
    CONSOLE.print(f"{plan.models_a_night:,} such models in a night of ten hours on all of these machines")


def show_cards(plans: Mapping[str, RunPlan | TrainError], *, as_json: bool) -> None:
    """What usual cards make of the longest leg and of the whole run, and the least that fits."""
    least = next(card for card, plan in plans.items() if isinstance(plan, RunPlan))
    if as_json:
        cards = {
            card: _values(plan) if isinstance(plan, RunPlan) else {"refused": str(plan)}
            for card, plan in plans.items()
        }
        print(json.dumps({"cards": cards, "least": least}, indent=2))
        return
    keeps = "longest leg:\nkept by the layers"
    rows: list[tuple[str, ...]] = [
        ("\ncard", keeps, "GPU\nGiB", "host\nGiB", "\ns/step", "training\nminutes", "GPU\nhours", "\n$")
    ]
    for card, plan in plans.items():
        if isinstance(plan, TrainError):
            rows.append((card, f"does not fit: {plan}", *[""] * 6))
            continue
        leg = max(plan.legs, key=lambda each: each.context_tokens)
        memory = (f"{leg.peak_bytes / GIB:.1f}", f"{leg.host_bytes / GIB:.1f}")
        minutes = next(part.seconds / 60 for part in plan.parts if part.name == "training")
        gpu_hours, money = (sum(getattr(part, name) for part in plan.parts) for name in ("gpu_s", "money"))
        kept = "; ".join(part for part in (leg.keeps, leg.shared) if part)
        whole = (f"{minutes:,.1f}", f"{gpu_hours / 3600:,.2f}", f"{money:,.2f}")
        rows.append((card, kept, *memory, _step(leg.step_s), *whole))
    print_table(rows, shortened=(keeps,), numbers=rows[0][2:])
    CONSOLE.print(
        f"no GPU here; the least that fits: {least} (--gpu {least} tells more); sizes have an H100's seconds"
    )


def _step(seconds: float) -> str:
    """2.35, 0.04, 0.003: never nothing at all."""
    return f"{seconds:.2f}" if seconds >= 0.01 else f"{seconds:.1g}"


def _values(plan: RunPlan) -> dict[str, Any]:
    return {**asdict(plan), "job_variables": plan.job_variables()}

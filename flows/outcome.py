"""The flow around a run: named as its person named it, and ended as Rejected where a gate says so.

Prefect's servers and pages make up a name where nobody gives one. Such a name is replaced by what is run.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

import prefect
from prefect import flow
from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler
from prefect.states import Completed

from yarn_ops.errors import AwaitsApproval, GateFailed, OverBudget

P = ParamSpec("P")
Result = TypeVar("Result")

REJECTED = "Rejected"
"""name of the state of a run that was measured to its end and did not pass its gate"""
WAITS = "Awaiting approval"
"""name of the state of a run that Prefect cannot start again, and whose release a person has to promote"""
OVER_BUDGET = "Over budget"
"""name of the state of a run that stopped before its budget was passed; the same recipe with more goes on"""
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega"
).replace(" ", "|")
STAR = re.compile(rf"({GREEK})(\d*|\d+(-[a-z]+){{1,3}}|-(?P<star>[a-z]+(-[a-z]+)??)(-[a-z]+)?)")
"""made up by the form of Prefect's older pages, e.g. beta3-bilaren-y, phi-canum-venaticorum"""
STARS = re.compile(r"`(andromedae\.[a-z.-]+)`")
"""in the script of those pages: of what such names are made"""
ANIMAL = re.compile(
    r"(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical"
    r"|Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-\S{1,6}( \S+)?"
)
"""made up by the form of the newer pages, e.g. Ergonomic-Eel"""


def run_flow(name: str, called: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Make a flow of what does a run. called: its name where a person gives none, of the parameters."""

    def make(function: Callable[P, Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def run(*inputs: P.args, **named: P.kwargs) -> Any:
            try:
                return function(*inputs, **named)
            except GateFailed as rejected:
                return Completed(name=REJECTED, message=str(rejected), data=rejected)
            except AwaitsApproval as waits:
                return Completed(name=WAITS, message=str(waits), data=waits)
            except OverBudget as spent:
                return Completed(name=OVER_BUDGET, message=str(spent), data=spent)

        run.__annotations__ = get_type_hints(function)  # Prefect would look their names up in this module
        run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
        made: Any = flow(name=name, flow_run_name=lambda: _name(called), persist_result=False)(run)
        return made

    return make


def run_here(function: Callable[P, Result], name: str | None, *inputs: P.args, **named: P.kwargs) -> Result:
    """Run a flow in this process; its logs are sent before a Prefect server of our own ends.

    name: what a person calls the run. GateFailed where it was rejected, AwaitsApproval where it waits.
    """
    asked: Any = function
    if name is not None:
        asked = asked.with_options(flow_run_name=lambda: name)
    try:
        found = asked(*inputs, **named)
    finally:
        APILogHandler().flush()
    if isinstance(found, GateFailed | AwaitsApproval | OverBudget):
        raise found
    done: Result = found
    return done


def _name(called: str) -> str:
    """What the run is called already, unless that is made up."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    given = context.flow_run.name
    return called.format(**context.parameters) if is_made_up(given) else given


def is_made_up(name: str) -> bool:
    """Whether Prefect's server or the form of one of its pages gave a run this name."""
    if star := STAR.fullmatch(name):
        return star["star"] is None or star["star"] in _stars() or name.partition("-")[2] in _stars()
    return ANIMAL.fullmatch(name) is not None or set(name.split("-")) <= _words()


@functools.cache
def _stars() -> frozenset[str]:
    """Of which the older pages make names."""
    scripts = sorted(Path(prefect.__ui_static_path__, "assets").glob("index-*.js"))
    found = (STARS.search(script.read_text("utf-8")) for script in scripts)
    return frozenset(star for names in found if names for star in names[1].split("."))


@functools.cache
def _words() -> frozenset[str]:
    """Of which Prefect's server makes names."""
    from coolname.data import config

    kinds: dict[str, Any] = config
    return frozenset(word for kind in kinds.values() if kind["type"] == "words" for word in kind["words"])

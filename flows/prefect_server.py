"""Prefect's server behind our guard, repaired: `python -m flows.prefect_server --port N [--no-services]`.

Prefect 3.8 hands the computed attribute `state` of a flow run to a bulk INSERT. SQLAlchemy 2.0 ignored it
there; 2.1 refuses, so that no schedule ever makes a run. Told to do nothing with it, 2.1 ignores it too.

On SQLite its transactions begin as readers, and one that then wants to write while another writes fails at
once ("database is locked", answered with 503): begun as writers they wait for each other.

Its older pages give every field of a number the step 0.01, so that a browser lets nobody save 0.125 or 0.002;
both show whatever completed in one green.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from flows.forms import CheckedForms
from yarn_ops import guard
from yarn_ops.errors import SettingsError, YarnOpsError
from yarn_ops.page_script import PageScript
from yarn_ops.processes import importing
from yarn_ops.settings import adopt_environment, read_settings

WITHOUT_BLOCKS = {
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
"""for the server of one run: it uses no blocks, whose registration imports all of Prefect's collections"""

PAGES = """addEventListener("click", () => {
  for (const field of document.querySelectorAll('input[step="0.01"]')) field.step = "any"
}, true)
new MutationObserver(() => {
  for (const badge of document.querySelectorAll(".state--completed, [class*=bg-state-completed]")) {
    const color = badge.textContent.trim() === "Completed" ? "" : "hue-rotate(-100deg)"
    if (badge.style.filter !== color) badge.style.filter = color
  }
}).observe(document, {childList: true, subtree: true, characterData: true})"""
"""A browser looks at numbers after the click that submits them, be it by the Enter key. Rejected, Over budget
and Awaiting approval, which Prefect counts as completed, are amber where Completed is green."""


def repair() -> None:
    """Let schedules make runs, which needs nothing before SQLAlchemy 2.1, and transactions on SQLite wait."""
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.orm_models import FlowRun

    begin = AioSqliteConfiguration.begin_transaction
    AioSqliteConfiguration.begin_transaction = lambda self, session, with_for_update=False: begin(
        self, session, with_for_update=True
    )

    inplace = vars(FlowRun)["state"].inplace
    if hasattr(inplace, "bulk_dml"):
        inplace.bulk_dml(_nothing)


def _nothing(cls: Any, mapping: Any, value: Any) -> None:
    """`state` has a table of its own, which Prefect fills in its next statement."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-services", action="store_true", help="no scheduler, no automations")
    asked = parser.parse_args()
    settings = read_settings()
    if settings.prefect_auth is None:
        raise SettingsError("YARN_OPS_PREFECT_AUTH: not set; a server without a password is not started")

    if asked.no_services:
        adopt_environment(WITHOUT_BLOCKS)
    with importing():
        from prefect.server.api.server import create_app

    repair()
    app = guard.Guard(
        PageScript(CheckedForms(create_app(final=True, webserver_only=asked.no_services)), PAGES),
        guard.PREFECT,
        password=settings.prefect_auth,
        key=settings.session_key or settings.prefect_auth,
        names=settings.server_names,
    )
    guard.serve(app, asked.host, asked.port)


if __name__ == "__main__":
    try:
        main()
    except YarnOpsError as error:
        sys.exit(f"prefect_server: {error}")

"""The alert that is sent when a release falls below its gate."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.liveness import sign
from yarn_ops.notify import Notice, tell
from yarn_ops.settings import read_settings


@flow(name="alert", flow_run_name="{name} version {version}", persist_result=False)
def alert(name: str, version: str, reasons: str = "") -> None:
    """Tell that a released model no longer passes its gate: an artifact here, and YARN_OPS_NOTIFY if set.

    Args:
        name: The registered model.
        version: Its version.
        reasons: Which conditions of the gate it no longer meets.
    """
    sign()
    title = f"{name} version {version} fell below its gate"
    told = f"{title}: {reasons}"
    get_run_logger().error(told)
    create_markdown_artifact(told, key="alert", description=title)
    rows = (
        ("fell", reasons),
        ("next", "Its alias stays where it is: to move it is a person's decision"),
    )
    for fault in tell(read_settings(), Notice("fell", title, rows, name)):
        get_run_logger().warning(fault)

"""The command line. Heavy packages are imported inside the commands: `yarn-ops --help` stays quick."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from io import TextIOWrapper

from typer.exceptions import TyperException

from yarn_ops import processes
from yarn_ops.cli import making  # noqa: F401  (they register their commands, in the order that help has)
from yarn_ops.cli.app import app
from yarn_ops.errors import SettingsError, YarnOpsError, service_fault
from yarn_ops.secrecy import without_secrets
from yarn_ops.shown import printable

# isort: split
from yarn_ops.cli import running, serving  # noqa: F401

# isort: split
from yarn_ops.cli import lineage, push  # noqa: F401


def main() -> None:
    """Entry point: a user's fault is one line on standard error and exit code 2."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, processes.interrupt)  # what a command started, it also ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal need not have every letter
    status = 2
    try:
        _require_place()
        sys.exit(app(prog_name="yarn-ops", standalone_mode=False))
    except YarnOpsError as error:
        complaint = f"yarn-ops: {error}"
    except TyperException as error:
        complaint = _usage(error)
    except Exception as error:
        told = service_fault(error)
        complaint = f"yarn-ops: {told}" if told else without_secrets(traceback.format_exc())
        status = 2 if told else 1
    sys.stderr.write(f"{complaint}\n")
    sys.exit(status)


def _require_place() -> None:
    """SettingsError where the working directory is gone: libraries end the process over it."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise SettingsError(f"working directory: {error.strerror}; change to one that is there") from None


def _usage(error: TyperException) -> str:
    """The fault of the command as typed, in one line; the whole help where a group was typed alone."""
    message, context = printable(error.format_message()), getattr(error, "ctx", None)
    if context is not None and message == context.get_help():
        return message
    message = " ".join(message.split()).rstrip(".,")
    command = context.command_path if context else "yarn-ops"
    return f"yarn-ops: {message[:1].lower()}{message[1:]}; see `{command} --help`"

"""Errors of services that nobody has told of before they reach the command line."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from yarn_ops import cli
from yarn_ops.errors import service_fault

DEAD = "http://127.0.0.1:9"


def errors_of_services() -> dict[str, tuple[Exception, str]]:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError, EndpointConnectionError
    from httpx import ConnectError
    from mlflow.exceptions import MlflowException
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from sqlalchemy.exc import OperationalError

    refused = ClientError({"Error": {"Code": "SlowDown", "Message": "later"}}, "PutObject")
    lost = OperationalError("SELECT 'hunter2'", {}, Exception("server closed the connection\nunexpectedly"))
    return {
        "a refusal of S3": (refused, "S3: An error occurred (SlowDown)"),
        "an upload": (S3UploadFailedError("to s3://me:hunter2@bucket"), "S3: to s3://me:***@bucket"),
        "no S3": (EndpointConnectionError(endpoint_url=DEAD), "S3: Could not connect"),
        "MLflow": (MlflowException("RESOURCE_EXHAUSTED:\n\nlater"), "MLflow: RESOURCE_EXHAUSTED: later"),
        "Prefect": (ObjectNotFound(Exception("gone")), "Prefect: "),
        "Prefect's answer": (
            PrefectHTTPStatusError("503", request=Any, response=Any),  # type: ignore[arg-type]
            "Prefect: 503",
        ),
        "the network": (ConnectError("All connection attempts failed"), "a server: All connection"),
        "the database": (lost, "the database: server closed the connection unexpectedly"),
        "the disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"), "/data/x: No space left"),
        "rights": (
            PermissionError(errno.EACCES, "Permission denied", "/data/x"),
            "/data/x: Permission denied",
        ),
    }


def test_an_error_of_a_service_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, (error, says) in errors_of_services().items():

        def fails(error: Exception = error, **_: object) -> None:
            raise error

        monkeypatch.setattr(cli, "app", fails)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr().err
        assert ended.value.code == 2, case
        assert told.startswith(f"yarn-ops: {says}") and told.count("\n") == 1, (case, told)
        assert "hunter2" not in told


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), FileNotFoundError(errno.ENOENT, "x", "y")])
def test_a_fault_of_ours_stays_one(error: Exception) -> None:
    assert service_fault(error) is None

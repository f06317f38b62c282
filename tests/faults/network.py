"""What a network does to a run: servers that fail a share of what they are asked, connections that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psycopg
from proxy import Chooser, Passage, Proxy, first, refusal, share
from service import Outcome, Service

from yarn_ops.stack.plan import DATABASES

RATE = 0.2
CREATE = "/model-versions/create"
S3 = {
    "S3 answers 500": share(RATE, refusal(500), refusal(500, afterwards=True)),
    "S3 answers 503": share(RATE, refusal(503)),
    "S3 is slow": share(RATE, Passage.dawdle),
    "S3 cuts answers": share(RATE, Passage.cut),
}
MLFLOW: Mapping[str, Callable[[], Chooser]] = {
    "MLflow answers 500 after creating the version, twice": lambda: first(
        2, CREATE, refusal(500, afterwards=True)
    ),
    "MLflow answers 500 after creating the version, 5 times": lambda: first(
        5, CREATE, refusal(500, afterwards=True)
    ),
}
DROPPED: Mapping[str, tuple[tuple[str, ...], float]] = {
    "registry's connections dropped each second": (("registry",), 1.0),
    "all databases' connections dropped every 5 s": (DATABASES, 5.0),
}
FAULTS = (*S3, *DROPPED, *MLFLOW)


def trouble(service: Service, fault: str) -> Outcome:
    """A run that has this fault from its beginning to its end."""
    if fault in DROPPED:
        return _dropped(service, *DROPPED[fault])
    if fault in S3:
        assert service.settings.s3_endpoint_url is not None
        proxy = Proxy(service.settings.s3_endpoint_url, S3[fault])
        variables: tuple[str, ...] = ("YARN_OPS_S3_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
    else:
        assert service.settings.mlflow_uri is not None
        proxy = Proxy(service.settings.mlflow_uri, MLFLOW[fault](), keep_host=False)
        variables = ("YARN_OPS_MLFLOW_URI",)
    with proxy:
        return _run(
            service, dict.fromkeys(variables, proxy.url), lambda: f"{proxy.broken} of {proxy.passed} requests"
        )


def _run(service: Service, environment: Mapping[str, str], note: Callable[[], str]) -> Outcome:
    submitted = service.submit("data", environment)
    try:
        reconciles = service.let_it_end(submitted)
    except TimeoutError as late:
        return Outcome(time.monotonic() - submitted.began, fault=str(late), note=note())
    return service.ended(submitted, reconciles, note())


def _dropped(service: Service, databases: tuple[str, ...], every_s: float) -> Outcome:
    with dropping(service.stack.postgres.url(), databases, every_s) as dropped:
        submitted = service.submit("data")
        try:
            reconciles = service.let_it_end(submitted)
        except TimeoutError as late:
            return Outcome(time.monotonic() - submitted.began, fault=str(late))
    return service.ended(submitted, reconciles, f"{dropped[0]} connections")


@contextmanager
def dropping(url: str, databases: tuple[str, ...], every_s: float) -> Iterator[list[int]]:
    """Within the block, every connection to these databases is ended at an interval; how many so far."""
    ended, dropped = threading.Event(), [0]

    def drop() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.wait(every_s):
                found = connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = ANY(%s) AND pid <> pg_backend_pid()",
                    [list(databases)],
                ).fetchone()
                dropped[0] += found[0] if found is not None else 0

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    try:
        yield dropped
    finally:
        ended.set()
        thread.join()

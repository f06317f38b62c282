"""What a collector of lineage is told, by a real one on loopback; one that is slow or away costs nothing."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from loopback import listening

from flows.openlineage import CLOSING_S, LineageEvents
from yarn_ops.errors import SettingsError
from yarn_ops.records import Corpus, ShardSet, Tree
from yarn_ops.scores import BeforeAfter, Verdict
from yarn_ops.settings import Settings, read_settings

heard: list[tuple[dict[str, Any], str | None]] = []
KEY = "a-key-of-the-collector"


class Collector(BaseHTTPRequestHandler):
    """Takes events at /api/v1/lineage; refuses at /refuse; /slow never answers in time."""

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/slow":
            time.sleep(CLOSING_S + 2)
        heard.append((event, self.headers["Authorization"]))
        self.send_response(500 if self.path == "/refuse" else 201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    with listening(Collector) as url:
        yield url


@pytest.fixture(autouse=True)
def silence() -> None:
    heard.clear()


def tree(uri: str, digest: str) -> Tree:
    return Tree(uri=uri, digest=digest * 64, files=1, size_bytes=1)


CORPUS = Corpus(tree=tree("file:///store/with%20space/artifacts/aa", "a"), files=1, size_bytes=1)
VERDICTS = BeforeAfter(Verdict(passed=True, checks=()), Verdict(passed=False, checks=()))
SHARDS = ShardSet.model_construct(tree=tree("s3://bucket/prefix/artifacts/bb", "b"), parents=())


def events_to(url: str | None) -> LineageEvents:
    return LineageEvents(Settings(openlineage_url=url, openlineage_key=KEY), "20261130-1", 1, "demo-long")


def required(event: dict[str, Any]) -> None:
    """What the standard (OpenLineage 2-0-2) asks of every run event, its datasets and facets."""
    assert event["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    assert urlsplit(event["producer"]).scheme and urlsplit(event["schemaURL"]).scheme == "https"
    assert event["schemaURL"].endswith("#/$defs/RunEvent")
    assert str(UUID(event["run"]["runId"])) == event["run"]["runId"]
    assert event["job"]["namespace"] and event["job"]["name"]
    for dataset in event["inputs"] + event["outputs"]:
        assert dataset["namespace"] and dataset["name"]
    facets = [*event["run"]["facets"].values()]
    facets += [facet for one in event["inputs"] + event["outputs"] for facet in one["facets"].values()]
    for facet in facets:
        assert urlsplit(facet["_producer"]).scheme and urlsplit(facet["_schemaURL"]).scheme == "https"


def test_a_run_and_its_stages_are_told_in_order(collector: str) -> None:
    events = events_to(f"{collector}/api/v1/lineage")
    events.begin()
    assert events.stage("shards", ["plain", CORPUS, VERDICTS], lambda: SHARDS) is SHARDS
    with pytest.raises(ValueError, match="broke"):
        events.stage("train", [[SHARDS]], lambda: raised(ValueError("broke\nhere")))
    with pytest.raises(KeyboardInterrupt):
        events.stage("merge", [SHARDS], lambda: raised(KeyboardInterrupt()))
    events.end("rejected", "below its gate")
    told = [event for event, _ in heard]
    assert {key for _, key in heard} == {f"Bearer {KEY}"}
    for event in told:
        required(event)
    assert [(event["job"]["name"], event["eventType"]) for event in told] == [
        ("run.demo-long", "START"),
        ("stage.shards", "START"), ("stage.shards", "COMPLETE"),
        ("stage.train", "START"), ("stage.train", "FAIL"),
        ("stage.merge", "START"), ("stage.merge", "ABORT"),
        ("run.demo-long", "FAIL"),
    ]  # fmt: skip
    run = told[0]["run"]["runId"]
    assert told[-1]["run"]["runId"] == run
    assert told[-1]["run"]["facets"]["errorMessage"]["message"] == "rejected: below its gate"
    assert told[4]["run"]["facets"]["errorMessage"]["message"] == "broke here"
    for event in told[1:-1]:
        assert event["run"]["facets"]["parent"]["run"]["runId"] == run != event["run"]["runId"]
    done = told[2]
    assert told[1]["run"]["runId"] == done["run"]["runId"]
    named = [(one["namespace"], one["name"]) for one in done["inputs"]]
    verdicts = [("yarn-ops", f"Verdict/{one.digest}") for one in VERDICTS]
    assert named == [("file", "/store/with space/artifacts/aa"), *verdicts]
    (output,) = done["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://bucket", "prefix/artifacts/bb")
    assert output["facets"]["version"]["datasetVersion"] == "b" * 64


def raised(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize("fault", ["away", "refuse", "slow"])
def test_a_collector_that_takes_nothing_costs_a_run_one_warning(
    collector: str, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    events = events_to(away if fault == "away" else f"{collector}/{fault}")
    events.begin()
    for _ in range(20):
        events.stage("shards", [CORPUS], lambda: SHARDS)
    worked_s = time.monotonic() - began
    with caplog.at_level(logging.WARNING):
        events.end("completed")
    assert worked_s < 1
    assert time.monotonic() - began < CLOSING_S + 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("YARN_OPS_OPENLINEAGE_URL: ") and KEY not in line


def test_nobody_is_told_without_an_address(collector: str) -> None:
    before = threading.active_count()
    events = events_to(None)
    events.begin()
    assert events.stage("shards", [CORPUS], lambda: SHARDS) is SHARDS
    events.end("completed")
    assert (heard, threading.active_count()) == ([], before)


def test_an_address_that_is_none_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YARN_OPS_OPENLINEAGE_URL", "collector:5000")
    with pytest.raises(SettingsError, match="YARN_OPS_OPENLINEAGE_URL: write http://host:port"):
        read_settings()

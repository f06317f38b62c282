"""OpenLineage: events of a run and its stages, sent to who collects them where the settings name an address.

Datasets are directories of the store, by their place in it; a record without one by its kind and digest.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from flows.logs import run_logger
from yarn_ops import __version__
from yarn_ops.records import Record, records_in
from yarn_ops.secrecy import without_secrets
from yarn_ops.settings import Settings
from yarn_ops.shown import one_line

PRODUCER = f"tag:yarn-ops,2026:yarn-ops/{__version__}"
NAMESPACE = "yarn-ops"
SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
PARENT = f"{SPEC}/facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet"
ERROR = f"{SPEC}/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet"
VERSION = f"{SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
ANSWER_S = 2.0
"""within which each event has to be taken"""
CLOSING_S = 3.0
"""that the end of a run may wait for what is not sent yet"""
ENDS = {"completed": "COMPLETE", "stopped": "ABORT"}
"""event of each end of a run; any other is FAIL"""

R = TypeVar("R", bound=Record)


class LineageEvents:
    """Sends from a thread of its own. The first event that is not taken ends it, with one warning."""

    def __init__(self, settings: Settings, run_id: str, attempt: int, name: str) -> None:
        self._url = settings.openlineage_url
        self._key = settings.openlineage_key
        self._job = f"run.{name}"
        self._run = str(uuid.uuid5(uuid.NAMESPACE_URL, f"yarn-ops:{run_id}/{attempt}"))
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._fault: str | None = None

    def begin(self) -> None:
        """The run begins."""
        if self._url is not None:
            self._thread = threading.Thread(target=self._send_all, name="openlineage", daemon=True)
            self._thread.start()
            self._add("START", self._run, self._job)

    def end(self, status: str, reason: str | None = None) -> None:
        """The run has ended; waits a moment for what is not sent yet."""
        if self._thread is None:
            return
        self._add(
            ENDS.get(status, "FAIL"), self._run, self._job, error=f"{status}: {reason}" if reason else None
        )
        self._waiting.put(None)
        self._thread.join(CLOSING_S)
        fault = self._fault or (f"nothing taken within {CLOSING_S:g} s" if self._thread.is_alive() else None)
        if fault is not None:
            run_logger().warning("YARN_OPS_OPENLINEAGE_URL: %s; the rest of the events were not sent", fault)
        self._thread = None

    def stage(self, name: str, inputs: Sequence[Any], work: Callable[[], R]) -> R:
        """The record that the work of a stage makes."""
        if self._thread is None:
            return work()
        stage_run, job = str(uuid.uuid4()), f"stage.{name}"
        read = [_dataset(record) for record in records_in(inputs)]
        self._add("START", stage_run, job, read)
        try:
            made = work()
        except BaseException as error:
            how = "FAIL" if isinstance(error, Exception) else "ABORT"
            self._add(how, stage_run, job, read, error=one_line(str(error)) or type(error).__name__)
            raise
        self._add("COMPLETE", stage_run, job, read, [_dataset(made)])
        return made

    def _add(
        self, kind: str, run: str, job: str, inputs: Sequence[Any] = (), outputs: Sequence[Any] = (),
        error: str | None = None,
    ) -> None:  # fmt: skip
        facets: dict[str, Any] = {}
        if run != self._run:
            about = {"run": {"runId": self._run}, "job": {"namespace": NAMESPACE, "name": self._job}}
            facets["parent"] = _facet(PARENT, **about)
        if error is not None:
            facets["errorMessage"] = _facet(ERROR, message=error, programmingLanguage="Python")
        self._waiting.put(
            {
                "eventType": kind,
                "eventTime": datetime.now(UTC).isoformat(),
                "producer": PRODUCER,
                "schemaURL": EVENT,
                "run": {"runId": run, "facets": facets},
                "job": {"namespace": NAMESPACE, "name": job},
                "inputs": list(inputs),
                "outputs": list(outputs),
            }
        )

    def _send_all(self) -> None:
        import httpx

        assert self._url is not None
        head = {} if self._key is None else {"Authorization": f"Bearer {self._key.get_secret_value()}"}
        try:
            with httpx.Client(headers=head, timeout=ANSWER_S) as client:
                while (event := self._waiting.get()) is not None:
                    client.post(self._url, json=event).raise_for_status()
        except Exception as error:  # of the network or a library: a run must not fail by it
            self._fault = one_line(without_secrets(f"{type(error).__name__} {error}"))


def _facet(schema: str, **fields: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema, **fields}


def _dataset(record: Record) -> dict[str, Any]:
    namespace, name = NAMESPACE, f"{type(record).__name__}/{record.digest}"
    if record.tree is not None:
        place = urlsplit(record.tree.uri)
        namespace = f"s3://{place.netloc}" if place.scheme == "s3" else "file"
        name = unquote(place.path).lstrip("/" if place.scheme == "s3" else "")
    version = _facet(VERSION, datasetVersion=record.digest)
    return {"namespace": namespace, "name": name, "facets": {"version": version}}

"""A person who types one `yarn-ops` command after another: what each said, and what it left behind.

The commands run in one child process, through the real entry point, so that torch, Prefect and MLflow are
imported once for all faults and not once a fault.

    answer = person.types("extend", recipe, YARN_OPS_DEVICE="cpu")
    told(answer, "where", "what is wrong", "what next")
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from yarn_ops.records import Tree
from yarn_ops.registry import StageView, open_registry
from yarn_ops.store import open_store
from yarn_ops.store.trees import tree_present

STAGE_LINE = re.compile(r"(\S+) +(?:done|reused) +[\d.]+ s(?:  .+)?")
"""what a finished stage says of itself where no bars are drawn"""
PARTIAL = re.compile(r"\.partial|\.part$|\.new$|/\.incoming/.")
"""names of files and directories that are being written"""
STOP_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a command said: exit status, standard output and error, how long it took."""

    status: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def complaint(self) -> str:
        """Standard error without the lines of finished stages."""
        return "\n".join(line for line in self.err.splitlines() if not STAGE_LINE.fullmatch(line))

    @property
    def stages(self) -> list[str]:
        """The stages that were finished, in order."""
        return STAGE_LINE.findall(self.err)


def told(answer: Answer, *phrases: str) -> None:
    """The command ended with status 2 and one line that holds these phrases, in this order."""
    assert "Traceback" not in answer.err, answer.err
    assert answer.complaint.startswith("yarn-ops: "), answer.err
    assert len(answer.complaint.splitlines()) == 1, answer.err
    assert answer.status == 2
    rest = answer.complaint
    for phrase in phrases:
        assert phrase in rest, f"{phrase!r} is not, or not in this order, in: {answer.complaint}"
        rest = rest.partition(phrase)[2]


class Typist:
    """The child process. Closed, it types no more."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def types(self, arguments: Sequence[str], environment: dict[str, str], largest_file_bytes: int) -> Answer:
        """`yarn-ops …` in this environment, on a disk that takes no larger file."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {
            "arguments": arguments,
            "environment": environment,
            "largest_file_bytes": largest_file_bytes,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        finally:
            self._process.kill()


class Person:
    """With a state directory of their own."""

    def __init__(self, typist: Typist, environment: dict[str, str]) -> None:
        self.state = Path(environment["YARN_OPS_STATE_DIR"])
        self._typist = typist
        self._environment = environment

    def types(
        self, *arguments: object, largest_file_bytes: int = resource.RLIM_INFINITY, **variables: str
    ) -> Answer:
        """`yarn-ops …` with these environment variables on top."""
        return self._typist.types(
            [str(argument) for argument in arguments], {**self._environment, **variables}, largest_file_bytes
        )

    def model_versions(self) -> int:
        """How many there are in MLflow, of all models."""
        file = self.state / "mlflow.db"
        if not file.exists():
            return 0
        with closing(sqlite3.connect(file)) as database:
            return int(database.execute("SELECT count(*) FROM model_versions").fetchone()[0])

    def half_written(self) -> list[str]:
        """What no command may leave: unfinished files, a run still running, outputs that are not there."""
        found = [str(path) for path in self.state.rglob("*") if PARTIAL.search(str(path))]
        registry = open_registry(f"sqlite:///{self.state / 'registry.db'}")
        for run in registry.runs(1):
            view = registry.run_view(run.id)
            found += [f"{part} is running" for part in (view, *view.stages) if part.status == "running"]
            found += [f"{stage} has no output" for stage in view.stages if not self._present(stage)]
        registry.close()
        return found

    def _present(self, stage: StageView) -> bool:
        """Whether the output that a stage has recorded, if any, is whole in the store."""
        tree = (stage.record or {}).get("tree")
        return tree is None or tree_present(open_store((self.state / "store").as_uri()), Tree(**tree))


@contextmanager
def nothing_left(person: Person) -> Iterator[None]:
    """Nothing half-written and no model version comes out of the block."""
    versions = person.model_versions()
    yield
    assert person.half_written() == []
    assert person.model_versions() == versions


def fails(person: Person, command: Sequence[object], *phrases: str, **options: Any) -> Answer:
    """The command is refused in one line with these phrases, and leaves nothing half-written."""
    with nothing_left(person):
        answer = person.types(*command, **options)
        told(answer, *phrases)
    return answer


@pytest.fixture(scope="session")
def typist() -> Iterator[Typist]:
    process = Typist()
    yield process
    process.close()


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, typist: Typist, prefect_api: str) -> Person:
    """Somebody who has not run anything yet."""
    from prefect_here import at  # not for the child, which is this file alone

    settings = {
        "YARN_OPS_STATE_DIR": str(tmp_path_factory.mktemp("person") / "state"),
        **at(prefect_api),
        "YARN_OPS_DEVICE": "cpu",
    }
    return Person(typist, {**os.environ, **settings})


# The child's side


def serve() -> None:
    """Obey one order a line until there are no more."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        replies.write(json.dumps(_obey(**json.loads(line))) + "\n")
        replies.flush()


def _obey(arguments: list[str], environment: dict[str, str], largest_file_bytes: int) -> dict[str, Any]:
    sys.argv = ["yarn-ops", *arguments]
    os.environ.clear()
    os.environ.update(environment)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        with _output_to(out, err), _files_up_to(largest_file_bytes):
            status = _status_of_main()
        seconds = time.monotonic() - began
        return {"status": status, "out": _read(out), "err": _read(err), "seconds": seconds}


def _status_of_main() -> int:
    from yarn_ops import cli

    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


@contextmanager
def _output_to(out: IO[str], err: IO[str]) -> Iterator[None]:
    """Whatever is written to standard output and error, by Python or beneath it."""
    usual = [os.dup(number) for number in (1, 2)]
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), usual, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextmanager
def _files_up_to(size_bytes: int) -> Iterator[None]:
    """Writing beyond fails as on a full disk (EFBIG); the signal for it is ignored by Python."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    from forked import forked_trainers

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests is for the tests
    with forked_trainers():
        serve()

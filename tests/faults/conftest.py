from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
from prefect_here import at
from workplace import Workplace

RECIPE = """\
[base]
model = "shipped:base512"
[rope]
factor = 2
[data]
sources = ["stdlib:json/*.py", "stdlib:email/*.py", "stdlib:asyncio/*.py"]
[train]
steps = 24
checkpoint_every = 4
context_tokens = 512
[evaluate]
lengths = [1, 2]
windows = 1
recall_windows = 1
templates = ["code"]
[gate]
min_recall_kept = 0
min_uses_share = 0
min_long_gain = 0.1
max_long_growth = 10
max_short_growth = 10
max_short_recall_loss = 1
[publish]
name = "small"
"""
"""Little to measure, and a training that takes seconds: there is time to kill it."""

MakeWorkplace = Callable[..., Workplace]


@pytest.fixture(scope="module")
def make_workplace(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[MakeWorkplace]:
    """Make a fresh workplace; what still runs there at the end is killed."""
    made: list[Workplace] = []

    def make(*, prefect_api_url: str | None = prefect_api) -> Workplace:
        environment = dict(os.environ)
        if prefect_api_url is not None:
            environment |= at(prefect_api_url)
        made.append(Workplace(tmp_path_factory.mktemp("workplace"), environment, RECIPE))
        return made[-1]

    yield make
    for workplace in made:
        for process in workplace.processes():
            process.kill()
        shutil.rmtree(workplace.state, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(make_workplace: MakeWorkplace) -> Workplace:
    """A workplace in which the recipe has run from beginning to end, once."""
    workplace = make_workplace()
    extension = workplace.start()
    assert extension.wait() == 0, extension.output
    return workplace

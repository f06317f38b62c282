"""The commands of the README and of the pages beside it, run as a person runs them; slow: those that need a
model, on a demo cut short, those of minutes, and the whole demo as it is and what it has to show."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pages
import pytest
from pages import CHECKOUT, PAGES
from person import Person, Typist

BIN = CHECKOUT / ".venv" / "bin"

WHEEL = "tests/flows/test_wheel.py"
PUSHED = "tests/seams/test_push.py"
SERVED = "tests/unit/serving/test_serve_check.py"
RUN_ELSEWHERE = {
    "infra/demo": "the fixture `demo` here",
    "yarn-ops extend demo": "test_the_same_again_is_reused here",
    "yarn-ops extend demo --set budget.dollars=2": "tests/flows/test_costs.py",
    "infra/test": "this run",
    "yarn-ops up": "tests/flows/test_service.py",
    "pip wheel --no-deps --wheel-dir dist .": WHEEL,
    "pip install --constraint infra/constraints.txt dist/yarn_ops-0.1.0-py3-none-any.whl": WHEEL,
    "infra/stack up": "tests/flows/test_stack.py",
    "infra/stack status": "tests/flows/test_stack.py",
    "infra/stack down": "tests/flows/test_stack.py",
    "openssl genpkey -algorithm ed25519 -out signing.pem": "tests/unit/test_claim.py",
    "openssl pkey -in signing.pem -pubout -out verify.pem": "tests/unit/test_claim.py",
    "yarn-ops serve-check http://127.0.0.1:8000 --model ./demo-long": SERVED,
    "nginx -p ./router -c nginx.conf": "tests/unit/export/test_export_router.py",
    "yarn-ops push ./demo-long oci:./layout:v1": PUSHED,
    "yarn-ops push demo-long oci://registry.example.org/models/demo-long:v1 --alias champion": PUSHED,
    "yarn-ops push ./demo-long hf:OWNER/demo-long": PUSHED,
    "yarn-ops compare-releases demo-long demo-long:1 --out ./compared": "tests/flows/test_extend.py",
    "yarn-ops evaluate ./demo-long --base ./demo-long --url http://127.0.0.1:8000": (
        "tests/unit/cli/test_cli_evaluate_served.py"
    ),
}
A_CLUSTER = "wants a cluster of Kubernetes; tests/seams/test_kubernetes_job.py reads its files"
NOT_RUN = {
    "yarn-ops evaluate /models/other --suite full --documents '/data/books/**/*.txt'": "your own model",
    "dask scheduler": "another machine's; tests/seams/test_cluster.py has both",
    "dask worker tcp://host:8786 --nthreads 16": "another machine's; tests/seams/test_cluster.py has both",
    "YARN_OPS_CLUSTER=tcp://host:8786 yarn-ops extend RECIPE": "tests/seams/test_cluster.py prepares so",
    'export YARN_OPS_NOTIFY="https://hooks.slack.com/services/T0/B0/key '
    'mailtos://me:password@example.org?to=team@example.org"': "tests/flows/test_notify.py has receivers",
    "infra/audit": "asks PyPI for advisories; tests/unit/test_audit.py reads its answers",
    "kubectl create namespace yarn-ops": A_CLUSTER,
    "kubectl -n yarn-ops create secret generic yarn-ops --from-env-file=yarn-ops.env": A_CLUSTER,
    "kubectl apply -k infra/kubernetes/base": A_CLUSTER,
    "kubectl -n yarn-ops port-forward service/prefect 4200 & "
    "kubectl -n yarn-ops port-forward service/mlflow 5000": A_CLUSTER,
    "prefect deployment run extend-context/extend-context "
    "--job-variable gpus=2 --job-variable memory=87Gi …": A_CLUSTER,
}
RETRAINS = "yarn-ops extend demo --set rope.method=linear --set publish.name=demo-linear"
NEEDS_A_MODEL = re.compile(
    r"yarn-ops (runs show|pull|lineage|export|fingerprint|router|remedies|evaluate)|python infra/load_plain"
)
TAKES_MINUTES = re.compile(r"yarn-ops (compare|fit) ")
DEMO_S = 1800
"""ten times what it takes on two idle cores"""
STAGE_LINE = re.compile(r"(\S+) +(done|reused) +[\d.]+ s")
ORIGINAL_TOKENS, TARGET_TOKENS = 512, 2048
SHORT = (
    "yarn-ops extend demo --set train.steps=2 --set train.warmup_steps=1 --set evaluate.windows=2 "
    "--set evaluate.recall_windows=2 --set gate.min_recall_kept=0 --set gate.min_uses_share=0 "
    "--set gate.min_recall=0 --set gate.max_long_growth=9 --set gate.max_short_growth=2 "
    """--set 'data.sources=["stdlib:asyncio/*.py", "stdlib:email/*.py", "stdlib:json/*.py"]'"""
)


def environment(state: Path) -> dict[str, str]:
    return {**os.environ, "YARN_OPS_STATE_DIR": str(state), "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a demo of two steps has run and registered its model."""
    there = environment(tmp_path_factory.mktemp("short"))
    run(SHORT, there, CHECKOUT, timeout_s=DEMO_S)
    return there


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `infra/demo` has run."""
    there = environment(tmp_path_factory.mktemp("demo"))
    done = run("infra/demo", there, CHECKOUT, timeout_s=DEMO_S)
    assert "demo-long version 1" in done.stdout
    assert "2048 tokens" in done.stdout
    return there


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds what README commands name by a relative path."""
    folder = tmp_path_factory.mktemp("somewhere")
    (folder / "infra").symlink_to(CHECKOUT / "infra")
    return folder


def run(command: str, environment: dict[str, str], folder: Path, timeout_s: float) -> Any:
    done = subprocess.run(
        shlex.split(command), env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


TYPED = [c for c in pages.commands() if c not in RUN_ELSEWHERE and c not in NOT_RUN and c != RETRAINS]
SLOW = [c for c in TYPED if NEEDS_A_MODEL.match(c) or TAKES_MINUTES.match(c)]


@pytest.mark.parametrize("command", [c for c in TYPED if c not in SLOW])
def test_a_command_of_somebody_who_begins(
    tmp_path_factory: pytest.TempPathFactory, typist: Typist, command: str
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "yarn-ops"
    begins = Person(typist, environment(tmp_path_factory.mktemp("begins")))
    answer = begins.types(*arguments)
    assert answer.status == 0, f"{command}\n{answer.out}\n{answer.err}"
    # Prefect keeps the address of a server that ended with its command, and others type in this process.
    assert not (begins.state / "logs/prefect-server.log").exists(), f"{command} starts a run: name its test"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("command", SLOW)
def test_a_command_that_needs_a_model_or_minutes(
    short_demo: dict[str, str], somewhere: Path, command: str
) -> None:
    run(command, short_demo, somewhere, timeout_s=DEMO_S)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_same_again_is_reused(demo: dict[str, str], somewhere: Path) -> None:
    stages = STAGE_LINE.findall(run("yarn-ops extend demo", demo, somewhere, timeout_s=300).stderr)
    assert {how for _, how in stages} == {"reused"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_command_that_trains_again(demo: dict[str, str], somewhere: Path) -> None:
    """PI breaks recall on this base, so that its gate refuses it."""
    done = subprocess.run(
        shlex.split(RETRAINS), env=demo, cwd=somewhere, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2
    assert "demo-linear version 1 was rejected" in done.stderr


def test_nothing_of_the_pages_is_left_out() -> None:
    """Whatever is not run here stands in the pages still, and a test that runs it is there."""
    assert {*RUN_ELSEWHERE, *NOT_RUN, RETRAINS} <= set(pages.commands())
    assert len(TYPED) >= 20
    named = re.findall(r"tests/\S+\.py", " ".join([*RUN_ELSEWHERE.values(), *NOT_RUN.values()]))
    assert [name for name in named if not (CHECKOUT / name).is_file()] == []


def test_every_command_of_the_pages_is_in_a_bash_block() -> None:
    """Only those are run."""
    command = re.compile(r"^(yarn-ops|infra/\w|python|pip|prefect|kubectl|docker|dask)\b", re.MULTILINE)
    assert [block for block in pages.blocks("") if command.search(block)] == []


def test_the_readme_is_a_page_for_newcomers() -> None:
    assert len((CHECKOUT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if not path.startswith("https://"):
            there = (page.parent / path) if path else page
            assert there.exists(), link
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE) if heading else []
            anchors = [re.sub(r"[^\w -]", "", found.lower()).replace(" ", "-") for found in headings]
            assert not heading or heading in anchors, link


def test_every_page_is_linked_from_the_readme() -> None:
    text = (CHECKOUT / "README.md").read_text("utf-8")
    assert [page for page in PAGES[1:] if f"({page.relative_to(CHECKOUT)})" not in text] == []


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_sees_and_uses_four_times_its_context(demo: dict[str, str], somewhere: Path) -> None:
    runs = json.loads(run("yarn-ops runs --json", demo, somewhere, timeout_s=60).stdout)  # newest first
    shown = run(f"yarn-ops runs show {runs[-1]['id']} --json", demo, somewhere, timeout_s=60).stdout
    before, after = [
        {
            (score["task"], score["context_tokens"]): score["value"]
            for score in stage["record"]["scores"]
            if score["depth"] is None
        }
        for stage in json.loads(shown)["stages"]
        if stage["stage"] == "evaluate"
    ]
    for template in ("recall/code", "recall/prose"):
        assert before[template, TARGET_TOKENS] <= 0.1
        assert after[template, TARGET_TOKENS] >= 0.9
    perplexity = "perplexity/last-quarter"
    assert after[perplexity, TARGET_TOKENS] <= 1.1 * after[perplexity, ORIGINAL_TOKENS]
    assert after[perplexity, ORIGINAL_TOKENS // 2] <= 1.05 * before[perplexity, ORIGINAL_TOKENS // 2]

"""The main job whole, through the command line: what it leaves behind, and what the next run reuses."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from prefect_here import at, client
from small_recipe import SMALL

from yarn_ops.catalogue import ModelVersion
from yarn_ops.claim import read_claim, read_verify_key
from yarn_ops.cli.serving import measured_model
from yarn_ops.digests import digest_tree, tree_digest
from yarn_ops.recipe import load_recipe
from yarn_ops.registry import RunView, StageView, open_registry
from yarn_ops.release import open_tracking
from yarn_ops.settings import Settings

pytestmark = pytest.mark.timeout(600)  # on a machine that does other work too

FLOW = (
    "base", "patch", "documents", "shards", "rehearse", "train",
    "merge", "evaluate", "evaluate", "gate", "report", "publish",
)  # fmt: skip
ANY_QUALITY = (
    "gate.min_long_gain=0.001", "gate.max_long_growth=1000", "gate.max_short_growth=1000",
)  # fmt: skip

REUSE = """
import sys
from pathlib import Path
from flows.extend import extend
from flows.run import reuse_all
from yarn_ops.recipe import load_recipe

print(reuse_all(extend, None, load_recipe(Path(sys.argv[2]))))
"""


class Workplace:
    """The recipe on one state directory: what one test computes the next one reuses."""

    first_versions: dict[int, ModelVersion]
    """as they were after the first run, whatever other tests have made since"""
    first_mlflow_runs: dict[str, Any]

    def __init__(self, folder: Path, prefect_api: str) -> None:
        self.recipe_path = folder / "small.toml"
        self.recipe_path.write_text(SMALL, "utf-8")
        self.prefect_api = prefect_api
        self.settings = Settings(state_dir=folder / "state")
        self._environment = {
            **os.environ,
            "YARN_OPS_STATE_DIR": str(self.settings.home),
            **at(prefect_api),
        }

    @contextmanager
    def where(self, **variables: str) -> Iterator[None]:
        """Within the block commands have these variables too."""
        before, self._environment = self._environment, {**self._environment, **variables}
        try:
            yield
        finally:
            self._environment = before

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "yarn_ops.cli", *map(str, arguments)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def types_alone(self, *arguments: object, program: str = "") -> subprocess.CompletedProcess[str]:
        """A command, or a program of Python, where no Prefect server is named."""
        way = ["-c", program] if program else ["-m", "yarn_ops.cli"]
        environment = {**self._environment}
        for variable in at(self.prefect_api):
            del environment[variable]
        command = [sys.executable, *way, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    def extend(self, *changes: str, status: int = 0) -> RunView:
        """The run that `yarn-ops extend` made of the recipe with these `--set`."""
        self.complaint = self._finished(self._extending(*changes), status)
        return self.run()

    def extend_twice_at_once(self) -> RunView:
        for process in [self._extending(), self._extending()]:
            self._finished(process, 0)
        return self.run()

    def run(self) -> RunView:
        registry = open_registry(self.settings.database)
        try:
            return registry.run_view("last")
        finally:
            registry.close()

    def runs(self) -> list[RunView]:
        """All of them, whole."""
        registry = open_registry(self.settings.database)
        try:
            return [registry.run_view(run.id) for run in registry.runs()]
        finally:
            registry.close()

    def pull(self, to: Path) -> dict[str, bytes]:
        """The files of the pulled champion."""
        self._finished(self.start("pull", "small", "--alias", "champion", "--to", to), 0)
        return {
            path.relative_to(to).as_posix(): path.read_bytes() for path in to.rglob("*") if path.is_file()
        }

    def versions(self) -> dict[int, ModelVersion]:
        return {version.version: version for version in open_tracking(self.settings).models()}

    def mlflow_runs(self) -> dict[str, Any]:
        """By their names: our runs' ids."""
        client = self.mlflow()
        experiment = client.get_experiment_by_name("yarn-ops")
        return {run.data.tags["run"]: run for run in client.search_runs([experiment.experiment_id])}

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.settings.mlflow, self.settings.mlflow)

    def prefect_run(self, run: RunView) -> dict[str, Any]:
        answer = client(self.prefect_api).get(f"/flow_runs/{run.flow_run_id}").raise_for_status()
        return dict(answer.json())

    def _extending(self, *changes: str) -> subprocess.Popen[str]:
        options = [word for change in changes for word in ("--set", change)]
        return self.start("extend", self.recipe_path, *options)

    def _finished(self, process: subprocess.Popen[str], status: int) -> str:
        """The lines for the user on standard error, without those of stages."""
        out, err = process.communicate(timeout=500)
        assert process.returncode == status, out + err
        return "\n".join(line for line in err.splitlines() if line.startswith("yarn-ops: "))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("extend"), prefect_api)


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> RunView:
    """The run of two identical commands, started at once on a fresh state directory."""
    run = workplace.extend_twice_at_once()
    workplace.first_versions, workplace.first_mlflow_runs = workplace.versions(), workplace.mlflow_runs()
    return run


def names(run: RunView) -> tuple[str, ...]:
    return tuple(stage.stage for stage in run.stages)


def computed(run: RunView) -> list[str]:
    return [stage.stage for stage in run.stages if not stage.reused]


def the(stage: str, run: RunView) -> StageView:
    (found,) = (one for one in run.stages if one.stage == stage)
    return found


def directory(stage: StageView) -> Path:
    assert stage.record is not None
    return Path(unquote(urlsplit(stage.record["tree"]["uri"]).path))


def test_two_at_once_compute_each_stage_once(workplace: Workplace, first: RunView) -> None:
    assert (first.status, first.attempts, names(first)) == ("completed", 2, FLOW)
    assert {stage.attempts for stage in first.stages} == {1}
    assert list(workplace.first_versions) == [1]
    runs = workplace.first_mlflow_runs.items()
    assert {name: run.info.status for name, run in runs} == {first.id: "FINISHED"}
    known = workplace.prefect_run(first)
    assert (known["state"]["type"], known["state"]["name"]) == ("COMPLETED", "Completed")
    assert known["name"] == first.name == "small"


def test_a_version_says_what_it_is(workplace: Workplace, first: RunView) -> None:
    version = workplace.first_versions[1]
    recipe = load_recipe(workplace.recipe_path)
    commit = version.tags["git_commit"]
    model = Path(unquote(urlsplit(version.source).path))
    files = {name: digest for name, digest in digest_tree(model).items() if name != "manifest.json"}
    assert version.tags == {
        "context_length": "1024",
        "original_context_length": "512",
        "rope_method": "yarn",
        "factor": "2",
        "base": "shipped:base512",
        "recipe": recipe.digest(),
        "run": first.id,
        "gate": "passed",
        "git_commit": commit,
        "tree_digest": tree_digest(files),
    }
    assert commit == "unknown" or len(commit) == 40
    assert (version.name, version.aliases, version.mlflow_run_id) == (
        "small", ("champion",), first.mlflow_run_id,
    )  # fmt: skip
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)


def test_live_metrics_and_parameters_are_in_mlflow(workplace: Workplace, first: RunView) -> None:
    run = workplace.mlflow_runs()[first.id]
    logged = {name.removeprefix("train/") for name in run.data.metrics if name.startswith("train/")}
    assert logged == {
        "loss", "learning_rate", "gradient_norm", "tokens_per_s", "step_s", "data_wait_s", "peak_bytes",
        "flops_per_s",
    }  # fmt: skip
    for figure in logged:
        history = workplace.mlflow().get_metric_history(run.info.run_id, f"train/{figure}")
        assert [point.step for point in history] == [1, 2, 3, 4], figure
    assert run.data.params["rope.factor"] == "2.0"
    shown = {name for name in run.data.metrics if not name.startswith("train/")}
    assert shown == {
        "sees_tokens", "uses_tokens", "perplexity_at_longest", "recall_at_longest", "short_perplexity_ratio",
        *("perplexity/last-quarter/before", "perplexity/last-quarter/after"),
        *("recall/code/before", "recall/code/after"),
    }  # fmt: skip
    curve = workplace.mlflow().get_metric_history(run.info.run_id, "recall/code/after")
    assert [point.step for point in curve] == [512, 1024]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == the("shards", first).record["tree"]["digest"][:36]  # type: ignore[index]


def test_runs_show_prints_stages_scores_verdict_and_release(workplace: Workplace, first: RunView) -> None:
    out, err = workplace.start("runs", "show", first.id, "--json").communicate(timeout=100)
    shown = json.loads(out)
    assert [stage["stage"] for stage in shown["stages"]] == list(FLOW), err
    assert all(stage["seconds"] >= 0 and stage["status"] == "completed" for stage in shown["stages"])
    lengths = {score["context_tokens"] for score in shown["scores"] if score["task"] == "recall/code"}
    assert lengths == {512, 1024}
    (verdict,) = (stage["record"] for stage in shown["stages"] if stage["stage"] == "gate")
    assert verdict["passed"] and all(check["reason"] for check in verdict["checks"])
    assert (shown["release"]["name"], shown["release"]["version"]) == ("small", 1)


def test_the_same_again_reuses_everything(workplace: Workplace, first: RunView) -> None:
    versions, mlflow_runs = list(workplace.versions()), list(workplace.mlflow_runs())
    again = workplace.extend()
    assert again.id != first.id
    assert (again.status, names(again), computed(again)) == ("completed", FLOW, [])
    assert [stage.record for stage in again.stages] == [stage.record for stage in first.stages]
    assert (again.mlflow_run_id, again.release) == (None, first.release)
    assert list(workplace.versions()) == versions
    assert list(workplace.mlflow_runs()) == mlflow_runs


def test_a_failed_gate_registers_a_rejected_version_and_moves_no_alias(
    workplace: Workplace, first: RunView
) -> None:
    before = champion(workplace)
    rejected = workplace.extend("gate.min_long_gain=1000", status=2)
    assert computed(rejected) == ["gate", "report", "publish"]
    assert rejected.release is not None
    version = workplace.versions()[rejected.release.version]
    assert (version.tags["gate"], version.aliases) == ("failed", ())
    assert champion(workplace) == before
    assert rejected.status == "rejected"
    reason = rejected.reason
    assert reason is not None and reason.endswith("below 1000")
    assert reason.startswith(f"small version {version.version} was rejected: gain at 1024 tokens")
    assert workplace.complaint == f"yarn-ops: {reason}"
    assert version.description.startswith("**Rejected: small, 512 to 1,024 tokens**\n")
    assert f"- fails: {reason.partition(': ')[2]}\n" in version.description
    state = workplace.prefect_run(rejected)["state"]
    assert (state["type"], state["name"], state["message"]) == ("COMPLETED", "Rejected", reason)
    tracked = workplace.mlflow_runs()[rejected.id]
    assert (tracked.info.status, tracked.data.tags["outcome"]) == ("KILLED", "rejected")
    assert workplace.mlflow_runs()[first.id].data.tags["outcome"] == "promoted"


def champion(workplace: Workplace) -> int:
    (number,) = (number for number, version in workplace.versions().items() if "champion" in version.aliases)
    return number


ENDS = ["gate", "report", "publish"]
TRAINS = ["train", "merge", "evaluate", *ENDS]


def test_the_same_again_needs_no_prefect_server(workplace: Workplace, first: RunView) -> None:
    done = workplace.types_alone("extend", workplace.recipe_path)
    again = workplace.run()
    assert done.returncode == 0 and done.stderr.count(" reused ") == len(FLOW), done.stderr
    assert (again.status, again.flow_run_id, computed(again)) == ("completed", None, [])
    assert again.id != first.id and again.release == first.release
    assert not (workplace.settings.home / "logs/prefect-server.log").exists()


def test_what_is_not_all_there_is_left_to_a_run_with_prefect(workplace: Workplace, first: RunView) -> None:
    (directory(the("report", first)) / "manifest.json").unlink()
    done = workplace.types_alone("extend", workplace.recipe_path, program=REUSE)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert " reused " not in done.stderr  # it goes on in another, which says so
    left = workplace.run()
    assert (left.status, left.reason) == ("stopped", "report: is to be computed")
    again = workplace.extend()
    assert (again.id, again.status, computed(again)) == (left.id, "completed", ["report"])


@pytest.mark.slow
def test_other_training_reuses_what_came_before_it(workplace: Workplace, first: RunView) -> None:
    """And moves the alias."""
    other = workplace.extend("train.steps=2", *ANY_QUALITY)
    assert computed(other) == ["rehearse", *TRAINS]
    assert other.release is not None
    assert champion(workplace) == other.release.version != 1


def test_a_checkpoint_lost_from_the_store_is_merged_again(workplace: Workplace, first: RunView) -> None:
    (directory(the("merge", first)) / "model.safetensors").unlink()
    versions = list(workplace.versions())
    again = workplace.extend()
    assert computed(again) == ["merge"]
    assert the("merge", again).record == the("merge", first).record
    assert list(workplace.versions()) == versions


def test_a_damaged_registry_is_made_again(workplace: Workplace, first: RunView, tmp_path: Path) -> None:
    """Runs, stages, releases and pulls as they were; finished stages are reused, and nothing is collected."""
    workplace.extend()
    before, versions, pulled = workplace.runs(), workplace.versions(), workplace.pull(tmp_path / "before")
    assert len(before) >= 2 and pulled
    path = workplace.settings.home / "registry.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = os.urandom(len(content) // 3 + 1)[
        : len(content) // 3
    ]
    path.write_bytes(content)

    out, err = workplace.start("doctor", "--json").communicate(timeout=200)
    (told,) = [each for each in json.loads(out) if each["name"] == "registry"]
    assert not told["healthy"] and "run `yarn-ops db rebuild`" in told["remedy"], err
    rebuilding = workplace.start("db", "rebuild")
    out, err = rebuilding.communicate(timeout=200)
    assert rebuilding.returncode == 0, out + err
    assert f"damaged: moved to {path}.damaged-" in out and "could not be got back" not in out
    (aside,) = [one for one in path.parent.glob("registry.db.damaged-*") if one.name[-1].isdecimal()]
    assert aside.read_bytes() == bytes(content)

    assert workplace.runs() == before
    assert workplace.versions() == versions
    assert workplace.pull(tmp_path / "after") == pulled
    collecting = workplace.start("gc", "--older-than", "0", "--json")
    out, err = collecting.communicate(timeout=200)
    assert collecting.returncode == 0, err
    assert {one["kind"] for one in json.loads(out)["found"]} <= {"work", "cache"}, out
    again = workplace.extend()
    assert computed(again) == [] and again.release == first.release


@pytest.mark.slow
def test_a_release_carries_its_fingerprint_and_is_signed(
    workplace: Workplace, first: RunView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained or measured again; without the key the signed release stays as it is."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    for words in (
        ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    with workplace.where(YARN_OPS_SIGNING_KEY=str(private)):
        run = workplace.extend("publish.fingerprint=true")
    assert computed(run) == ["report", "fingerprint", "publish"]
    made = the("fingerprint", run).record
    assert made is not None and made["texts"] > 20 and made["faults"] > 5
    again = workplace.extend("publish.fingerprint=true")
    assert computed(again) == [] and again.release == run.release
    with workplace.where(YARN_OPS_VERIFY_KEY=str(public)):
        pulled = workplace.pull(tmp_path / "to")
    claim = read_claim(pulled["claim.intoto.json"], read_verify_key(public), "here").predicate
    metrics = workplace.mlflow_runs()[run.id].data.metrics
    sees, uses = (None if one is None else one.tokens for one in (claim.sees, claim.uses))
    assert (sees, uses) == (metrics["sees_tokens"], metrics["uses_tokens"])
    assert (claim.model, claim.target_context_tokens, claim.passed) == ("small", 1024, True)
    assert claim.data == the("shards", run).record["tree"]["digest"]  # type: ignore[index]
    monkeypatch.setenv("YARN_OPS_STATE_DIR", str(workplace.settings.home))
    monkeypatch.setenv("YARN_OPS_VERIFY_KEY", str(public))
    fingerprint, believed = measured_model("small", "champion")
    assert believed == claim and fingerprint.to_bytes() == pulled["fingerprint.json"]


def test_a_key_that_signs_nothing_is_told_before_a_run_exists(
    workplace: Workplace, first: RunView, tmp_path: Path
) -> None:
    runs = len(workplace.runs())
    with workplace.where(YARN_OPS_SIGNING_KEY=str(tmp_path / "none.pem")):
        told = workplace.types_alone("extend", workplace.recipe_path)
    assert told.returncode == 2 and "YARN_OPS_SIGNING_KEY: " in told.stderr, told.stderr
    assert len(workplace.runs()) == runs


@pytest.fixture(scope="module")
def staged(workplace: Workplace, first: RunView) -> RunView:
    """A run in three legs, each of which carries something else over."""
    legs = (
        "[{context_tokens=768, steps=2, gate={max_long_growth=1000}}, "
        "{context_tokens=256, factor=2, steps=1, carry='adapter+optimizer'}, "
        "{context_tokens=256, factor=2, steps=1, carry='weights'}]"
    )
    return workplace.extend(f"train.legs={legs}", *ANY_QUALITY)


@pytest.mark.slow
def test_legs_carry_over_what_they_say_and_are_gated(workplace: Workplace, staged: RunView) -> None:
    run = staged
    one, two, three = (stage.record for stage in run.stages if stage.stage == "train")
    merges = [stage.record for stage in run.stages if stage.stage == "merge"]
    assert one and two and three and all(merges)
    assert [(leg["window_tokens"], leg["steps"]) for leg in (one, two, three)] == [
        (768, 2), (256, 1), (256, 1),
    ]  # fmt: skip
    factors = [stage.record["factor"] for stage in run.stages if stage.stage == "patch" and stage.record]
    assert sorted(set(factors)) == [1.5, 2.0]
    assert one["tree"]["digest"] in two["parents"]
    assert two["tree"]["digest"] not in three["parents"]
    carried = [merged["tree"]["digest"] for merged in merges if merged["tree"]["digest"] in three["parents"]]
    assert len(carried) == 1
    assert {carried[0], three["tree"]["digest"]} <= set(merges[-1]["parents"])
    gate = the("leg-gate", run).record
    assert gate is not None and [check["name"] for check in gate["checks"]] == ["long growth"]
    history = workplace.mlflow().get_metric_history(run.mlflow_run_id, "train/loss")
    assert [point.step for point in history] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_leg_that_fails_its_gate_ends_the_run(workplace: Workplace, staged: RunView) -> None:
    legs = (
        "[{context_tokens=768, steps=2, gate={max_long_growth=0.1, min_recall=0}}, "
        "{context_tokens=1024, steps=2, carry='adapter+optimizer'}]"
    )
    versions, alias = list(workplace.versions()), champion(workplace)
    run = workplace.extend(f"train.legs={legs}", *ANY_QUALITY, status=2)
    assert workplace.complaint.startswith(
        "yarn-ops: leg 1 of 2, 768 tokens: growth of perplexity from 512 to 768"
    )
    assert workplace.complaint.endswith("above 0.1; nothing was registered")
    assert "\n" not in workplace.complaint
    assert (run.status, run.release) == ("rejected", None)
    verdict = the("leg-gate", run).record
    assert verdict is not None and not verdict["passed"]
    assert {check["name"]: check["passed"] for check in verdict["checks"]} == {
        "base uses its window": True, "recall at the target": True, "long growth": False,
    }  # fmt: skip
    assert names(run).count("train") == 1 and the("train", run).reused  # another gate, the same training
    assert (list(workplace.versions()), champion(workplace)) == (versions, alias)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "linear", "ntk", "by-parts"])
def test_every_method_runs_whole(workplace: Workplace, first: RunView, method: str) -> None:
    run = workplace.extend(f"rope.method={method}", "train.steps=1", *ANY_QUALITY)
    assert run.release is not None
    assert (run.status, run.release.tags["rope_method"]) == ("completed", method)
    config = json.loads((directory(the("merge", run)) / "config.json").read_bytes())
    assert config["max_position_embeddings"] == 1024

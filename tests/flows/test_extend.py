"""The main job whole, through the command line: what it leaves behind, and what the next run reuses."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from extended import Workplace, computed, directory, names, the

from yarn_ops.digests import digest_tree, tree_digest
from yarn_ops.recipe import load_recipe
from yarn_ops.registry import RunView

pytestmark = pytest.mark.timeout(600)  # on a machine that does other work too

FLOW = (
    "base", "patch", "rehearse", "documents", "shards", "train",
    "merge", "evaluate", "evaluate", "gate", "report", "publish",
)  # fmt: skip
REUSE = """
import sys
from pathlib import Path
from flows.extend import extend
from flows.run import reuse_all
from yarn_ops.recipe import load_recipe

print(reuse_all(extend, None, load_recipe(Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def again(workplace: Workplace, first: RunView) -> RunView:
    """The same recipe once more."""
    return workplace.extend()


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
    told = workplace.types("runs", "show", first.id, "--json")
    shown = json.loads(told.out)
    assert [stage["stage"] for stage in shown["stages"]] == list(FLOW), told.err
    assert all(stage["seconds"] >= 0 and stage["status"] == "completed" for stage in shown["stages"])
    lengths = {score["context_tokens"] for score in shown["scores"] if score["task"] == "recall/code"}
    assert lengths == {512, 1024}
    (verdict,) = (stage["record"] for stage in shown["stages"] if stage["stage"] == "gate")
    assert verdict["passed"] and all(check["reason"] for check in verdict["checks"])
    assert (shown["release"]["name"], shown["release"]["version"]) == ("small", 1)


def test_its_lineage_leads_from_the_documents_to_the_pulled_files(
    workplace: Workplace, first: RunView, tmp_path: Path
) -> None:
    folder, html = tmp_path / "pulled", tmp_path / "lineage.html"
    workplace.pull(folder)
    (folder / "small-f16.gguf").write_bytes(b"GGUF")
    asked = ("lineage", "small", "--version", "1", "--directory", folder)
    told = json.loads(workplace.types(*asked, "--json").out)
    by_id = {node["id"]: node for node in told["nodes"]}
    kinds = [node["kind"] for node in told["nodes"]]
    assert (told["run"], kinds[-3:]) == (first.id, ["release", "pulled", "export"])
    made = {stage.key: stage.record for stage in first.stages}
    assert {"documents", "shards", "base", "patched", "adapter", "merged", "scores", "verdict"} < set(kinds)
    for node in told["nodes"][:-3]:
        assert node["parents"] or node["kind"] in ("base", "documents")
        assert node["uri"] == (made[node["id"]].get("tree") or {}).get("uri")
        assert node["seconds"] > 0 and node["run"] == first.id
    pulled = next(node for node in told["nodes"] if node["kind"] == "pulled")
    release = by_id[pulled["parents"][0]]
    assert (pulled["name"], pulled["digest"]) == ("as released", release["digest"])
    config = folder / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    shown = workplace.types(*asked, "--html", html)
    assert shown.status == 0, shown.err
    assert "pulled: NOT as released: config.json changed\n" in shown.out
    assert all(node["digest"][:12] in html.read_text() for node in told["nodes"] if node != pulled)


def test_the_same_again_reuses_everything(workplace: Workplace, first: RunView, again: RunView) -> None:
    assert again.id != first.id
    assert (again.status, names(again), computed(again)) == ("completed", FLOW, [])
    assert [stage.record for stage in again.stages] == [stage.record for stage in first.stages]
    assert (again.mlflow_run_id, again.release) == (None, first.release)
    assert list(workplace.versions()) == list(workplace.first_versions)
    assert list(workplace.mlflow_runs()) == list(workplace.first_mlflow_runs)


@pytest.fixture(scope="module")
def rejected(workplace: Workplace, first: RunView) -> RunView:
    """The first run's checkpoint, which another gate rejects."""
    return workplace.extend("gate.min_long_gain=1000", status=2)


def test_a_failed_gate_registers_a_rejected_version_and_moves_no_alias(
    workplace: Workplace, first: RunView, rejected: RunView
) -> None:
    assert computed(rejected) == ["gate", "report", "publish"]
    assert rejected.release is not None
    version = workplace.versions()[rejected.release.version]
    assert (version.tags["gate"], version.aliases) == ("failed", ())
    assert workplace.champion() == 1
    assert rejected.status == "rejected"
    reason = rejected.reason
    assert reason is not None and reason.endswith("below 1,000")
    assert reason.startswith(f"small version {version.version} was rejected: gain at 1,024 tokens")
    assert workplace.complaint == f"yarn-ops: {reason}"
    assert version.description.startswith("**Rejected: small, 512 to 1,024 tokens**\n")
    assert f"- fails: {reason.partition(': ')[2]}\n" in version.description
    state = workplace.prefect_run(rejected)["state"]
    assert (state["type"], state["name"], state["message"]) == ("COMPLETED", "Rejected", reason)
    tracked = workplace.mlflow_runs()[rejected.id]
    assert (tracked.info.status, tracked.data.tags["outcome"]) == ("KILLED", "rejected")
    assert workplace.mlflow_runs()[first.id].data.tags["outcome"] == "promoted"


def test_a_factor_beyond_the_target_s_changes_positions_alone(
    workplace: Workplace, first: RunView, tmp_path: Path
) -> None:
    """Measured, released and served at the target; heads turn by the factor. Rejected: no alias moves."""
    further = ("rope.factor=4", "rope.target_context_tokens=1024", "gate.min_long_gain=1000")
    extended = workplace.extend(*further, status=2)
    assert max(score.context_tokens for score in extended.scores) == 1024
    assert extended.release is not None
    number = extended.release.version
    tags = workplace.versions()[number].tags
    assert (tags["context_length"], tags["factor"]) == ("1024", "4")
    pulled = tmp_path / "further"
    answer = workplace.types("pull", "small", "--version", number, "--any-gate", "--to", pulled)
    assert answer.status == 0, answer.err
    config = json.loads((pulled / "config.json").read_text("utf-8"))
    assert (config["rope_parameters"]["factor"], config["max_position_embeddings"]) == (4.0, 2048)
    assert "--max-model-len 1024" in workplace.types("export", pulled, "--for", "vllm").out


def test_released_versions_are_put_side_by_side(
    workplace: Workplace, first: RunView, rejected: RunView, tmp_path: Path
) -> None:
    """A rejected version too: it is the same checkpoint, so nothing differs."""
    assert rejected.release is not None
    version = rejected.release.version
    named = ("small@champion", f"small:{version}")
    answer = workplace.types("compare-releases", *named, "--out", tmp_path / "out", COLUMNS="80")
    assert answer.status == 0, answer.err
    *lines, path = answer.out.splitlines()
    assert max(map(len, lines)) <= 80 and path == f"page: {tmp_path / 'out' / 'releases.html'}"
    assert "perplexity, last quarter" in answer.out and "×1.000" in answer.out
    assert (tmp_path / "out" / "releases.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "releases.html").read_text("utf-8")
    assert "http" not in page and "data:image/png;base64," in page
    assert f"<td>small:1</td><td>small:{version}</td>" in page
    told = json.loads(workplace.types("compare-releases", *named, "--json").out)
    promoted, other = told["releases"]
    assert (promoted["gate"], promoted["aliases"], other["gate"]) == ("passed", ["champion"], "failed")
    assert (promoted["method"], promoted["trained"], promoted["steps"]) == ("yarn", "lora", 4)
    assert promoted["seconds"] > other["seconds"] > 0  # which reused what the first had trained
    measured = {(score.task, score.context_tokens, score.depth) for score in first.scores
                if score.checkpoint_digest == first.scores[-1].checkpoint_digest}  # fmt: skip
    compared = {(cell["task"], cell["context_tokens"], cell["depth"]) for cell in told["cells"]}
    assert compared == {one for one in measured if not one[0].startswith("capacity/")}
    assert (promoted["cells_left_out"], other["cells_left_out"]) == (0, 0)


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("small", "small: name two released versions or more, each once"),
        ("small:1 small:1", "small:1, small:1: name two released versions or more, each once"),
        ("small other", "model 'other': not registered at "),
        ("small small:99", "model 'small': no version with number 99; there is "),
        ("models:/a", "models:/a: is no release; write NAME, NAME@ALIAS or NAME:VERSION"),
    ],
)
def test_releases_that_cannot_be_compared_are_one_line(
    workplace: Workplace, first: RunView, tmp_path: Path, named: str, complaint: str
) -> None:
    answer = workplace.types("compare-releases", *named.split(), "--out", tmp_path / "out")
    assert (answer.status, answer.out) == (2, "")
    assert answer.complaint.startswith(f"yarn-ops: {complaint}")
    assert not (tmp_path / "out").exists()


def test_the_same_again_needs_no_prefect_server(workplace: Workplace, first: RunView) -> None:
    done = workplace.types_alone("extend", workplace.recipe_path)
    again = workplace.run()
    assert done.status == 0 and done.err.count(" reused ") == len(FLOW), done.err
    assert (again.status, again.flow_run_id, computed(again)) == ("completed", None, [])
    assert again.id != first.id and again.release == first.release
    assert not (workplace.settings.home / "logs/prefect-server.log").exists()


def test_what_is_not_all_there_is_left_to_a_run_with_prefect(workplace: Workplace, first: RunView) -> None:
    (directory(the("report", first)) / "manifest.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", REUSE, workplace.recipe_path],
        env=workplace.alone, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert " reused " not in done.stderr  # it goes on in another, which says so
    left = workplace.run()
    assert (left.status, left.reason) == ("stopped", "report: is to be computed")
    again = workplace.extend()
    assert (again.id, again.status, computed(again)) == (left.id, "completed", ["report"])


def test_a_checkpoint_lost_from_the_store_is_merged_again(workplace: Workplace, first: RunView) -> None:
    (directory(the("merge", first)) / "model.safetensors").unlink()
    versions = list(workplace.versions())
    again = workplace.extend()
    assert computed(again) == ["merge"]
    assert the("merge", again).record == the("merge", first).record
    assert list(workplace.versions()) == versions


def test_a_damaged_registry_is_made_again(
    workplace: Workplace, first: RunView, again: RunView, tmp_path: Path
) -> None:
    """Runs, stages, releases and pulls as they were; finished stages are reused, and nothing is collected."""
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

    doctor = workplace.types("doctor", "--json")
    (told,) = [each for each in json.loads(doctor.out) if each["name"] == "registry"]
    assert not told["healthy"] and "run `yarn-ops db rebuild`" in told["remedy"], doctor.err
    rebuilt = workplace.types("db", "rebuild")
    assert rebuilt.status == 0, rebuilt.out + rebuilt.err
    assert f"damaged: moved to {path}.damaged-" in rebuilt.out and "could not be got back" not in rebuilt.out
    (aside,) = [one for one in path.parent.glob("registry.db.damaged-*") if one.name[-1].isdecimal()]
    assert aside.read_bytes() == bytes(content)

    assert workplace.runs() == before
    assert workplace.versions() == versions
    assert workplace.pull(tmp_path / "after") == pulled
    collected = workplace.types("gc", "--older-than", "0", "--json")
    assert collected.status == 0, collected.err
    assert {one["kind"] for one in json.loads(collected.out)["found"]} <= {"work", "cache"}, collected.out
    reused = workplace.extend()
    assert computed(reused) == [] and reused.release == first.release


def test_a_key_that_signs_nothing_is_told_before_a_run_exists(
    workplace: Workplace, first: RunView, tmp_path: Path
) -> None:
    runs = len(workplace.runs())
    key = str(tmp_path / "none.pem")
    told = workplace.types_alone("extend", workplace.recipe_path, YARN_OPS_SIGNING_KEY=key)
    assert told.status == 2 and "YARN_OPS_SIGNING_KEY: " in told.err, told.err
    assert len(workplace.runs()) == runs

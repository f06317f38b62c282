"""`yarn-ops plan` on several machines: hours, money and what a job asks for, by hand-made sums."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from kubernetes_objects import template_of

from yarn_ops import bill as costs
from yarn_ops.bill import Machines, Workload, bill, models_a_night
from yarn_ops.errors import SettingsError
from yarn_ops.evals.cells import Load, Reads, lengths_to
from yarn_ops.evals.names import NEEDLE_FORMS
from yarn_ops.evals.plan import SIZES, TASKS, loads
from yarn_ops.evals.tasks.perplexity import same_targets
from yarn_ops.planning import (
    FINGERPRINT_FORWARDS,
    TRAINER_START_S,
    USUAL_CARDS,
    _evaluation,
    narrower,
    reading_seconds,
)
from yarn_ops.recipe import Evaluate, load_recipe
from yarn_ops.rope.methods import RopeSpec
from yarn_ops.serving.measure import BITS, TEXTS, faulty_specs
from yarn_ops.shipped import recipe_path
from yarn_ops.train.model_shape import ModelShape
from yarn_ops.train.probe import GPUS

HOUR = 3600.0
WORK = Workload(
    document_bytes=10e12, model_bytes=16 * (1 << 30), training_s=2 * HOUR, evaluation_s=9 * HOUR, blocks=100,
    alone_s=HOUR, largest_s=360.0,
)  # fmt: skip


def parts(work: Workload, machines: Machines) -> dict[str, Any]:
    return {part.name: part for part in bill(work, machines)}


def test_documents_take_the_cores_of_all_nodes_and_no_gpu() -> None:
    found = parts(WORK, Machines(nodes=10, gpus=8, node_hour=2.0))["documents"]
    assert found.seconds == pytest.approx(10e12 / 3e6 / 320)
    assert found.money == pytest.approx(10 * found.seconds / HOUR * 2.0)
    assert found.gpu_s == 0 and found.limit == "320 cores, 3 MB/s each"


def test_training_takes_one_nodes_gpus() -> None:
    found = parts(WORK, Machines(nodes=10, gpus=8, gpu_hour=2.5))["training"]
    assert (found.seconds, found.gpu_s, found.money) == (2 * HOUR, 16 * HOUR, 40.0)


def test_an_evaluation_is_shared_with_the_other_nodes_but_for_what_is_not_divided() -> None:
    helper_s = costs.WORKER_START_S + 2 * WORK.model_bytes / costs.STORE_BYTES_PER_S
    found = parts(WORK, Machines(nodes=2, gpus=4, gpu_hour=1.0))["evaluation"]
    each_s = 8 * HOUR / 5 + helper_s
    assert found.seconds == pytest.approx(HOUR + each_s)
    assert found.money == pytest.approx((4 * (HOUR + each_s) + 4 * each_s) / HOUR)
    assert (found.limit, found.setting) == ("5 of 5 GPUs for 100 blocks", "YARN_OPS_GRID_WORKERS=5")
    alone = parts(WORK, Machines())["evaluation"]
    assert (alone.seconds, alone.gpu_s) == (9 * HOUR, 9 * HOUR)
    assert (alone.limit, alone.setting) == ("1 of 1 GPUs for 100 blocks", "--nodes")
    few = parts(Workload(0, 0, 0, 9 * HOUR, 3, HOUR, 0), Machines(nodes=10, gpus=8))["evaluation"]
    assert few.seconds == pytest.approx(HOUR + 8 * HOUR / 3 + costs.WORKER_START_S)
    assert few.limit == "3 of 73 GPUs for 3 blocks"
    many = parts(WORK, Machines(nodes=10, gpus=8))["evaluation"]
    assert many.seconds == pytest.approx(HOUR + 8 * HOUR / 73 + helper_s)
    uneven = Workload(**{**asdict(WORK), "largest_s": 2 * HOUR})
    assert parts(uneven, Machines(nodes=10, gpus=8))["evaluation"].seconds == pytest.approx(
        3 * HOUR + helper_s
    )
    assert (many.limit, many.setting) == ("scores that one GPU makes alone", "evaluate.windows")


def test_model_files_hold_the_gpus_while_they_move() -> None:
    found = parts(WORK, Machines(gpus=2))["model files"]
    assert found.seconds == pytest.approx(18 + 4 * 16 / 0.22)
    assert found.gpu_s == 2 * found.seconds


def test_models_a_night_are_the_gpus_hours_over_a_models() -> None:
    machines = Machines(nodes=5, gpus=8)
    gpu_hours = sum(part.gpu_s for part in bill(WORK, machines)) / HOUR
    assert models_a_night(bill(WORK, machines), machines) == int(400 / gpu_hours)
    nothing = Workload(1e9, 0, 0, 0, 1, 0, 0)
    assert models_a_night(bill(nothing, Machines()), Machines()) == int(10 * HOUR / 18)


@pytest.mark.parametrize("asked", [{"nodes": 0}, {"gpus": 0}, {"gpu_hour": -1}, {"node_hour": -0.5}])
def test_machines_that_are_not_are_told(asked: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"at least one of each|0 or more"):
        Machines(**asked)


def test_blocks_of_a_full_suite_grow_with_the_length() -> None:
    lengths = (8192, 16384, 32768, 65536, 131072)

    def tokens(task: str, length: int) -> int:
        return TASKS[task].tokens(SIZES["full"], length, lengths)

    def blocks(task: str, length: int) -> int:
        return TASKS[task].blocks(SIZES["full"], tokens(task, length))

    assert [blocks("needle/prose", length) for length in lengths] == [6, 7, 10, 17, 33]
    assert tokens("needle/prose", 131072) == 50 * 5 * 131072
    assert blocks("ruler", 8192) == 13
    assert blocks("context", 131072) == 1


RECIPE = """\
[base]
model = "shipped:base512"
[rope]
factor = 4
[data]
sources = ["stdlib:json/*.py"]
[publish]
name = "planned"
[evaluate]
suite = "quick"
[train]
batch_windows = 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    return path


def test_a_plan_for_several_machines(yarn_ops: Any, recipe: Path) -> None:
    alone = yarn_ops("plan", recipe, "--gpu", "H100", "--json")
    assert alone.status == 0, alone.err
    one = json.loads(alone.out)
    asked = ("--gpu", "H100", "--nodes", "2", "--gpus", "4", "--documents-gb", "1000", "--gpu-hour", "2")
    many = json.loads(yarn_ops("plan", recipe, *asked, "--json").out)
    assert (one["processes"], many["processes"]) == (1, 4)
    assert many["legs"][0]["shared"] and not one["legs"][0]["shared"]
    assert many["legs"][0]["step_s"] < one["legs"][0]["step_s"]
    told = {part["name"]: part for part in many["parts"]}
    assert told["documents"]["seconds"] == pytest.approx(1e12 / 3e6 / 64)
    training_s = TRAINER_START_S + many["legs"][0]["seconds"]
    assert told["training"]["money"] == pytest.approx(4 * training_s / HOUR * 2)
    assert told["evaluation"]["gpu_s"] > one["parts"][-1]["gpu_s"]  # seven more have to start
    variables = many["job_variables"]
    assert set(variables) <= set(template_of("gpu")["variables"]["properties"])
    assert (variables["gpus"], one["job_variables"]["gpus"]) == ("4", "1")
    shown = yarn_ops("plan", recipe, *asked, COLUMNS="140").out
    assert "4 × H100" in shown and "YARN_OPS_GRID_WORKERS=5" in shown and "in a night" in shown


def test_all_parameters_on_several_gpus(yarn_ops: Any, recipe: Path) -> None:
    asked = ("--gpu", "H200", "--set", "train.method=full", "--json")
    one, two = (json.loads(yarn_ops("plan", recipe, *asked, "--gpus", count).out) for count in (1, 2))
    assert one["legs"][0]["shared"] == ""
    assert two["legs"][0]["shared"].endswith("optimizer sharded")
    assert two["legs"][0]["peak_bytes"] < one["legs"][0]["peak_bytes"] - 6 * one["trained"]
    assert two["legs"][0]["step_s"] < one["legs"][0]["step_s"]


def test_a_card_of_any_size(yarn_ops: Any, recipe: Path) -> None:
    def leg(*options: Any) -> tuple[str, dict[str, Any]]:
        answer = yarn_ops("plan", recipe, *options, "--json")
        assert answer.status == 0, answer.err
        plan = json.loads(answer.out)
        return plan["device"], plan["legs"][0]

    name, whole = leg("--gpu", "24GB")
    assert name == "24 GB at an H100's rates" and whole["step_s"] == leg("--gpu", "h100")[1]["step_s"]
    assert leg("--gpu", "H200:24 gb")[0] == "24 GB at an H200's rates"
    small = leg("--gpu", f"{0.52 + whole['peak_bytes'] / 2**30:.2f}GB")[1]
    assert small["peak_bytes"] < whole["peak_bytes"] and small["step_s"] > whole["step_s"]


def test_without_a_gpu_usual_cards_are_planned(yarn_ops: Any, recipe: Path) -> None:
    here = {"CUDA_VISIBLE_DEVICES": ""}
    long = ("--set", "rope.factor=512", "--set", "train.batch_windows=8")
    answer = json.loads(yarn_ops("plan", recipe, *long, "--json", **here).out)
    cards = answer["cards"]
    assert list(cards) == list(USUAL_CARDS)
    assert cards["H100"] == json.loads(yarn_ops("plan", recipe, *long, "--gpu", "H100", "--json").out)
    fitting = [card for card, plan in cards.items() if "refused" not in plan]
    assert answer["least"] == fitting[0] != USUAL_CARDS[0]
    assert "GiB of" in cards["12GB"]["refused"]
    narrow = yarn_ops("plan", recipe, **here, COLUMNS="80").out.splitlines()
    assert [line.split()[0] for line in narrow[2:-1]] == list(USUAL_CARDS)  # one line a card
    assert all(float(line.split()[-4]) > 0 for line in narrow[2:-1])  # seconds of a step, however few
    shown = yarn_ops("plan", recipe, *long, **here, COLUMNS="140").out
    assert f"the least that fits: {fitting[0]}" in shown and "does not fit: training" in shown
    none = yarn_ops("plan", recipe, "--set", "rope.factor=1024", "--set", "train.batch_windows=64", **here)
    assert none.status == 2 and "no usual card fits, an H200 neither" in none.err
    assert none.err.count("\n") == 1 and not none.out


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--nodes", 0), "'--nodes': Input should be greater than or equal to 1"),
        (("--gpu", "T4"), "not measured yet"),
        (("--gpu", "T4:16GB"), "not measured yet"),
        (("--gpu", "0GB"), "--gpu 0GB: no card is as small; its driver takes 0.5 GiB"),
        (("--gpu", "0.6GB"), "of the device's memory"),
        (("--gpu", "9" * 400 + "GB"), "no card is as large"),
        (("--gpu", "0.9GB", "--set", "rope.factor=64", "--host-gb", "0.001"), "GiB of"),
    ],
)
def test_faults_are_one_line(yarn_ops: Any, recipe: Path, option: tuple[Any, ...], complaint: str) -> None:
    answer = yarn_ops("plan", recipe, "--gpu", "H100", *option)
    assert answer.status == 2 and complaint in answer.err and answer.err.count("\n") == 1


SMOLLM2 = ModelShape(
    layers=30, hidden=576, mlp=1536, heads=9, kv_heads=3, head_width=64, vocabulary=49_152,
    parameters=134_515_008, trained=0,
)  # fmt: skip


def test_measuring_is_foretold_within_a_fifth_of_what_an_h200_took() -> None:
    """SmolLM2-135M, the recipe 8k-to-32k: infra/benchmarks/results/use-smollm2.md."""
    asked = ["base.model=base", 'data.sources=["*.txt"]']
    recipe = load_recipe(recipe_path("8k-to-32k"), asked)
    unmarked = load_recipe(recipe_path("8k-to-32k"), [*asked, "publish.fingerprint=false"])
    rates = narrower(GPUS[1].rates, SMOLLM2)
    whole, *_ = _evaluation(recipe, 8192, SMOLLM2, rates)
    both, blocks, alone_s, largest_s = _evaluation(unmarked, 8192, SMOLLM2, rates)
    assert whole - both == pytest.approx(15.3, rel=0.2)
    assert blocks > 20 and 0 < alone_s < largest_s * 2 < both
    now, then = loads(recipe.evaluate, 8192, 32768), asked_then(recipe.evaluate, 8192, 32768)
    shares = [load.reads.until_look if load.context_tokens > 8192 else 1 for load in then]
    seconds = [reading_seconds(SMOLLM2, load.reads, rates) for load in then]
    base = sum(share * each for share, each in zip(shares, seconds, strict=True))
    for base_s, result_s in ((49, 71), (51, 75), (45, 75)):
        assert base + sum(seconds) + alone_s == pytest.approx(base_s + result_s, rel=0.2)
    assert sum(seconds) == pytest.approx(73, rel=0.2)
    assert sum(load.tokens for load in now) < 0.57 * sum(load.tokens for load in then)
    looked = {load.context_tokens: load.reads.until_look for load in now if load.name == "perplexity"}
    assert looked == {4096: 1, 8192: 9 / 32, 16384: 8 / 32, 32768: 8 / 32}


def asked_then(section: Evaluate, original: int, target: int) -> list[Load]:
    """What was asked when that was measured: every form of needle and of pair in texts of its own, growing
    context on windows of its own, foreign text read whole, perplexity always to the end."""
    size, reach, found = SIZES["quick"], lengths_to(target, original), []
    for load in loads(section, original, target):
        if load.name == NEEDLE_FORMS:
            reads = TASKS["needle/code"].reads
            assert reads is not None
            found += 2 * [dataclasses.replace(load, reads=reads(size, load.context_tokens, reach))]
        elif load.name == "context":
            windows, targets = 2 * size.windows, same_targets(reach[0])
            asked = [Reads.once(windows * k, k, windows * targets) for k in (*reach, target)]
            found += [Load("context", target, round(reads.tokens), reads) for reads in asked]
        elif load.name == "perplexity":
            found.append(dataclasses.replace(load, reads=load.reads._replace(until_look=1.0)))
        elif load.name == "foreign text":
            continue
        else:
            found += load.name.startswith("recall/") * [load] + [load]
    return found


def test_what_was_measured_on_wide_heads_is_kept_for_them() -> None:
    wide = dataclasses.replace(SMOLLM2, hidden=4096, head_width=128)
    assert narrower(GPUS[1].rates, wide) == pytest.approx(GPUS[1].rates)
    narrow = narrower(GPUS[1].rates, SMOLLM2)
    assert narrow.products < GPUS[1].rates.products and narrow.bytes == GPUS[1].rates.bytes
    assert narrow.attention_forward == pytest.approx(0.78 * GPUS[1].rates.attention_forward, rel=0.02)


def test_a_fingerprint_reads_as_often_as_is_planned() -> None:
    spec = RopeSpec(method="yarn", dim=64, theta=1e5, factor=4.0, original_context_tokens=8192)
    states = 1 + len(faulty_specs(spec)) + 2 + len(BITS)  # measured, faults, a cut context and BOS, rounded
    assert TEXTS * states == FINGERPRINT_FORWARDS

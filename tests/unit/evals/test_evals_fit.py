"""Fit on the shipped base and real source files: never worse than the defaults on text it has not seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from yarn_ops.data import corpus, shards
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.windows import ShardReader, spread
from yarn_ops.errors import EvaluationError, RecipeError
from yarn_ops.evals.intervals import LEAST_MEAN_SAMPLES
from yarn_ops.fit import draw_parts, fit, longrope_space, losses_under, pattern_search, yarn_space
from yarn_ops.models.files import read_config
from yarn_ops.models.inspection import inspect_checkpoint
from yarn_ops.models.loading import load_proven
from yarn_ops.recipe import Data, Evaluate, Rope
from yarn_ops.records import BaseModel, Local, ShardSet
from yarn_ops.rope.config import patch_config
from yarn_ops.rope.methods import RopeSpec, attention_factor, inverse_frequencies
from yarn_ops.rope.proof import prove, retune
from yarn_ops.scores import Fit
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"
SECTION = Evaluate(windows=4)
ROPE = Rope(factor=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> Local[BaseModel]:
    return Local(inspect_checkpoint(BASE512, source="shipped:base512", original_context_tokens=None), BASE512)


@pytest.fixture(scope="module")
def documents(base, tmp_path_factory) -> Local[ShardSet]:
    """The standard library's email and asyncio, half of the files held out."""
    folder = tmp_path_factory.mktemp("documents")
    data = Data(sources=("stdlib:email/*.py", "stdlib:asyncio/*.py"), held_out_fraction=0.5)
    found = Local(corpus.survey(data, LocalFiles(), folder / "corpus"), folder / "corpus")
    record = shards.prepare(
        data, found, base, folder / "shards",
        units=shards.LocalUnits(folder / "units", LocalFiles(), 1), report=lambda *_: None,
    )  # fmt: skip
    return Local(record, folder / "shards")


def fitted(base, documents, method="yarn", evaluations=5, section=SECTION, rope=ROPE) -> Fit:
    return fit(
        section, rope, method, base, documents, device="cpu", precision="fp32", progress=lambda *_: None,
        evaluations=evaluations,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(base, documents) -> Fit:
    return fitted(base, documents)


@pytest.fixture(scope="module")
def untried(base, documents) -> Fit:
    """The defaults measured, and nothing else."""
    return fitted(base, documents, evaluations=1)


def loss_elsewhere(base, documents, values) -> float:
    """Mean loss on six windows of the training documents, which fit never opens."""
    config, spec = patch_config(
        read_config(base.path), Rope.model_validate(values), factor=2.0, original_context_tokens=None
    )
    network = load_proven(base.path, config, spec, dtype=torch.float32, device="cpu")
    windows = np.stack([window.ids for window in spread(ShardReader(documents.path, "train"), 1024, 6, 0)])
    return float(losses_under(network, spec, windows).mean())


@pytest.mark.slow
def test_it_is_never_worse_than_the_defaults_on_fresh_text(base, documents, result):
    defaults = loss_elsewhere(base, documents, {"method": "yarn", "factor": 2})
    assert loss_elsewhere(base, documents, result.rope) <= defaults


def test_a_factor_beyond_the_target_is_fitted_at_the_target_and_told_with_it(base, documents):
    given = Rope(factor=4, target_context_tokens=1024)
    found = fitted(base, documents, evaluations=1, rope=given)
    assert found.target_context_tokens == 1024
    told = Rope.model_validate(found.rope)
    assert (told.factor, told.target_context_tokens) == (4.0, 1024)


def test_adopted_only_where_the_whole_interval_gains(result):
    assert result.low_nats <= result.gain_nats <= result.high_nats
    assert result.adopted == (result.low_nats > 0)
    assert result.search_gain_nats >= 0


def test_the_cost_is_reported(result):
    """Four windows of 1,024 tokens for each evaluation, two of which verify."""
    assert 3 <= result.evaluations <= 7
    assert result.tokens == result.evaluations * 4 * 1024
    assert result.seconds > 0


def test_equal_inputs_find_equal_parameters(base, documents, result):
    again = fitted(base, documents)
    assert again.model_dump(exclude={"seconds"}) == result.model_dump(exclude={"seconds"})


def test_the_defaults_stay_when_nothing_else_was_tried(untried):
    assert not untried.adopted
    assert untried.rope == {"method": "yarn", "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0}
    assert (untried.gain_nats, untried.search_gain_nats, untried.unservable) == (0, 0, {})


def test_longrope_starts_as_yarn(base, documents, untried):
    start = fitted(base, documents, "longrope", evaluations=1)
    assert start.default_loss_nats == pytest.approx(
        untried.default_loss_nats, rel=1e-4
    )  # four digits of factors
    assert len(start.rope["long_factors"]) == 32 and set(start.rope["short_factors"]) == {1.0}
    assert "transformers" in start.unservable  # its frequencies change with the length


def test_what_is_found_is_an_ordinary_section(base, documents, result):
    assert Rope.model_validate(json.loads(json.dumps(result.rope))).method == "yarn"


def test_an_attention_factor_of_its_own_is_not_for_sglang():
    """By the rules of export."""
    from yarn_ops.fit import refusals

    rope = Rope(factor=4, attention_factor=1.2)
    config, _ = patch_config(read_config(BASE512), rope, factor=4.0, original_context_tokens=None)
    assert list(refusals(config)) == ["sglang"]


def test_parts_share_no_document(documents):
    reader = ShardReader(documents.path, "held_out")
    searched, fresh = draw_parts(reader, 512, SECTION)
    assert searched.shape == (4, 513) and fresh.shape == (4, 513)
    found = {row.tobytes() for row in searched} & {row.tobytes() for row in fresh}
    assert not found


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_a_search_on_few_windows_is_verified_on_enough_for_an_interval(documents, windows):
    reader = ShardReader(documents.path, "held_out")
    searched, fresh = draw_parts(reader, 512, SECTION.model_copy(update={"windows": windows}))
    assert (len(searched), len(fresh)) == (windows, LEAST_MEAN_SAMPLES)


def test_too_few_documents_to_verify_is_told(base, documents):
    with pytest.raises(EvaluationError, match=r"leave \d of other held-out documents"):
        fitted(base, documents, section=Evaluate(windows=200))


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_windows_that_verify_nothing_are_refused_before_the_search(base, documents, windows):
    with pytest.raises(RecipeError, match=rf"^evaluate.windows: {windows} windows cannot verify") as raised:
        fitted(base, documents, section=Evaluate(windows=windows))
    assert str(raised.value).endswith(f"give at least {LEAST_MEAN_SAMPLES}")


def test_a_factor_of_one_has_nothing_to_fit(base, documents):
    with pytest.raises(RecipeError, match=r"^rope.factor: 1 leaves nothing to fit"):
        fitted(base, documents, rope=Rope(factor=1))


def test_a_retuned_model_is_the_one_loaded_so(base):
    config = read_config(BASE512)
    plain, one = patch_config(config, Rope(factor=4), factor=4.0, original_context_tokens=None)
    _, other = patch_config(config, Rope(factor=4, beta_fast=16), factor=4.0, original_context_tokens=None)
    network = load_proven(BASE512, plain, one, dtype=torch.float32, device="cpu")
    retune(network, inverse_frequencies(other), attention_factor(other))
    assert prove(network, other) < 1e-6


def test_pattern_search_walks_down_a_valley():
    def loss(point):
        return (point[0] - 3.3) ** 2 + (point[1] + 1.1) ** 2

    best, seen = pattern_search((0.0, 0.0), (1.0, 1.0), loss, 40)
    assert best == pytest.approx((3.25, -1.0))
    assert len(seen) <= 40 and seen[best] == min(seen.values())


def test_pattern_search_keeps_its_budget_and_its_start():
    best, seen = pattern_search((0.0, 0.0), (1.0, 1.0), lambda point: sum(map(abs, point)), 3)
    assert best == (0.0, 0.0) and len(seen) == 3


def test_spaces_start_at_the_defaults():
    yarn = RopeSpec(method="yarn", dim=64, theta=1e4, factor=4.0, original_context_tokens=512)
    assert yarn_space(4.0).section(yarn_space(4.0).start) == {
        "method": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
    }  # fmt: skip
    section = longrope_space(yarn).section(longrope_space(yarn).start)
    long = RopeSpec(
        method="longrope", dim=64, theta=1e4, factor=4.0, original_context_tokens=512,
        short_factors=tuple(section["short_factors"]), long_factors=tuple(section["long_factors"]),
        attention_factor=section["attention_factor"],
    )  # fmt: skip
    assert inverse_frequencies(long, 2048) == pytest.approx(inverse_frequencies(yarn), rel=1e-3)
    assert attention_factor(long) == pytest.approx(attention_factor(yarn), rel=1e-3)

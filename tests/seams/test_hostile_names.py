"""Names from anywhere are refused in one line or stored harmlessly: recipes, models, tags of versions."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_recipe import asked

from yarn_ops.catalogue import ModelVersion
from yarn_ops.errors import RecipeError, ReleaseError, StoreError
from yarn_ops.recipe import MODEL_NAME, Recipe, parse_recipe
from yarn_ops.release import Tracking
from yarn_ops.store.keys import check_key

HOSTILE = (
    "../../etc/passwd", "/etc/passwd", "a/../../b", "..", "\0", "a\0b", "x" * 10_000, "name\n", "\ud800",
    "'; DROP TABLE runs; --", "' OR '1'='1", '" OR 1=1 --', "$(touch /tmp/x)", "`id`", "; rm -rf /", "| cat",
    "{{ 7*7 }}", "%s%n", "<script>alert(1)</script>", "\u202eabc", "a b", "",
)  # fmt: skip
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()), max_size=60))


def recipe_with(section: str, **values: object) -> Recipe:
    return asked(rope={"factor": 2}, **{section: values})


@given(NAMES, NAMES, NAMES)
@example("x" * 128, "v1", "latest")
def test_a_name_is_plain_or_refused(name: str, alias: str, experiment: str) -> None:
    try:
        publish = recipe_with("publish", name=name, alias=alias, experiment=experiment).publish
    except RecipeError as refusal:
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 400
        return
    for accepted in (publish.name, publish.alias, publish.experiment):
        assert re.fullmatch(MODEL_NAME, accepted)
        assert check_key(accepted) == accepted


@given(NAMES, NAMES)
@example("a", "'; DROP TABLE model_versions; --")
def test_a_tag_is_storable_or_refused(key: str, value: str) -> None:
    try:
        tags = recipe_with("publish", tags={key: value}).publish.tags
    except RecipeError as refusal:
        assert "\n" not in str(refusal)
        return
    assert tags == {key: value}
    assert len(key) <= 250 and len(value) <= 5000
    assert "\0" not in key + value


@given(st.sampled_from([("base", "model"), ("data", "text_field")]), NAMES)
def test_any_text_of_a_recipe_can_be_written_down(field: tuple[str, str], text: str) -> None:
    try:
        recipe = recipe_with(field[0], **{field[1]: text})
    except RecipeError as refusal:
        assert "\n" not in str(refusal)
        return
    assert "\0" not in recipe.model_dump_json()
    assert parse_recipe(recipe.model_dump(mode="json")).digest() == recipe.digest()


@given(NAMES)
def test_a_document_name_never_leaves_its_directory(name: str) -> None:
    try:
        key = check_key(name)
    except StoreError as refusal:
        assert "\n" not in str(refusal)
        return
    assert not key.startswith("/")
    assert ".." not in key.split("/")


@given(NAMES, NAMES)
@example("asks", "1024")
@example("asks", "٣٢")
def test_a_version_that_asks_gets_a_recipe_or_a_refusal(name: str, asked: str) -> None:
    from flows.watch import ASKING, recipe_for

    version = ModelVersion(name, 1, "s3://b/p", "", {ASKING: asked}, (), "", datetime.now(UTC))
    try:
        recipe = recipe_for(version, recipe_with("data"))
    except RecipeError:
        return
    assert re.fullmatch(MODEL_NAME, recipe.publish.name)
    assert recipe.rope.target_context_tokens == int(asked)


@settings(max_examples=25)
@given(NAMES, NAMES, NAMES)
def test_hostile_names_find_nothing_and_harm_nothing(
    mlflow_database: str, name: str, tag: str, alias: str
) -> None:
    tracking = Tracking(mlflow_database, "file:///nowhere")
    before = tracking.models()
    with pytest.raises(ReleaseError) as refusal:
        tracking.find(name, tags={tag: alias}, alias=alias)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ReleaseError):
        tracking.behind(f"models:/{name}@{alias}")
    assert tracking.models() == before

"""The recipe: canonical digest, and faults named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_recipe import NAMED, asked

from yarn_ops.errors import RecipeError
from yarn_ops.recipe import Gate, Recipe, load_recipe, parse_recipe, recorded_recipe
from yarn_ops.recipe.reading import RENAMED
from yarn_ops.recipe.section import LENGTH_DEPENDENT
from yarn_ops.recipe.training import Exercises
from yarn_ops.shipped import recipe_path, recipes

MINIMAL = {**NAMED, "rope": {"factor": 4}}
TEXT = '[base]\nmodel = "a"\n[data]\nsources = ["b"]\n[publish]\nname = "c"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_digest_ignores_spelling(tmp_path: Path) -> None:
    short = load_recipe(write(tmp_path, TEXT + "[rope]\nfactor = 4\n"))
    long = load_recipe(
        write(tmp_path, TEXT + '[train]\nsteps = 50\nalpha = 32\n[rope]\nmethod = "yarn"\nfactor = 4.0\n')
    )
    assert short.digest() == long.digest()
    assert short.digest() != load_recipe(write(tmp_path, TEXT + "[rope]\nfactor = 4.5\n")).digest()


@given(st.permutations(["base", "rope", "data", "train", "evaluate", "gate", "publish"]))
def test_the_digest_ignores_the_order_of_sections(order: list[str]) -> None:
    values = parse_recipe(MINIMAL).model_dump(mode="json")
    assert parse_recipe({name: values[name] for name in order}).digest() == parse_recipe(MINIMAL).digest()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("base", "model", "s3://me:hunter2@bucket/model"),
        ("data", "sources", ["s3://me:hunter2@bucket/*"]),
        ("publish", "tags", {"from": "https://me:hunter2@host/model"}),
    ],
)
def test_a_password_is_refused_and_not_repeated(section: str, field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"{section}\.{field}: holds a password, and") as refusal:
        parse_recipe({"rope": {"factor": 2}, section: {field: value}})
    assert "hunter2" not in str(refusal.value)
    asked(rope={"factor": 2}, base={"model": "hf:org/name@v1:2"})


def test_every_shipped_recipe_is_valid() -> None:
    assert {path.stem for path in recipes()} == {"demo", "8k-to-32k", "8k-16k-32k", "8k-to-128k"}
    for path in recipes():
        assert path.read_text("utf-8").startswith("# ")
        assert load_recipe(path).curriculum(512 if path.stem == "demo" else 8192)


def test_a_recipe_survives_json() -> None:
    recipe = load_recipe(recipe_path("8k-16k-32k"))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[rope]\nfactr = 4\n", "rope.factr: unknown key; did you mean 'factor'?"),
        ("[rope]\nfactor = 4\n[trian]\n", "trian: unknown key; did you mean 'train'?"),
        ("[rope]\nfactor = 4\nrank = 8\n", "rope.rank: unknown key; it belongs in [train]"),
        ("[rope]\nfactor = 0\n", "rope.factor: input should be greater than or equal to 1 (found 0)"),
        ('[rope]\nfactor = "four"\n', "rope.factor: input should be a valid number"),
        ("[rope]\nfactor = nan\n", "rope.factor: input should be a finite number (found nan)"),
        ("[train]\nsteps = 5\n", "rope: missing"),
        ("[rope]\n", "rope: method 'yarn' needs factor or target_context_tokens"),
        ("[rope]\nfactor = 4\nbeta_fast = 1\n", "rope: beta_fast (1) must be above beta_slow (1)"),
        ("[rope]\nfactor = 4\n[train]\nsteps = 0\n", "train.steps: input should be greater than 0 (found 0)"),
        ("[rope]\nfactor = 4\n[data]\nsources = []\n", "data.sources: list should have at least 1 item"),
        ('[rope]\nfactor = 4\n[data]\nsources = "a"\n', 'data.sources: input should be a list, e.g. ["a"'),
        (
            "[rope]\nfactor = 4\n[publish]\ntags = 1\n",
            'publish.tags: input should be a table, e.g. {a = "b"}',
        ),
        (
            "[rope]\nfactor = 4\n[publish]\nname = 7\n",
            "publish.name: input should be text, 'publish.name=\"7\"' with all its quotes (found 7)",
        ),
        ("[rope]\nfactor = true\n", "rope.factor: true and false are no numbers"),
        ("[rope]\nfactor = 4\n[evaluate]\nlengths = [true]\n", "evaluate.lengths: true and false are no"),
        (
            "[rope]\nfactor = 4\n[data]\nheld_out_fraction = 1\n",
            "data.held_out_fraction: input should be less than 1",
        ),
        (
            '[rope]\nfactor = 4\n[publish]\nname = "../x"\n',
            "publish.name: input should be at most 128 letters",
        ),
        (
            '[rope]\nfactor = 4\n[publish]\nalias = "v1"\n',
            "publish: alias 'v1' is reserved by MLflow; choose another",
        ),
        ("[[train.legs]]\nstep = 5\n[rope]\nfactor = 4\n", "train.legs.0.context_tokens: missing"),
        (
            "[rope]\nfactor = 2\n[[train.legs]]\ncontext_tokens = 9\nsteps = 1\ngate = {max_growth = 2}\n",
            "train.legs.0.gate.max_growth: unknown key; did you mean 'max_long_growth'?",
        ),
        (
            "[rope]\nfactor = 2\n[[train.legs]]\ncontext_tokens = 9\nsteps = 1\ncarry = 'all'\n",
            "train.legs.0.carry: input should be 'adapter', 'adapter+optimizer' or 'weights' (found 'all')",
        ),
        ("[rope\n", "not valid TOML"),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as fault:
        load_recipe(path)
    assert str(fault.value).startswith(f"{path}: ")
    assert line in str(fault.value)
    assert "\n" not in str(fault.value)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no base": ({"base": {}}, "base.model: is empty; name the model to extend"),
    "no documents": ({"data": {}}, "data.sources: is empty; name the documents to train on"),
    "no name": ({"publish": {}}, "publish.name: is empty; name the model that is registered"),
    "a target within the base": (
        {"rope": {"target_context_tokens": 256}, "base": {"model": "a", "original_context_tokens": 512}},
        "rope.target_context_tokens: 256 is below the base's original context of 512",
    ),
    "a last leg elsewhere": (
        {"rope": {"target_context_tokens": 2048}, "train": {"legs": [{"context_tokens": 1024, "steps": 1}]}},
        "train.legs: the last leg has 1024 tokens and rope asks for 2048",
    ),
    "windows beyond the target": (
        {"rope": {"target_context_tokens": 2048}, "train": {"context_tokens": 4096}},
        "train.context_tokens: 4096 is above rope.target_context_tokens (2048)",
    ),
    "recall without a template": (
        {"evaluate": {"templates": []}},
        "gate.min_recall_kept: asks for recall, and evaluate.templates is empty",
    ),
    "recall of a leg without a template": (
        {
            "evaluate": {"templates": []},
            "gate": Gate.unasked(),
            "train": {"legs": [{"context_tokens": 9, "steps": 1, "factor": 4, "gate": {"min_recall": 0.5}}]},
        },
        "train.legs.0.gate.min_recall: asks for recall",
    ),
    "skills without a suite": (
        {"gate": {"max_skill_loss": 0.02}, "evaluate": {"suite": "tiny"}},
        "gate.max_skill_loss: needs evaluate.suite quick, use, full",
    ),
    "a score without a suite": (
        {"gate": {"conditions": [{"score": "needle/code", "at_least": 1}]}},
        "gate.conditions.0: score 'needle/code' is not measured; known here: capacity/sees",
    ),
    "a sliding score without a stride": (
        {"gate": {"conditions": [{"score": "perplexity/sliding", "at_most": 9}]}},
        "gate.conditions.0: score 'perplexity/sliding' is not measured",
    ),
    "a score of another template": (
        {
            "evaluate": {"templates": ["code"]},
            "gate": {"conditions": [{"score": "recall/prose", "at_least": 1}]},
        },
        "gate.conditions.0: score 'recall/prose' is not measured",
    ),
    "a length that is not measured": (
        {"gate": {"conditions": [{"score": "recall/code", "length": 3, "at_least": 1}]}},
        "gate.conditions.0: length 3 is not among evaluate.lengths; add it there",
    ),
}


@pytest.mark.parametrize("fault", CONTRADICTIONS)
def test_a_recipe_that_contradicts_itself_is_refused(fault: str) -> None:
    sections, line = CONTRADICTIONS[fault]
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(MINIMAL | sections, "mine.toml")
    assert str(refusal.value).startswith(f"mine.toml: {line}")


@pytest.mark.parametrize(
    ("rope", "lengths", "measured"),
    [
        ({"factor": 8}, [0.5, 1, 2, 4], (0.5, 1, 2, 4, 8)),
        ({"target_context_tokens": 1536}, [0.5, 2, 4], (0.5, 1, 2, 3, 4)),
        ({"factor": 4}, [4, 1], (4, 1)),
    ],
)
def test_both_ends_are_measured_whatever_is_asked(
    rope: dict[str, Any], lengths: list[float], measured: tuple[float, ...]
) -> None:
    assert asked(rope=rope, evaluate={"lengths": lengths}).measured(512).lengths == measured


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_fails_under_its_old_name_and_a_recorded_one_is_read(
    tmp_path: Path, old: str, new: str
) -> None:
    section, key = new.split(".")
    values = load_recipe(recipe_path("8k-16k-32k")).model_dump(mode="json")
    values[section][old.split(".")[1]] = values[section].pop(key)
    with pytest.raises(RecipeError) as fault:
        parse_recipe(values)
    assert str(fault.value) == f"recipe: {old}: is now {new}; write that"
    with pytest.raises(RecipeError, match=f"{old}: is now {new}"):
        load_recipe(write(tmp_path, "[rope]\nfactor = 4\n"), [f"{old}=2"])
    assert recorded_recipe({**values, "compare": {"seed": 1}}, "run") == load_recipe(
        recipe_path("8k-16k-32k")
    )


def test_a_threshold_that_a_recorded_gate_lacks_was_not_asked_for() -> None:
    values = load_recipe(recipe_path("demo")).model_dump(mode="json")
    values["gate"] = {"min_recall": 0.9, "conditions": [{"score": "capacity/uses", "at_least": 1024}]}
    gate = recorded_recipe(values, "run").gate
    assert gate.min_recall == 0.9 and len(gate.conditions) == 1
    assert {name for name, value in gate if value} == {"min_recall", "conditions"}


def test_a_missing_file_names_the_way_to_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe; `yarn-ops recipe list`"):
        load_recipe(tmp_path / "absent.toml")


def test_overrides_change_one_value(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n")
    recipe = load_recipe(path, ["train.steps=20", "rope.method=linear", 'data.languages=["en"]'])
    assert (recipe.train.steps, recipe.rope.method, recipe.data.languages) == (20, "linear", ("en",))
    for wrong in ("steps=20", "train.steps", "train.=3", "=", "train..share=1"):
        with pytest.raises(RecipeError, match=r"write section.key=value"):
            load_recipe(path, [wrong])


def test_overrides_reach_the_tables_of_a_section(tmp_path: Path) -> None:
    """What the advice of a verdict names, `train.exercises.share=1`, is typed so."""
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n[train.exercises]\nanswer_share = 0.5\n")
    recipe = load_recipe(path, ["train.exercises.share=0.25", "publish.tags.team=us"])
    assert recipe.train.exercises == Exercises(share=0.25, answer_share=0.5)
    assert recipe.publish.tags == {"team": "us"}
    for wrong, table in (("base.model.x.y=1", "base.model"), ("base.model.x=1", "base.model")):
        with pytest.raises(RecipeError, match=f"'{table}' is no section or table"):
            load_recipe(path, [wrong])
    with pytest.raises(RecipeError, match=r"train.exercises.shares: unknown key; did you mean 'share'"):
        load_recipe(path, ["train.exercises.shares=1"])


def test_an_override_without_a_value_empties_a_field_that_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n")
    recipe = load_recipe(path, ["rope.factor=", "rope.target_context_tokens=32768", "gate.min_long_gain= "])
    assert (recipe.rope.factor, recipe.rope.target_context_tokens) == (None, 32768)
    assert recipe.gate.min_long_gain is None
    with pytest.raises(RecipeError, match=r"--set train.steps=: train.steps: cannot be empty"):
        load_recipe(path, ["train.steps="])


def test_a_fault_of_an_override_names_the_override_and_not_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n")
    for override in ("train.steps=ten", "train.stps=1", "train.exercises.share=2", "data.sources=a.txt"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, ["train.rank=4", override])
        assert str(caught.value).startswith(f"--set {override}: {override.partition('=')[0]}: ")
    with pytest.raises(RecipeError, match=f"^{path}: rope.beta_slow: "):
        load_recipe(write(tmp_path, TEXT + "[rope]\nfactor = 4\nbeta_slow = -1\n"), ["rope.beta_fast=3"])


def test_a_value_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n")
    with pytest.raises(RecipeError, match=r"train.steps: input should be a valid integer"):
        load_recipe(path, ["train.steps=1\n[x]"])


def test_what_is_no_recipe_is_not_read_whole(tmp_path: Path) -> None:
    """A device that never ends, or a model given in a recipe's place."""
    big = tmp_path / "model.safetensors"
    with big.open("wb") as file:
        file.truncate(1 << 31)
    for path in (big, Path("/dev/zero")):
        with pytest.raises(RecipeError, match=r"is no recipe, with more than 1,048,576 bytes"):
            load_recipe(path)


def test_lines_may_end_as_windows_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes((TEXT + "[rope]\nfactor = 4\n").replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_recipe(path).rope.factor == 4


def test_a_whole_number_that_no_database_holds_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "[rope]\nfactor = 4\n")
    for key in ("train.seed", "data.seed", "evaluate.seed", "train.steps", "train.context_tokens"):
        for text in ("9223372036854775808", "1e23"):
            with pytest.raises(RecipeError, match=f"{key}: .*(a smaller one|exceeded maximum size)"):
                load_recipe(path, [f"{key}={text}"])
    assert load_recipe(path, ["train.seed=9223372036854775807"]).train.seed == 2**63 - 1


def test_relative_paths_are_meant_from_the_recipe(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[base]\nmodel = "models/mine"\n[rope]\nfactor = 2\n[publish]\nname = "mine"\n'
        '[data]\nsources = ["books/*.txt", "/abs/x.txt", "s3://b/*.parquet", "stdlib:**/*.py"]\n'
        'shared_words = 50\nevaluation_sources = ["exams/*.jsonl", "s3://b/*.jsonl"]\n',
    )
    recipe = load_recipe(path)
    assert recipe.data.evaluation_sources == (str(tmp_path / "exams/*.jsonl"), "s3://b/*.jsonl")
    assert recipe.base.model == str(tmp_path / "models/mine")
    assert recipe.data.sources == (
        str(tmp_path / "books/*.txt"),
        "/abs/x.txt",
        "s3://b/*.parquet",
        "stdlib:**/*.py",
    )


def test_relative_paths_of_an_override_are_meant_from_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that runs the recipe on a schedule stands elsewhere."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = ["base.model=mine", 'data.sources=["b/*.txt", "stdlib:*.py"]', "data.shared_words=50",
                 'data.evaluation_sources=["e/*"]']  # fmt: skip
    recipe = load_recipe(write(tmp_path, TEXT + "[rope]\nfactor = 4\n"), overrides)
    assert recipe.base.model == str(tmp_path / "here/mine")
    assert recipe.data.sources == (str(tmp_path / "here/b/*.txt"), "stdlib:*.py")
    assert recipe.data.evaluation_sources == (str(tmp_path / "here/e/*"),)


@pytest.mark.parametrize("method", LENGTH_DEPENDENT)
def test_a_fingerprint_of_what_no_engine_serves_is_refused_before_anything_runs(method: str) -> None:
    rope: dict[str, Any] = {"method": method, "factor": 4}
    if method == "longrope":
        rope |= {"short_factors": [1.0, 1.0], "long_factors": [1.0, 4.0]}
    assert asked(rope=rope).rope.method == method
    with pytest.raises(RecipeError, match=rf"publish\.fingerprint: no engine serves {method}"):
        asked(rope=rope, publish={"fingerprint": True})

"""`yarn-ops rope show`, as typed."""

import json
import shutil
import tomllib

import pytest

from yarn_ops.cli.rope import show_fit
from yarn_ops.recipe import Rope
from yarn_ops.scores import Fit

PNG = b"\x89PNG\r\n"


def test_table_and_picture(yarn_ops, tmp_path):
    picture = tmp_path / "rope.png"
    result = yarn_ops("rope", "show", "shipped:base512", "--method", "yarn", "--factor", 4, "--to", picture)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split() == ["pair", "wavelength", "turns", "in", "512", "new", "/", "old"]
    assert lines[17].split() == ["16", "628.3", "0.815", "0.2500", "interpolated"]
    assert "logits × 1.2965" in lines[-1]
    assert picture.read_bytes().startswith(PNG)


def test_json_of_what_the_model_itself_asks_for(yarn_ops, base512):
    result = yarn_ops("rope", "show", base512, "--json")
    shown = json.loads(result.out)
    assert shown["specification"]["method"] == "none"
    assert len(shown["pairs"]) == 32
    assert {pair["fate"] for pair in shown["pairs"]} == {"kept"}


def test_what_is_only_looked_at_may_be_extended_already(yarn_ops, base512, tmp_path):
    """A release, named as a base is: models:/name@alias, s3://…, file:///…"""
    shutil.copytree(base512, folder := tmp_path / "long")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config |= {"max_position_embeddings": 2048, "rope_theta": 1e4, "rope_scaling": scaling}
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    shown = yarn_ops("rope", "show", folder.as_uri(), "--json")
    assert shown.status == 0, shown.err
    assert json.loads(shown.out)["specification"]["method"] == "yarn"
    measured = yarn_ops("evaluate", folder.as_uri(), "--suite", "tiny", "--longest", 128, "--json")
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)[0]["context_tokens"] == 2048
    extended = yarn_ops("rope", "show", folder.as_uri(), "--factor", 2)
    assert extended.status == 2 and "already scaled (yarn)" in extended.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("shipped:base512", "--method", "yarm"), "method 'yarm' is unknown"),
        (("shipped:base512", "--factor", 0.5), "rope.factor: Input should be greater than or equal to 1"),
        (("shipped:base512", "--method", "abf", "--factor", 4), "rope: method 'abf' needs theta"),
        (("shipped:base1",), "not shipped"),
        (("shipped:base512", "--factor", 4, "--to", "/nowhere/a.png"), "/nowhere/a.png: the picture"),
    ],
)
def test_faults_are_one_line(yarn_ops, arguments, complaint):
    result = yarn_ops("rope", "show", *arguments)
    assert result.status == 2
    assert result.err.startswith("yarn-ops: ") and complaint in result.err
    assert result.err.count("\n") == 1


def fit_record(**values) -> Fit:
    found = {
        "method": "yarn",
        "factor": 4.0,
        "beta_fast": 11.31,
        "beta_slow": 0.7071,
        "attention_factor": 1.111,
    }
    defaults = {"method": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
    adopted = values.get("low_nats", 0.01) > 0
    record = {
        "rope": found if adopted else defaults, "adopted": adopted, "found": found,
        "search_gain_nats": 0.0147, "gain_nats": 0.0239, "low_nats": 0.013, "high_nats": 0.0348,
        "short_gain_nats": 0.0247,
        "default_loss_nats": 2.4952, "windows": 12, "target_context_tokens": 2048,
        "unservable": {"sglang": "it ignores it"} if adopted else {}, "evaluations": 26, "tokens": 638_976,
        "seconds": 97.2,
    }  # fmt: skip
    return Fit(**{**record, **values})


def test_what_was_fitted_is_a_section_to_paste(capsys):
    show_fit(fit_record(), as_json=False)
    out = capsys.readouterr().out
    assert Rope.model_validate(tomllib.loads(out)["rope"]).beta_fast == 11.31
    assert out.splitlines()[-3:] == [
        "# gain: +0.0239 nats a token [+0.0130, +0.0348] at 2,048 tokens, "
        "+0.0247 within the original context; on 12 fresh windows, the defaults at 2.4952",
        "# cost: 26 evaluations, 638,976 tokens, 97 s",
        "# not for sglang: it ignores it",
    ]


def test_defaults_that_stay_are_said_to(capsys):
    show_fit(fit_record(low_nats=-0.002), as_json=False)
    out = capsys.readouterr().out
    assert Rope.model_validate(tomllib.loads(out)["rope"]).beta_fast == 32
    assert "# not surely better than the defaults, which stay; found: attention_factor = 1.111" in out

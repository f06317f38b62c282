"""`yarn-ops rope show`, as typed."""

import json

import pytest

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

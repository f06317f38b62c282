"""`yarn-ops remedies`, as typed."""

import json

import pytest


def test_json_and_picture(yarn_ops, tmp_path):
    picture = tmp_path / "remedies.png"
    shown = yarn_ops(
        "remedies", "shipped:base512", "--factor", 2, "--length", 576, "--windows", 1,
        "--documents", "stdlib:json/*.py", "--to", picture, "--json", YARN_OPS_DEVICE="cpu",
    )  # fmt: skip
    assert shown.status == 0, shown.err
    values = json.loads(shown.out)
    assert (values["context_tokens"], values["window_tokens"], len(values["rows"])) == (576, 512, 6)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("shipped:base512",), "512 tokens lie within the 512"),
        (("shipped:base1", "--factor", 4), "not shipped"),
        (
            ("shipped:base512", "--factor", 4, "--documents", "/nowhere/*.txt"),
            "/nowhere/*.txt matches no file",
        ),
        (("shipped:base512", "--factor", 0.5), "'--factor': Input should be greater than or equal to 1"),
    ],
)
def test_faults_are_one_line(yarn_ops, arguments, complaint):
    result = yarn_ops("remedies", *arguments, YARN_OPS_DEVICE="cpu")
    assert result.status == 2
    assert result.err.startswith("yarn-ops: ") and complaint in result.err
    assert result.err.count("\n") == 1

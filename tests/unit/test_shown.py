"""No password in an address is shown or kept, whatever it looks like; nothing commands a terminal."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from yarn_ops.cli.doctor import _finding, examine
from yarn_ops.errors import RecipeError, SettingsError, YarnOpsError
from yarn_ops.recipe import parse_recipe
from yarn_ops.secrecy import holds_password, without_secrets
from yarn_ops.secret_names import form_pattern
from yarn_ops.settings import ADDRESSES, Settings, read_settings
from yarn_ops.shown import counted, one_line, printable

SECRET = "hunter2"
ADDRESSES_WITH_SECRETS = [
    "s3://me:hunter2@bucket/key",
    "s3://AKIA:abc/def+hunter2/x@bucket/key",
    "s3://AKIA:/hunter2@bucket",
    "s3://AKIA:ab@c@hunter2@bucket",
    "s3://:hunter2@bucket",
    "https://hunter2@host/model",
    "https://:hunter2@host",
    "https://me:hunter2@host:443/a@b",
    "https://[::1]:80:hunter2@host",
    "postgresql+psycopg://me:p?q#hunter2@host/db",
    "tcp://me:hunter2@host:8786",
    "s3%3A%2F%2Fme%3Ahunter2%40bucket",
    "s3://me%3Ahunter2%40bucket",
    "s3://me:%68unter2@bucket/hunter2@x",
    "https://host/model?X-Amz-Signature=hunter2&x=1",
    "https://host/model?x=1&X-Amz-Credential=hunter2",
    "https://host/model?token=hunter2",
    "https://host/model?access_token=hunter2;a=b",
    "https://host/model?sig=hunter2",
    "https://host/model#api_key=hunter2",
    "postgresql://host/db?user=me&password=hunter2",
    "postgresql://host/db?user=me&password=a'hunter2",
    "https://host/model?pass=hunter2",
    "https://host/model?pw=hunter2&x=1",
]
ELSEWHERE = [
    "connection to host=h user=me password=hunter2 dbname=x failed",
    "host=h password='hun ter2 hunter2' dbname=x",
    '{"aws_secret_access_key": "hunter2", "a": 1}',
    "{'password': 'hun\\'hunter2', 'a': 1}",
    "YARN_OPS_S3_SECRET_KEY=hunter2 yarn-ops doctor",
    "Authorization: Bearer hunter2hunter2",
    "{'authorization': 'Basic hunter2hunter2'}",
    "asked with Bearer hunter2hunter2",
]
WITHOUT_SCHEME = [
    "me:hunter2@host/db",
    "s3:/me:hunter2@bucket",
    "//me:hunter2@host",
    "s3:me:a/hunter2@bucket",
]
HARMLESS = [
    "hf:org/name@v1:2",
    "models:/demo-long@champion",
    "shipped:base512",
    "stdlib:**/*.py",
    "s3://bucket/books/**/*.jsonl",
    "s3://bucket/a?b@c.txt",
    "/data/a:b@c/*.txt",
    "file:///data/me@home/*.txt",
    "mailto:me@example.com",
    "written by me@example.com: see https://example.com/a?page=2&author=me",
    "recall/code",
    "YARN_OPS_S3_SECRET_KEY: write one",
    "tokenizer: makes token 8193, --set train.window_tokens=512, eos_token=<|eos|>",
    "a server with basic authentication, its passwords: none",
]
FIELDS: list[tuple[str, str, Any]] = [
    ("base", "model", None),
    ("data", "sources", lambda text: [text]),
    ("data", "evaluation_sources", lambda text: [text]),
    ("data", "text_field", None),
    ("data", "languages", lambda text: [text]),
    ("train", "targets", lambda text: [text]),
    ("train", "method", None),
    ("train", "legs", None),
    ("gate", "conditions", lambda text: [{"score": text, "at_least": 1}]),
    ("publish", "name", None),
    ("publish", "alias", None),
    ("publish", "experiment", None),
    ("publish", "tags", lambda text: {"from": text}),
    ("publish", "tags", lambda text: {text: "x"}),
]


@pytest.mark.parametrize("text", [*ADDRESSES_WITH_SECRETS, *WITHOUT_SCHEME])
def test_a_recipe_with_a_secret_is_refused_and_does_not_repeat_it(text: str) -> None:
    assert holds_password(text)
    if text not in WITHOUT_SCHEME:
        assert not re.search(form_pattern(), text)
    for section, field, wrap in FIELDS:
        recipe = {"rope": {"factor": 2}, section: {field: wrap(text) if wrap else text}}
        with pytest.raises(RecipeError, match="holds a password, and a recipe is no secret") as fault:
            parse_recipe(recipe)
        assert SECRET not in str(fault.value)
    for section in ("base", "rope", "train"):
        with pytest.raises(RecipeError) as fault:
            parse_recipe({"rope": {"factor": 2}, section: text})
        assert SECRET not in str(fault.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_holds_none_is_taken(text: str) -> None:
    assert not holds_password(text)
    assert re.search(form_pattern(), text)
    assert without_secrets(text) == text


@pytest.mark.parametrize("text", ADDRESSES_WITH_SECRETS)
@pytest.mark.parametrize("around", ["{}", "{}: does not answer", "cannot connect to '{}' (refused)"])
def test_every_error_is_without_it(text: str, around: str) -> None:
    shown = str(YarnOpsError(around.format(text)))
    assert SECRET not in shown and "***" in shown


@pytest.mark.parametrize("text", ELSEWHERE)
def test_no_error_has_it_outside_of_addresses(text: str) -> None:
    shown = str(YarnOpsError(text))
    assert SECRET not in shown and "***" in shown
    assert ("dbname=x" in shown, "'a': 1" in shown) == ("dbname=x" in text, "'a': 1" in text)


PASSWORDS = st.text("abz019/@:?#%&=+-._~!$'()[]\\", min_size=4, max_size=20).map(lambda text: f"Qx{text}xQ")


@given(PASSWORDS, st.sampled_from(ADDRESSES), st.booleans())
def test_no_setting_shows_its_password(password: str, name: str, quoted: bool) -> None:
    scheme = {"database_url": "postgresql", "store_url": "s3", "cluster": "tcp"}.get(name, "http")
    written = quote(password, safe="") if quoted else password
    try:
        settings = Settings.model_validate({name: f"{scheme}://me:{written}@host:9/x"})
    except ValidationError as error:
        assert not quoted and re.search(r"[/@?#\[\]]", password)
        assert password not in str(error)
        return
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())]
    shown.append(_finding("x", lambda own: str(getattr(own, name)), settings).found)
    shown.append(str(SettingsError(f"{getattr(settings, name)}: nothing answers")))
    for text in shown:
        assert written not in text and password not in text
        assert "me:***@host:9/x" in text


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize(
    "value", ["me:hunter2@host", "http:/me:hunter2@host", "http://me:hun/ter2/hunter2@host"]
)
def test_an_address_that_cannot_be_read_is_refused_unseen(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"YARN_OPS_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"YARN_OPS_{name.upper()}: a user and a password stand") as fault:
        read_settings()
    assert "hunter2" not in str(fault.value) and "ter2" not in str(fault.value)


@pytest.mark.parametrize(
    "url", ["s3://me:hunter2@bucket/p", "s3://hunter2@bucket", "s3://b/p?secret=hunter2"]
)
def test_keys_in_the_address_of_a_store_are_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """S3 has no users in addresses: its client would take all of it for the bucket's name, and repeat it."""
    monkeypatch.setenv("YARN_OPS_STORE_URL", url)
    with pytest.raises(SettingsError, match="YARN_OPS_STORE_URL: holds a user or a password") as fault:
        read_settings()
    assert SECRET not in str(fault.value)


def test_doctor_shows_none_of_what_does_not_answer(tmp_path: Path) -> None:
    """Every check of doctor, with a password in every address, and nobody there."""
    settings = Settings.model_validate(
        {
            "state_dir": tmp_path,
            "database_url": "postgresql://me:hunter2@127.0.0.1:9/runs",
            "store_url": "s3://bucket/store",
            "s3_endpoint_url": "http://me:hunter2@127.0.0.1:9",
            "s3_access_key": SECRET,
            "s3_secret_key": SECRET,
            "mlflow_uri": "http://me:hunter2@127.0.0.1:9",
            "prefect_api_url": "http://me:hunter2@127.0.0.1:9/api",
            "prefect_auth": f"me:{SECRET}",
            "notify": f"http://127.0.0.1:9/{SECRET}",
            "cluster": "tcp://me:hunter2@127.0.0.1:9",
        }
    )
    findings = {finding.name: finding for finding in examine(settings)}
    sick = {name for name, finding in findings.items() if not finding.healthy}
    assert {"registry", "store", "mlflow", "prefect", "workers", "cluster"} <= sick
    for finding in findings.values():
        assert SECRET not in finding.found + finding.remedy


def test_nothing_commands_a_terminal() -> None:
    hostile = "a\x1b]0;title\x07\x1b[2Jb\x9b31mc\x7f\u202e\u061cd\nGrüße\t🌍"
    assert printable(hostile) == "a�]0;title��[2Jb�31mc���d\nGrüße\t🌍"
    assert one_line(hostile) == "a�]0;title��[2Jb�31mc���d Grüße 🌍"
    assert "\x1b" not in str(YarnOpsError(hostile))


def test_one_is_not_told_as_many() -> None:
    told = [counted(count, "file") for count in (0, 1, 2, 2345)]
    assert told == ["0 files", "1 file", "2 files", "2,345 files"]
    assert counted(1, "directory") == "1 directory" and counted(3, "directory") == "3 directories"
    assert counted(2, "process") == "2 processes"


COUNTED = re.compile(
    r" (blocks|directories|documents|faults|files|models|runs|samples|stages|steps|texts|things|threads"
    r"|workers)\b"
)
ALWAYS_MANY = {"len(made.states) - 1"}
"""the faults of a fingerprint: a dozen"""


def test_what_commands_and_flows_print_counts_by_counted() -> None:
    """`{n} files` says "1 files" one day."""
    checkout = Path(__file__).parents[2]
    files = [path for folder in ("yarn_ops/cli", "flows") for path in (checkout / folder).rglob("*.py")]
    found = []
    for path in (*files, checkout / "yarn_ops/services.py", checkout / "yarn_ops/rebuild.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, behind in pairwise(parts):
                if isinstance(value, ast.FormattedValue) and isinstance(behind, ast.Constant):
                    shown = ast.unparse(value.value)
                    if COUNTED.match(str(behind.value)) and shown not in ALWAYS_MANY:
                        found.append(f"{path.name}:{node.lineno}: {shown}{behind.value}")
    assert files and not found

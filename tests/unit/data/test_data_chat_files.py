"""Chats in files of rows: rendered by the base's template, or named in a line."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from yarn_ops.data.corpus import survey
from yarn_ops.data.documents import read_texts
from yarn_ops.data.files import LocalFiles
from yarn_ops.data.layout import SPLITS, ShardReader
from yarn_ops.data.shards import LocalUnits, prepare
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data
from yarn_ops.records import BaseModel, Local
from yarn_ops.shipped import MODELS

BASE512 = MODELS / "base512"

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{{ eos_token }}{% if tools %}{{ tools | length }} tools{% endif %}"
)


def table(**columns: object) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def said(*messages: str, **keys: str) -> list[dict[str, str]]:
    """Turn by turn, the user's first; `keys` are what role and content are called, and the roles."""
    role, content = keys.get("role", "role"), keys.get("content", "content")
    names = (keys.get("user", "user"), keys.get("assistant", "assistant"))
    return [{role: names[number % 2], content: text} for number, text in enumerate(messages)]


SHAREGPT = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
CHATS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"messages": said("What?", "That.")}, said("What?", "That.")),
    "sharegpt": (
        {"conversations": said("Who?", "They.", **SHAREGPT), "system": "Be."},
        [{"role": "system", "content": "Be."}, *said("Who?", "They.")],
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("One", "two")]},
                {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
            ]
        },
        said("One\ntwo", "Three."),
    ),
    "roles": (
        {
            "conversations": [
                {"from": "System", "value": "Do."},
                {"from": "Human", "value": "How?"},
                {"from": "model", "value": "So."},
            ]
        },
        [{"role": "system", "content": "Do."}, *said("How?", "So.")],
    ),
    "crossed": ({"conversations": said("Why?", "Thus.", content="value")}, said("Why?", "Thus.")),
    "beside a null": ({"text": None, "messages": said("Where?", "There.")}, said("Where?", "There.")),
}


@pytest.fixture
def chat_base(tmp_path: Path, base: Local[BaseModel]) -> Local[BaseModel]:
    """The shipped base with a chat template whose roles are special tokens."""
    folder = tmp_path / "base"
    shutil.copytree(BASE512, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    definition = json.loads((folder / "tokenizer.json").read_text())
    for number, role in enumerate(("user", "assistant", "system")):
        token = {"id": 8192 + number, "content": f"<|{role}|>", "special": True}
        definition["added_tokens"].append(
            {**token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        )
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Local(base.record.model_copy(update={"vocab_size": 8200}), folder)


def test_chats_are_rendered_by_the_base_s_template(tmp_path: Path, chat_base: Local[BaseModel]) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(chat_base.path)
    (tmp_path / "in").mkdir()
    expected = {}
    for name, (written, messages) in CHATS.items():
        for suffix, content in (
            (".jsonl", json.dumps(written).encode()),
            (
                ".parquet",
                table(**{key: [value] for key, value in written.items() if key != "text"}),
            ),
        ):
            expected[f"{name}{suffix}"] = reference.apply_chat_template(messages, tokenize=True)["input_ids"]
            (tmp_path / "in" / f"{name}{suffix}").write_bytes(content)
    source = Data(sources=(f"{tmp_path}/in/*",))
    corpus = Local(survey(source, LocalFiles(), tmp_path / "corpus"), tmp_path / "corpus")
    units = LocalUnits(tmp_path / "units", LocalFiles(), 2)
    record = prepare(source, corpus, chat_base, tmp_path / "out", units=units, report=lambda *_: None)
    assert record.dropped.duplicates == len(CHATS)  # as JSON lines and as Parquet
    found = {}
    for split in SPLITS:
        reader = ShardReader(tmp_path / "out", split)
        for number in range(reader.documents):
            found[reader.document_id(number).split("@")[0]] = reader.document(number).tolist()
    assert found == {name: expected[name] for name in found} and len(found) == len(CHATS)
    assert all(ids[-1] == reference.eos_token_id and ids.count(8192) == 1 for ids in found.values())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"messages": "user: a"},
            "'messages' is str, not a text nor a list of messages with role and content",
        ),
        ({"messages": ["a"]}, "'messages' is list, not a text nor a list of messages"),
        ({"messages": [{"content": "a"}]}, "'messages' has a message without role"),
        ({"messages": [{"role": 3, "content": "a"}]}, "'messages' has a message without role"),
        ({"conversations": [{"from": "human"}]}, "a message in 'conversations' has no content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "a message in 'messages' has no content"),
        (
            {"conversations": [{"from": "narrator", "value": "a"}]},
            "a message from 'narrator'; write one of human",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "a message whose content is int, not a text"),
        (
            {"messages": [{"role": "user", "content": {"a": 1}}]},
            "a message whose content is dict, not a text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part that is no text (image)"),
        (
            {"messages": [{"role": "assistant", "function_call": {}}]},
            "a function_call, which templates do not",
        ),
        (
            {"messages": [{"role": "user", "content": "refuse"}]},
            "the base's chat template refuses this chat (No)",
        ),
    ],
)
def test_a_malformed_chat_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    from yarn_ops.data.chats import ChatTemplate

    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (source,) = LocalFiles().expand(str(tmp_path / "a.jsonl"))
    template = ChatTemplate({"chat_template": "{{ raise_exception('No') }}"})
    with pytest.raises(DataError, match=r"a.jsonl, line 1: ") as raised:
        list(read_texts(source, LocalFiles(), "text", template.render))
    assert says in str(raised.value)


def test_calls_of_tools_are_given_to_the_template_as_objects() -> None:
    """In the API's form their arguments are a text, which templates would write as a text within a text."""
    from yarn_ops.data.chats import chat_of

    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    answer = {"role": "tool", "tool_call_id": "1", "content": "1"}
    chat = chat_of(
        [{"role": "assistant", "content": None, "tool_calls": [call]}, answer], {"tools": '[{"a": 2}]'}
    )
    called = {**call, "function": {"name": "add", "arguments": {"a": 1}}}
    assert chat == {
        "messages": [{"role": "assistant", "content": "", "tool_calls": [called]}, answer],
        "tools": [{"a": 2}],
    }  # fmt: skip
    assert chat_of([{"role": "assistant", "tool_calls": [{"name": "add", "arguments": "a"}]}], {}) is not None

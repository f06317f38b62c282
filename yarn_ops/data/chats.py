"""Rows that are chats: their messages in one form, rendered by the chat template of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from yarn_ops.errors import BaseModelError, DataError
from yarn_ops.models.files import SPECIAL_TOKENS, TOKENIZER_CONFIG, read_model_file, read_object

CHATS = ("messages", "conversations")
"""fields that are looked at where a row lacks the text field: OpenAI's and ShareGPT's"""
ASIDES = ("system", "tools")
"""fields beside them that a template is given"""
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
"""ShareGPT's words for the roles that templates know"""
TODAY = datetime(2024, 7, 26)
"""to templates that ask for the date: what Llama 3.1's says where it is not told, the same on every day"""

Chat = dict[str, Any]
"""`messages`, each with `role` and `content`, and `tools` where there are any"""


def chat_of(value: Any, asides: Mapping[str, Any]) -> Chat | None:
    """A list of messages, and what stands beside it in its row, in the form that templates take.

    None where the value is no list of messages.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        return None
    messages = [_message(message) for message in value]
    if any(message is None for message in messages):
        return None
    system, tools = asides.get("system"), asides.get("tools")
    if isinstance(system, str) and system and messages[0]["role"] != "system":  # type: ignore[index]
        messages.insert(0, {"role": "system", "content": system})
    if isinstance(tools, str):
        with suppress(ValueError):
            tools = json.loads(tools)
    return {"messages": messages, **({"tools": tools} if isinstance(tools, list) and tools else {})}


def _message(stated: dict[str, Any]) -> dict[str, Any] | None:
    if isinstance(stated.get("role"), str):
        # of columns that only some messages have, Parquet keeps nulls
        return {key: item for key, item in stated.items() if item is not None or key == "content"}
    if isinstance(stated.get("from"), str) and isinstance(stated.get("value"), str):
        return {"role": ROLES.get(stated["from"], stated["from"]), "content": stated["value"]}
    return None


class ChatTemplate:
    """A base's chat template with the special tokens that it may name; `stated` is all that it depends on."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self.stated = dict(stated)
        self._renderer: Any = None

    def render(self, chat: Chat) -> str:
        """The text of a chat, its special tokens in it. DataError, without the place, where it cannot be."""
        try:
            return str(self._load().apply_chat_template(
                chat["messages"], tools=chat.get("tools"), tokenize=False, strftime_now=TODAY.strftime
            ))  # fmt: skip
        except Exception as error:  # a template is a program of the model's, and fails in its own ways
            told = " ".join(str(error).split())[:200]
            raise DataError(f"the base's chat template refuses this chat ({told}); correct the row") from None

    def _load(self) -> Any:
        if self._renderer is None:
            from tokenizers import Tokenizer, models
            from transformers import PreTrainedTokenizerFast

            self._renderer = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.WordLevel({}, unk_token="")), **self.stated
            )
        return self._renderer


def read_chat_template(base: Path) -> ChatTemplate | None:
    """The default template of a model directory, None where it has none."""
    stated: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        if (base / name).is_file():
            stated |= read_object(base, name)
    tokens = {key: _text(token) for key, token in stated.items() if key.endswith("_token")}
    template = stated.get("chat_template")
    for name, read in (("chat_template.json", read_object), ("chat_template.jinja", read_model_file)):
        if (base / name).is_file():
            found = read(base, name)
            template = found.get("chat_template") if isinstance(found, dict) else found
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise BaseModelError(f"{base.name}: its chat template is no text; correct {TOKENIZER_CONFIG}")
    return ChatTemplate({"chat_template": template, **{k: v for k, v in tokens.items() if v is not None}})


def _text(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def first_chat(fields: Sequence[str]) -> str | None:
    """The field of a chat among a row's."""
    return next((name for name in CHATS if name in fields), None)

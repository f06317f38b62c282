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
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "bot", "chatgpt", "assistant", "model"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool"), "tool"),
    "system": "system",
}
"""ShareGPT's words for the roles that templates know"""
TODAY = datetime(2024, 7, 26)
"""to templates that ask for the date: what Llama 3.1's says where it is not told, the same on every day"""

Chat = dict[str, Any]
"""`messages`, each with `role` and `content`, and `tools` where there are any"""


def chat_of(value: Any, asides: Mapping[str, Any]) -> Chat | None:
    """A list of messages, and what stands beside it in its row, in the form that templates take.

    None where a message lacks its content. DataError, without the place, where this is no chat of texts.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise DataError(f"is {type(value).__name__}, not a text nor a list of messages with role and content")
    messages = []
    for stated in value:
        message = _message(stated)
        if message is None:
            return None
        messages.append(message)
    system, tools = asides.get("system"), asides.get("tools")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = _parsed(tools)
    return {"messages": messages, **({"tools": tools} if isinstance(tools, list) and tools else {})}


def _message(stated: dict[str, Any]) -> dict[str, Any] | None:
    """A message with `role` and `content`, from OpenAI's or ShareGPT's form; None: it has no content."""
    role = stated.get("role")
    if role is None and isinstance(stated.get("from"), str):
        role = ROLES.get(stated["from"].lower())
        if role is None:
            raise DataError(f"has a message from {stated['from'][:40]!r}; write one of {', '.join(ROLES)}")
    if not isinstance(role, str):
        raise DataError("has a message without role, or from; write who says it")
    role = ROLES.get(role.lower(), role)
    content = stated.get("content")
    if content is None:
        content = stated.get("value")
    if isinstance(stated.get("function_call"), dict):
        raise DataError("has a function_call, which templates do not know; write it as tool_calls")
    calls = stated.get("tool_calls")
    if content is None and not calls:
        return None
    # of columns that only some messages have, Parquet keeps nulls
    known = {key: item for key, item in stated.items() if item is not None and key not in ("from", "value")}
    if isinstance(calls, list):
        known["tool_calls"] = [_call(call) for call in calls]
    return {**known, "role": role, "content": _text_of(content)}


def _text_of(content: Any) -> str:
    """What a message says, the texts of its parts on lines of their own."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"has a message whose content is {type(content).__name__}, not a text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(f"has a message with a part that is no text ({str(kind)[:40]})")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any) -> Any:
    """With its arguments as templates write them: a JSON object, which the API has as a text."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"])}
    return {**call, "arguments": _parsed(call["arguments"])} if "arguments" in call else call


def _parsed(value: Any) -> Any:
    """The object or list that a text is in JSON; the value itself where it is none."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
            return found if isinstance(found, dict | list) else value
    return value


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

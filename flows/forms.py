"""Recipes that a page of Prefect or its API sends, checked before a run or a schedule of them exists.

A form leaves out a field that was emptied. So in a section that a page sends, a field that is missing is
empty: nothing, where the recipe allows that, and a fault elsewhere. Its default is for files and programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from yarn_ops.errors import RecipeError
from yarn_ops.guard import Application, Message, Receive, Send
from yarn_ops.heads import Scope
from yarn_ops.recipe import NAMED, Recipe, parse_recipe, require_whole_paths
from yarn_ops.recipe.presets import PRESETS, short_recipe

TAKES_RECIPES = re.compile(r"/api/deployments/[0-9a-f-]{36}(/create_flow_run|/schedules(/[0-9a-f-]{36})?)?/?")
VALIDATES = re.compile(r"/api/ui/schemas/validate/?")
"""what a page asks before it sends a form"""
UNDECIDED = ("jinja", "workspace_variable")
"""placeholders that Prefect fills in later: the run itself checks what comes of them"""


class CheckedForms:
    """An ASGI application in front of Prefect's: refuses a faulty recipe with 409 and one line."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writes = scope["type"] == "http" and scope["method"] in ("POST", "PATCH")
        validates = writes and VALIDATES.fullmatch(scope["path"])
        if not validates and not (writes and TAKES_RECIPES.fullmatch(scope["path"])):
            return await self._app(scope, receive, send)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        if validates and _of_nothing(body):
            return await JSONResponse({"errors": [], "valid": True})(scope, receive, send)
        names = {bytes(name).lower() for name, _ in scope["headers"]}
        try:
            body = _checked(body, scope["path"], by_page=bool(names & {b"origin", b"sec-fetch-site"}))
        except RecipeError as fault:
            return await JSONResponse({"detail": str(fault)}, 409)(scope, receive, send)
        kept = [(name, value) for name, value in scope["headers"] if bytes(name).lower() != b"content-length"]
        scope = {**scope, "headers": [*kept, (b"content-length", str(len(body)).encode())]}
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def hear() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, hear, send)


def form_values(recipe: Recipe) -> dict[str, Any]:
    """A whole recipe for a form, without what is empty and is so by default: that field stays empty."""
    empty = {
        name: {key for key, field in kind.model_fields.items() if field.default is None}
        for name, kind in ((name, type(section)) for name, section in recipe)
    }
    return {
        name: {key: value for key, value in section.items() if value is not None or key not in empty[name]}
        for name, section in recipe.model_dump(mode="json").items()
    }


def filled_in(recipe: dict[str, Any]) -> dict[str, Any]:
    """A form's values with what was emptied as null; RecipeError for a field that cannot be empty."""
    filled = dict(recipe)
    for section, field in Recipe.model_fields.items():
        values = recipe.get(section)
        if isinstance(values, dict):
            filled[section] = values | dict.fromkeys(_emptied(field.annotation, section, values))
    return filled


def _emptied(kind: Any, section: str, values: dict[str, Any]) -> Iterator[str]:
    """The fields without a value that may be null; RecipeError for one that may not."""
    assert isinstance(kind, type) and issubclass(kind, BaseModel)
    for name, field in kind.model_fields.items():
        if name in values or f"{section}.{name}" in NAMED or not field.get_default(call_default_factory=True):
            continue
        if type(None) not in getattr(field.annotation, "__args__", ()):
            raise RecipeError(f"recipe: {section}.{name}: is empty; fill it in ({field.title})")
        yield name


def _checked(body: bytes, path: str, *, by_page: bool) -> bytes:
    """The request's body, a page's with emptied fields as null; RecipeError where a recipe has a fault."""
    try:
        asked = json.loads(body)
    except ValueError:
        return body  # Prefect refuses it
    for one in asked if isinstance(asked, list) else [asked]:
        parameters = one.get("parameters") if isinstance(one, dict) else None
        if parameters and "/schedules" in path and _is_nothing(parameters):
            one["parameters"] = parameters = {}  # the deployment's, which the schedule's form does not show
        if isinstance(parameters, dict) and "preset" in parameters and "documents" in parameters:
            _short(parameters)
        recipe = parameters.get("recipe") if isinstance(parameters, dict) else None
        undecided = any(f'"{kind}"' in json.dumps(recipe) for kind in UNDECIDED)
        if parameters is None or not isinstance(recipe, dict) or undecided:
            continue
        plain = _plain(recipe)
        parsed = parse_recipe(filled_in(plain) if by_page else plain)
        require_whole_paths(parsed)
        parameters["recipe"] = form_values(parsed)
    return json.dumps(asked).encode()


def _short(parameters: dict[str, Any]) -> None:
    """RecipeError where the answers of the short form make no recipe."""
    asked = ("base", "target_context_tokens", "documents", "name")
    given: dict[str, Any] = {name: parameters.get(name) for name in asked}
    given["preset"] = parameters["preset"]
    if empty := [name for name, value in given.items() if value in (None, "", [])]:
        raise RecipeError(f"{empty[0]}: is empty; fill it in")
    if parameters["preset"] not in PRESETS:
        raise RecipeError(f"preset: {parameters['preset']!r} is unknown; known are {', '.join(PRESETS)}")
    short_recipe(**given)


def _plain(value: Any) -> Any:
    """Without Prefect's placeholders: {"__prefect_kind": "json", "value": "[1]"} is [1]."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__prefect_kind" not in value:
        return {name: _plain(item) for name, item in value.items() if not _is_unset(item)}
    held = value["value"]
    try:
        return json.loads(held) if value["__prefect_kind"] == "json" and isinstance(held, str) else held
    except ValueError:
        raise RecipeError(f"not valid JSON: {held[:40]!r}; write e.g. {{}}") from None


def _of_nothing(body: bytes) -> bool:
    """Whether a form is sent in which nothing was filled in, as that of a schedule whose time alone changes.

    A run's form without anything passes here as well: what then asks for the run is refused.
    """
    try:
        return _is_nothing(json.loads(body)["values"])
    except (ValueError, KeyError, TypeError):
        return False  # Prefect refuses it


def _is_nothing(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_nothing(held) for name, held in value.items() if name != "__prefect_kind")
    return value in (None, "", [])


def _is_unset(value: Any) -> bool:
    return isinstance(value, dict) and "__prefect_kind" in value and value.get("value") is None

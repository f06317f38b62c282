"""Recipes from TOML files, with `--set` on top; every fault in one line that names the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from yarn_ops.errors import RecipeError
from yarn_ops.recipe.sections import Gate
from yarn_ops.recipe.whole import Recipe
from yarn_ops.secrecy import without_secrets

MOST_BYTES = 1 << 20
RENAMED = {
    "gate.max_short_loss": "gate.max_short_growth",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.stages": "train.legs",
}
"""keys of earlier versions: a recipe that has one is refused with the new name, a recorded one is read"""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in TOML, bare words as strings);
    keys of tables within a section, as `train.exercises.share=0`, too.

    Relative paths in `base.model` and `data.sources` are meant from the file's directory.
    Raises RecipeError in one line that names the file, the key and the nearest known key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise RecipeError(f"{path}: is no recipe, with more than {MOST_BYTES:,} bytes")
        values = tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `yarn-ops recipe list` names the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a text file ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    _anchor_paths(values, path.parent)
    for override in overrides:
        _apply(values, override)
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Recipe from plain values; RecipeError in one line, naming `where` and the key."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from None


def recorded_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that the registry has of a run, also one of an earlier version; RecipeError as above.

    What a comparison recorded beside it (`compare`) is left out. A threshold that its gate does not have was
    not asked for.
    """
    names = {tuple(old.split(".")): new.split(".")[1] for old, new in RENAMED.items()}
    recipe = {
        section: {names.get((section, key), key): value for key, value in keys.items()}
        for section, keys in values.items()
        if section != "compare"
    }
    if "gate" in recipe:
        recipe["gate"] = Gate.unasked() | recipe["gate"]
    return parse_recipe(recipe, where)


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    def anchored(text: Any) -> Any:
        if not isinstance(text, str) or ":" in text.split("/")[0] or text.startswith(("/", "~")) or not text:
            return text
        return str(folder.resolve() / text)

    base, data = values.get("base"), values.get("data")
    if isinstance(base, dict) and "model" in base:
        base["model"] = anchored(base["model"])
    if isinstance(data, dict) and isinstance(data.get("sources"), list):
        data["sources"] = [anchored(source) for source in data["sources"]]


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *tables, last = (part.strip() for part in key.split("."))
    if not equals or not tables or not all((*tables, last)):
        raise RecipeError(f"--set {override}: write section.key=value, e.g. --set train.steps=20")
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {}
    value = read["value"] if len(read) == 1 else text.strip()  # more lines are more than a value
    section: Any = values
    for place, name in enumerate(tables):
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override}: {'.'.join(tables[: place + 1])!r} is no section or table")
    section[last] = value


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        renamed = RENAMED.get(where)
        text = f"{where}: is now {renamed}; write that"
        if renamed is None:
            text = f"{where}: unknown key{_nearest(first['loc'])}"
    elif first["type"] == "missing":
        text = f"{where}: missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        text = f"{where}: {message[:1].lower()}{message[1:]} (found {_shorten(first['input'])})"
        if first["type"] == "value_error":
            text = f"{where}: {message}" if where else message  # of the whole recipe: it names the key
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def _shorten(value: Any) -> str:
    text = without_secrets(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next(
            (kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), model
        )
    wrong = str(location[-1])
    close = difflib.get_close_matches(wrong, model.model_fields, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    homes = [name for name, kind in sections.items() if wrong in getattr(kind, "model_fields", ())]
    if homes:
        return f"; it belongs in [{homes[0]}]"
    return f"; known here: {', '.join(model.model_fields)}"

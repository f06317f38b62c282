"""Recipes from TOML files, with `--set` on top; every fault in one line that names the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from yarn_ops.errors import RecipeError
from yarn_ops.recipe.sections import ALIAS, LANGUAGE, MODEL_NAME, TAG, Gate
from yarn_ops.recipe.whole import Recipe
from yarn_ops.secrecy import without_secrets

MOST_BYTES = 1 << 20
RENAMED = {
    "gate.max_short_loss": "gate.max_short_growth",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.stages": "train.legs",
}
"""keys of earlier versions: a recipe that has one is refused with the new name, a recorded one is read"""
PATHS = (("base", "model"), ("data", "sources"), ("data", "evaluation_sources"))
IN_TOML = {
    "tuple_type": 'a list, e.g. ["a", "b"]',
    "dict_type": 'a table, e.g. {a = "b"}',
    "model_type": "a table, e.g. {share = 0.5}",
}
"""what pydantic says in words of Python, by its type of error"""
IN_WORDS = {
    MODEL_NAME: "at most 128 letters, digits, '.', '_' and '-', the first a letter or a digit",
    ALIAS: "at most 64 letters, digits, '_' and '-', the first a letter",
    TAG: "at most 250 letters, digits, blanks, '_', '.', '/' and '-', the first a letter, a digit or '_'",
    LANGUAGE: "a code of two or three small letters, e.g. en",
}
"""what pydantic says by a regular expression"""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in TOML, bare words as strings,
    nothing as null); keys of tables within a section, as `train.exercises.share=0`, too.

    Relative paths (PATHS) are meant from the file's directory, those of overrides from the working directory.
    Raises RecipeError in one line that names the file or the override, the key and the nearest known key.
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
    typed = {_apply(values, override): override for override in overrides}
    return parse_recipe(values, str(path), typed)


def parse_recipe(
    values: Mapping[str, Any], where: str = "recipe", typed: Mapping[tuple[str, ...], str] | None = None
) -> Recipe:
    """Recipe from plain values; RecipeError in one line, naming `where` and the key.

    typed: the override that set a key, which is named instead where the fault is in its value.
    """
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        place = tuple(map(str, error.errors()[0]["loc"]))
        overrides = [text for key, text in (typed or {}).items() if place[: len(key)] == key]
        if overrides:
            where = f"--set {without_secrets(overrides[-1])}"
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
    for section, key in PATHS:
        table = values.get(section)
        if isinstance(table, dict) and key in table:
            table[key] = _anchored(table[key], folder)


def _anchored(value: Any, folder: Path) -> Any:
    """A path, or a list of them, from a folder; what is whole, or no path, as it is."""
    if isinstance(value, list):
        return [_anchored(item, folder) for item in value]
    return str(folder.resolve() / value) if isinstance(value, str) and _is_relative(value) else value


def _is_relative(value: str) -> bool:
    return bool(value) and not value.startswith(("/", "~")) and ":" not in value.split("/")[0]


def require_whole_paths(recipe: Recipe) -> None:
    """RecipeError where a path is relative: of a recipe that came from no file and no working directory."""
    for section, key in PATHS:
        named = getattr(getattr(recipe, section), key)
        for value in [named] if isinstance(named, str) else named:
            if _is_relative(value):
                on_the_hub = (
                    f", or hf:{value} from the hub" if key == "model" and value.count("/") == 1 else ""
                )
                raise RecipeError(
                    f"recipe: {section}.{key}: {value!r} is a relative path, and there is no folder that it "
                    f"counts from; write it whole, e.g. /…/{value}{on_the_hub}"
                )


def _apply(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set what the override says; the key that it names."""
    key, equals, text = override.partition("=")
    *tables, last = (part.strip() for part in key.split("."))
    if not equals or not tables or not all((*tables, last)):
        raise RecipeError(f"--set {override}: write section.key=value, e.g. --set train.steps=20")
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {}
    value = read["value"] if len(read) == 1 else text.strip() or None  # more lines are more than a value
    section: Any = values
    for place, name in enumerate(tables):
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override}: {'.'.join(tables[: place + 1])!r} is no section or table")
    section[last] = _anchored(value, Path.cwd()) if (*tables, last) in PATHS else value
    return (*tables, last)


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where, value = ".".join(str(part) for part in first["loc"]), first["input"]
    if first["type"] == "extra_forbidden":
        renamed = RENAMED.get(where)
        text = f"{where}: is now {renamed}; write that"
        if renamed is None:
            text = f"{where}: unknown key{_nearest(first['loc'])}"
    elif first["type"] == "missing":
        text = f"{where}: missing"
    elif first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        text = f"{where}: {message}" if where else message  # of the whole recipe: it names the key
    else:
        message = first["msg"].replace("Tuple", "List").partition(", unable to parse")[0]
        text = f"{where}: {message[:1].lower()}{message[1:]} (found {_shorten(value)})"
        if value is None:
            text = f"{where}: cannot be empty"
        elif first["type"] == "string_type":
            quoted = without_secrets(f"'{where}=\"{value}\"'")
            text = f"{where}: input should be text, {quoted} with all its quotes (found {_shorten(value)})"
        elif first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] in IN_WORDS:
            words = IN_WORDS[first["ctx"]["pattern"]]
            text = f"{where}: input should be {words} (found {_shorten(value)})"
        elif first["type"] in IN_TOML:
            text = f"{where}: input should be {IN_TOML[first['type']]} (found {_shorten(value)})"
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def _shorten(value: Any) -> str:
    """A value as TOML has it, as far as that tells it."""
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    text = without_secrets(value.isoformat() if isinstance(value, date | time) else shown)
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

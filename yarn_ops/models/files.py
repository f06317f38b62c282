"""The files of a model directory, opened so that nothing beside them is read.

What a model directory holds goes into shards, releases and pulls, so a link in it must not bring another
file of this machine there. Links are followed within the directory and, from a snapshot in Hugging Face's
cache, into the blobs of that cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from yarn_ops.errors import BaseModelError
from yarn_ops.models.harmless import harmless_config, harmless_tokenizer, harmless_tokens, require_finite
from yarn_ops.opening import LinkLeaves, open_regular, place_below, read_json

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATES = "additional_chat_templates"
"""a directory of named chat templates, NAME.jinja"""
SHARED_BLOBS = ".huggingface-shared-blobs"
"""marks the directory of blobs that several models of a Hugging Face cache share"""
HARMLESS = {
    CONFIG: harmless_config,
    GENERATION_CONFIG: harmless_config,
    TOKENIZER_CONFIG: harmless_tokenizer,
    SPECIAL_TOKENS: harmless_tokens,
}
MOST_BYTES = {CONFIG: 1 << 20, GENERATION_CONFIG: 1 << 20}
MOST_OTHER_BYTES = 64 << 20
"""Of a tokenizer or an index: the largest known have half of that."""


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files that a model directory has, named chat templates among them."""
    templates = sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    return [name for name in (*TOKENIZER_FILES, *templates) if (folder / name).is_file()]


def open_model_file(folder: Path, name: str) -> BinaryIO:
    """A file of a model directory; BaseModelError where it cannot be read or lies elsewhere."""
    try:
        return open_regular(place_of(folder, name))
    except FileNotFoundError:
        raise BaseModelError(
            f"{folder / name}: missing; name a checkpoint directory, or download it again"
        ) from None
    except OSError as error:
        raise BaseModelError(
            f"{folder / name}: cannot be read ({error.strerror}); download it again"
        ) from None


def read_model_file(folder: Path, name: str) -> str:
    """The text of a file of a model directory that is not weights; BaseModelError as `open_model_file`."""
    try:
        return _read(folder, name).decode()
    except UnicodeDecodeError as error:
        raise BaseModelError(
            f"{folder / name}: cannot be read as JSON or text ({error}); download it again"
        ) from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model directory, as it may reach transformers (see harmless.py)."""
    return HARMLESS.get(name, dict)(read_stated(folder, name))


def read_stated(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model directory, with all that it states."""
    try:
        value = read_json(_read(folder, name))
    except ValueError as error:
        raise BaseModelError(
            f"{folder / name}: cannot be read as JSON ({error}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise BaseModelError(f"{folder / name}: expected a JSON object, found {type(value).__name__}")
    if name in HARMLESS:
        require_finite(value, str(folder / name))
    return value


def _read(folder: Path, name: str) -> bytes:
    most = MOST_BYTES.get(name, MOST_OTHER_BYTES)
    with open_model_file(folder, name) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise BaseModelError(
                f"{folder / name}: cannot be read ({error.strerror}); download it again"
            ) from None
    if len(data) > most:
        raise BaseModelError(f"{folder / name}: more than {most:,} bytes; no model's is so large")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory, as it may reach transformers."""
    return read_object(folder, CONFIG)


def harmless_bytes(folder: Path, name: str) -> bytes:
    """A file that is not weights, as it may reach transformers: its own bytes where nothing is left out."""
    data = _read(folder, name)
    if name not in HARMLESS:
        return data
    stated = read_stated(folder, name)
    kept = HARMLESS[name](stated)
    return data if kept == stated else json.dumps(kept, indent=2, ensure_ascii=False).encode()


def write_object(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object as a file of a model directory, in place of what lies there, which may be a
    link."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def copy_model_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of these files that exist, none of them weights, as they may reach transformers."""
    for name in names:
        if (folder / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(harmless_bytes(folder, name))


def link_model_file(folder: Path, target: Path, name: str) -> None:
    """A hard link to a file of a model directory, a copy where the file system has none."""
    (target / name).parent.mkdir(exist_ok=True)
    with open_model_file(folder, name) as file:
        try:
            os.link(place_of(folder, name), target / name, follow_symlinks=False)
            if os.path.samestat(os.fstat(file.fileno()), (target / name).lstat()):
                return
            (target / name).unlink()  # changed while it was opened
        except OSError:
            pass
        with (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy)


def place_of(folder: Path, name: str) -> Path:
    """Where a file of a model directory lies; BaseModelError where a link leads out of it, OSError."""
    try:
        return place_below(folder / name, _roots(folder))
    except LinkLeaves as link:
        raise BaseModelError(
            f"{link}, outside of the model directory; put the file itself there, if it is the model's"
        ) from None


def _roots(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    yield root
    if root.parent.name == "snapshots":
        repository = root.parent.parent
        yield repository / "blobs"
        if repository.name.startswith("models--") and (repository.parent / "blobs" / SHARED_BLOBS).is_file():
            yield repository.parent / "blobs"

"""The files of a model directory, opened so that nothing beside them is read.

What a model directory holds goes into shards, releases and pulls, so a link in it must not bring another
file of this machine there. Links are followed within the directory and, from a snapshot in Hugging Face's
cache, into the blobs of that cache.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from yarn_ops.errors import BaseModelError
from yarn_ops.opening import LinkLeaves, open_regular, place_below

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
SHARED_BLOBS = ".huggingface-shared-blobs"
"""marks the directory of blobs that several models of a Hugging Face cache share"""


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
    """Its text."""
    with open_model_file(folder, name) as file:
        try:
            return file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BaseModelError(
                f"{folder / name}: cannot be read as JSON or text ({error}); download it again"
            ) from None


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model directory."""
    try:
        value = json.loads(read_model_file(folder, name))
    except ValueError as error:
        raise BaseModelError(
            f"{folder / name}: cannot be read as JSON ({error}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise BaseModelError(f"{folder / name}: expected a JSON object, found {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory."""
    return read_object(folder, CONFIG)


def copy_model_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Those of these files that there are."""
    for name in names:
        if (folder / name).is_file():
            with open_model_file(folder, name) as file, (target / name).open("wb") as copy:
                shutil.copyfileobj(file, copy)


def link_model_file(folder: Path, target: Path, name: str) -> None:
    """A hard link to a file of a model directory, a copy where the file system has none."""
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

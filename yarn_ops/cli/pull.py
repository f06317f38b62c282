"""Pulling a registered model: find it in MLflow, download and verify it, prove its RoPE.

MLflow keeps the digest of what was released, so a store whose files were rewritten together with their own
list is noticed. What arrives is a model directory and nothing else: no file that this module does not know,
nothing that asks a reader to run or fetch code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yarn_ops.catalogue import ModelVersion
from yarn_ops.errors import ReleaseError
from yarn_ops.models.checkpoints import INDEX, checkpoint_files, tensor_shapes
from yarn_ops.models.files import CONFIG, GENERATION_CONFIG, TEMPLATES, TOKENIZER_FILES, read_config
from yarn_ops.progress import ProgressBars
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.services import try_mlflow
from yarn_ops.serving.fingerprint import FINGERPRINT, read_fingerprint
from yarn_ops.settings import read_settings
from yarn_ops.store import open_store, store_options
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, Manifest
from yarn_ops.store.pull import pull_tree

CARD = "README.md"
KNOWN = frozenset((CARD, FINGERPRINT, CONFIG, GENERATION_CONFIG, INDEX, *TOKENIZER_FILES))
LISTED = re.compile(
    rf"[A-Za-z0-9][\w.-]*\.safetensors|{TEMPLATES}/[A-Za-z0-9][\w.-]*\.jinja|[a-z][a-z-]*\.png"
)
"""names of weights, of chat templates and of the card's pictures"""
PNG = b"\x89PNG\r\n\x1a\n"
DATA = ("tokenizer.json", "vocab.json")
"""JSON that no program reads as settings: large, and any word may be a key of it"""
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "quantization_config")
"""what transformers may answer by running or fetching code"""
KERNEL_KEY = re.compile(r"implementation|kernel", re.IGNORECASE)
LARGEST_SETTINGS_BYTES = 64 * 2**20


def pull_release(
    name: str,
    to: Path,
    *,
    tags: dict[str, str],
    alias: str | None,
    version: int | None,
    include_rejected: bool,
) -> ModelVersion:
    """Download the newest version of `name` that matches into the new directory `to`, and prove its RoPE.

    The list of files is checked against MLflow's digest, then every file's sha256 against the list; a broken
    download goes on where it stopped; `to` appears whole or not at all. Raises ReleaseError (nothing matches,
    another list, code), StoreError (bytes), ProofError (frequencies).
    """
    settings = read_settings()
    release = try_mlflow(settings).find(
        name, tags=tags, alias=alias, version=version, include_rejected=include_rejected
    )
    store = open_store(settings.store, store_options(settings))
    with ProgressBars() as bars:
        # A store on this machine is as near as the cache would be.
        cache = None if isinstance(store, LocalStore) else settings.home / "cache"
        pull_tree(
            store,
            release.source,
            to,
            cache=cache,
            report=bars.of(f"{name} {release.version}"),
            admit=lambda manifest: check_list(release, manifest),
            check=check_files,
        )
    from yarn_ops.models.patch import prove_directory  # torch: seconds that a pull of nothing need not wait

    prove_directory(to, rope_spec_of(read_config(to)))
    return release


def check_list(release: ModelVersion, manifest: Manifest) -> None:
    """ReleaseError unless the manifest has the released digest and names the files of a model directory."""
    what = f"{release.name} version {release.version}"
    if release.tree_digest is not None and manifest.digest != release.tree_digest:
        raise ReleaseError(
            f"{what}: {release.source}/{MANIFEST} lists other files than were released (digest "
            f"{manifest.digest[:12]}, MLflow has {release.tree_digest[:12]}); nothing was fetched, run its "
            "recipe again"
        )
    strange = [name for name in manifest.files if name not in KNOWN and not LISTED.fullmatch(name)]
    if strange:
        raise ReleaseError(
            f"{what}: holds {strange[0]}, which is no file of a model directory and may be code; "
            "nothing was fetched"
        )


def check_files(folder: Path, manifest: Manifest) -> None:
    """ReleaseError or BaseModelError where the listed files are more than a model, or ask for code."""
    tensor_shapes(folder)
    known = {CARD, FINGERPRINT, *checkpoint_files(folder)}
    for name in manifest.files:
        if name.endswith(".png"):
            _require_picture(folder / name)
        elif name not in known:
            raise ReleaseError(f"{name}: belongs to no checkpoint; the model was not taken")
        if name == FINGERPRINT:
            read_fingerprint(folder)
        elif name.endswith(".json") and name not in DATA:
            _refuse_code(folder / name)


def _require_picture(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            raise ReleaseError(f"{path.name}: is no picture; the model was not taken")


def _refuse_code(path: Path) -> None:
    try:
        if path.stat().st_size > LARGEST_SETTINGS_BYTES:
            raise ValueError("too large for settings")
        for key, value in _entries(json.loads(path.read_text("utf-8"))):
            kernel = KERNEL_KEY.search(key) and isinstance(value, str) and "/" in value
            if key in CODE_KEYS or kernel:
                raise ReleaseError(
                    f"{path.name}: {key} asks for code beyond the library's; the model was not taken"
                )
    except (ValueError, RecursionError) as error:
        raise ReleaseError(
            f"{path.name}: cannot be read as JSON ({error}); the model was not taken"
        ) from None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it names, at any depth."""
    for key, part in value.items() if isinstance(value, Mapping) else ():
        yield key, part
        yield from _entries(part)
    for part in value if isinstance(value, list) else ():
        yield from _entries(part)

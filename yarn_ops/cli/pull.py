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
from yarn_ops.claim import MOST_BYTES as MOST_CLAIM_BYTES
from yarn_ops.claim import (
    Claim,
    read_claim,
    read_verify_key,
    require_measured,
    require_signed_files,
)
from yarn_ops.digests import stream_digest
from yarn_ops.errors import ClaimError, ReleaseError
from yarn_ops.evals.report.verdict import reached_in
from yarn_ops.models.checkpoints import INDEX, checkpoint_files, tensor_shapes
from yarn_ops.models.context import context_tokens_of
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATES,
    TOKENIZER_FILES,
    open_model_file,
    read_config,
    read_model_file,
)
from yarn_ops.progress import ProgressBars
from yarn_ops.records import CARD, CLAIM, FINGERPRINT
from yarn_ops.release import Tracking
from yarn_ops.rope.config import rope_spec_of
from yarn_ops.services import try_mlflow
from yarn_ops.serving.fingerprint import read_fingerprint
from yarn_ops.settings import Settings, read_settings
from yarn_ops.store import Store, open_store, store_options
from yarn_ops.store.keys import join
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, Manifest
from yarn_ops.store.pull import pull_tree

KNOWN = frozenset((CARD, CLAIM, FINGERPRINT, CONFIG, GENERATION_CONFIG, INDEX, *TOKENIZER_FILES))
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
    download goes on where it stopped; `to` appears whole or not at all. Where the settings name a key, the
    claim that it signed is verified before any other file is fetched. Raises ReleaseError (nothing matches,
    another list, code), ClaimError, StoreError (bytes), ProofError (frequencies).
    """
    settings = read_settings()
    tracking = try_mlflow(settings)
    release = tracking.find(name, tags=tags, alias=alias, version=version, include_rejected=include_rejected)
    store = open_store(settings.store, store_options(settings))
    claim: Claim | None = None

    def admit(manifest: Manifest) -> None:
        nonlocal claim
        check_list(release, manifest)
        claim = verified_claim(settings, tracking, store, release, manifest)

    def check(folder: Path, manifest: Manifest) -> None:
        check_files(folder, manifest)
        if claim is not None:
            require_reported(folder, claim, f"{release.name} version {release.version}")

    with ProgressBars() as bars:
        # A store on this machine is as near as the cache would be.
        cache = None if isinstance(store, LocalStore) else settings.home / "cache"
        pull_tree(
            store,
            release.source,
            to,
            cache=cache,
            report=bars.of(f"{name} {release.version}"),
            admit=admit,
            check=check,
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
    if strange := strangers(manifest):
        raise ReleaseError(
            f"{what}: holds {strange[0]}, which is no file of a model directory and may be code; "
            "nothing was fetched"
        )


def strangers(manifest: Manifest) -> list[str]:
    """Files that no model directory has."""
    return [name for name in manifest.files if not of_a_model(name)]


def of_a_model(name: str) -> bool:
    return name in KNOWN or LISTED.fullmatch(name) is not None


def check_files(folder: Path, manifest: Manifest) -> None:
    """ReleaseError or BaseModelError where the listed files are more than a model, or ask for code."""
    tensor_shapes(folder)
    known = {CARD, CLAIM, FINGERPRINT, *checkpoint_files(folder)}
    for name in manifest.files:
        if name.endswith(".png"):
            _require_picture(folder / name)
        elif name not in known:
            raise ReleaseError(f"{name}: belongs to no checkpoint; the model was not taken")
        if name == FINGERPRINT:
            read_fingerprint(folder)
        elif name == CLAIM:
            read_claim(_claim_in(folder), None, str(folder))
        elif name.endswith(".json") and name not in DATA:
            _refuse_code(folder / name)


def verified_claim(
    settings: Settings, tracking: Tracking, store: Store, release: ModelVersion, manifest: Manifest
) -> Claim | None:
    """The claim of a release; None where the settings name no key to verify it with.

    ClaimError where it is missing, was signed with another key, was changed, speaks of other files or of
    another model, or claims more than MLflow knows.
    """
    if settings.verify_key is None:
        return None
    key, what = read_verify_key(settings.verify_key), f"{release.name} version {release.version}"
    if CLAIM not in manifest.files or manifest.files[CLAIM].size_bytes > MOST_CLAIM_BYTES:
        raise ClaimError(
            f"{what}: has no {CLAIM}, and YARN_OPS_VERIFY_KEY asks for a signed release; run its recipe "
            "again where YARN_OPS_SIGNING_KEY is set"
        )
    data = store.read(join(store.key_of(release.source), CLAIM))
    statement = read_claim(data, key, what)
    require_signed_files(statement, {name: entry.sha256 for name, entry in manifest.files.items()}, what)
    claim = statement.predicate
    if claim.model != release.name:
        raise ClaimError(f"{what}: was signed as {claim.model}; do not use the model")
    measured: dict[str, float | None] = {"passed": int(release.passed)}
    if (tokens := release.tags.get("context_length", "")).isdecimal():
        measured["target_context_tokens"] = int(tokens)
    if (run := tracking.run(release.mlflow_run_id)) is not None:
        measured |= {name: run.metrics.get(f"{name}_tokens") for name in ("sees", "uses")}
    require_measured(claim, measured, "MLflow", what)
    return claim


def verified_directory(settings: Settings, folder: Path) -> Claim | None:
    """The claim of a pulled directory; None where the settings name no key to verify it with.

    Every signed file is hashed. ClaimError as above, and where a fingerprint lies there that was not signed.
    """
    if settings.verify_key is None:
        return None
    key, what = read_verify_key(settings.verify_key), str(folder)
    if not (folder / CLAIM).exists():
        raise ClaimError(
            f"{what}: has no {CLAIM}, and YARN_OPS_VERIFY_KEY asks for one; pull a signed release"
        )
    statement = read_claim(_claim_in(folder), key, what)
    found = {}
    for name in {FINGERPRINT, *statement.files}:
        if (folder / name).exists():
            with open_model_file(folder, name) as file:
                found[name] = stream_digest(file)
    require_signed_files(statement, found, what)
    require_reported(folder, statement.predicate, what)
    return statement.predicate


def require_reported(folder: Path, claim: Claim, where: str) -> None:
    """ClaimError where a claim is above what the model's own card and config.json say."""
    target = context_tokens_of(folder)
    require_measured(claim, {"target_context_tokens": target}, CONFIG, where)
    if (folder / CARD).exists():
        require_measured(claim, reached_in(read_model_file(folder, CARD)), CARD, where)


def _claim_in(folder: Path) -> bytes:
    with open_model_file(folder, CLAIM) as file:
        return file.read(MOST_CLAIM_BYTES)


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

"""Base models, from wherever a recipe names them, as a clean and checked local directory."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from yarn_ops import shipped
from yarn_ops.atomic import put_away, write_durably
from yarn_ops.catalogue import ModelVersion
from yarn_ops.digests import digest_of, tree_files
from yarn_ops.errors import BaseModelError, StoreError
from yarn_ops.hub import verify_snapshot
from yarn_ops.models.checkpoints import INDEX, checkpoint_files
from yarn_ops.models.files import (
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATES,
    TOKENIZER_FILES,
    copy_model_files,
    harmless_bytes,
    place_of,
)
from yarn_ops.models.inspection import AskTransformers, ask_transformers, inspect_checkpoint
from yarn_ops.recipe import Base
from yarn_ops.records import BaseModel
from yarn_ops.store import ObjectInfo, Store, StoreOptions, open_store
from yarn_ops.store.damage import Fault, faults_here, faults_stored, refusal
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, parse_manifest, read_manifest
from yarn_ops.store.pull import arriving
from yarn_ops.store.transfer import Transfer
from yarn_ops.store.trees import fetch_tree, manifest_of

WANTED = ("*.safetensors", INDEX, CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES, f"{TEMPLATES}/*.jinja")
UNWANTED = ("[!a]*/*", "a[!d]*/*", "ad[!d]*/*", "consolidated*")  # other formats of the weights
VIEW = 3
"""Raise it when a view holds other things."""
log = logging.getLogger(__name__)
HF_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def fetch_base(
    base: Base,
    *,
    cache: Path,
    store_options: StoreOptions,
    find_release: Callable[[str], ModelVersion] | None,
    ask: AskTransformers = ask_transformers,
    only_read: bool = False,
) -> tuple[BaseModel, Path]:
    """The base's record (without tree) and a directory that holds the checkpoint's files and nothing else.

    `find_release` maps a models:/ reference to the version; MLflow's digest says what its files have to be.
    `ask`: how transformers is asked about it. `only_read`: it is not extended, so it may be scaled already.
    A directory that is already clean is used where it is, read-only; anything else lies in `cache`, its files
    shared with pulled models. Raises BaseModelError for a base that cannot be found or trusted, StoreError
    for one that cannot be fetched.
    """
    source, path = _locate(base.model, cache, store_options, find_release)
    record = inspect_checkpoint(
        path,
        source=source,
        original_context_tokens=base.original_context_tokens,
        kept=cache / "inspected",
        ask=ask,
        only_read=only_read,
    )
    return record, _clean_view(path, cache / "bases")


def _locate(
    model: str, cache: Path, options: StoreOptions, find_release: Callable[[str], ModelVersion] | None
) -> tuple[str, Path]:
    """(what was taken, where it lies): the source names an exact revision where the recipe did not."""
    if model.startswith("shipped:"):
        return model, _shipped(model)
    if model.startswith("hf:"):
        return _from_hub(model, cache / "bases")
    if model.startswith("models:/"):
        if find_release is None:
            raise BaseModelError(f"{model}: no MLflow to look it up in; set YARN_OPS_MLFLOW_URI")
        release = find_release(model)
        return model, _from_store(release.source, cache, options, release.tree_digest)
    if model.startswith(("s3://", "file:///")):
        return model, _from_store(model, cache, options)
    if ":" in model.split("/")[0]:
        raise BaseModelError(
            f"{model}: unknown kind of base model; give a directory, hf:org/name@revision, "
            "models:/name@alias, s3://bucket/prefix or shipped:base512"
        )
    return model, Path(model).expanduser().absolute()


def _shipped(model: str) -> Path:
    name = model.removeprefix("shipped:")
    names = sorted(path.name for path in shipped.MODELS.glob("*") if path.is_dir())
    if name not in names:
        raise BaseModelError(f"{model}: not shipped; there is {', '.join(names)}")
    return shipped.MODELS / name


def _from_hub(model: str, cache: Path) -> tuple[str, Path]:
    name, _, revision = model.removeprefix("hf:").partition("@")
    if not HF_NAME.fullmatch(name) or ".." in name:
        raise BaseModelError(f"{model}: not a model name; write hf:org/name@revision")
    path = _snapshot(model, name, revision or None)
    if not any(path.glob("*.safetensors")):
        raise BaseModelError(_no_safetensors(model))
    verify_snapshot(name, path, cache, _is_wanted)
    return f"hf:{name}@{path.name}", path


def _snapshot(model: str, name: str, revision: str | None) -> Path:
    """The snapshot's directory in Hugging Face's own cache, named by its commit."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except errors.GatedRepoError:
        raise BaseModelError(f"{model}: gated; accept its terms on huggingface.co and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise BaseModelError(
            f"{model}: no such model, or a private one; correct the name or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise BaseModelError(f"{model}: no such revision; give a branch, a tag or a commit") from None
    except errors.LocalEntryNotFoundError:
        raise BaseModelError(
            f"{model}: huggingface.co cannot be reached and the local cache does not hold it; "
            "go online, or give a directory"
        ) from None
    except Exception as error:  # HTTP, TLS, proxies, full disks: whatever the hub's client meets
        raise BaseModelError(f"{model}: cannot be downloaded: {error}") from error
    return Path(folder)


def _from_store(uri: str, cache: Path, options: StoreOptions, digest: str | None = None) -> Path:
    store = open_store(uri, options)
    if digest is not None and store.find(MANIFEST) is None:
        raise StoreError(f"{store.url}: no {MANIFEST}; what was released there is gone, run its recipe again")
    if isinstance(store, LocalStore) and store.find(MANIFEST) is None:
        return store.root
    infos = [info for info in store.list("") if "/" not in info.key or info.key.startswith(f"{TEMPLATES}/")]
    if any(info.key == MANIFEST for info in infos):
        tree = read_manifest(store, "").tree_at(store.url)
        return fetch_tree(store, tree.model_copy(update={"digest": digest or tree.digest}), cache)
    return _unlisted(store, infos, cache / "bases")


def _unlisted(store: Store, infos: list[ObjectInfo], cache: Path) -> Path:
    """Checkpoint files below a URI without a manifest of ours: kept with one of what arrived.

    What is damaged afterwards is seen by it, and fetched again; damage before that nobody can tell.
    """
    wanted = [info for info in infos if _is_wanted(info.key)]
    if not any(info.key.endswith(".safetensors") for info in wanted):
        raise BaseModelError(_no_safetensors(store.url))
    path = cache / digest_of([[info.key, info.size_bytes, info.version] for info in wanted])
    transfer = Transfer(sum(info.size_bytes for info in wanted), None)
    if faults := _faults_of(path):
        log.warning("%s", refusal(path, faults, "fetched again"))
        put_away(path)
    with arriving(path) as partial:
        if partial is not None:
            resumed = any(partial.iterdir())
            transfer.run(lambda info: store.get_file(info.key, partial / info.key), wanted)
            manifest = manifest_of(partial)
            if resumed and (faults := faults_stored(store, "", manifest, Transfer(0, None), alone=False)):
                put_away(partial)
                raise refusal(store.url, faults, "run again")
            write_durably(partial / MANIFEST, manifest.to_bytes())
    os.utime(path)
    return path


def _faults_of(folder: Path) -> list[Fault]:
    """What of a directory in the cache, if it is there, is not as its own manifest says."""
    listed = folder / MANIFEST
    if not folder.exists():
        return []
    try:
        manifest = parse_manifest(listed.read_bytes(), str(listed))
    except (OSError, StoreError):
        return [Fault(MANIFEST, "one of ours", "none")]
    return faults_here(folder, manifest, Transfer(manifest.size_bytes, None))


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, want) for want in WANTED) and not any(fnmatch(name, no) for no in UNWANTED)


def _no_safetensors(source: str) -> str:
    return f"{source}: no safetensors there; pickled weights are refused, convert them or choose another base"


def _clean_view(path: Path, cache: Path) -> Path:
    """`path` if it holds only the checkpoint's files, else a directory of copies, and of links to weights."""
    names = checkpoint_files(path)
    if names == list(tree_files(path)):
        return path
    places = [place_of(path, name) for name in names]
    facts = [[str(place), place.stat().st_size, place.stat().st_mtime_ns] for place in places]
    view = cache / digest_of([VIEW, *facts])
    if view.exists() and not _is_view(view, path, names, places):
        log.warning("%s: not as it was made; made again", view)
        put_away(view)
    with arriving(view) as partial:
        if partial is not None:
            for name, place in zip(names, places, strict=True):
                (partial / name).unlink(missing_ok=True)
                if name.endswith(".safetensors"):
                    (partial / name).symlink_to(place)
            copy_model_files(path, partial, (name for name in names if not name.endswith(".safetensors")))
    os.utime(view)
    return view


def _is_view(view: Path, path: Path, names: list[str], places: list[Path]) -> bool:
    """Whether every copy holds what its original holds, and every link leads there."""
    return list(tree_files(view)) == names and all(
        (view / name).resolve() == place
        if name.endswith(".safetensors")
        else (view / name).read_bytes() == harmless_bytes(path, name)
        for name, place in zip(names, places, strict=True)
    )

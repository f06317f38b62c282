"""Content-addressed directories: artifacts/<digest>/<file>, complete once their manifest is there."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from yarn_ops.atomic import disk_errors
from yarn_ops.digests import digest_tree, tree_files
from yarn_ops.errors import Damaged, StoreError
from yarn_ops.progress import OnProgress
from yarn_ops.records import Tree
from yarn_ops.store import Store
from yarn_ops.store.damage import Fault, faults_here, faults_stored, refusal, stored_sizes
from yarn_ops.store.keys import join
from yarn_ops.store.ledger import Ledger
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import MANIFEST, FileEntry, Manifest, check_file_name, parse_manifest
from yarn_ops.store.pull import check_sizes, pull_files
from yarn_ops.store.transfer import Transfer

log = logging.getLogger(__name__)


def put_tree(
    store: Store,
    path: Path,
    *,
    copies: Mapping[str, tuple[str, FileEntry]] = MappingProxyType({}),
    own: Manifest | None = None,
    owner: Ledger | None = None,
    report: OnProgress | None = None,
) -> Tree:
    """Store every file below `path`, in parallel, once: what is there already is not sent again.

    copies: more files of the directory, which the store has under other keys: {name: (key, entry)}. It copies
    them itself. own: `manifest_of(path)`, where that is known. owner: claims the directory before its first
    byte is there; without one it is nobody's, and `yarn-ops gc` refuses the store. Safe to repeat and to run
    twice at the same time. Raises StoreError.
    """
    own = own or manifest_of(path)
    manifest = Manifest(files={**own.files, **{name: entry for name, (_, entry) in copies.items()}})
    if owner is not None:
        owner.claim(manifest.digest)
    return _put(store, path, manifest, f"artifacts/{manifest.digest}", copies, report)


def put_tree_at(store: Store, path: Path, prefix: str, *, look: bool = True) -> Manifest:
    """Store the directory `path` below a key that says what it holds: no other is ever put there.

    look: what is there already is not sent again; a small directory that is not there is sent sooner without.
    """
    manifest = manifest_of(path)
    _put(store, path, manifest, prefix, {}, None, look=look)
    return manifest


def _put(
    store: Store,
    path: Path,
    manifest: Manifest,
    prefix: str,
    copies: Mapping[str, tuple[str, FileEntry]],
    report: OnProgress | None,
    *,
    look: bool = True,
) -> Tree:
    tree, sizes = manifest.tree_at(store.uri_of(prefix)), stored_sizes(store, prefix) if look else {}
    if MANIFEST in sizes and tree_present(store, tree):
        store.write(join(prefix, MANIFEST), manifest.to_bytes())  # it is in use from now, so not old
        return tree
    transfer = Transfer(manifest.size_bytes, report)

    def put(name: str) -> None:
        # Objects appear whole, under a key that says what they hold: the same size is the same object.
        if sizes.get(name) == manifest.files[name].size_bytes:
            transfer.advance(manifest.files[name].size_bytes)
        elif name in copies:
            store.copy(copies[name][0], join(prefix, name), manifest.files[name].size_bytes)
            transfer.advance(manifest.files[name].size_bytes)
        else:
            store.put_file(path / name, join(prefix, name), transfer.advance)

    transfer.run(put, manifest.files)
    store.write(join(prefix, MANIFEST), manifest.to_bytes())
    return tree


def manifest_of(path: Path) -> Manifest:
    """The manifest that a local directory would be stored with."""
    with disk_errors(path):
        files = tree_files(path)
        if not files:
            raise StoreError(f"{path}: nothing to store; the directory is empty or missing")
        for name in files:
            check_file_name(name)
        digests = digest_tree(path)
        return Manifest(
            files={
                name: FileEntry(sha256=digests[name], size_bytes=file.stat().st_size)
                for name, file in files.items()
            }
        )


def tree_present(store: Store, tree: Tree) -> bool:
    """Whether manifest and sizes agree: cheap, reads no file's bytes."""
    prefix = store.key_of(tree.uri)
    sizes = stored_sizes(store, prefix)
    if MANIFEST not in sizes:
        return False
    data = store.read(join(prefix, MANIFEST))
    try:
        manifest = parse_manifest(data, tree.uri)
    except StoreError:
        return False
    complete = all(sizes.get(name) == entry.size_bytes for name, entry in manifest.files.items())
    return complete and manifest.digest == tree.digest


def fetch_tree(store: Store, tree: Tree, cache: Path) -> Path:
    """A local, verified, read-only directory with the tree's files and their manifest.

    A local store's own directory, else `cache`/<digest>, whose files other directories share; what is damaged
    in the cache is fetched again. Damaged names what is damaged in the store; see `compose_tree`.
    """
    prefix = store.key_of(tree.uri)
    with _taking_away(store, tree):
        manifest = _manifest_of(store, tree)
        if isinstance(store, LocalStore):
            path, transfer = store.root / prefix, Transfer(manifest.size_bytes, None)
            if faults := faults_here(path, manifest, transfer, alone=_is_ours(store, tree)):
                raise refusal(path, faults, "upload it again")
            return path
        path = cache / tree.digest
        pull_files(store, prefix, manifest, path, cache=cache, report=None, mend=True)
    os.utime(path)  # its last use, by which the cache is swept
    return path


def compose_tree(
    store: Store,
    source: Tree,
    extra: Mapping[str, bytes],
    target_uri: str,
    *,
    seal: Callable[[Manifest], Mapping[str, bytes]] | None = None,
    report: OnProgress | None = None,
) -> Tree:
    """A directory at `target_uri`: the files of `source`, copied by the store itself, and small `extra` ones.

    An extra file replaces the source's of the same name; `seal` makes more of them from the list of all
    others. The directory is complete only once every byte was read back from where it lies; composing it
    again reads it, and changes it only where it differs. Damaged names what is not as the manifest says;
    those files of the source are taken away, so that whoever made it makes it again.
    """
    source_prefix, target_prefix = store.key_of(source.uri), store.key_of(target_uri)
    with _taking_away(store, source):
        listed = _manifest_of(store, source)
    manifest = Manifest(files={**listed.files, **_entries(extra)})
    if seal is not None:
        extra = {**extra, **seal(manifest)}
        manifest = Manifest(files={**listed.files, **_entries(extra)})
    tree = manifest.tree_at(store.uri_of(target_prefix))

    def faults() -> list[Fault]:
        return faults_stored(store, target_prefix, manifest, Transfer(manifest.size_bytes, report))

    if tree_present(store, tree):
        if not (found := faults()):
            return tree
        log.warning("%s", refusal(tree.uri, found, "composed again"))
    with _taking_away(store, source):
        check_sizes(store, source_prefix, listed)
    # From here until the new manifest stands, the directory is not complete.
    store.delete(join(target_prefix, MANIFEST))
    copied = [name for name in listed.files if name not in extra]
    Transfer(0, None).run(
        lambda name: store.copy(
            join(source_prefix, name), join(target_prefix, name), listed.files[name].size_bytes
        ),
        copied,
    )
    for name, data in extra.items():
        store.write(join(target_prefix, name), data)
    with _taking_away(store, source):
        if found := faults():
            raise refusal(tree.uri, found, "run again")
    store.write(join(target_prefix, MANIFEST), manifest.to_bytes())
    return tree


def _entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    return {
        check_file_name(name): FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        for name, data in files.items()
    }


@contextmanager
def _taking_away(store: Store, tree: Tree) -> Iterator[None]:
    """After a damage within the block, whatever the store has of a directory of ours is sound."""
    try:
        yield
    except Damaged as error:
        raise _set_aside(store, tree) or error from None


def _set_aside(store: Store, tree: Tree) -> Damaged | None:
    """Remove the damaged files of a directory in artifacts/, its manifest first; None where none is damaged.

    What is left is not complete for anybody, and `put_tree` completes it.
    """
    if not _is_ours(store, tree):
        return None
    prefix = store.key_of(tree.uri)
    try:
        manifest = _manifest_of(store, tree)
        faults = faults_stored(store, prefix, manifest, Transfer(manifest.size_bytes, None))
    except Damaged:
        faults = [Fault(MANIFEST, f"the list of {tree.digest[:12]}", "none or another")]
    if not faults:
        return None
    for name in (MANIFEST, *(fault.name for fault in faults)):
        store.delete(join(prefix, name))
    return refusal(tree.uri, faults, "taken away: run again, and it is made again", tree.digest)


def _is_ours(store: Store, tree: Tree) -> bool:
    """Whether the directory is one that `put_tree` made, and nothing else lies in it."""
    return store.key_of(tree.uri) == f"artifacts/{tree.digest}"


def _manifest_of(store: Store, tree: Tree) -> Manifest:
    """Damaged where there is none of this digest."""
    data = store.find(join(store.key_of(tree.uri), MANIFEST))
    try:
        manifest = None if data is None else parse_manifest(data, tree.uri)
    except StoreError:
        manifest = None
    if manifest is None or manifest.digest != tree.digest:
        what = "no such manifest" if data is None else "not the directory that was recorded"
        raise Damaged(f"{tree.uri}: {MANIFEST}: {what}; remove it and run again")
    return manifest

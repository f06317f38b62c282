"""Content-addressed directories: artifacts/<digest>/<file>, complete once their manifest is there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from yarn_ops.digests import digest_tree, tree_files
from yarn_ops.errors import StoreError
from yarn_ops.records import Tree
from yarn_ops.store import Store
from yarn_ops.store.disk import disk_errors
from yarn_ops.store.keys import join
from yarn_ops.store.local import LocalStore
from yarn_ops.store.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    check_file_name,
    parse_manifest,
    read_manifest,
)
from yarn_ops.store.pull import pull_files, stored_sizes, verify_files
from yarn_ops.store.transfer import Report, Transfer


def put_tree(
    store: Store,
    path: Path,
    *,
    copies: Mapping[str, tuple[str, FileEntry]] = MappingProxyType({}),
    report: Report | None = None,
) -> Tree:
    """Store every file below `path`, in parallel, once: what is there already is not sent again.

    copies: more files of the directory, which the store has under other keys: {name: (key, entry)}. It copies
    them itself. Safe to repeat and to run twice at the same time. Raises StoreError.
    """
    own = manifest_of(path)
    manifest = Manifest(files={**own.files, **{name: entry for name, (_, entry) in copies.items()}})
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
    report: Report | None,
    *,
    look: bool = True,
) -> Tree:
    tree, sizes = manifest.tree_at(store.uri_of(prefix)), stored_sizes(store, prefix) if look else {}
    if MANIFEST in sizes and tree_present(store, tree):
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


def fetch_tree(store: Store, tree: Tree, cache: Path, *, report: Report | None = None) -> Path:
    """A local, verified, read-only directory with the tree's files and their manifest.

    A local store's own directory, else `cache`/<digest>, whose files other directories share. A damaged
    object is a StoreError that names it.
    """
    prefix = store.key_of(tree.uri)
    manifest = _manifest_of(store, tree)
    if isinstance(store, LocalStore):
        path = store.root / prefix
        verify_files(path, manifest, Transfer(manifest.size_bytes, report))
        return path
    path = cache / tree.digest
    pull_files(store, prefix, manifest, path, cache=cache, report=report)
    os.utime(path)  # its last use, by which the cache is swept
    return path


def compose_tree(store: Store, source: Tree, extra: Mapping[str, bytes], target_uri: str) -> Tree:
    """A directory at `target_uri`: the files of `source`, copied by the store itself, and small `extra` ones.

    An extra file replaces the source's of the same name. Composing again changes nothing.
    """
    source_prefix, target_prefix = store.key_of(source.uri), store.key_of(target_uri)
    source_files = _manifest_of(store, source).files
    extra_files = {
        check_file_name(name): FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        for name, data in extra.items()
    }
    manifest = Manifest(files={**source_files, **extra_files})
    tree = manifest.tree_at(store.uri_of(target_prefix))
    if tree_present(store, tree):
        return tree
    # From here until the new manifest stands, the directory is not complete.
    store.delete(join(target_prefix, MANIFEST))
    copied = [name for name in source_files if name not in extra_files]
    Transfer(0, None).run(
        lambda name: store.copy(
            join(source_prefix, name), join(target_prefix, name), source_files[name].size_bytes
        ),
        copied,
    )
    for name, data in extra.items():
        store.write(join(target_prefix, name), data)
    store.write(join(target_prefix, MANIFEST), manifest.to_bytes())
    return tree


def _manifest_of(store: Store, tree: Tree) -> Manifest:
    manifest = read_manifest(store, store.key_of(tree.uri))
    if manifest.digest != tree.digest:
        raise StoreError(f"{tree.uri}: not the directory that was recorded; remove it and run again")
    return manifest

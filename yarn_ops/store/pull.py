"""A stored directory to a local one: in parallel, resumed, verified, all or nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from yarn_ops.digests import file_digest, tree_files
from yarn_ops.errors import StoreError, YarnOpsError
from yarn_ops.store import Store
from yarn_ops.store.disk import disk_errors, is_still, sync_directory, write_durably
from yarn_ops.store.files import FileCache
from yarn_ops.store.keys import join
from yarn_ops.store.manifest import MANIFEST, FileEntry, Manifest, parse_manifest, read_manifest
from yarn_ops.store.transfer import Report, Transfer

PARTS_AT_ONCE = 8


def pull_tree(
    store: Store,
    uri: str,
    to: Path,
    *,
    cache: Path | None = None,
    report: Report | None = None,
    admit: Callable[[Manifest], None] | None = None,
    check: Callable[[Path, Manifest], None] | None = None,
) -> Manifest:
    """Bring the directory at `uri` to `to`, manifest included.

    Files arrive in `cache` by their sha256, many parts at once, are hashed while they arrive, and stay there
    for other versions that hold the same; `to` has hard links to them, or copies of small files and across
    file systems. Without a cache they arrive in a hidden sibling of `to`. `to` appears by one rename. A
    broken pull is taken up where it ended; a damaged file is named, and only it is fetched again next time.
    An existing `to` that holds the same directory is verified and left; any other is refused. Raises
    StoreError, and whatever `admit` raises, who sees the list before any file is fetched, and `check`, who
    sees the files before they appear at `to`.
    """
    prefix = store.key_of(uri)
    manifest = read_manifest(store, prefix)
    if admit is not None:
        admit(manifest)
    pull_files(store, prefix, manifest, to, cache=cache, report=report, check=check)
    return manifest


def pull_files(
    store: Store,
    prefix: str,
    manifest: Manifest,
    to: Path,
    *,
    cache: Path | None = None,
    report: Report | None = None,
    check: Callable[[Path, Manifest], None] | None = None,
) -> None:
    """`pull_tree` for a manifest that was read already."""
    transfer = Transfer(manifest.size_bytes, report)
    arrivals = to.parent / f".{to.name}.files" if cache is None else cache / "files"
    with arriving(to) as partial:
        if partial is None:
            _check_same(to, manifest)
            verify_files(to, manifest, transfer)
            if check is not None:
                check(to, manifest)
            return
        _check_sizes(store, prefix, manifest)
        files = FileCache(arrivals, shared=cache is not None)
        _bring(store, prefix, manifest, files, transfer)
        for path in tree_files(partial).values():
            path.unlink()
        for name, entry in manifest.files.items():
            files.place(entry, partial / name)
        if check is not None:
            _check(partial, manifest, check)
        write_durably(partial / MANIFEST, manifest.to_bytes())
    if cache is None:
        shutil.rmtree(arrivals, ignore_errors=True)


def _check(partial: Path, manifest: Manifest, check: Callable[[Path, Manifest], None]) -> None:
    """What is refused does not stay."""
    try:
        check(partial, manifest)
    except YarnOpsError:
        for path in tree_files(partial).values():
            path.unlink()
        raise


def _bring(store: Store, prefix: str, manifest: Manifest, files: FileCache, transfer: Transfer) -> None:
    """Have every file of the manifest in `files`; StoreError naming those that are damaged."""

    def bring(item: tuple[str, FileEntry]) -> str | None:
        name, entry = item
        return None if files.bring(store, join(prefix, name), entry, transfer, pool) else name

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        damaged = transfer.run(bring, _by_size(manifest))
    _refuse_damaged(store.uri_of(prefix) if prefix else store.url, damaged, "; upload it again")


def verify_files(folder: Path, manifest: Manifest, transfer: Transfer) -> None:
    """StoreError naming every file below `folder` that is missing or not as its manifest says."""

    def check(item: tuple[str, FileEntry]) -> str | None:
        name, entry = item
        path = folder / name
        same = path.is_file() and file_digest(path, transfer.advance) == entry.sha256
        return None if same else name

    with disk_errors(folder):
        damaged = transfer.run(check, _by_size(manifest))
    _refuse_damaged(str(folder), damaged, "; remove it and run again")


@contextmanager
def arriving(to: Path) -> Iterator[Path | None]:
    """A hidden sibling of `to`, ours alone, that becomes `to` when the block ends well, and else is kept.

    None when `to` is there already (an empty directory is not): then there is nothing to fill.
    An OSError within the block becomes a StoreError.
    """
    partial = to.parent / f".{to.name}.partial"
    with disk_errors(to):
        if _filled(to):
            yield None
            return
        with _held(partial):
            if _filled(to):  # by whoever held it before us
                with suppress(OSError):
                    partial.rmdir()
                yield None
                return
            yield partial
            for folder in {path.parent for path in tree_files(partial).values()}:
                sync_directory(folder)
            partial.rename(to)
            sync_directory(to.parent)


def _filled(to: Path) -> bool:
    return to.exists() and not (to.is_dir() and not any(to.iterdir()))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a directory against other threads and processes; made when missing, unmade when left empty."""
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its last holder renamed it in this moment
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not is_still(handle, folder):
                continue
            try:
                yield
            except BaseException:
                with suppress(OSError):
                    folder.rmdir()
                raise
            return
        finally:
            os.close(handle)


def _by_size(manifest: Manifest) -> list[tuple[str, FileEntry]]:
    """Largest first, so that no large file is left for the end."""
    return sorted(manifest.files.items(), key=lambda item: -item[1].size_bytes)


def _check_same(to: Path, manifest: Manifest) -> None:
    listed = to / MANIFEST
    if not listed.is_file() or parse_manifest(listed.read_bytes(), str(listed)) != manifest:
        raise StoreError(f"{to}: exists and is something else; remove it or choose another directory")


def _check_sizes(store: Store, prefix: str, manifest: Manifest) -> None:
    """Say what is missing or cut short before gigabytes of the rest are fetched."""
    sizes = stored_sizes(store, prefix)
    for name, entry in manifest.files.items():
        if sizes.get(name) != entry.size_bytes:
            found = "missing" if name not in sizes else f"{sizes[name]} bytes long"
            raise StoreError(
                f"{store.uri_of(join(prefix, name))}: {found}, not {entry.size_bytes} bytes; upload it again"
            )


def stored_sizes(store: Store, prefix: str) -> Mapping[str, int]:
    """{name: bytes} of every object below `prefix`."""
    below = f"{prefix}/" if prefix else ""
    return {info.key.removeprefix(below): info.size_bytes for info in store.list(below)}


def _refuse_damaged(where: str, found: list[str | None], remedy: str) -> None:
    damaged = sorted(name for name in found if name is not None)
    if damaged:
        raise StoreError(
            f"{where}: damaged: {', '.join(damaged)} (sha256 differs from the manifest's){remedy}"
        )

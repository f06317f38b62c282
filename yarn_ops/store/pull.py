"""A stored directory to a local one: in parallel, resumed, verified, all or nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from yarn_ops.atomic import atomic_write, disk_errors, is_still, sync_directory, write_durably
from yarn_ops.digests import tree_files
from yarn_ops.errors import Damaged, StoreError, YarnOpsError
from yarn_ops.progress import OnProgress
from yarn_ops.store import Store
from yarn_ops.store.damage import by_size, faults_here, refusal, stored_sizes
from yarn_ops.store.files import FileCache
from yarn_ops.store.keys import join
from yarn_ops.store.manifest import MANIFEST, FileEntry, Manifest, parse_manifest, read_manifest
from yarn_ops.store.transfer import Transfer

PARTS_AT_ONCE = 8

log = logging.getLogger(__name__)


def pull_tree(
    store: Store,
    uri: str,
    to: Path,
    *,
    cache: Path | None = None,
    report: OnProgress | None = None,
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
    report: OnProgress | None = None,
    check: Callable[[Path, Manifest], None] | None = None,
    mend: bool = False,
) -> None:
    """`pull_tree` for a manifest that was read already. `mend`: `to` is ours, and what is damaged there is
    fetched again."""
    transfer = Transfer(manifest.size_bytes, report)
    arrivals = to.parent / f".{to.name}.files" if cache is None else cache / "files"
    with arriving(to) as partial:
        if partial is None and not mend:
            _check_same(to, manifest)
            if faults := faults_here(to, manifest, transfer, alone=False):
                raise refusal(to, faults, "remove it and run again")
            if check is not None:
                check(to, manifest)
            return
        files = FileCache(arrivals, shared=cache is not None)
        if partial is None:
            _mend(store, prefix, manifest, to, files, transfer)
            return
        check_sizes(store, prefix, manifest)
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
    """Call `check` on the pulled directory; where it raises, the files are removed."""
    try:
        check(partial, manifest)
    except YarnOpsError:
        for path in tree_files(partial).values():
            path.unlink()
        raise


def _mend(
    store: Store, prefix: str, manifest: Manifest, to: Path, files: FileCache, transfer: Transfer
) -> None:
    faults = faults_here(to, manifest, transfer)
    damaged = {name: entry for name, entry in manifest.files.items() if name in {one.name for one in faults}}
    for fault in faults:
        log.warning("%s: damaged: %s; fetched again", to, fault)
        if fault.name not in damaged:
            (to / fault.name).unlink(missing_ok=True)
    if damaged:
        part = Manifest(files=damaged)
        check_sizes(store, prefix, part)
        _bring(store, prefix, part, files, transfer)
    for name, entry in damaged.items():
        files.place(entry, to / name)
    if not (to / MANIFEST).is_file() or (to / MANIFEST).read_bytes() != manifest.to_bytes():
        with atomic_write(to / MANIFEST, durable=True) as draft:
            draft.write_bytes(manifest.to_bytes())


def _bring(store: Store, prefix: str, manifest: Manifest, files: FileCache, transfer: Transfer) -> None:
    """Have every file of the manifest in `files`; Damaged, naming those that are not what it says."""

    def bring(item: tuple[str, FileEntry]) -> str | None:
        name, entry = item
        return None if files.bring(store, join(prefix, name), entry, transfer, pool) else name

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        damaged = sorted(name for name in transfer.run(bring, by_size(manifest)) if name is not None)
    if damaged:
        where = store.uri_of(prefix) if prefix else store.url
        told = f"{', '.join(damaged)} (sha256 differs from the manifest's)"
        raise Damaged(f"{where}: damaged: {told}; upload it again")


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


def _check_same(to: Path, manifest: Manifest) -> None:
    listed = to / MANIFEST
    if not listed.is_file() or parse_manifest(listed.read_bytes(), str(listed)) != manifest:
        raise StoreError(f"{to}: exists and is something else; remove it or choose another directory")


def check_sizes(store: Store, prefix: str, manifest: Manifest) -> None:
    """Damaged where a stored file is missing or has another size: checked before anything is fetched."""
    sizes = stored_sizes(store, prefix)
    for name, entry in manifest.files.items():
        if sizes.get(name) != entry.size_bytes:
            found = "missing" if name not in sizes else f"{sizes[name]} bytes long"
            raise Damaged(
                f"{store.uri_of(join(prefix, name))}: {found}, not {entry.size_bytes} bytes; upload it again"
            )

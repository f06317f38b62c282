"""Token shards on disk: written once, front to back; read memory-mapped.

    shards.json         dtype, tokens of each token file, documents and tokens of each split; written last
    tokens-00000.bin    token ids, little-endian, no header: one stream of tokens, cut into files anywhere
    train.index         a row a document (`INDEX`): where its tokens lie, where its id ends
    train.ids           the ids' UTF-8 bytes, joined
    held_out.index, held_out.ids

Both splits index the same token files. So a document's side, and whether it is kept at all, is decided by
its index row alone, and can wait until the whole corpus has been seen. A document without a row is no
document, though its tokens are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from yarn_ops.digests import canonical_json
from yarn_ops.errors import DataError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Tokens = NDArray[np.unsignedinteger[Any]]

FORMAT = 2
MAPPED_FILES = 256
"""at once: the kernel allows a process 65,530 mappings"""
MANIFEST = "shards.json"
INDEX = np.dtype([("start", "<u8"), ("tokens", "<u8"), ("id_end", "<u8")])
"""first token, counted over all token files; number of tokens; end of its id in the .ids file"""


@dataclass(frozen=True)
class Extent:
    """Where a document's tokens lie, counted over all token files."""

    start: int
    tokens: int


def token_file_name(number: int) -> str:
    """The name of token file `number` ≥ 0."""
    return f"tokens-{number:05}.bin"


class TokenWriter:
    """Writes token ids to a file, one document after the other."""

    def __init__(self, path: Path, dtype: np.dtype[np.unsignedinteger[Any]]) -> None:
        self._file = path.open("wb")
        self._dtype = dtype
        self.tokens = 0
        """written so far"""

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, tokens: Tokens) -> Extent:
        """Write the tokens of a document, or of a part of one; where they lie in this file."""
        self._file.write(tokens.astype(self._dtype, copy=False).tobytes())
        self.tokens += tokens.size
        return Extent(self.tokens - tokens.size, tokens.size)


class ShardWriter:
    """Writes the index rows of documents whose token files are there; `finish` makes the shards readable."""

    def __init__(self, path: Path, dtype: np.dtype[np.unsignedinteger[Any]]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._dtype = dtype
        self._indexes = {split: _IndexWriter(path, split) for split in SPLITS}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for index in self._indexes.values():
            index.close()

    def index(self, split: Split, document_id: str, extent: Extent) -> None:
        """Put a document into a split."""
        self._indexes[split].append(document_id, extent)

    def finish(self, file_tokens: Sequence[int], facts: dict[str, Any]) -> dict[Split, tuple[int, int]]:
        """Write the manifest, with the tokens of each token file (none is empty) and `facts` in it.

        (documents, tokens) of each split.
        """
        self.__exit__()
        sizes = {split: (index.documents, index.tokens) for split, index in self._indexes.items()}
        manifest = {
            **facts,
            "format": FORMAT,
            "dtype": self._dtype.str,
            "file_tokens": list(file_tokens),
            "splits": {split: {"documents": size[0], "tokens": size[1]} for split, size in sizes.items()},
        }
        (self._path / MANIFEST).write_text(canonical_json(manifest) + "\n", "utf-8")
        return sizes


class _IndexWriter:
    def __init__(self, path: Path, split: Split) -> None:
        self._rows = (path / f"{split}.index").open("wb")
        self._ids = (path / f"{split}.ids").open("wb")
        self.documents = self.tokens = 0

    def append(self, document_id: str, extent: Extent) -> None:
        self._ids.write(document_id.encode())
        self._rows.write(np.array((extent.start, extent.tokens, self._ids.tell()), INDEX).tobytes())
        self.documents += 1
        self.tokens += extent.tokens

    def close(self) -> None:
        self._rows.close()
        self._ids.close()


class ShardReader:
    """The documents of one split, memory-mapped. DataError when the shards are missing or damaged.

    documents: their number.  tokens: of all of them.  lengths: int64 array, tokens of each.
    prefix: token ids that every document begins with, int64 array, often one BOS or none.
    """

    def __init__(self, path: Path, split: Split) -> None:
        manifest = _read_manifest(path)
        dtype = np.dtype(manifest["dtype"])
        sizes = manifest["splits"][split]
        self.split = split
        self.prefix = np.array(manifest.get("prefix", ()), dtype=np.int64)
        self.documents: int = sizes["documents"]
        self.tokens: int = sizes["tokens"]
        self._index = _map(path / f"{split}.index", INDEX, self.documents)
        self._ids = _map(path / f"{split}.ids", np.dtype("u1"), int(self._index["id_end"][-1]))
        counts: list[int] = manifest["file_tokens"]
        for file, count in enumerate(counts):
            _check_size(path / token_file_name(file), dtype, count)
        self._token_file = lru_cache(MAPPED_FILES)(
            lambda file: _map(path / token_file_name(file), dtype, counts[file])
        )
        self._file_ends = np.cumsum(counts)
        self.lengths: NDArray[np.int64] = self._index["tokens"].astype(np.int64)

    def document(self, number: int, start: int = 0, stop: int | None = None) -> Tokens:
        """Token ids of a document, 0 ≤ number < documents, or of a part of it, as a slice cuts it.

        Read-only: a view of the mapped file, or a copy where files meet in it.
        """
        first, tokens = int(self._index["start"][number]), int(self._index["tokens"][number])
        start, stop, _ = slice(start, stop).indices(tokens)
        at, end = first + start, first + max(start, stop)
        runs: list[Tokens] = []
        while at < end:
            file = int(np.searchsorted(self._file_ends, at, "right"))
            file_end = int(self._file_ends[file])
            mapped = self._token_file(file)
            offset = at - (file_end - mapped.size)
            runs.append(mapped[offset : offset + min(end, file_end) - at])
            at = min(end, file_end)
        if not runs:
            return self._token_file(0)[:0]
        if len(runs) == 1:
            return runs[0]
        joined = np.concatenate(runs)
        joined.flags.writeable = False
        return joined

    def document_id(self, number: int) -> str:
        """Where a document is from (see `compose.Documents.name`)."""
        start = int(self._index["id_end"][number - 1]) if number else 0
        return bytes(self._ids[start : int(self._index["id_end"][number])]).decode()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path / MANIFEST}: no readable shards here ({error}); prepare the documents again"
        ) from None
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path / MANIFEST}: format {manifest.get('format')}, expected {FORMAT}; prepare again"
        )
    return manifest


def _check_size(file: Path, dtype: np.dtype[Any], items: int) -> None:
    found = file.stat().st_size if file.is_file() else 0
    if not items or found != items * dtype.itemsize:
        raise DataError(
            f"{file}: expected {items * dtype.itemsize} bytes, found {found}; prepare the documents again"
        )


def _map(file: Path, dtype: np.dtype[Any], items: int) -> NDArray[Any]:
    _check_size(file, dtype, items)
    return np.memmap(file, dtype, mode="r", shape=(items,))

"""Token shards on disk: written once, front to back; read memory-mapped.

    shards.json         dtype, tokens of each token file, documents and tokens of each split; written last
    tokens-00000.bin    token ids, little-endian, no header; a document lies in one file
    train.index         a row a document (`INDEX`): where its tokens lie, where its id ends
    train.ids           the ids' UTF-8 bytes, joined
    held_out.index, held_out.ids

Both splits index the same token files. So a document's side is decided by its index row alone, and can
wait until the whole corpus has been seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from yarn_ops.digests import canonical_json
from yarn_ops.errors import DataError

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Tokens = NDArray[np.unsignedinteger[Any]]

FORMAT = 1
SHARD_BYTES = 256 << 20
MANIFEST = "shards.json"
INDEX = np.dtype([("start", "<u8"), ("tokens", "<u8"), ("id_end", "<u8")])
"""first token, counted over all token files; number of tokens; end of its id in the .ids file"""


@dataclass(frozen=True)
class Extent:
    """Where a document's tokens lie, counted over all token files."""

    start: int
    tokens: int


def _token_file(path: Path, number: int) -> Path:
    return path / f"tokens-{number:05}.bin"


class ShardWriter:
    """Writes documents in order, then their index rows in any order; `finish` makes the shards readable."""

    def __init__(self, path: Path, dtype: np.dtype[np.unsignedinteger[Any]]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._dtype = dtype
        self._file: BinaryIO | None = None
        self._file_tokens: list[int] = []
        self._start = self._end = 0
        self._indexes = {split: _IndexWriter(path, split) for split in SPLITS}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        for index in self._indexes.values():
            index.close()

    def append(self, tokens: Tokens) -> None:
        """Tokens of the current document."""
        if self._file is None:
            self._file = _token_file(self._path, len(self._file_tokens)).open("wb")
            self._file_tokens.append(0)
        self._file.write(tokens.astype(self._dtype, copy=False).tobytes())
        self._file_tokens[-1] += tokens.size
        self._end += tokens.size

    def end_document(self) -> Extent:
        """The current document is complete; a full token file is closed behind it."""
        extent = Extent(self._start, self._end - self._start)
        self._start = self._end
        if self._file is not None and self._file_tokens[-1] * self._dtype.itemsize >= SHARD_BYTES:
            self._file.close()
            self._file = None
        return extent

    def index(self, split: Split, document_id: str, extent: Extent) -> None:
        """Put a document into a split."""
        self._indexes[split].append(document_id, extent)

    def finish(self, facts: dict[str, Any]) -> dict[Split, tuple[int, int]]:
        """Write the manifest, with `facts` in it; (documents, tokens) of each split."""
        self._close()
        sizes = {split: (index.documents, index.tokens) for split, index in self._indexes.items()}
        manifest = {
            **facts,
            "format": FORMAT,
            "dtype": self._dtype.str,
            "file_tokens": self._file_tokens,
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
    """

    def __init__(self, path: Path, split: Split) -> None:
        manifest = _read_manifest(path)
        dtype = np.dtype(manifest["dtype"])
        sizes = manifest["splits"][split]
        self.split = split
        self.documents: int = sizes["documents"]
        self.tokens: int = sizes["tokens"]
        self._index = _map(path / f"{split}.index", INDEX, self.documents)
        self._ids = _map(path / f"{split}.ids", np.dtype("u1"), int(self._index["id_end"][-1]))
        counts: list[int] = manifest["file_tokens"]
        self._files = [_map(_token_file(path, number), dtype, count) for number, count in enumerate(counts)]
        self._file_starts = np.cumsum([0, *counts[:-1]])
        self.lengths: NDArray[np.int64] = self._index["tokens"].astype(np.int64)

    def document(self, number: int) -> Tokens:
        """Token ids of a document: a read-only view of the mapped file, 0 ≤ number < documents."""
        start, tokens = int(self._index["start"][number]), int(self._index["tokens"][number])
        file = int(np.searchsorted(self._file_starts, start, "right")) - 1
        offset = start - int(self._file_starts[file])
        return self._files[file][offset : offset + tokens]

    def document_id(self, number: int) -> str:
        """Where a document is from (see `documents.Document`)."""
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


def _map(file: Path, dtype: np.dtype[Any], items: int) -> NDArray[Any]:
    found = file.stat().st_size if file.is_file() else 0
    if not items or found != items * dtype.itemsize:
        raise DataError(
            f"{file}: expected {items * dtype.itemsize} bytes, found {found}; prepare the documents again"
        )
    return np.memmap(file, dtype, mode="r", shape=(items,))

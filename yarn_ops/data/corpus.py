"""From patterns to a corpus: the list of source files, each with its size and fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from yarn_ops.data.files import Files, SourceFile
from yarn_ops.digests import canonical_json
from yarn_ops.errors import DataError
from yarn_ops.recipe import Data
from yarn_ops.records import Corpus

SOURCES = "sources.jsonl"


def survey(data: Data, files: Files, out: Path) -> Corpus:
    """Expand `data.sources` and write the files found to `out/sources.jsonl`, once each, sorted by URI.

    Empty files are left out. DataError when a pattern matches nothing, or nothing but empty files.
    """
    found: dict[str, SourceFile] = {}
    for pattern in data.sources:
        matched = list(files.expand(pattern))
        if not matched:
            raise DataError(f"data.sources: {pattern} matches no file; check the path, quote no globs")
        filled = [source for source in matched if source.size_bytes]
        if not filled:
            raise DataError(f"data.sources: {pattern} matches only empty files; give files with text")
        found.update((source.uri, source) for source in filled)
    sources = sorted(found.values())
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(canonical_json(asdict(source)) + "\n" for source in sources)
    (out / SOURCES).write_text(lines, "utf-8")
    return Corpus(files=len(sources), size_bytes=sum(source.size_bytes for source in sources))


def read_sources(path: Path) -> list[SourceFile]:
    """The files of the corpus in directory `path`, in the order that fixes the order of all documents."""
    try:
        with (path / SOURCES).open(encoding="utf-8") as lines:
            return [SourceFile(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path / SOURCES}: not a list of sources ({error}); survey the sources again"
        ) from None

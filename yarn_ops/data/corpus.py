"""The survey of a corpus: patterns to a list of source files with sizes and fingerprints."""

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
EVALUATION = "evaluation.jsonl"
"""of `data.evaluation_sources`; only where there are any"""


def survey(data: Data, files: Files, out: Path) -> Corpus:
    """Expand `data.sources` and write the files found to `out/sources.jsonl`, once each, sorted by URI.

    Likewise `data.evaluation_sources`. Empty files are counted where the others are read. DataError when a
    pattern matches nothing, or nothing but empty files.
    """
    sources = _expand("sources", data.sources, files, data.follow_links)
    measured = _expand("evaluation_sources", data.evaluation_sources, files, data.follow_links)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / SOURCES, sources)
    if measured:
        _write(out / EVALUATION, measured)
    return Corpus(files=len(sources), size_bytes=sum(source.size_bytes for source in sources))


def _expand(name: str, patterns: tuple[str, ...], files: Files, follow_links: bool) -> list[SourceFile]:
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        matched = list(files.expand(pattern, follow_links=follow_links))
        if not matched:
            raise DataError(f"data.{name}: {pattern} matches no file; check the path, quote no globs")
        if not any(source.size_bytes for source in matched):
            raise DataError(f"data.{name}: {pattern} matches only empty files; give files with text")
        found.update((source.uri, source) for source in matched)
    return sorted(found.values())


def _write(path: Path, sources: list[SourceFile]) -> None:
    path.write_text("".join(canonical_json(asdict(source)) + "\n" for source in sources), "utf-8")


def read_sources(path: Path, name: str = SOURCES) -> list[SourceFile]:
    """The files of the corpus in directory `path`, in the order that fixes the order of all documents.

    EVALUATION: those of other evaluations, none where none were asked for.
    """
    if name == EVALUATION and not (path / name).exists():
        return []
    try:
        with (path / name).open(encoding="utf-8") as lines:
            return [SourceFile(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path / name}: not a list of sources ({error}); survey the sources again") from None

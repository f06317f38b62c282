"""Texts to plant questions in: equal runs of the user's own documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from yarn_ops.data.documents import NotText, read_documents
from yarn_ops.data.files import Files, SourceFile
from yarn_ops.data.tokenizer import Tokenizer
from yarn_ops.errors import DataError
from yarn_ops.evals.forward import Ids

BETWEEN = "\n\n"
TEXT_FIELD = "text"


def read_texts(
    patterns: Sequence[str], files: Files, tokenizer: Tokenizer, *, count: int, tokens: int, seed: int
) -> Ids:
    """int64 [count, tokens]: what the tokenizer puts before a text, then a run of the documents.

    Files come in an order by seed, until there is enough; runs overlap only where there is not.
    DataError when a pattern matches nothing, or all of it is too short.
    """
    sources: dict[str, SourceFile] = {}
    for pattern in patterns:
        found = {source.uri: source for source in files.expand(pattern) if source.size_bytes}
        if not found:
            raise DataError(f"documents: {pattern} matches no file with text; check the path, quote no globs")
        sources |= found
    order = sorted(sources.values(), key=lambda source: _shuffled(f"{seed}:{source.fingerprint}"))
    prefix = np.asarray(tokenizer.prefix, dtype=np.int64)
    wanted = tokens - len(prefix)
    documents: list[Ids] = []
    held = 0
    for source in order:
        if held >= count * wanted:
            break
        try:
            texts = [document.text + BETWEEN for document in read_documents(source, files.open, TEXT_FIELD)]
        except NotText:
            continue
        encoded = [np.asarray(ids, dtype=np.int64) for ids in tokenizer.encode(texts)]
        documents += encoded
        held += sum(map(len, encoded))
    if held < wanted:
        raise DataError(f"documents: {held} tokens cannot fill a text of {tokens}; give more documents")
    run = np.concatenate(documents)
    starts = np.linspace(0, len(run) - wanted, count).astype(int)
    return np.stack([np.concatenate([prefix, run[start : start + wanted]]) for start in starts])


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()

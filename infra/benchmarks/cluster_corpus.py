"""A corpus of random words, written into the store in one file or in many, for cluster.py."""

from __future__ import annotations

import io
import json
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from yarn_ops.settings import Settings
from yarn_ops.store import Store, open_store, store_options

LINE_WORDS = 12
DOCUMENT_BYTES = 16 << 10


def vocabulary() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    found = {
        word
        for path in sorted(root.glob("*.py"))
        for word in re.findall("[a-z]{2,}", path.read_text("utf-8"))
    }
    return sorted(found)


WORDS = np.array(vocabulary())
COMMON = 1 / np.arange(10, len(WORDS) + 10)  # Zipf's law
COMMON /= COMMON.sum()


def document(chance: np.random.Generator, count: int) -> str:
    """Lines of words."""
    drawn = chance.choice(WORDS, count, p=COMMON).tolist()
    return "\n".join(" ".join(drawn[at : at + LINE_WORDS]) for at in range(0, count, LINE_WORDS))


def edited(text: str, chance: np.random.Generator, share: float) -> str:
    drawn = np.array(text.split())
    places = chance.random(len(drawn)) < share
    drawn[places] = chance.choice(WORDS, int(places.sum()))
    return " ".join(drawn.tolist())


def documents(mib: int, size_bytes: int) -> Iterator[str]:
    """Different ones of about that size, `mib` in all."""
    chance = np.random.default_rng(mib)
    left = mib << 20
    while left > 0:
        text = document(chance, max(20, min(size_bytes, left) // 7))
        left -= len(text) + 1
        yield text


def store_of(settings: Settings) -> Store:
    return open_store(settings.store_url or "", store_options(settings))


def put_lines(settings: Settings, mib: int, name: str = "lines") -> str:
    """JSON lines, four files."""
    store, rows = store_of(settings), list(documents(mib, DOCUMENT_BYTES))
    for part in range(4):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows[part::4])
        store.write(f"{name}/{part}.jsonl", lines.encode())
    return f"{store.url}/{name}/*.jsonl"


def put_layouts(settings: Settings, mib: int, files: int) -> dict[str, str]:
    import pyarrow
    from pyarrow import parquet

    store = store_of(settings)
    texts = list(documents(mib, (mib << 20) // files))
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder, "all.txt")
        one.write_text("\n".join(texts))
        store.put_file(one, "one/all.txt")
        store.write("one/more.txt", b"A second document, to hold out or to train on.")
        rows = io.BytesIO()
        table = pyarrow.table({"text": texts})
        parquet.write_table(table, rows, row_group_size=max(1, len(texts) // (4 * mib // 8 or 1)))
        store.write("parquet/all.parquet", rows.getvalue())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.write(f"many/{n:06}.txt", texts[n].encode()), range(len(texts))))
    return {
        "one file": f"{store.url}/one/*.txt",
        "parquet": f"{store.url}/parquet/*.parquet",
        f"{len(texts):,}": f"{store.url}/many/*.txt",
    }

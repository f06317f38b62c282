"""Parquet files, opened in one way by whoever counts their row groups or reads their rows."""

from __future__ import annotations

from typing import Any, BinaryIO

from yarn_ops.errors import DataError

BUFFER_BYTES = 1 << 20


def open_parquet(file: BinaryIO, uri: str) -> Any:
    """pyarrow's ParquetFile; DataError when it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer, a column is read page by page: a row group may be of any size.
        return parquet.ParquetFile(file, buffer_size=BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise DataError(f"{uri}: damaged .parquet file ({error}); replace it") from None

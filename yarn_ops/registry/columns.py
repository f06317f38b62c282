"""Column types and the database's clock, with one meaning on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import literal
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, DateTime, Float, LargeBinary, Text, TypeDecorator

from yarn_ops.digests import digest_of

REPLACEMENT = "\ufffd"
SEAL = "sha256 of the rest"
BROKEN = {"damaged": "in the database"}
"""stands for an object that is not what was written; no record looks like it"""
DOUBLES = 8


class UtcTime(TypeDecorator[datetime]):
    """A moment: timezone-aware in Python, UTC in the database (SQLite keeps it as naive text)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Items(TypeDecorator[tuple[float, ...]]):
    """Outcomes item by item, in few bytes: a bit each where all are 0 or 1, else eight bytes each.

    The first byte says which: 0 to 7 are the bits left over in the last one, 8 are doubles.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[float] | None, dialect: Dialect) -> bytes | None:
        if not value:
            return None
        if all(item in (0.0, 1.0) for item in value):
            spare = -len(value) % 8
            bits = int("".join("1" if item else "0" for item in value), 2) << spare
            return bytes([spare]) + bits.to_bytes((len(value) + spare) // 8, "big")
        return bytes([DOUBLES]) + struct.pack(f"<{len(value)}d", *value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[float, ...]:
        if value is None:
            return ()
        kind, packed = value[0], value[1:]
        if kind == DOUBLES:
            return struct.unpack(f"<{len(packed) // 8}d", packed)
        bits = f"{int.from_bytes(packed, 'big'):0{8 * len(packed)}b}"
        return tuple(map(float, bits[: len(bits) - kind]))


class Sealed(TypeDecorator[dict[str, Any]]):
    """A JSON object stored with its digest; read as `BROKEN` where the digest does not fit."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> dict[str, Any] | None:
        return None if value is None else {**value, SEAL: digest_of(value)}

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return None if value is None else BROKEN
        plain = {name: part for name, part in value.items() if name != SEAL}
        sealed = value.get(SEAL, "")  # none: written by an earlier version
        return plain if sealed == "" or sealed == digest_of(plain) else BROKEN


def read_json(text: str) -> Any:
    """Parse JSON as the database returned it; `BROKEN` where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return BROKEN


class AnyText(TypeDecorator[str]):
    """Text from anywhere (a child's last words, a user's file name).

    What no database can hold, NUL (PostgreSQL) and lone surrogates (UTF-8), becomes U+FFFD.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", REPLACEMENT).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class database_now(FunctionElement[datetime]):
    """The database's own clock, `offset_s` from now: machines whose clocks disagree still agree on leases."""

    type = UtcTime()
    inherit_cache = True

    def __init__(self, offset_s: float = 0.0) -> None:
        super().__init__(literal(float(offset_s), Float()))


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    # The format in which SQLAlchemy keeps times; %f ends in milliseconds, hence the zeros.
    offset = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {offset} || ' seconds')"


@compiles(database_now, "postgresql")
def _postgresql_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    # Not now(): that is the transaction's beginning, which may lie before a wait for a lock.
    offset = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {offset}))"

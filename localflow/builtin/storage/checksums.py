"""Checksums of the rows of the SQLite store: SQLite itself has none, and would give back a damaged text as it is.

A checksum is made of the values as SQLite gives them back, so that a reader can make it again: an instant is a float
whatever it was, and minus zero is zero. Rows with a boxed value, which hardly any have, take the long way.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable

Row: TypeAlias = "tuple[Any, ...]"


class DamagedRowError(Exception):
    """A row is not as it was written."""


_NOTHING_MORE = (None,) * 8  # worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, result_format

_pack_plain = struct.Struct("<qqqdq").pack
_pack_full = struct.Struct("<qqqdqddddd").pack
_pack_task = struct.Struct("<qqqdqq").pack
_pack_log = struct.Struct("<qqqqdq").pack
_pack_block = struct.Struct("<qqqqq").pack


def plain_change_checksum(row: Row) -> int:
    """Return the checksum of a state change that has neither execution, cause nor result, of its nine columns."""
    key, number, sequence, type, name, message, timestamp, previous, attempt = row
    try:
        packed = _pack_plain(key, number, sequence, timestamp + 0.0, attempt)
    except (TypeError, struct.error):
        return odd_checksum(row)
    return crc32(packed + f"{type}\0{name}\0{message}\0{previous}".encode())


def change_checksum(row: Row) -> int:
    """Return the checksum of a state change, of its columns up to the format of its result, which has its own."""
    (
        key, number, sequence, type, name, message, timestamp, previous, attempt,
        worker, pid, started_at, ended_at, cpu_seconds, peak_rss_bytes, cause, format,
    ) = row  # fmt: skip
    try:
        packed = _pack_full(
            key, number, sequence, timestamp + 0.0, attempt, pid, started_at + 0.0, ended_at + 0.0, cpu_seconds + 0.0,
            peak_rss_bytes,
        )  # fmt: skip
    except (TypeError, struct.error):
        return plain_change_checksum(row[:9]) if row[9:] == _NOTHING_MORE else odd_checksum(row)
    return crc32(packed + f"{type}\0{name}\0{message}\0{previous}\0{worker}\0{cause}\0{format}".encode())


def task_run_checksum(row: Row) -> int:
    """Return the checksum of a task run, of all its other columns."""
    key, number, name, task, ordinal, created_at, upstreams, tags, version, map_number, map_index, code, inputs = row
    try:
        packed = _pack_task(key, number, ordinal, created_at + 0.0, map_number, map_index)
    except (TypeError, struct.error):
        return odd_checksum(row)
    return crc32(packed + f"{name}\0{task}\0{upstreams}\0{tags}\0{version}\0{code}\0{inputs}".encode())


def log_checksum(row: Row) -> int:
    """Return the checksum of a log entry, of all its other columns."""
    key, position, number, attempt, timestamp, level, source, message = row
    try:
        packed = _pack_log(key, position, number, attempt, timestamp + 0.0, level)
    except (TypeError, struct.error):
        return odd_checksum(row)
    return crc32(packed + f"{source}\0{message}".encode())


def block_checksum(row: Row) -> int:
    """Return the checksum of a block, of its other columns but its own number."""
    *numbers, content = row
    return crc32(content, crc32(_pack_block(*numbers)))


def odd_checksum(row: Iterable[Any]) -> int:
    """Return the checksum of columns of any kind."""
    return crc32(repr([_plain(value) for value in row]).encode("ascii", "backslashreplace"))


def _plain(value: Any) -> Any:
    return float(value) + 0.0 if isinstance(value, (int, float)) else value

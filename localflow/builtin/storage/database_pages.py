"""The rows in the pages of an SQLite file, read without SQLite: also where it can make no sense of the file any more.

Rows stand in the leaves of tables, and in all pages of those WITHOUT ROWID. Which table a row is of shows in its
values; how pages hang together is not asked for, as that is what damage destroys. What is said here of SQLite's format
is in https://www.sqlite.org/fileformat2.html; our files have pages of 2048 bytes and, for `auto_vacuum`, pages that say
which pages are free or go on with a long row.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PAGE = 2048
_TABLE_LEAF, _KEYED_LEAF, _KEYED_INTERIOR = 0x0D, 0x0A, 0x02
_MAPPED = _PAGE // 5  # pages that a map tells of, which stands before them
_NO_ROWS = frozenset({2, 3, 4})  # by the map: a free page, the rest of a long row
_WAL_HEADER, _FRAME_HEADER = 32, 24
_FIRST_HEADER = 100  # bytes before what the first page holds
_LONGEST = 1 << 30


class Cell(NamedTuple):
    """Where a row stands."""

    page: int
    place: int
    kind: int

    @property
    def has_rowid(self) -> bool:
        """Whether it is in a table with a rowid, which comes before the values."""
        return self.kind == _TABLE_LEAF


class Pages:
    """The pages of a database, those in its write-ahead log before those in the file itself."""

    def __init__(self, file: BinaryIO, log: BinaryIO | None) -> None:
        self._file = file
        self._log = log
        self._logged = _committed(log) if log is not None else {}
        self._count = max([file.seek(0, 2) // _PAGE, *self._logged])

    @property
    def version(self) -> int:
        """The version of the format, as the first page has it: 0 if there is no first page."""
        return int.from_bytes(self._page(1)[60:64])

    def cells(self) -> Iterator[Cell]:
        """Yield where rows stand, in any order."""
        states = b""
        for number in range(1, self._count + 1):
            if number > 1 and (number - 2) % (_MAPPED + 1) == 0:
                states = self._page(number)[::5]
                continue
            if number > 1 and states and states[(number - 2) % (_MAPPED + 1) - 1] in _NO_ROWS:
                continue
            page = self._page(number)
            start = _FIRST_HEADER if number == 1 else 0
            kind = page[start] if len(page) == _PAGE else 0
            if kind in (_TABLE_LEAF, _KEYED_LEAF, _KEYED_INTERIOR):
                pointers = start + (12 if kind == _KEYED_INTERIOR else 8)
                count = min(int.from_bytes(page[start + 3 : start + 5]), (_PAGE - pointers) // 2)
                for place in struct.unpack_from(f">{count}H", page, pointers):
                    yield Cell(number, place, kind)

    def row(self, cell: Cell) -> tuple[Any, ...]:
        """Return the values of a row, after the rowid if its table has one.

        Raises:
            ValueError, IndexError, struct.error: it makes no sense.
        """
        page, place, size, rowid = self._begin(cell)
        most = _PAGE - 35 if cell.has_rowid else (_PAGE - 12) * 64 // 255 - 23
        return (*rowid, *_values(self._payload(page, place, size, most)))

    def glance(self, cell: Cell) -> tuple[int, Any, bool]:
        """Return how many values a row without rowid has, the first of them, and whether the last is a BLOB.

        Raises:
            ValueError, IndexError, struct.error: it makes no sense.
        """
        page, place, _, _ = self._begin(cell)
        kinds, start = _kinds(page, place)
        return len(kinds), _value(page, start, kinds[0]), kinds[-1] >= 12 and kinds[-1] % 2 == 0

    def _begin(self, cell: Cell) -> tuple[bytes, int, int, tuple[int, ...]]:
        """Return the page of a row, where its values begin, how long they are, and its rowid if it has one."""
        page = self._page(cell.page)
        size, place = _varint(page, cell.place + (4 if cell.kind == _KEYED_INTERIOR else 0))
        if not cell.has_rowid:
            return page, place, size, ()
        rowid, place = _varint(page, place)
        return page, place, size, (rowid,)

    def _payload(self, page: bytes, place: int, size: int, most: int) -> bytes:
        """Return what a row consists of, its rest from other pages; `most` may stand in its own page."""
        if size <= most:
            payload = page[place : place + size]
        else:
            least = (_PAGE - 12) * 32 // 255 - 23
            local = least + (size - least) % (_PAGE - 4)
            local = local if local <= most else least
            pieces = [page[place : place + local]]
            following, missing = int.from_bytes(page[place + local : place + local + 4]), size - local
            if size > _LONGEST:
                raise ValueError("no row is so long")
            while missing > 0 and following:
                rest = self._page(following)
                if len(rest) < _PAGE:
                    raise ValueError("a page is missing")
                pieces.append(rest[4 : 4 + missing])
                following, missing = int.from_bytes(rest[:4]), missing - (_PAGE - 4)
            payload = b"".join(pieces)
        if len(payload) != size:
            raise ValueError("the row is not all there")
        return payload

    def _page(self, number: int) -> bytes:
        place = self._logged.get(number)
        file = self._file if place is None or self._log is None else self._log
        file.seek((number - 1) * _PAGE if place is None else place)
        return file.read(_PAGE)


@contextmanager
def open_pages(path: Path) -> Iterator[Pages]:
    """Open a database, and its write-ahead log if there is one, for nothing but reading."""
    with ExitStack() as files:
        log = path.with_name(f"{path.name}-wal")
        yield Pages(files.enter_context(path.open("rb")), files.enter_context(log.open("rb")) if log.exists() else None)


def _committed(log: BinaryIO) -> dict[int, int]:
    """Return where in a write-ahead log the newest version of each page stands that belongs to a whole transaction."""
    found: dict[int, int] = {}
    pending: dict[int, int] = {}
    salts = log.read(_WAL_HEADER)[16:24]
    place = _WAL_HEADER
    while len(header := log.read(_FRAME_HEADER)) == _FRAME_HEADER and header[8:16] == salts:
        if len(log.read(_PAGE)) < _PAGE:
            break
        number, pages_after_commit = struct.unpack_from(">II", header)
        pending[number] = place + _FRAME_HEADER
        if pages_after_commit:
            found.update(pending)
            pending.clear()
        place += _FRAME_HEADER + _PAGE
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return an integer of SQLite's variable length, and where the next thing stands."""
    value = 0
    for _ in range(8):
        byte = data[place]
        value, place = value << 7 | byte & 0x7F, place + 1
        if byte < 0x80:
            return value, place
    value = value << 8 | data[place]
    return value - (1 << 64) if value >= 1 << 63 else value, place + 1


_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # of values by their kinds: NULL, integers, a float, zero and one


def _values(payload: bytes) -> Iterator[Any]:
    """Yield the values of a row; texts that are not UTF-8 come back as what no checksum fits."""
    kinds, start = _kinds(payload, 0)
    for kind in kinds:
        yield _value(payload, start, kind)
        start += (kind - 12) // 2 if kind >= 12 else _SIZES[kind]


def _kinds(data: bytes, place: int) -> tuple[list[int], int]:
    """Return the kinds of the values of a row, and where the first value stands."""
    length, following = _varint(data, place)
    end = place + length
    kinds = []
    while following < end:
        kind = data[following]
        if kind < 0x80:
            following += 1
        else:
            kind, following = _varint(data, following)
        kinds.append(kind)
    return kinds, end


def _value(data: bytes, start: int, kind: int) -> Any:
    if kind >= 12:
        piece = data[start : start + (kind - 12) // 2]
        return piece.decode(errors="surrogateescape") if kind % 2 else piece
    if kind == 0:
        return None
    if kind >= 8:
        return kind - 8
    piece = data[start : start + _SIZES[kind]]
    return struct.unpack(">d", piece)[0] if kind == 7 else int.from_bytes(piece, signed=True)

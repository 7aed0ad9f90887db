"""Values in forms that PostgreSQL has, and back.

A text column takes neither the character NUL nor half of a surrogate pair, as file names that are no UTF-8 have them.
Such a character becomes `DLE` (U+0010) and its number as four hexadecimal digits, and so does DLE itself. Whatever has
none of them, which is nearly everything, stands in the column as it is and can be searched for.

Structures become JSON, in which NaN and the infinities stand as Python writes them, and an integer with more digits
than Python prints as `{"$int": "0x..."}`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_ODD = re.compile("[\x00\x10\ud800-\udfff]")
_ESCAPED = re.compile("\x10([0-9a-f]{4})")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_text(text: str) -> str:
    """Return a text as a column can hold it; the same for the same text, so that it can be looked for."""
    return _ODD.sub(lambda found: f"\x10{ord(found[0]):04x}", text) if _ODD.search(text) else text


def from_text(text: str) -> str:
    """Return what `to_text` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "\x10" in text else text


def to_json(value: object) -> str:
    """Return a structure of dicts, lists, texts, numbers, booleans and None as a text for a column."""
    try:
        text = _encode(value)
    except ValueError:  # an integer with too many digits
        text = _encode(_tagged(value))
    else:
        if '"$' in text:
            text = _encode(_tagged(value))
    return to_text(text)


def from_json(text: str) -> Any:
    """Return what `to_json` was given, tuples as lists."""
    text = from_text(text)
    return json.loads(text, object_hook=_untagged) if '"$' in text else json.loads(text)


def _tagged(value: object) -> object:
    if isinstance(value, int):
        return value if value.bit_length() < 64 else {"$int": hex(value)}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if isinstance(value, Mapping):
        if any(key.startswith("$") for key in value):
            return {"$dict": [[key, _tagged(item)] for key, item in value.items()]}
        return {key: _tagged(item) for key, item in value.items()}
    return value


def _untagged(entries: dict[str, Any]) -> object:
    if "$int" in entries:
        return int(entries["$int"], 16)
    return dict(entries["$dict"]) if "$dict" in entries else entries


def fits(number: int | None) -> bool:
    """Return whether a column of integers can hold it."""
    return number is None or -(2**63) <= number < 2**63


def digest(text: str) -> int:
    """Return an integer of 64 bits, with its sign, that stands for a text in an index or a lock."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


# Columns of many rows travel as one array each, written as PostgreSQL reads them: a statement then takes any number of
# rows, and stays prepared.


def int_array(numbers: Iterable[int | None]) -> str:
    """Return an array of integers."""
    return "{" + ",".join(["NULL" if number is None else str(number) for number in numbers]) + "}"


def float_array(numbers: Iterable[float | None]) -> str:
    """Return an array of floats, exactly."""
    return "{" + ",".join(["NULL" if number is None else repr(float(number)) for number in numbers]) + "}"


def text_array(texts: Iterable[str | None]) -> str:
    """Return an array of texts that columns can hold."""
    return "{" + ",".join(["NULL" if text is None else _quoted(text) for text in texts]) + "}"


def bytes_array(values: Iterable[bytes | None]) -> str:
    """Return an array of bytes."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'

"""Values as strict JSON that gives back the very same values, also those JSON has no form for.

Those become an object with one tagged entry: `{"$float": "nan"}`, `{"$int": "0x..."}` (of more digits than Python
prints), `{"$text": "caf\\udce9"}` (with lone surrogates) and `{"$dict": [[key, value], ...]}` (with keys that are one
of these or look like a tag).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: object) -> str:
    """Return a structure of dicts, lists, texts, numbers, booleans and None as JSON that UTF-8 can hold."""
    try:
        text = _encode(value)
    except ValueError:  # a number that is not finite, or with too many digits
        return _encode(_tagged(value))
    return _encode(_tagged(value)) if '"$' in text or not is_unicode(text) else text


def from_json(text: str) -> Any:
    """Return the value that `to_json` was given, tuples as lists."""
    return json.loads(text, object_hook=_untagged) if '"$' in text else json.loads(text)


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, as file names that are no UTF-8 have them."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tagged(value: object) -> object:
    if isinstance(value, str):
        return value if is_unicode(value) else {"$text": value.encode("unicode_escape").decode("ascii")}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, int):
        return value if value.bit_length() < 64 else {"$int": hex(value)}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if isinstance(value, Mapping):
        if all(is_unicode(key) and not key.startswith("$") for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        return {"$dict": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return value


def _untagged(entries: dict[str, Any]) -> object:
    if len(entries) == 1:
        ((tag, content),) = entries.items()
        if tag == "$float":
            return float(content)
        if tag == "$int":
            return int(content, 16)
        if tag == "$text":
            return content.encode("ascii").decode("unicode_escape")
        if tag == "$dict":
            return dict(content)
    return entries

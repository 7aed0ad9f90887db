"""How values are shown: as TOML writes them, on one line, with secrets masked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from localflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK = "***"

#: The start of a value that stands for an environment variable, as in `url = "env:OPS_WEBHOOK_URL"`.
ENV_PREFIX = "env:"

# `Authorization` and `Cookie` are headers of the webhook.
_SECRET_ENDINGS = (
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "key",
    "credential",
    "authorization",
    "cookie",
)
# The scheme is of some length at most: else each letter of a long word would have the rest of it read.
_URL = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)(?P<rest>\S+)"
_BARE_KEY = r"[A-Za-z0-9_-]+"
_SHOWN_LENGTH = 80

_TYPE_NAMES = {
    "bool": "boolean",
    "int": "integer",
    "float": "float",
    "str": "string",
    "list": "array",
    "dict": "table",
    "datetime": "date-time",
    "date": "date",
    "time": "time",
    "NoneType": "nothing",
}


def is_secret(key: str) -> bool:
    """Return whether the value of this key is never shown."""
    return key.lower().removesuffix("s").endswith(_SECRET_ENDINGS)


def masked(value: object, key: str = "") -> object:
    """Return `value` as plain JSON-safe data without its secrets; `key` is the name it stands under."""
    if value is not None and is_secret(key):
        return MASK
    if isinstance(value, str):
        return MASK if value.startswith(ENV_PREFIX) else _without_userinfo(value)
    if isinstance(value, dict):
        return {str(inner): masked(item, str(inner)) for inner, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [masked(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    from datetime import date, time  # workers mask arguments, and few have to do with these
    from pathlib import PurePath

    if isinstance(value, PurePath):
        return str(value)
    return value.isoformat() if isinstance(value, (date, time)) else repr(value)


def secrets(value: object, key: str = "") -> list[object]:
    """Return the values that are masked for the keys they stand under."""
    if is_secret(key):
        return [value]
    if isinstance(value, dict):
        return [secret for inner, item in value.items() for secret in secrets(item, str(inner))]
    return []


def without(secrets: Iterable[object], text: str) -> str:
    """Return `text` with every secret in it masked: what a plugin says may repeat what it was given."""
    found = {part for value in secrets for item in _strings(value) for part in _telling(item) if part}
    for secret in sorted(found, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _without_userinfo(text)


def literal(value: object) -> str:
    """Return a value as TOML writes it, on one line whatever it holds."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dotted(str(key))} = {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(literal, value)) + "]"
    return printable(str(value))


def found(value: object, key: str = "") -> str:
    """Word what stands where something else was expected, as `"4" (string)`."""
    if isinstance(value, (dict, list, tuple)) or value is None:
        return {dict: "a table", type(None): "nothing"}.get(type(value), "an array")
    kind = _TYPE_NAMES.get(type(value).__name__, type(value).__name__)
    shown = masked(value, key)
    if shown == MASK:
        return f"{MASK} ({kind})"
    if type(value) is int and not -(2**63) <= value < 2**63:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        text = str(shown)
        return f"{quoted(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + '...')} ({kind})"
    return f"{literal(value)} ({kind})"


def dotted(*parts: str) -> str:
    """Return a dotted key as TOML writes it, parts quoted where they must be."""
    return ".".join(part if re.fullmatch(_BARE_KEY, part) else quoted(part) for part in parts)


def quoted(text: str) -> str:
    """Return text in double quotes, unprintable characters escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _without_userinfo(text: str) -> str:
    return re.sub(_URL, _masked_url, text) if "://" in text else text


def _masked_url(match: re.Match[str]) -> str:
    # A password may hold any character, unescaped ones too, so all before the last @ goes, then all of the query.
    _userinfo, at, address = match["rest"].rpartition("@")
    address, query = re.match(r"([^?#]*)(.*)", address, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{match['scheme']}{MASK + at if at else ''}{address}{'?' + MASK if query else ''}"


def _telling(secret: str) -> list[str]:
    """Return a secret and, of one that is a URL, what is secret in it: others may tell it without the scheme."""
    url = re.fullmatch(_URL, secret)
    userinfo = url["rest"].rpartition("@")[0] if url is not None else ""
    return [secret, userinfo, userinfo.partition(":")[2]]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return []

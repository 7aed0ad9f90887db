"""One TOML file: what it holds, and the line on which each key stands."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localflow.errors import ConfigError
from localflow.printable import printable
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import tomli

#: No file of settings is larger; whatever is, was not meant.
MAX_BYTES = 1 << 20

_MAX_NESTING = 32

# Deeper keys are values of an option, found by the line of the option.
_LINES_DEPTH = 8

_TOKEN = (
    r'''(?P<string>"""(?:[^"\\]+|\\.|"{1,2}(?!"))*"{3,5}|\'\'\'(?:[^']+|'{1,2}(?!'))*'{3,5}'''
    r"""|"(?:[^"\\\n]+|\\.)*"|'[^'\n]*')"""
    r"""|(?P<newline>\n)|(?P<mark>[=.,\[\]{}])|(?P<bare>[^\s=.,\[\]{}"'#]+)|(?P<skip>[^\S\n]+|\#[^\n]*)"""
)


class TomlFile(NamedTuple):
    """What a TOML file holds."""

    path: Path
    shown: str
    """The path as messages name it: relative to the working directory where the file is below it."""
    values: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]

    def line(self, *key: str) -> int:
        """Return the line of a key, or of the nearest table around it that has one."""
        for length in range(len(key), 0, -1):
            line = self.lines.get(key[:length])
            if line is not None:
                return line
        return 1


def read_toml(path: Path, mentioning: bytes = b"") -> TomlFile | None:
    """Read a file; None if there is none, or if the bytes `mentioning` are nowhere in it.

    Raises:
        ConfigError: it is no readable, sensible TOML; one line that names the place.
    """
    shown = shown_path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # looked at first: opening a named pipe would wait for ever
            if mentioning:
                return None
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise ConfigError([f"{shown}: is {kind}; a TOML file is expected there"])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.is_symlink():
            return None
        raise ConfigError([f"{shown}: cannot be read: a link to nowhere"]) from error
    except OSError as error:
        raise ConfigError([f"{shown}: cannot be read: {error.strerror or error}"]) from error
    if mentioning not in data:
        return None
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{shown}: is larger than {MAX_BYTES >> 20} MiB; is it the right file?"])
    text = _decoded(data, shown)
    return TomlFile(path, shown, _parsed(text, shown), key_lines(text))


def shown_path(path: Path) -> str:
    """Return a path as messages name it: relative to the working directory where it is below it."""
    try:
        return printable(str(path.relative_to(Path.cwd())))
    except (ValueError, OSError):
        return printable(str(path))


def parse_value(text: str) -> Any:
    """Return what a single value is as TOML or JSON, or the text itself if it is neither."""
    import json

    import tomli

    if "\n" not in text:
        try:
            values = tomli.loads(f"value = {text}")
        except (ValueError, RecursionError):
            pass
        else:
            return text if nests_too_deeply(values) else values["value"]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None or nests_too_deeply(value) else value


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of every key and table header of valid TOML; tables only implied have their first key's line."""
    stated: dict[tuple[str, ...], int] = {}
    implied: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    key: list[str] = []
    path: tuple[str, ...] = ()
    is_header = in_value = False
    # The arrays and inline tables that are open: whether it is a table, and the key whose value it is (part of).
    containers: list[tuple[bool, tuple[str, ...]]] = []

    for line, kind, token in _tokens(text):
        if kind == "newline":
            if not containers:
                is_header, in_value, key = False, False, []
        elif in_value:
            if token in ("{", "["):
                containers.append((token == "{", path))
                in_value, key = token == "[", []
            elif token in ("}", "]"):
                path = containers.pop()[1]
            elif token == "," and containers[-1][0]:
                in_value, key = False, []
        elif kind in ("bare", "string"):
            key.append(_unquoted(token) if kind == "string" else token)
        elif token == "=":
            path = (containers[-1][1] if containers else table) + tuple(key)
            in_value = True
            _note(path, line, stated, implied)
        elif token == "}":  # after a trailing comma, or in {}
            path = containers.pop()[1]
            in_value = True
        elif token == "[":
            is_header = True
        elif token == "]" and is_header:
            table, is_header = tuple(key), False
            _note(table, line, stated, implied)
    return implied | stated


def _note(
    path: tuple[str, ...], line: int, stated: dict[tuple[str, ...], int], implied: dict[tuple[str, ...], int]
) -> None:
    if len(path) <= _LINES_DEPTH:
        stated.setdefault(path, line)
    for length in range(1, min(len(path), _LINES_DEPTH + 1)):
        implied.setdefault(path[:length], line)


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    line = 1
    for match in re.finditer(_TOKEN, text, re.DOTALL):
        kind, token = match.lastgroup or "", match.group()
        if kind != "skip":
            yield line, kind, "" if kind == "string" and "\n" in token else token
        line += token.count("\n")


def _unquoted(token: str) -> str:
    import tomli

    return next(iter(tomli.loads(f"{token} = 0")), "") if token else ""


def _decoded(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{shown}:{line}: is not UTF-8 text; save the file as UTF-8"]) from error


def _parsed(text: str, shown: str) -> dict[str, Any]:
    import tomli  # late: most projects have no file

    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([f"{shown}:{_position(error, text)}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{shown}: values are nested too deeply"]) from error
    except ValueError as error:  # a number of thousands of digits
        number = re.search(r"[0-9_]{1000,}", text)
        line = text.count("\n", 0, number.start()) + 1 if number else 1
        raise ConfigError([f"{shown}:{line}: Invalid value: an integer of more than 64 bits"]) from error
    return values


def _position(error: tomli.TOMLDecodeError, text: str) -> str:
    """Return `line:column: message`; tomli before 2.2 says where only in its message."""
    message, _, place = str(error).rpartition(" (at ")
    numbers = re.fullmatch(r"line (\d+), column (\d+)\)", place)
    if numbers:
        line, column = int(numbers[1]), int(numbers[2])
    else:
        lines = text.split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    return f"{line}:{column}: {printable(message)}"


def nests_too_deeply(value: object) -> bool:
    """Return whether tables and arrays are nested deeper than any option needs. A loop: they may be thousands deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
    return depth > _MAX_NESTING

"""Text from users and other programs, made safe to show on one line."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape what a terminal or a line of a log would act on: control characters, line ends, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> list[str]:
    """Return the lines of a text, each made safe; tabs become spaces."""
    return [printable(line.expandtabs()) for line in text.split("\n")]


def shortened(text: str, limit: int) -> str:
    """Return `text` with its middle left out if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    gap = f" ... {len(text) - limit} characters left out ... "
    tail = limit // 4
    return text[: limit - tail] + gap + text[len(text) - tail :]

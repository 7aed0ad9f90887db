"""Text made safe to show."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localflow.printable import printable, printable_lines, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zürich ✓ 東京", "Zürich ✓ 東京"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("abc\u202edcba", r"abc\u202edcba"),
        ("\udcff", r"\udcff"),
    ],
)
def test_escapes_what_a_terminal_would_act_on(text: str, expected: str) -> None:
    """Letters of every script stay, control characters, bidi marks and surrogates become escapes."""
    assert printable(text) == expected


@given(st.text(st.characters(codec=None)))
@example("\udcff")
def test_result_is_always_one_printable_line(text: str) -> None:
    """Whatever the text, nothing that remains is unprintable or breaks the line."""
    assert printable(text).isprintable()


def test_short_text_stays_as_it_is() -> None:
    """A text of exactly the limit is not touched."""
    assert shortened("x" * 100, 100) == "x" * 100


def test_long_text_loses_its_middle() -> None:
    """Both ends remain, and the number of characters left out is said."""
    text = "begin" + "x" * 1_000 + "end"

    short = shortened(text, 100)

    assert short.startswith("begin")
    assert short.endswith("end")
    assert "908 characters left out" in short


def test_lines_are_kept_apart() -> None:
    """Each line of a text is escaped by itself."""
    assert printable_lines("a\tb\x1b\nc\r\n") == ["a       b\\x1b", "c\\r", ""]

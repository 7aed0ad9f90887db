"""What verbs print as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from localflow.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("items", [[], [1], ["a\x7f", {"b": [None]}, "\ud800"]])
def test_lists_are_json_however_long(items: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    """An item stands on a line of its own, and half a character as its escape."""
    output.print_json_list(items)
    alone = capsys.readouterr().out
    output.print_json_with({"name": "x", "list": [1]}, "items", items)
    within = capsys.readouterr().out

    expected = json.loads(json.dumps(items).replace("\\ud800", "\\\\ud800"))
    assert json.loads(alone) == expected
    assert json.loads(within) == {"name": "x", "list": [1], "items": expected}
    assert "\x7f" not in alone + within
    assert len(alone.splitlines()) == len(items) + 2


def test_items_are_made_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A list of a million items is never there as a whole."""
    printed = []

    def items() -> Iterator[int]:
        for number in range(4):
            printed.append(capsys.readouterr().out)
            yield number

    output.print_json_list(items())

    assert printed == ["", "[\n", "  0,\n", "  1,\n"]

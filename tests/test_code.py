"""The fingerprint of code: another one when what a function does has changed, and only then."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import pytest

from localflow.code import code_of, is_changed

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from localflow import flow, task
import time
import helpers_of_mine
from helpers_of_mine import scaled
import json

RATE = 3
TABLE = {"a": 1}
STARTED = time.time()


class Money:
    unit = "EUR"

    def __init__(self, amount):
        self.amount = amount

    @property
    def doubled(self):
        return self.amount * 2


def inner(x):
    return x + 1


def circle(n):
    return other(n)


def other(n):
    return circle(n)


@task(retries=1)
def work(x, y=5):
    "Work."
    money = Money(inner(x) * RATE + TABLE["a"])
    ordered = sorted(x, key=lambda item: item + 1)
    return json.dumps([money.doubled, scaled(y), helpers_of_mine.twice(y), STARTED, ordered])


@task
def calls_a_task(x):
    return work(x)


@flow
def main():
    return calls_a_task(work(1))
"""

HELPERS = """
def scaled(x):
    return x * 10


def twice(x):
    return 2 * x
"""


@pytest.fixture
def load(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what loads the module anew, with a text in it replaced by another."""
    monkeypatch.syspath_prepend(str(own_folder))
    count = iter(range(1000))

    def load(old: str = "", new: str = "", helpers: tuple[str, str] = ("", "")) -> Any:
        assert old in MODULE
        name = f"module_of_mine_{next(count)}"
        (own_folder / "helpers_of_mine.py").write_text(HELPERS.replace(*helpers) if helpers[0] else HELPERS)
        file = own_folder / f"{name}.py"
        file.write_text(MODULE.replace(old, new) if old else MODULE)
        space: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
        sys.modules.pop("helpers_of_mine", None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        exec(compile(file.read_text(), str(file), "exec"), space)
        return space

    yield load
    sys.modules.pop("helpers_of_mine", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inner(x) * RATE", "inner(x) + RATE"), ("return x + 1\n", "return x + 2\n"), ("y=5", "y=6"),
        ("RATE = 3", "RATE = 4"),
        ('"a": 1}', '"a": 2}'), ("self.amount * 2", "self.amount * 3"), ('unit = "EUR"', 'unit = "USD"'),
        ("item + 1", "item - 1"),
    ],
)  # fmt: skip
def test_a_change_of_what_it_does_is_noticed(load: Any, old: str, new: str) -> None:
    """In its body, its defaults, what it calls, constants and classes that it uses."""
    assert is_changed(code_of(load(old, new)["work"]), code_of(load()["work"]))


@pytest.mark.parametrize("helpers", [("x * 10", "x * 11"), ("2 * x", "3 * x")])
def test_a_change_in_another_module_of_the_user_is_noticed(load: Any, helpers: tuple[str, str]) -> None:
    """Imported by name, or as a module."""
    assert is_changed(code_of(load(helpers=helpers)["work"]), code_of(load()["work"]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def inner(x):", "# a comment\n\n\ndef inner(x):"), ('"Work."', '"Work, and work."'),
        ("retries=1", "retries=3"),
        ("def circle(n):", "def unused():\n    return 1\n\n\ndef circle(n):"), ("", ""),
    ],
)  # fmt: skip
def test_what_changes_nothing_of_it_is_not_noticed(load: Any, old: str, new: str) -> None:
    """Comments, docstrings, options, other functions, values that are computed at every start."""
    assert code_of(load(old, new)["work"]) == code_of(load()["work"])


def test_a_task_that_a_task_calls_is_part_of_it_but_not_of_a_flow(load: Any) -> None:
    """In a task it is a plain function, in a flow a run of its own."""
    before, after = load(), load("y=5", "y=6")

    assert is_changed(code_of(after["calls_a_task"]), code_of(before["calls_a_task"]))
    assert not is_changed(after["main"].code, before["main"].code)


def test_functions_that_call_each_other_have_a_fingerprint(load: Any) -> None:
    """Circles end."""
    assert code_of(load()["circle"]) == code_of(load()["circle"])


def test_what_has_no_python_code_counts_as_unchanged() -> None:
    """So does code of another version of Python."""
    assert code_of(len) == ""
    assert not is_changed("", code_of(functools.partial(is_changed)))
    assert not is_changed("3.11:abc", "3.12:def")
    assert is_changed("3.11:abc", "3.11:def")

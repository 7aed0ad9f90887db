"""Why a run failed is recorded as text that a user can read: own frames, bounded, without secrets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow.arguments import replace
from localflow.tracebacks import cause_of, described_arguments, traceback_text

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 256 * 1024 + 200


def caught(function: Callable[[], object]) -> BaseException:
    """Return what a function raises."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def fail(text: str = "boom") -> None:
    """Raise in this file."""
    raise ValueError(text)


def frames(text: str) -> list[str]:
    """Return the files and functions of a traceback text, gaps as they are."""
    return [
        f"{Path(match[1]).name} {match[2]}" if match[1] else match[3].strip()
        for match in re.finditer(r'File "(.+)", line \d+, in (.+)|( +\.\.\. .+ left out)', text)
    ]


def test_the_users_frames_stay_with_their_lines() -> None:
    """As Python prints them, and nothing is there twice."""
    cause = cause_of(caught(fail), {"text": "'boom'"})

    assert (cause.kind, cause.exception_type, cause.message) == ("exception", "ValueError", "boom")
    assert cause.traceback_text.startswith("Traceback (most recent call last):\n")
    assert frames(cause.traceback_text) == ["test_tracebacks.py caught", "test_tracebacks.py fail"]
    assert "    raise ValueError(text)\n" in cause.traceback_text
    assert cause.traceback_text.endswith("\nValueError: boom\n")
    assert cause.full_traceback_text == ""
    assert cause.arguments == {"text": "'boom'"}


def test_frames_of_localflow_are_left_out_wherever_they_are() -> None:
    """The full text has them."""
    cause = cause_of(caught(lambda: replace([Path()], (Path,), lambda item: fail())))

    assert frames(cause.traceback_text) == [
        "test_tracebacks.py caught", "test_tracebacks.py <lambda>", "test_tracebacks.py <lambda>",
        "test_tracebacks.py fail",
    ]  # fmt: skip
    assert "arguments.py replace" in frames(cause.full_traceback_text)


def test_of_a_library_that_raised_the_last_frame_stays() -> None:
    """With a line that says how many are missing, and of what."""
    cause = cause_of(caught(lambda: json.loads("{")))

    assert frames(cause.traceback_text)[-3:] == [
        "test_tracebacks.py <lambda>", "... 2 frames of json left out", "decoder.py raw_decode",
    ]  # fmt: skip
    assert len(frames(cause.full_traceback_text)) == 5


def test_a_library_between_two_frames_of_the_user_is_a_gap() -> None:
    """Whether it calls back in this thread or in another one."""

    def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(fail).result()

    texts = frames(cause_of(caught(lambda: sorted([2, 1], key=lambda item: work()))).traceback_text)

    assert texts[-2:] == ["... 3 frames of concurrent.futures left out", "test_tracebacks.py fail"]


def test_a_library_that_is_all_there_is_stays_whole() -> None:
    """A task may be a function of a library."""
    error = caught(partial(json.loads, "{"))
    assert error.__traceback__ is not None
    error = error.with_traceback(error.__traceback__.tb_next)

    assert frames(traceback_text(error)) == ["__init__.py loads", "decoder.py decode", "decoder.py raw_decode"]


def test_an_exception_that_was_never_raised_is_one_line() -> None:
    """There are no frames to head."""
    assert traceback_text(ValueError("as a value")) == "ValueError: as a value\n"


def test_the_whole_chain_is_told() -> None:
    """Causes, contexts, groups and notes, the frames of each chosen in the same way."""

    def first() -> None:
        json.loads("{")

    def second() -> None:
        try:
            first()
        except ValueError as error:
            error.add_note("while reading the settings")
            raise LookupError("no settings") from error

    def third() -> None:
        try:
            second()
        except LookupError:
            fail("while handling")

    text = traceback_text(ExceptionGroup("all of it", [caught(third), caught(fail)]))

    assert "ExceptionGroup: all of it (2 sub-exceptions)" in text
    assert "while reading the settings" in text
    assert "The above exception was the direct cause of the following exception" in text
    assert "During handling of the above exception, another exception occurred" in text
    assert text.count("... 2 frames of json left out") == 1
    assert [name in text for name in ("LookupError: no settings", "ValueError: while handling")] == [True, True]


def test_a_cycle_of_causes_ends() -> None:
    """Each exception is told once."""
    first, second = caught(fail), caught(partial(fail, "other"))
    first.__cause__, second.__cause__ = second, first

    assert traceback_text(first).count("ValueError: boom") == 1


def test_a_very_long_message_is_cut_in_the_middle() -> None:
    """In every text of the cause."""
    cause = cause_of(caught(partial(fail, "x" * 10_000_000)))

    for text in (cause.message, cause.traceback_text):
        assert len(text) < LIMIT
        assert "characters left out" in text


def test_a_deep_recursion_is_told_once() -> None:
    """As Python itself shortens it."""

    def deeper() -> None:
        deeper()

    text = traceback_text(caught(deeper))

    assert "[Previous line repeated 9" in text
    assert len(text) < 2_000


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


def test_an_exception_that_cannot_be_printed_is_told_all_the_same() -> None:
    """Whatever its methods do."""
    cause = cause_of(Hostile())

    assert cause.exception_type == "Hostile"
    assert cause.message == "<no message: str() of it raised RuntimeError>"
    assert "Hostile: <" in cause.traceback_text  # from Python 3.13 on `traceback` has words of its own for it


def test_groups_nested_beyond_reason_are_told_in_a_line() -> None:
    """Nobody reads that."""
    error: Exception = ValueError("at the bottom")
    for _ in range(5_000):
        error = ExceptionGroup("deeper", [error])

    assert "ExceptionGroup: deeper" in traceback_text(error)


def test_code_that_has_no_file_counts_as_the_users() -> None:
    """Its lines are shown where Python has kept them."""
    code = (
        "import linecache\nfrom localflow.tracebacks import traceback_text\n"
        "source = 'def fail(): return 1 / 0'\n"
        "linecache.cache['<cell 1>'] = (len(source), None, [source], '<cell 1>')\n"
        "exec(compile(source, '<cell 1>', 'exec'))\n"
        "try:\n    fail()\nexcept Exception as error:\n    print(traceback_text(error))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert 'File "<string>", line 7, in <module>' in done.stdout
    assert 'File "<cell 1>", line 1, in fail\n    def fail(): return 1 / 0\n' in done.stdout


# -- arguments -------------------------------------------------------------------------------------------------------


def takes(x: object, *rest: object, password: str = "", **more: object) -> None:
    """Have a parameter of each kind."""


def test_arguments_stand_under_the_names_of_their_parameters() -> None:
    """Keywords under their own, and secrets are masked by either."""
    described = described_arguments(takes, (1, "a", "b"), {"password": "p", "size": 2, "api_token": "t"})

    assert described == {"x": "1", "*rest": "('a', 'b')", "password": "***", "size": "2", "api_token": "***"}


def test_secrets_inside_of_arguments_are_masked() -> None:
    """In dicts, in the texts of objects, and in URLs."""

    class Settings:
        def __repr__(self) -> str:
            return "Settings(host='h', password='hunter2', retries=3)"

    values = ({"auth": {"secret": "hunter2"}}, Settings(), "postgres://me:hunter2@db/x", [{"api_key": "hunter2"}])

    described = described_arguments(takes, values, {})

    assert "hunter2" not in str(described)
    assert "retries=3" in described["*rest"]


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, b"x" * 10**6, bytearray(10**6), list(range(10**6)), set(range(10**6)), {1: "x" * 10**6},
     [[[[[[[1]]]]]]], 10**5000, dict.fromkeys(range(10**6)), frozenset(range(10**6)), {}, set(), frozenset()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_described_argument_is_short(value: object) -> None:
    """However large the value."""
    text = described_arguments(takes, (value,), {})["x"]

    assert 0 < len(text) <= 100


def test_many_arguments_are_counted() -> None:
    """The first ten are told."""
    described = described_arguments(takes, (1,), {f"n{number}": number for number in range(14)})

    assert len(described) == 11
    assert described["..."] == "5 more"


def test_a_repr_that_raises_is_named() -> None:
    """Also if it wants to end the program."""

    class Bad:
        def __repr__(self) -> str:
            sys.exit(3)

    assert described_arguments(takes, (Bad(),), {})["x"] == "<Bad: repr() of it raised SystemExit>"


def test_arguments_that_do_not_fit_are_numbered() -> None:
    """A wrong call is a failure to tell of, too."""
    assert described_arguments(lambda x: x, (1, 2), {"y": 3}) == {"argument 1": "1", "argument 2": "2", "y": "3"}


@given(st.recursive(st.integers() | st.text() | st.binary(), lambda inner: st.lists(inner) | st.sets(st.text())))
def test_small_values_are_told_like_python_does(value: Any) -> None:
    """As long as they fit and hold no more than ten items."""
    text = described_arguments(takes, (value,), {})["x"]

    if isinstance(value, (int, bytes)) and len(repr(value)) <= 100:
        assert text == " ".join(repr(value).split())
    assert len(text) <= 100

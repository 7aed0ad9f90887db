"""Names of runs from templates and functions."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localflow import Pending, Task, TaskFuture, flow, get_run_context, quote, task
from localflow.run_names import check_template, run_name
from localflow.states import RunRef


def load(path: Any, limit: int = 10, *parts: int, **options: Any) -> None:
    """A function with parameters."""


def strict(path: Any, limit: int = 10) -> None:
    """A function that takes nothing else."""


def name(source: Any, *args: Any, **kwargs: Any) -> str:
    """Return the name of a run of a task that is called like this."""
    return run_name(Task(load, task_run_name=source), args, kwargs, "load-0")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("load {path} up to {limit}", "load a.csv up to 10"),
        ("{path!r:>8}", " 'a.csv'"),
        ("{limit:03d}", "010"),
        ("{limit:{width}}", "   10"),
        ("{colour}", "red"),
        ("{{path}}", "{path}"),
        ("{parts[0]}", "1"),
        ("{path.__class__.__name__}", "str"),
        ("\x1b[31m\n\udcff{path}", "\x1b[31m\n\udcffa.csv"),
    ],
)
def test_a_template_is_filled_with_the_parameters(template: str, expected: str) -> None:
    """Defaults included, in the language of str.format."""
    assert name(template, "a.csv", 10, 1, 2, colour="red", width=5) == expected


def test_defaults_fill_a_template_too() -> None:
    """The call need not repeat them."""
    assert name("{path} {limit}", Path("a")) == "a 10"


def test_a_parameter_goes_before_an_option_of_its_name() -> None:
    """Options are what is left."""
    assert name("{options} {limit}", "a", limit=3, colour="red") == "{'colour': 'red'} 3"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{nme}", "task_run_name='{nme}' names 'nme', which is no parameter of the function; it has path, limit"),
        ("{nme.x[0]!r:>{width}}", "'nme', 'width'"),
        ("{", "no template"),
        ("}", "no template"),
        ("{path", "no template"),
        ("{}", "stands for no parameter"),
        ("{0}", "stands for no parameter"),
        ("{path!z}", "no conversion !z"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, message: str) -> None:
    """Before any run."""
    with pytest.raises(TypeError, match=r"@task 'strict': task_run_name=") as caught:
        check_template("@task 'strict'", "task_run_name", template, strict)
    assert message in str(caught.value)


def test_a_function_that_takes_any_name_may_be_given_any() -> None:
    """Whether it is, only the call knows."""
    check_template("@task 'load'", "task_run_name", "{colour}", load)


def test_a_function_names_a_run() -> None:
    """It takes nothing, or the parameters."""
    assert name(lambda: "today", "a") == "today"
    assert name(lambda parameters: f"load {parameters['path']} {parameters['limit']}", "a") == "load a 10"
    assert name(lambda given: f"load {given['path']}", "a") == "load a"
    assert name(lambda *, parameters: f"load {parameters['path']}", "a") == "load a"
    assert name(lambda prefix="x": prefix, "a") == "x"
    assert name(functools.partial("{}-{limit}".format, "x", limit=1), "a") == "x-1"


def test_a_future_stands_for_itself_as_the_name_of_its_run() -> None:
    """Its data may not be there yet."""
    future: TaskFuture[int] = TaskFuture(RunRef("run", 4, "add-3"), Pending(), None)

    assert name("of {path}", future) == "of add-3"
    assert name("of {path!r:>6}", [future]) == "of [add-3]"
    assert name(lambda parameters: str(parameters["path"]), future) == "add-3"
    assert name("{path}", quote("a")) == "a"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{colour}", "KeyError: 'colour'"),
        ("{path[3]}", "IndexError"),
        ("{limit:s}", "ValueError"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: None, "it made no text but NoneType"),
        (lambda: "", "it made an empty text"),
        (lambda: exit(), "SystemExit"),
        (lambda one, two: "x", "TypeError"),
    ],
)
def test_a_run_whose_name_cannot_be_made_keeps_the_one_it_has(
    source: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says why."""
    with caplog.at_level(logging.WARNING):
        assert name(source, "a") == "load-0"

    assert caplog.messages[0].startswith(f"task_run_name of task 'load': {problem}")
    assert caplog.messages[0].endswith("; the run is called 'load-0'")


@given(st.text(min_size=1))
def test_a_name_has_at_most_200_characters(text: str) -> None:
    """Whatever is in it."""
    found = name("{path}", text * 100)

    assert len(found) <= 200
    assert found.removesuffix("...") == (text * 100)[: len(found.removesuffix("..."))]


class Loader:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    @task(task_run_name="load {self.folder}/{path}")
    def load(self, path: str) -> None:
        """Load a file."""


def test_the_name_of_a_method_run_can_name_its_object_too() -> None:
    """By the name that the method has for it."""
    assert run_name(Loader("in").load, ("a",), {}, "load-0") == "load in/a"


def test_runs_have_the_names_that_their_options_give_them() -> None:
    """Tasks and flows, in the order of the calls."""

    @task(task_run_name="load {path}")
    def load(path: Any) -> Any:
        return path

    @flow(flow_run_name=lambda parameters: f"nightly {parameters['day']}")
    def main(day: str) -> Any:
        first = load(1)
        return [first.name, load(first).name, get_run_context().flow_run.name]

    assert main("monday").result() == ["load 1", "load load 1", "nightly monday"]


def test_a_template_is_checked_where_the_task_or_flow_is_made() -> None:
    """A name that is no parameter shows at once."""
    for kind, decorator in (("task", task), ("flow", flow)):
        with pytest.raises(TypeError, match=rf"@{kind} 'strict': {kind}_run_name='{{nme}}' names 'nme'"):
            decorator(**{f"{kind}_run_name": "{nme}"})(strict)  # type: ignore[operator]

"""tags(...): the tags that a block gives to the runs called in it."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import Any

import pytest

from localflow import flow, tags, task
from localflow.tags import current_tags, joined_tags
from localflow.testing import harness


def test_tags_are_in_force_inside_the_block_only() -> None:
    """Tags begin with the block and end with it."""
    before = current_tags()
    with tags("b", "a"):
        inside = current_tags()

    assert (before, inside, current_tags()) == ((), ("a", "b"), ())


def test_nested_blocks_add_up() -> None:
    """An inner block adds to the outer one and takes back only its own."""
    with tags("outer", "both"):
        with tags("inner", "both") as inner:
            assert current_tags() == inner == ("both", "inner", "outer")
        assert current_tags() == ("both", "outer")


def test_tags_end_when_the_block_raises() -> None:
    """An exception that leaves the block takes its tags along."""
    with pytest.raises(ZeroDivisionError), tags("a"):
        raise ZeroDivisionError

    assert current_tags() == ()


def test_threads_do_not_mix_their_tags() -> None:
    """A thread has the tags of its own blocks, and in a copied context those it was started in."""
    seen: dict[str, tuple[str, ...]] = {}
    meeting = threading.Barrier(2)

    def work(name: str) -> None:
        with tags(name):
            meeting.wait(10)
            seen[name] = current_tags()
            meeting.wait(10)

    with tags("around"):
        threads = [
            threading.Thread(target=work, args=("alone",)),
            threading.Thread(target=copy_context().run, args=(work, "copied")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert seen == {"alone": ("alone",), "copied": ("around", "copied")}


def test_a_decorated_function_has_the_tags() -> None:
    """As a decorator it gives the tags to each call."""

    @tags("a")
    def inside() -> tuple[str, ...]:
        return current_tags()

    assert (inside(), inside(), current_tags()) == (("a",), ("a",), ())


@pytest.mark.parametrize("name", [["a"], 1, None])
def test_only_texts_are_tags(name: Any) -> None:
    """What is no text is refused with the way to write it."""
    with pytest.raises(TypeError, match=r'tags takes texts, as in tags\("a", "b"\), not'), tags(name):
        pass


def test_joined_tags_are_sorted_and_distinct() -> None:
    """Joining gives each tag once, in order."""
    assert joined_tags(("c", "a"), (), ("b", "a")) == ("a", "b", "c")


# -- in flows --------------------------------------------------------------------------------------------------------


def test_task_runs_get_the_tags_of_the_block_besides_their_own() -> None:
    """What is called, submitted or mapped in the block is recorded with both; what is called outside with its own."""

    @task(tags=["own"])
    def work(item: int) -> int:
        return item

    @flow
    def around() -> None:
        with tags("block"):
            work(1)
            work.submit(2)
            work.map([3])
        work(4)

    with harness() as runs:
        around()
        found = [runs.task_run(f"work-{number}").run.tags for number in range(4)]

    assert found == [("block", "own")] * 3 + [("own",)]


def test_flow_runs_and_all_in_them_get_the_tags_they_are_called_under() -> None:
    """Tags around a flow call go to its run, to its task runs and to its subflows."""

    @task
    def work() -> None:
        pass

    @flow
    def child() -> None:
        work()

    @flow
    def parent() -> None:
        work()
        with tags("inner"):
            child()

    with harness() as runs:
        with tags("outer"):
            parent()
        flow_runs = {summary.flow_run.flow: summary.flow_run for summary in runs.flow_runs()}
        task_tags = {name: runs.task_run("work-0", flow_runs[name].id).run.tags for name in flow_runs}

    expected = {"parent": ("outer",), "child": ("inner", "outer")}
    assert {name: flow_run.tags for name, flow_run in flow_runs.items()} == expected
    assert task_tags == expected

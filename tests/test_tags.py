"""tags(...): the tags that a block gives to the runs called in it."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import Any

import pytest

from localflow import tags
from localflow.tags import current_tags, joined_tags


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

"""task.map: one run for each item; what is mapped over, what is passed whole, and how a lazy one keeps its measure."""

from __future__ import annotations

import io
import itertools
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow import Completed, Failed, StateType, ThreadExecutor, allow_failure, flow, quote, task, unmapped
from localflow.errors import (
    MappingLengthMismatchError,
    MappingMissingIterableError,
    OutsideFlowError,
    RunFailedError,
    UpstreamFailedError,
)
from localflow.mapping import WINDOW, MappedFutures
from localflow.testing import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BRIEF = 0.05
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def memory_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep nothing on disk."""
    monkeypatch.setenv("LOCALFLOW_STORE", "memory")


@task
def give(*args: object, **kwargs: object) -> object:
    """Return what was given."""
    return (*args, kwargs) if kwargs else args


@task
def same(value: Any) -> Any:
    """Return the value."""
    return value


@task
def add(x: Any, y: Any = 0) -> Any:
    """Return the sum."""
    return x + y


@task
def fail(error: Exception) -> None:
    """Raise."""
    raise error


class Gate:
    """Holds tasks back until the test opens it."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def wait(self) -> None:
        """Wait until the test opens the gate."""
        self.entered.set()
        assert self.opened.wait(PATIENCE)


@task
def after(gate: Gate, value: Any) -> Any:
    """Return the value once the gate is open."""
    gate.wait()
    return value


def in_flow(body: Callable[[], Any], executor: str | ThreadExecutor = "sequential") -> Any:
    """Return what `body` returns in a flow; raise what it raises."""
    kept = []

    @flow(executor=executor)
    def around() -> Completed:
        kept.append(body())
        return Completed()

    around().result()
    return kept[0]


def mapped(*args: Any, executor: str = "sequential", **kwargs: Any) -> Any:
    """Return the data of `give` mapped over the arguments."""
    return in_flow(lambda: give.map(*args, **kwargs).result(), executor)


# -- what is mapped over, and what is passed whole -------------------------------------------------------------------


def test_one_run_for_each_item_in_order() -> None:
    """Each item gets a run, and results come in the order of the items."""
    assert mapped(["a", "b", "c"], executor="thread") == [("a",), ("b",), ("c",)]


def test_iterables_are_taken_apart_in_step() -> None:
    """Several iterables give their items together, by position and by keyword."""
    assert mapped([1, 2], (3, 4), k=iter("xy")) == [(1, 3, {"k": "x"}), (2, 4, {"k": "y"})]


@pytest.mark.parametrize("whole", ["ab", b"ab", bytearray(b"ab"), 7, None, object(), len, io.StringIO("a\nb")])
def test_texts_files_and_what_is_no_iterable_go_to_every_run(whole: object) -> None:
    """What is not mapped over arrives as the very same object in every run."""
    results = mapped([1, 2], whole)

    assert [result[0] for result in results] == [1, 2]
    assert all(result[1] is whole for result in results)


def test_unmapped_goes_to_every_run() -> None:
    """An iterable in `unmapped` is passed whole, without the marker."""
    assert mapped([1, 2], unmapped([3, 4]), k=unmapped("x")) == [(1, [3, 4], {"k": "x"}), (2, [3, 4], {"k": "x"})]


class Weighed:
    """A value that counts how often it is pickled here."""

    def __init__(self, content: object) -> None:
        self.content = content
        self.pickled = 0

    def __getstate__(self) -> dict[str, Any]:
        self.pickled += 1
        return {"content": self.content, "pickled": 0}


@task
def change(number: int, value: Weighed) -> tuple[int, int]:
    """Change the value, and return how long its content was before."""
    assert isinstance(value.content, list)
    value.content.append(number)
    return number, len(value.content)


@pytest.mark.parametrize("size", [1, 500_000])
def test_what_goes_to_every_run_is_pickled_once_for_all_of_them(size: int) -> None:
    """Small or large, it is sent to worker processes as bytes that are made once; each run has an object of its own."""
    value = Weighed([0] * size)

    results = in_flow(lambda: change.map(range(20), value).result(), "process")

    assert results == [(number, size + 1) for number in range(20)]
    assert value.pickled == 1


@task
def measure(number: int, text: str | bytes) -> int:
    """Return the length of a text, whatever the number."""
    return len(text)


@pytest.mark.parametrize("text", ["\ud800x" * 200_000, b"\0" * 400_000])
def test_a_large_text_that_goes_to_every_run_arrives_whole(text: str | bytes) -> None:
    """Texts and bytes are sent once, too."""
    assert in_flow(lambda: measure.map([1, 2], unmapped(text)).result(), "process") == [400_000] * 2


@task
def is_in(item: object, whole: list[object]) -> bool:
    """Return whether the item is one of those in the list, not only equal to one."""
    return any(item is each for each in whole)


def test_items_that_are_parts_of_what_goes_to_every_run_stay_parts_of_it() -> None:
    """What arguments of one call share they still share in a worker process."""
    parts: list[object] = [[1], [2], [3]]

    assert in_flow(lambda: is_in.map(parts, unmapped(parts)).result(), "process") == [True, True, True]


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_futures_in_what_goes_to_every_run_are_replaced_on_every_executor(executor: str) -> None:
    """To look into it once is to look into it all the same."""
    assert in_flow(lambda: give.map([1, 2], unmapped([same(3)])).result(), executor) == [(1, [3]), (2, [3])]


def test_what_cannot_be_pickled_for_every_run_is_named_in_each() -> None:
    """Each run fails by itself, and says which argument it was."""
    states = in_flow(lambda: give.map([1, 2], unmapped({"lock": threading.Lock()})).wait(), "process")

    assert [state.type for state in states] == [StateType.FAILED] * 2
    assert all("Task 'give': argument 'args[1]' (dict) cannot be sent" in state.message for state in states)


def test_quote_goes_to_every_run_untouched() -> None:
    """A quote is passed whole, and futures in it stay futures."""

    def body() -> Any:
        future = same(1)
        return future, give.map([1, 2], quote([future])).result()

    future, results = in_flow(body)

    assert results == [(1, [future]), (2, [future])]


def test_a_dict_gives_its_keys() -> None:
    """Mapping over a dict is mapping over its keys, as `for` does."""
    assert mapped({"a": 1, "b": 2}) == [("a",), ("b",)]


def test_nothing_to_do_gives_no_runs() -> None:
    """An empty iterable gives an empty list, whatever else is passed."""
    assert mapped([], unmapped([1])) == []


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), lazy=st.lists(st.booleans(), min_size=4, max_size=4)
)
def test_map_agrees_with_zip(lengths: list[int], lazy: list[bool]) -> None:
    """Whatever iterables there are, map does what a strict zip does."""
    rows = [range(10 * place, 10 * place + length) for place, length in enumerate(lengths)]

    def iterables() -> list[Any]:
        return [iter(row) if is_lazy else row for row, is_lazy in zip(rows, lazy, strict=False)]

    try:
        expected = list(zip(*iterables(), strict=True))
    except ValueError:
        with pytest.raises(MappingLengthMismatchError):
            mapped(*iterables())
    else:
        assert mapped(*iterables()) == expected


# -- what cannot be mapped -------------------------------------------------------------------------------------------


def ran(body: Callable[[], object]) -> tuple[BaseException | None, int]:
    """Return the exception of a flow's body and how many task runs the flow had."""

    @flow
    def around() -> object:
        try:
            body()
        except Exception as error:
            errors.append(error)
        return None

    errors: list[Exception] = []
    state = around()
    runs = state.result(raise_on_failure=False)
    return (errors[0] if errors else None), len(runs or ())


def test_unequal_lengths_are_refused_before_anything_runs() -> None:
    """Iterables of different known lengths are an error that names each, and nothing has run."""
    error, runs = ran(lambda: add.map([1, 2, 3], y=[1, 2]))

    assert isinstance(error, MappingLengthMismatchError)
    assert isinstance(error, ValueError)
    assert str(error) == (
        "'add.map(...)' takes an item of each iterable for each run, but they are not of one length: 'x' has 3, "
        "'y' has 2; nothing has run. Put unmapped(...) around what shall go to every run"
    )
    assert runs == 0


def test_a_generator_that_ends_too_early_is_told_at_the_end() -> None:
    """What only reading shows is raised when it shows; the runs made until then stay."""
    error, runs = ran(lambda: add.map([1, 2, 3], iter([1, 2])))

    assert isinstance(error, MappingLengthMismatchError)
    assert (error.lengths, error.made) == ({"x": "more than 2", "y": "2"}, 2)
    assert "2 task run(s) had been made before" in str(error)
    assert runs == 2


def test_nothing_to_map_over_is_refused() -> None:
    """Without an iterable there is a TypeError that says what was given instead."""
    error, runs = ran(lambda: give.map(1, "ab", unmapped([1])))

    assert isinstance(error, MappingMissingIterableError)
    assert isinstance(error, TypeError)
    assert str(error) == (
        "'give.map(...)' has nothing to map over: 'argument 1' is int, 'argument 2' is str, "
        "'argument 3' is unmapped(...); pass a list or another iterable, or call 'give(...)' for a single run"
    )
    assert runs == 0


def test_no_arguments_at_all_are_refused() -> None:
    """A map without arguments is refused like one without an iterable."""
    error, _ = ran(lambda: give.map())

    assert isinstance(error, MappingMissingIterableError)
    assert "no arguments were given" in str(error)


@pytest.mark.parametrize("call", [lambda: add.map(), lambda: add.map([1], [2], [3]), lambda: add.map([1], z=2)])
def test_wrong_arguments_are_refused_before_anything_runs(call: Callable[[], object]) -> None:
    """Arguments that the function does not take are its TypeError, raised once."""
    error, runs = ran(call)

    assert isinstance(error, TypeError)
    assert str(error).startswith("add() ")
    assert runs == 0


def test_a_wrong_wait_for_is_refused_before_anything_runs() -> None:
    """What cannot be waited for is refused even if there are no items."""
    error, runs = ran(lambda: add.map([], wait_for=["add-0"]))

    assert isinstance(error, TypeError)
    assert runs == 0


def test_map_needs_a_flow() -> None:
    """Outside a flow and inside a task there is nothing to make runs in."""

    @task
    def maps() -> None:
        add.map([1])

    with pytest.raises(OutsideFlowError):
        add.map([1])
    with pytest.raises(OutsideFlowError):
        in_flow(lambda: maps().result())


def test_an_iterable_that_raises_ends_the_map_and_loses_nothing() -> None:
    """The iterable's own exception reaches the caller; the runs made before stay."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    error, runs = ran(lambda: add.map(items()))

    assert isinstance(error, KeyError)
    assert runs == 1


# -- futures and states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "thread"])
def test_a_future_of_an_iterable_is_mapped_over(executor: str) -> None:
    """Its data is waited for and taken apart."""
    assert in_flow(lambda: add.map(same([1, 2]), y=same(10)).result(), executor) == [11, 12]


def test_a_state_of_an_iterable_is_mapped_over() -> None:
    """A state is taken for its data."""
    assert mapped(Completed(data=[1, 2])) == [(1,), (2,)]


def test_a_future_in_unmapped_is_passed_whole_as_its_data() -> None:
    """`unmapped` says how it is passed, not that it is not resolved."""
    assert in_flow(lambda: give.map([1, 2], unmapped(same([3]))).result()) == [(1, [3]), (2, [3])]


def test_a_failed_future_gives_one_run_that_never_starts() -> None:
    """There are no items, so there is exactly one run, NotReady for that upstream; nothing else is waited for."""
    gate = Gate()

    def body() -> Any:
        slow = after(gate, 1)
        futures = add.map(fail(ValueError("no items")), y=[slow, slow])
        names = [state.name for state in futures.wait(PATIENCE / 2) or ()]
        gate.opened.set()
        with pytest.raises(UpstreamFailedError) as caught:
            futures.result()
        return names, repr(caught.value.__cause__)

    assert in_flow(body, "thread") == (["NotReady"], "ValueError('no items')")


def test_the_futures_of_a_map_are_mapped_over_one_by_one() -> None:
    """A map of a map and a list of futures give each run its own future."""
    assert in_flow(lambda: add.map(same.map([1, 2]), y=[same(10), 20]).result()) == [11, 22]


def test_a_map_of_a_map_does_not_wait_for_it() -> None:
    """Runs of the second map start as soon as their own item is there, while others of the first are at work."""
    gate = Gate()

    @task
    def first(item: int) -> int:
        if item == 0:
            gate.wait()
        return item

    def body() -> Any:
        seconds = add.map(first.map(range(3)), y=10)
        early = [future.result(PATIENCE) for future in seconds[1:]]
        is_done = seconds[0].done()
        gate.opened.set()
        return early, is_done, seconds.result()

    assert in_flow(body, "thread") == ([11, 12], False, [10, 11, 12])


def test_a_failed_item_blocks_its_own_run_only() -> None:
    """In a chain of maps a failure goes down its own chain."""

    @task
    def halve(number: int) -> float:
        return 10 / number

    def body() -> list[str]:
        seconds = add.map(halve.map([1, 0, 2]))
        return [state.name for state in seconds.wait() or ()]

    assert in_flow(body, "thread") == ["Completed", "NotReady", "Completed"]


# -- allow_failure ---------------------------------------------------------------------------------------------------


def test_allow_failure_goes_to_each_item() -> None:
    """An iterable in allow_failure is mapped over, with each item's failure allowed."""

    def body() -> list[Any]:
        items = [same(1), fail(ValueError("allowed")), 3]
        return same.map(allow_failure(items)).result()

    first, error, last = in_flow(body, "thread")

    assert (first, repr(error), last) == (1, "ValueError('allowed')", 3)


def test_allow_failure_of_a_failed_future_goes_to_every_run() -> None:
    """The exception takes the place of data that is no iterable; alone it makes one run."""

    def body() -> Any:
        failed = fail(ValueError("allowed"))
        return give.map([1, 2], allow_failure(failed)).result(), same.map(allow_failure(failed)).result()

    pairs, alone = in_flow(body)

    assert [(item, repr(error)) for item, error in pairs] == [
        (1, "ValueError('allowed')"),
        (2, "ValueError('allowed')"),
    ]
    assert list(map(repr, alone)) == ["ValueError('allowed')"]


def test_allow_failure_of_what_is_no_iterable_goes_to_every_run() -> None:
    """A plain value in allow_failure is passed whole."""
    assert mapped([1, 2], allow_failure(3), allow_failure(unmapped([4]))) == [(1, 3, [4]), (2, 3, [4])]


# -- wait_for --------------------------------------------------------------------------------------------------------


def test_wait_for_holds_back_every_run() -> None:
    """No run starts before what is in wait_for has completed."""
    gate = Gate()

    def body() -> Any:
        first = after(gate, 1)
        futures = same.map(range(3), wait_for=[first])
        assert gate.entered.wait(PATIENCE)
        assert futures.wait(BRIEF) is None
        before = [state.name for state in futures.states]
        gate.opened.set()
        return before, futures.result()

    assert in_flow(body, "thread") == (["Pending"] * 3, [0, 1, 2])


def test_the_futures_of_a_map_can_be_waited_for() -> None:
    """A map's list in wait_for waits for all of it."""

    def body() -> str:
        return same(1, wait_for=fail.map([ValueError("first")])).state.name

    assert in_flow(body) == "NotReady"


# -- the list of futures ---------------------------------------------------------------------------------------------


def test_the_list_waits_for_all_and_gives_their_states() -> None:
    """`wait` gives the final states in order, `states` the newest ones."""

    def body() -> Any:
        futures = same.map([1, 2])
        return futures.wait(), futures.states, type(futures)

    waited, states, kind = in_flow(body, "thread")

    assert [state.type for state in waited] == [StateType.COMPLETED] * 2
    assert states == waited
    assert kind is MappedFutures
    assert issubclass(kind, list)


def test_waiting_ends_with_the_time_given() -> None:
    """`wait` gives None and `result` raises when not all are done in time."""
    gate = Gate()

    def body() -> Any:
        futures = after.map(gate, [1, 2])
        assert futures.wait(timeout=BRIEF) is None
        with pytest.raises(TimeoutError, match=r"^2 of 2 task runs were not done within 0.05 second\(s\)$"):
            futures.result(timeout=BRIEF)
        gate.opened.set()
        return futures.result(timeout=PATIENCE)

    assert in_flow(body, "thread") == [1, 2]


def test_result_raises_the_first_failure_or_gives_exceptions_in_their_place() -> None:
    """The first in order that failed is raised; asked not to raise, each failure stands in its place."""

    @task
    def check(number: int) -> Any:
        if number % 2:
            return Failed(message=f"{number} is odd")
        return number

    def body() -> Any:
        futures = check.map([0, 1, 2, 3])
        with pytest.raises(RunFailedError, match="1 is odd"):
            futures.result()
        return futures.result(raise_on_failure=False)

    zero, one, two, three = in_flow(body)

    assert (zero, str(one), two, str(three)) == (0, "1 is odd", 2, "3 is odd")


def test_a_task_gets_the_list_as_plain_data() -> None:
    """Passed to a task, the futures of a map arrive as a list of data, an ordinary one."""

    def body() -> Any:
        kind = task(lambda data: (type(data), data), name="kind")
        return kind(same.map([1, 2])).result(), pickle.loads(pickle.dumps(same.map([])))

    (kind, data), empty = in_flow(body)

    assert (kind, data) == (list, [1, 2])
    assert type(empty) is list


def test_a_flow_may_return_the_list() -> None:
    """The flow's result has data in the place of the futures."""

    @flow
    def numbers() -> Any:
        return same.map([1, 2])

    state = numbers()

    assert state.result() == [1, 2]
    assert type(state.result()) is list


# -- lazy maps -------------------------------------------------------------------------------------------------------


class Source:
    """Items that say how many have been read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0
        self.reader = 0

    def __iter__(self) -> Iterator[int]:
        self.reader = threading.get_ident()
        for number in range(self.count):
            self.read = number + 1
            yield number


def test_a_generator_is_read_no_further_than_the_window() -> None:
    """While nothing ends, no more is read than the window takes; then the rest follows, in order."""
    gate, source = Gate(), Source(WINDOW + 500)
    watched: list[int] = []

    def body() -> Any:
        def open_when_still() -> None:
            assert gate.entered.wait(PATIENCE)
            while source.read < WINDOW:
                assert not still.wait(0.001)
            still.wait(BRIEF)  # would it go on?
            watched.append(source.read)
            gate.opened.set()

        still = threading.Event()
        watcher = threading.Thread(target=open_when_still)
        watcher.start()
        try:
            return after.map(gate, iter(source)).result()
        finally:
            watcher.join()

    assert in_flow(body, "thread") == list(range(source.count))
    assert watched == [WINDOW]
    assert source.reader == threading.get_ident()


def test_what_has_a_length_is_not_held_back() -> None:
    """A map over a list returns at once, however many items there are and whatever they wait for."""
    gate = Gate()

    def body() -> int:
        futures = after.map(gate, range(WINDOW + 200))
        gate.opened.set()
        return len(futures.result())

    assert in_flow(body, "thread") == WINDOW + 200


def test_an_item_does_not_wait_for_one_that_comes_late() -> None:
    """What has a length may be slow all the same: the runs of its first items go on while the next one is awaited."""
    go_on, ended = threading.Event(), threading.Event()

    class Slow:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            yield from (0, 1)
            go_on.set()
            yield 2 if ended.wait(PATIENCE) else -1

    @task
    def work(item: int) -> int:
        go_on.wait(PATIENCE)
        if item == 1:
            ended.set()
        return item

    futures = in_flow(lambda: work.map(Slow()).result(), ThreadExecutor(workers=1))

    assert futures == [0, 1, 2]


def test_an_endless_iterator_beside_a_finite_one_is_a_mismatch() -> None:
    """An iterator that goes on after the others have ended is told, not followed."""
    error, runs = ran(lambda: add.map([1, 2], itertools.count()))

    assert isinstance(error, MappingLengthMismatchError)
    assert error.lengths == {"x": "2", "y": "more than 2"}
    assert runs == 2


def test_a_lazy_map_of_many_items_goes_through() -> None:
    """A window filled and emptied many times neither loses nor repeats an item."""
    count = 5 * WINDOW

    assert in_flow(lambda: same.map(iter(range(count))).result(), "thread") == list(range(count))


# -- on every executor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_maps_are_recorded_as_groups_on_every_executor(executor: str) -> None:
    """Each map call has a number of its own and its runs their places; a call of its own has none."""

    @flow(executor=executor)
    def around() -> Any:
        firsts = add.map(iter([1, 2]), y=unmapped(10))
        same(0)
        return add.map(firsts, [100, allow_failure(fail(ValueError("allowed")))])

    with harness(None) as runs:
        state = around()
        found = [runs.task_run(f"add-{number}").run for number in range(4)]
        single = runs.task_run("same-0").run

    assert [(run.map_number, run.map_index) for run in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert single.map_number == 0
    assert found[2].upstreams == (found[0].id,)
    first, second = state.result(raise_on_failure=False)
    assert first.result() == 111
    assert second.message.startswith("Task run encountered an exception: TypeError")


def test_what_a_map_came_from_is_recorded_as_upstream() -> None:
    """Runs that were mapped from a future's data name its run, and what they were told to wait for."""

    @flow
    def around() -> None:
        add.map(same([1, 2]), wait_for=give())

    with harness() as runs:
        around()
        wanted = {runs.task_run(name).run.id for name in ("same-0", "give-0")}
        found = [set(runs.task_run(name).run.upstreams) for name in ("add-0", "add-1")]

    assert found == [wanted, wanted]

"""`task.map`: one task run for each item.

The iterables among the arguments are taken apart in step, everything else goes to every run as it is. What has a length
is measured before anything runs. What has none, such as a generator, is read as it is needed: while many runs are open,
the caller waits until some have ended.
"""

from __future__ import annotations

import io
import itertools
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

from localflow.arguments import Marker, Whole, allow_failure, find, is_atom, quote, unmapped
from localflow.batches import Batch
from localflow.errors import MappingLengthMismatchError, MappingMissingIterableError
from localflow.futures import TaskFuture, futures_in
from localflow.interrupts import NappingCondition
from localflow.large_values import LARGE_BYTES
from localflow.live import MOST_WAITING
from localflow.signatures import StandIn
from localflow.states import State
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Literal

    from localflow.active import ActiveFlow
    from localflow.inputs import KnownInputs
    from localflow.tasks import Task

R = TypeVar("R")

#: With so many open runs a map over something without a length waits, until there are only so many.
WINDOW, REFILL = 1_000, 750

_WHOLE = (str, bytes, bytearray, io.IOBase)
_AT_HAND = (list, tuple, range)
_NO_ITEM = object()


class MappedFutures(list[TaskFuture[R]], StandIn[R]):
    """The futures of a `map`, in the order of the items; passed to a task, it arrives as the list of their data."""

    @overload
    def wait(self, timeout: None = None) -> list[State]: ...
    @overload
    def wait(self, timeout: float | None) -> list[State] | None: ...
    def wait(self, timeout: float | None = None) -> list[State] | None:
        """Wait until all runs are done and return their states, or None if `timeout` seconds pass first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        states = []
        for future in self:
            state = future.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if state is None:
                return None
            states.append(state)
        return states

    @overload
    def result(self, timeout: float | None = None, raise_on_failure: Literal[True] = True) -> list[R]: ...
    @overload
    def result(self, timeout: float | None = None, *, raise_on_failure: bool) -> list[R | BaseException]: ...
    @overload
    def result(self, timeout: float | None, raise_on_failure: bool) -> list[R | BaseException]: ...
    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[Any]:
        """Wait until all runs are done and return the list of their data.

        Args:
            timeout: seconds to wait at most for all of them together.
            raise_on_failure: if false, the exceptions of runs that failed are in the list instead of raised.

        Raises:
            TimeoutError: not all runs were done in time.
            Exception: what `result` of the first future raises that did not complete.
        """
        states = self.wait(timeout)
        if states is None:
            left = sum(not future.done() for future in self)
            raise TimeoutError(f"{left} of {len(self)} task runs were not done within {timeout} second(s)")
        return [state.result(raise_on_failure) for state in states]

    @property
    def states(self) -> list[State]:
        """The newest recorded state of each run."""
        return [future.state for future in self]

    def __reduce__(self) -> Any:  # also used to copy it: with data in the place of futures it is a plain list
        return list, (list(self),)


class _Argument(NamedTuple):
    """An argument of a `map` call: either mapped over, or passed whole."""

    name: str
    value: object
    items: Iterator[Any] | None = None
    length: int | None = None
    """How many items there are; None where only reading them tells."""
    tolerant: bool = False
    """Whether it is in an `allow_failure`."""
    source: TaskFuture[Any] | State | None = None
    """Whose data it is."""
    missing: bool = False
    """Whether the source has no data."""
    at_hand: bool = False
    """Whether the items are there at once, whatever their class."""


class _Window:
    """Holds back who makes more runs while too many are open."""

    def __init__(self) -> None:
        self._changed = NappingCondition()
        self._open = 0

    def add(self, future: TaskFuture[Any]) -> None:
        """Count a run until it is done; if there are too many, wait."""
        if future._done:
            return
        with self._changed:
            self._open += 1
        if not future._watch(self):
            self.set()
        elif self._open >= WINDOW:
            future._hurry()
            with self._changed:
                self._changed.wait_for(lambda: self._open <= REFILL)

    def set(self) -> None:
        """Note that a run is done."""
        with self._changed:
            self._open -= 1
            if self._open == REFILL:
                self._changed.notify()


def map_task(
    active: ActiveFlow, task: Task[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any], wait_for: object
) -> MappedFutures[R]:
    """Make the task runs of a `map` call in the flow run `active`; see `Task.map`."""

    names = _names(args, kwargs, task.bind(args, kwargs))
    if wait_for is not None:
        futures_in(wait_for)  # what cannot be waited for is told before anything else
    number = active.next_map_number()
    given = [*args, *kwargs.values()]
    arguments: list[_Argument] = []
    for name, value in zip(names, given, strict=True):
        argument = _argument(name, value)
        if argument.missing and not argument.tolerant:
            # One run to say so; it need not wait for anything in the other arguments.
            quoted = [item if item is value else quote(item) for item in given]
            return MappedFutures([_call(Batch(active, task, number, wait_for), quoted, kwargs)])
        arguments.append(argument)

    mapped = [argument for argument in arguments if argument.items is not None]
    if not mapped:
        if not any(argument.missing for argument in arguments):
            raise MappingMissingIterableError(task.name, {item.name: _kind(item) for item in arguments})
        return MappedFutures([_call(Batch(active, task, number, wait_for), given, kwargs)])
    _check_lengths(task.name, mapped)
    sources = [argument.source for argument in mapped if argument.source is not None]
    if sources:  # they have completed; the record shall tell where the items come from
        wait_for = sources if wait_for is None else [wait_for, *sources]
    known = active.known_inputs([*(item.value for item in arguments if item.items is None), wait_for])
    if isinstance(wait_for, list):  # which might change
        known[id(fixed := tuple(wait_for))] = known[id(wait_for)]
        wait_for = fixed
    shares_memory = active.lane_of(task).executor.shares_memory
    arguments = [_seen_through(argument, known, shares_memory) for argument in arguments]
    at_hand = all(argument.at_hand for argument in mapped)
    batch = Batch(active, task, number, wait_for, known, MOST_WAITING if at_hand else 1)
    window = _Window() if any(argument.length is None for argument in mapped) else None
    futures: MappedFutures[R] = MappedFutures()
    try:
        for values in _values(task.name, arguments, mapped):
            future = _call(batch, values, kwargs)
            futures.append(future)
            if window is not None:
                window.add(future)
    finally:
        batch.flush()
    return futures


def _call(batch: Batch, values: Sequence[object], kwargs: Mapping[str, Any]) -> TaskFuture[Any]:
    """Make a run of the values of all arguments, of which the last ones go by name."""
    if not kwargs:
        return batch.call(tuple(values), kwargs)
    positional = len(values) - len(kwargs)
    return batch.call(tuple(values[:positional]), dict(zip(kwargs, values[positional:], strict=True)))


def _argument(name: str, value: object) -> _Argument:
    """Look at one argument; if it is the result of a run, wait for that."""
    held, tolerant = value, False
    while isinstance(held, Marker):
        if not isinstance(held, allow_failure):
            return _Argument(name, value)
        held, tolerant = held.value, True
    source = None
    if isinstance(held, (TaskFuture, State)):
        source = held
        state = held.wait() if isinstance(held, TaskFuture) else held
        assert state is not None  # no time was set
        try:
            if not state.is_completed():
                return _Argument(name, value, tolerant=tolerant, source=source, missing=True)
            held = state.result()
        except Exception:  # data that cannot be loaded is told by the run that it is passed to
            return _Argument(name, value, tolerant=tolerant, source=source, missing=True)
    if isinstance(held, _WHOLE):
        return _Argument(name, value)
    try:
        items = iter(held)  # type: ignore[call-overload]  # that is the question
    except TypeError:
        return _Argument(name, value)
    items = map(allow_failure, items) if tolerant else items
    return _Argument(name, value, items, _length(held), tolerant, source, at_hand=type(held) in _AT_HAND)


def _seen_through(argument: _Argument, known: KnownInputs, shares_memory: bool) -> _Argument:
    """Return an argument that goes to every run so that it is looked into, and sent elsewhere, once for all of them.

    What is small, and what holds something to be replaced, stays as it is.
    """
    value = argument.value
    if argument.items is not None or id(value) not in known or (shares_memory and type(value) is not unmapped):
        return argument
    bare = value.value if type(value) is unmapped else value
    if (is_atom(bare) and sys.getsizeof(bare) < LARGE_BYTES) or find(bare, (TaskFuture, State, Marker)):
        return argument
    whole = Whole(bare)
    known[id(whole)] = known[id(value)]
    return argument._replace(value=whole)


def _length(items: Any) -> int | None:
    try:
        return len(items)
    except (TypeError, OverflowError):
        return None


def _check_lengths(task: str, mapped: Iterable[_Argument]) -> None:
    """Raise MappingLengthMismatchError if the known lengths differ."""
    sized = [argument for argument in mapped if argument.length is not None]
    if len({argument.length for argument in sized}) > 1:
        raise MappingLengthMismatchError(task, {argument.name: f"{argument.length}" for argument in sized})


def _values(task: str, arguments: Sequence[_Argument], mapped: Sequence[_Argument]) -> Iterator[tuple[Any, ...]]:
    """Give the values of all arguments of each run in turn.

    Raises:
        MappingLengthMismatchError: an iterable has ended before another one.
    """
    if len(mapped) == 1:
        columns = [itertools.repeat(each.value) if each.items is None else each.items for each in arguments]
        return zip(*columns, strict=False)  # what is the same for all has no end
    return _in_step(task, arguments, mapped)


def _in_step(task: str, arguments: Sequence[_Argument], mapped: Sequence[_Argument]) -> Iterator[tuple[Any, ...]]:
    places = [place for place, argument in enumerate(arguments) if argument.items is not None]
    values = [argument.value for argument in arguments]
    iterators = [argument.items for argument in mapped if argument.items is not None]
    for made, items in enumerate(itertools.zip_longest(*iterators, fillvalue=_NO_ITEM)):
        if any(item is _NO_ITEM for item in items):
            lengths = {
                argument.name: f"{made}" if item is _NO_ITEM else f"more than {made}"
                for argument, item in zip(mapped, items, strict=True)
            }
            raise MappingLengthMismatchError(task, lengths, made)
        for place, item in zip(places, items, strict=True):
            values[place] = item
        yield tuple(values)


def _names(args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: Mapping[str, Any]) -> list[str]:
    """Return what the arguments of a call are called in messages."""
    parameters = list(bound.items())
    names = []
    for place, value in enumerate(args):
        name, taken = parameters[min(place, len(parameters) - 1)]
        names.append(name if taken is value else f"argument {place + 1}")
    return [*names, *kwargs]


def _kind(argument: _Argument) -> str:
    value = argument.value
    return f"{type(value).__name__}(...)" if isinstance(value, Marker) else type(value).__name__

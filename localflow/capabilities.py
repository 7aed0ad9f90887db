"""What executors, state stores and notifiers promise, by name: what all of a role must do, and what each may choose.

The contract suites of `localflow.testing` test each of these, `localflow plugins` lists what was chosen. A choice is
read off what the interface has anyway: an attribute such as `kills_on_timeout`, or a method that is not the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_type_hints

from localflow.interfaces import Executor, Notifier, StateStore
from localflow.typed import NamedTuple

#: Whether an object, or every object of a class, promises something; None if only an object can tell.
Choice: TypeAlias = Callable[[Any], bool | None]


class Capability(NamedTuple):
    """Something that is promised."""

    name: str
    promise: str
    """A sentence about the executor, state store or notifier, without its subject."""
    choice: Choice | None = None
    """Reads off an object or class whether it promises this; None if all of the role must."""

    @property
    def is_required(self) -> bool:
        """Whether all of the role must do it."""
        return self.choice is None

    def is_promised(self, subject: object) -> bool | None:
        """Return whether an object or a class promises this; None if a class leaves it to its objects."""
        return True if self.choice is None else self.choice(subject)


def _says(attribute: str) -> Choice:
    """Read an attribute; of a class it may be a property."""

    def read(subject: Any) -> bool | None:
        said = getattr(subject, attribute, None)
        return said if isinstance(said, bool) else None

    return read


def _has_own(method: str, interface: type, said: str = "") -> Choice:
    """Look whether a method is not the interface's default; what wraps another may say so by an attribute."""

    def read(subject: Any) -> bool | None:
        if said and hasattr(subject, said):
            return _says(said)(subject)
        kind = subject if isinstance(subject, type) else type(subject)
        return getattr(kind, method, None) is not getattr(interface, method)

    return read


def _gives(attribute: str, interface: type, *arguments: object) -> Choice:
    """Look whether a property, or a method with these arguments, gives something else than None."""

    def read(subject: Any) -> bool | None:
        if isinstance(subject, type):
            return None if _has_own(attribute, interface)(subject) else False
        given = getattr(subject, attribute)
        return (given(*arguments) if arguments else given) is not None

    return read


EXECUTOR = (
    Capability("calls", "Answers every call by one outcome; arguments and values come and go unchanged."),
    Capability("failures", "Whatever a task raises is that task's failure and harms nobody else."),
    Capability("context", "A call knows its run; what it sets or records is its own."),
    Capability("output", "What calls say comes back under each of them, whole and in order."),
    Capability("async", "Runs async functions and generators."),
    Capability("timeouts", "A call past its timeout is TimedOut, if only when it returns; waiting does not count."),
    Capability("lifecycle", "Starts again after shutdown, does not wait there, and leaves nothing behind."),
    Capability("shares_memory", "Calls see the engine's own objects.", _says("shares_memory")),
    Capability("runs_in_caller", "Runs calls in the thread that submits them.", _says("runs_in_caller")),
    Capability("kills_on_timeout", "Stops a running call at its timeout, code and all.", _says("kills_on_timeout")),
    Capability(
        "gives_up_late_calls",
        "Answers a call at its timeout although its code goes on.",
        _says("gives_up_late_calls"),
    ),
    Capability(
        "cancel", "Cancels calls that wait, and running ones if it can.", _has_own("cancel", Executor, "cancels")
    ),
    Capability(
        "async_capacity", "Runs async calls beside the others, many at once.", _gives("async_capacity", Executor)
    ),
    Capability(
        "isolates_crashes",
        "A task that kills its process is CRASHED and harms no other task.",
        _says("isolates_crashes"),
    ),
)

STATE_STORE = (
    Capability("records", "Gives back what was appended, any text, number and value."),
    Capability("atomic", "Adds a batch as a whole or not at all, and each state change once."),
    Capability("listing", "Lists flow runs by age, tree and whether they have ended."),
    Capability("choice", "Reads the records of some runs, and how task runs stand."),
    Capability("results", "Gives the result that a run has last completed with."),
    Capability("cache", "Finds the newest result of a cache key that is valid."),
    Capability("logs", "Gives back what runs have said, in order and from any position."),
    Capability("claims", "A flow run is claimed by one at a time."),
    Capability("threads", "Several threads of a process may use it at once."),
    Capability("closing", "May be closed twice, and refuses to work afterwards."),
    Capability("model", "Does what a plain model does, in whatever order it is asked."),
    Capability("survives", "What was appended is there for other openings, at once and later.", _says("survives")),
    Capability("processes", "Several processes may write it at once, and be killed meanwhile.", _says("survives")),
    Capability("liveness", "A claim ends with its process, however that dies.", _says("survives")),
    Capability("remove", "Removes runs or their results, and nothing else.", _has_own("remove", StateStore, "removes")),
    Capability("value_folder", "Keeps large values as files.", _gives("value_folder", StateStore, "root")),
)

NOTIFIER = (
    Capability("delivery", "Tells of every change it is told of, once and in order, by names and state."),
    Capability("discretion", "Keeps parameters, arguments and results to itself."),
    Capability("safe_text", "Passes on texts of users shortened and without what terminals act on."),
    Capability("lifecycle", "Works from any thread, and leaves nothing behind when it is closed."),
)

#: The capabilities of each role, in the order in which they are told.
CAPABILITIES: Mapping[str, tuple[Capability, ...]] = {
    "executor": EXECUTOR,
    "state store": STATE_STORE,
    "notifier": NOTIFIER,
}

_INTERFACES: Mapping[str, type] = {"executor": Executor, "state store": StateStore, "notifier": Notifier}


def role_of(subject: object) -> str:
    """Return the role of an executor, state store or notifier, or of such a class; raises TypeError."""
    kind = subject if isinstance(subject, type) else type(subject)
    for role, interface in _INTERFACES.items():
        if issubclass(kind, interface):
            return role
    raise TypeError(f"{kind.__name__} is no Executor, StateStore or Notifier")


def find_capability(role: str, name: str) -> Capability:
    """Return a capability of a role; raises LookupError."""
    for capability in CAPABILITIES[role]:
        if capability.name == name:
            return capability
    raise LookupError(
        f"'{name}' is no capability of the role '{role}'; known: {', '.join(one.name for one in CAPABILITIES[role])}"
    )


def chosen_by(subject: object) -> list[str]:
    """Return the names of the capabilities that an object or a class has chosen; with `?` what its objects decide."""
    found = []
    for capability in CAPABILITIES[role_of(subject)]:
        promised = capability.is_promised(subject)
        if not capability.is_required and promised is not False:
            found.append(capability.name if promised else f"{capability.name}?")
    return found


def made_by(factory: Callable[..., object]) -> type | None:
    """Return the class of what a factory makes; None for a function that says no more than the interface."""
    made: object = factory
    if not isinstance(factory, type):
        try:
            made = get_type_hints(factory).get("return")
        except Exception:  # a name that only type checkers know
            return None
    interfaces = tuple(_INTERFACES.values())
    return made if isinstance(made, type) and issubclass(made, interfaces) and made not in interfaces else None

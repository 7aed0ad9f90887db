"""Whether a call of another attempt of a flow is the call that it was before."""

from __future__ import annotations

from typing import Any

from localflow import arguments
from localflow.errors import NoFingerprintError
from localflow.futures import TaskFuture
from localflow.states import State


def unmarked(inputs: object) -> object:
    """Return arguments with markers replaced by what they hold: each attempt makes new ones."""
    return arguments.replace(inputs, (TaskFuture, State), lambda item: item)


def are_same(inputs: object, earlier: object) -> bool:
    """Return whether two calls have been made with the same arguments.

    A future is the same only if it is the very one: a completed run of an earlier attempt stands for itself. Of what
    cannot be compared, such as two connections to the same database, nobody knows that it is different, so it counts as
    the same.
    """
    if inputs is earlier:
        return True
    try:
        if bool(inputs == earlier):
            return True
    except Exception:  # such as arrays, which compare item by item
        pass
    if isinstance(inputs, (list, tuple)) and isinstance(earlier, (list, tuple)):
        return len(inputs) == len(earlier) and all(map(are_same, inputs, earlier))
    if isinstance(inputs, dict) and isinstance(earlier, dict):
        return inputs.keys() == earlier.keys() and all(are_same(inputs[key], earlier[key]) for key in inputs)
    if type(inputs) is not type(earlier) or _futures(inputs) or _futures(earlier):
        return False
    from localflow.fingerprints import Fingerprints  # which few flows need

    try:
        return Fingerprints().of(inputs) == Fingerprints().of(earlier)
    except NoFingerprintError:
        return True


def _futures(value: object) -> list[Any]:
    return arguments.find(value, (TaskFuture, State))

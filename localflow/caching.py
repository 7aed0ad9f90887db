"""Results that are used again instead of being computed again: policies, keys, and how a hit or a miss is told.

A key is made in the engine when a call is ready, so that it stands for data and not for futures. It always says which
task it is of; the policy says what else it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.errors import NoFingerprintError, NotCacheableError
from localflow.interrupts import STOPS
from localflow.payloads import type_name, unpack
from localflow.printable import shortened
from localflow.states import type_and_text
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from datetime import timedelta

    from localflow.calls import Call
    from localflow.fingerprints import Fingerprints
    from localflow.records import CachedResult, FlowRun

#: Called with the context of the task run and its parameters by name; returns the key, or None for no caching.
CacheKeyFunction: TypeAlias = Callable[[Any, dict[str, Any]], str | None]

_PARTS = ("INPUTS", "TASK_SOURCE", "RUN_ID", "FLOW_PARAMETERS")
_LONGEST_KEY = 200


class CachePolicy:
    """What a result depends on beside its task; `a + b` depends on both, `a - "name"` not on that argument."""

    __slots__ = ("parts", "without")

    def __init__(self, parts: frozenset[str], without: frozenset[str] = frozenset()) -> None:
        self.parts = parts
        self.without = without

    def __add__(self, other: CachePolicy) -> CachePolicy:
        if not isinstance(other, CachePolicy):
            return NotImplemented
        if not (self.parts and other.parts):
            return self if self.parts else other
        both_have_inputs = "INPUTS" in self.parts & other.parts  # then one of them may want what the other leaves out
        without = self.without & other.without if both_have_inputs else self.without | other.without
        return CachePolicy(self.parts | other.parts, without)

    def __sub__(self, argument: str) -> CachePolicy:
        if not isinstance(argument, str):
            raise TypeError(f"{self} - ... takes the name of an argument, not {argument!r}")
        return CachePolicy(self.parts, self.without | {argument}) if self.parts else self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CachePolicy):
            return NotImplemented
        return self.parts == other.parts and self.without == other.without

    def __hash__(self) -> int:
        return hash((self.parts, self.without))

    def __repr__(self) -> str:
        if not self.parts:
            return "NO_CACHE"
        total = " + ".join(part for part in _PARTS if part in self.parts)
        if not self.without:
            return total
        return " - ".join([f"({total})" if len(self.parts) > 1 else total, *map(repr, sorted(self.without))])


#: The arguments of the call.
INPUTS = CachePolicy(frozenset({"INPUTS"}))
#: The text and the code of the function; for one that travels by value, as in a script, also what it refers to there.
TASK_SOURCE = CachePolicy(frozenset({"TASK_SOURCE"}))
#: The flow run: a result is used again in the same run only.
RUN_ID = CachePolicy(frozenset({"RUN_ID"}))
#: The parameters of the flow run.
FLOW_PARAMETERS = CachePolicy(frozenset({"FLOW_PARAMETERS"}))
#: No caching.
NO_CACHE = CachePolicy(frozenset())


class Caching(NamedTuple):
    """The caching options of a task that has any."""

    policy: CachePolicy
    key_function: CacheKeyFunction | None = None
    """Makes the keys instead of the policy."""
    expiration: float | None = None
    """Seconds for which a result may be used; None for ever."""
    refresh: bool = False
    """Compute anew, whatever is there, and keep that."""

    def key(self, call: Call, context: object = None) -> str | None:
        """Return the key of a call, None if the task's `cache_key_fn` wants no caching for it.

        Runs code of the user's: the key function, and whatever takes part in pickling a value.

        Args:
            call: a call of the task that these options belong to, with data in the place of futures.
            context: what the task's `cache_key_fn` gets beside the parameters.

        Raises:
            NotCacheableError: no key can be made of it.
        """
        function: Any = call.function
        if not hasattr(function, "bind"):  # it only tells why the arguments could not be put together
            raise NotCacheableError("its arguments cannot be put together")
        parameters = function.bind(*_arguments(call))
        if self.key_function is not None:
            return _key_of_function(self.key_function, context, parameters)
        from localflow.fingerprints import Fingerprints

        prints = Fingerprints(self.policy.without)
        parts = self.policy.parts
        found: list[Any] = [function.name, _of_function(prints.of_definition, function.fn)]
        if "INPUTS" in parts:
            found.append(("inputs", self._named(prints, parameters, "argument")))
        if "TASK_SOURCE" in parts:
            found.append(("source", _of_function(prints.of_source, function.fn)))
        if "RUN_ID" in parts:
            found.append(("run", call.task_run.flow_run.id))
        if "FLOW_PARAMETERS" in parts:
            flow_parameters = _flow_parameters(call.task_run.flow_run)
            found.append(("flow", self._named(prints, flow_parameters, "parameter of the flow")))
        return prints.of(found).hex()

    def _named(self, prints: Fingerprints, values: Mapping[str, Any], what: str) -> dict[str, bytes]:
        """Return the fingerprints of values by name, without those that the policy leaves out."""
        found: dict[str, bytes] = {}
        for name, value in values.items():
            if name not in self.policy.without:
                try:
                    found[name] = prints.of(value)
                except NoFingerprintError as error:
                    raise NotCacheableError(
                        f"{what} '{name}' ({type_name(value)}) cannot be part of a cache key: {error}; "
                        f"leave it out with cache_policy={self.policy - name!r}"
                    ) from error
        return found


def make_caching(
    described: str,
    policy: CachePolicy | None,
    key_function: CacheKeyFunction | None,
    expiration: timedelta | float | None,
    refresh: bool | None,
) -> Caching | None:
    """Return the caching that the options of a decorator ask for, None for none.

    Raises:
        TypeError: an option is not what it should be; `described` says whose it is, as `@task 'add'`.
    """
    if policy is not None and not isinstance(policy, CachePolicy):
        hint = "; a function that makes keys is a cache_key_fn" if callable(policy) else ""
        raise TypeError(f"{described}: cache_policy takes {', '.join(_PARTS)}, a sum of these or NO_CACHE{hint}")
    if key_function is not None and not callable(key_function):
        raise TypeError(f"{described}: cache_key_fn takes a function (context, parameters), not {key_function!r}")
    if refresh is not None and not isinstance(refresh, bool):
        raise TypeError(f"{described}: refresh_cache takes True or False, not {refresh!r}")
    given: Any = expiration
    seconds = given.total_seconds() if hasattr(given, "total_seconds") else given
    if seconds is not None and not (_is_number(seconds) and math.isfinite(seconds) and seconds > 0):
        raise TypeError(f"{described}: cache_expiration takes a timedelta or seconds above 0, not {expiration!r}")
    if policy is None and key_function is None:
        if expiration is not None or refresh:
            option = "refresh_cache" if expiration is None else "cache_expiration"
            raise TypeError(
                f"{described}: {option} has no effect without a cache; give cache_policy=INPUTS, another policy, "
                "or NO_CACHE if there is to be none"
            )
        return None
    if key_function is None and policy == NO_CACHE:
        return None
    return Caching(policy or NO_CACHE, key_function, None if seconds is None else float(seconds), bool(refresh))


def hit_message(cached: CachedResult) -> str:
    """Return the message of a run that was answered by another run's result."""
    return f"used the result of task run '{cached.task_run}' of flow run '{cached.flow_run}'"


def miss_message(caching: Caching, key: str | None, error: NotCacheableError | None = None) -> str:
    """Return why a run is computed: `key` is what `caching.key()` returned, `error` what it raised instead."""
    if error is not None:
        return f"not cached: {error}"
    if key is None:
        return "not cached: its cache_key_fn returned None"
    if caching.refresh:
        return "not from the cache: refresh_cache is set"
    if caching.expiration is None:
        return "not from the cache: there is no result with its key"
    return "not from the cache: there is no result with its key, or it has expired"


def _arguments(call: Call) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    try:
        return call.unpacked_arguments() if call.holds_packed else (call.args, call.kwargs)
    except STOPS:
        raise
    except BaseException as error:  # unpickling runs code of the user's
        raise NotCacheableError(f"an argument cannot be unpickled: {type_and_text(error)}") from error


def _key_of_function(key_function: CacheKeyFunction, context: object, parameters: dict[str, Any]) -> str | None:
    try:
        key: object = key_function(context, parameters)
    except STOPS:
        raise
    except BaseException as error:
        raise NotCacheableError(f"its cache_key_fn raised {type_and_text(error)}") from error
    if key is None:
        return None
    if not isinstance(key, str) or not key:
        raise NotCacheableError(
            f"its cache_key_fn must return a text that is not empty, or None for no caching, not {_shown(key)}"
        )
    if len(key) <= _LONGEST_KEY and key.isprintable():
        return str(key)
    from localflow.fingerprints import Fingerprints

    return Fingerprints().of(str(key)).hex()  # a store or a terminal might choke on the text itself


def _of_function(fingerprint: Callable[[Callable[..., Any]], bytes], function: Callable[..., Any]) -> bytes:
    try:
        return fingerprint(function)
    except NoFingerprintError as error:
        raise NotCacheableError(
            f"its function cannot be part of a cache key: {error}; make that an argument and leave it out by its name, "
            "as with cache_policy=INPUTS - 'name'"
        ) from error


def _flow_parameters(flow_run: FlowRun) -> Mapping[str, Any]:
    """Return the flow's parameters as they were: the record has them for readers only, shortened and without types."""
    if flow_run.arguments is None:
        raise NotCacheableError(f"the parameters of flow run '{flow_run.name}' cannot be pickled")
    try:
        parameters: Mapping[str, Any] = unpack(flow_run.arguments)
    except STOPS:
        raise
    except BaseException as error:
        reason = f"the parameters of flow run '{flow_run.name}' cannot be unpickled: {type_and_text(error)}"
        raise NotCacheableError(reason) from error
    return parameters


def _shown(value: object) -> str:
    import reprlib

    return shortened(reprlib.repr(value), _LONGEST_KEY)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

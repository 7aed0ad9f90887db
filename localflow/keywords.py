"""What @task and @flow take: the names and types of their options, and the checks that both share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.callables import is_coroutine_function
from localflow.errors import suggestion
from localflow.states import StateType
from localflow.typed import TypedDict

if TYPE_CHECKING:
    from datetime import timedelta

    from localflow.caching import CacheKeyFunction, CachePolicy
    from localflow.interfaces import Executor
    from localflow.retries import RetryCondition, RetryDelay

#: Called with the task or flow, its run and the state that the run has entered.
Hook: TypeAlias = Callable[[Any, Any, Any], object]
#: A template such as `"load {name}"`, filled with the parameters, or a function that returns the name.
RunName: TypeAlias = str | Callable[..., str]

#: The option with the hooks for a state that a run enters.
HOOK_OF = {
    StateType.RUNNING: "on_running",
    StateType.COMPLETED: "on_completion",
    StateType.FAILED: "on_failure",
    StateType.CRASHED: "on_crashed",
    StateType.CANCELLED: "on_cancellation",
}


class Keywords(TypedDict, total=False):
    """What both take; `task` and `flow` say what each option means."""

    name: str | None
    description: str | None
    version: str | None
    executor: str | Executor | None
    retries: int | None
    retry_delay_seconds: RetryDelay | None
    timeout_seconds: float | None
    persist_result: bool | None
    log_prints: bool | None
    on_running: Sequence[Hook] | Hook | None
    on_completion: Sequence[Hook] | Hook | None
    on_failure: Sequence[Hook] | Hook | None
    on_crashed: Sequence[Hook] | Hook | None
    on_cancellation: Sequence[Hook] | Hook | None


class TaskKeywords(Keywords, total=False):
    """What @task takes."""

    tags: Iterable[str] | None
    retry_jitter_factor: float | None
    retry_condition_fn: RetryCondition | None
    retry_on_crash: bool | None
    cache_policy: CachePolicy | None
    cache_key_fn: CacheKeyFunction | None
    cache_expiration: timedelta | float | None
    refresh_cache: bool | None
    task_run_name: RunName | None
    priority: int | None


class FlowKeywords(Keywords, total=False):
    """What @flow takes."""

    flow_run_name: RunName | None
    validate_parameters: bool | None


def check_known(decorator: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise TypeError for an option that the decorator does not have."""
    names = list(known)
    for option in options:
        if option not in names:
            raise TypeError(
                f"@{decorator} has no option '{option}'{suggestion(option, names)}; it has {', '.join(names)}"
            )


def checked_seconds(described: str, option: str, value: Any) -> float | None:
    """Return seconds above 0, or None; raises TypeError."""
    if value is None:
        return None
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        raise TypeError(f"{described}: {option} takes seconds above 0, not {value!r}")
    return float(seconds)


def checked_priority(described: str, value: Any) -> int:
    """Return a whole number, 0 for None; raises TypeError."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{described}: priority takes a whole number, not {value!r}")
    return value


def checked_flag(described: str, option: str, value: Any) -> bool | None:
    """Return True, False or None; raises TypeError."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{described}: {option} takes True or False, not {value!r}")
    found: bool | None = value
    return found


def checked_hooks(described: str, options: Mapping[str, Any]) -> dict[str, tuple[Hook, ...]]:
    """Return the hooks of the options by their name; raises TypeError for what cannot be called."""
    hooks: dict[str, tuple[Hook, ...]] = {}
    for option in HOOK_OF.values():
        given = options.get(option)
        found = () if given is None else (given,) if callable(given) else given
        if not isinstance(found, (list, tuple)) or not all(callable(hook) for hook in found):
            raise TypeError(
                f"{described}: {option} takes a function (obj, run, state) or a list of these, not {given!r}"
            )
        if any(is_coroutine_function(hook) for hook in found):
            raise TypeError(f"{described}: {option} takes plain functions; an async hook would never be awaited")
        if found:
            hooks[option] = tuple(found)
    return hooks


def checked_run_name(described: str, option: str, value: Any) -> RunName | None:
    """Return a template or function for names of runs, or None; raises TypeError."""
    if value is not None and not (isinstance(value, str) and value) and not callable(value):
        raise TypeError(f"{described}: {option} takes a template such as 'load {{name}}' or a function, not {value!r}")
    found: RunName | None = value
    return found

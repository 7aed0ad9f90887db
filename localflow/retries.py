"""When a run that failed is tried again, and how long it waits before that. Pure but for the dice of the jitter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from localflow.callables import is_coroutine_function
from localflow.states import StateType
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from localflow.states import State

#: Seconds before each retry: one for all, one for each (the last serves for the rest), or what a function returns for
#: the number of retries.
RetryDelay: TypeAlias = float | Sequence[float] | Callable[[int], float | Sequence[float]]

#: Called with the task (or flow), its run and its failed state; a retry happens only if it returns something true.
RetryCondition: TypeAlias = Callable[[Any, Any, "State"], object]


class RetryPolicy(NamedTuple):
    """How often a task or flow is tried again, and when."""

    retries: int = 0
    delays: tuple[float, ...] = (0.0,)
    """Seconds before each retry; the last one serves for all later ones."""
    jitter_factor: float = 0.0
    condition: RetryCondition | None = None
    on_crash: bool = False
    """Whether a run whose worker died is tried again, too."""

    def wants(self, state: State, attempt: int) -> bool:
        """Return whether there is to be another attempt after this one, unless `condition` is against it."""
        if attempt > self.retries:
            return False
        return state.type is StateType.FAILED or (self.on_crash and state.type is StateType.CRASHED)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt, jitter included: never less than was asked for."""
        seconds = self.delays[min(attempt, len(self.delays)) - 1]
        if not self.jitter_factor:
            return seconds
        from random import random

        return seconds * (1 + self.jitter_factor * random())


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """Return a `retry_delay_seconds` that doubles from retry to retry, beginning with `backoff_factor` seconds.

    Raises:
        ValueError: the factor is negative or not finite.
    """
    if not (math.isfinite(backoff_factor) and backoff_factor >= 0):
        raise ValueError(f"exponential_backoff takes seconds from 0 on, not {backoff_factor!r}")

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**retry for retry in range(retries)]

    return delays


def retry_policy(
    described: str,
    retries: int | None,
    delay: RetryDelay | None,
    jitter_factor: float | None = None,
    condition: RetryCondition | None = None,
    on_crash: bool | None = None,
) -> RetryPolicy:
    """Return the policy of a decorator's options.

    Raises:
        TypeError, ValueError: an option is not what it should be; `described` says whose it is, as `@task 'add'`.
    """
    count = 0 if retries is None else retries
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise TypeError(f"{described}: retries takes a whole number from 0 on, not {retries!r}")
    given = delay(count) if callable(delay) else delay
    delays = tuple(given) if isinstance(given, (list, tuple)) else (0.0 if given is None else given,)
    if not all(_is_seconds(seconds) for seconds in delays):
        raise TypeError(
            f"{described}: retry_delay_seconds takes seconds from 0 on, a list of them, or a function that returns "
            f"these for the number of retries, not {given!r}"
        )
    if jitter_factor is not None and not _is_seconds(jitter_factor):
        raise TypeError(f"{described}: retry_jitter_factor takes a number from 0 on, not {jitter_factor!r}")
    if condition is not None and not callable(condition):
        raise TypeError(f"{described}: retry_condition_fn takes a function, not {condition!r}")
    if condition is not None and is_coroutine_function(condition):
        raise TypeError(f"{described}: retry_condition_fn takes a plain function; what an async one returns is true")
    if on_crash is not None and not isinstance(on_crash, bool):
        raise TypeError(f"{described}: retry_on_crash takes True or False, not {on_crash!r}")
    return RetryPolicy(count, delays or (0.0,), jitter_factor or 0.0, condition, bool(on_crash))


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0

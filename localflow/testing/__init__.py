"""For the tests of flows: `harness()`. For those of plugins: contract suites to subclass, and stubs to test with.

A flow's test runs it in a block, with states in memory and without files:

    with harness() as runs:
        assert my_flow(3).is_completed()
        assert runs.history("load-0") == ["Pending", "Running", "Completed"]

A plugin's test is a subclass and a fixture:

    from localflow.testing import NotifierContract

    class TestPigeonNotifier(NotifierContract):
        @pytest.fixture
        def notifier(self): return PigeonNotifier()

The contracts need pytest, the stubs do not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localflow.testing.executors import ExecutorContract
    from localflow.testing.faults import Dies, Fails, FailsAtRandom, Fault, Full, Hangs, Late, Loses, Repeats, Slow
    from localflow.testing.faulty_executor import FaultyExecutor
    from localflow.testing.faulty_store import FaultyStore
    from localflow.testing.harness import harness
    from localflow.testing.leaks import no_leaks
    from localflow.testing.notifiers import NotifierContract
    from localflow.testing.stores import StateStoreContract
    from localflow.testing.stubs import ManualExecutor, RecordingNotifier, make_change

__all__ = [
    "Dies",
    "ExecutorContract",
    "Fails",
    "FailsAtRandom",
    "Fault",
    "FaultyExecutor",
    "FaultyStore",
    "Full",
    "Hangs",
    "Late",
    "Loses",
    "ManualExecutor",
    "NotifierContract",
    "RecordingNotifier",
    "Repeats",
    "Slow",
    "StateStoreContract",
    "harness",
    "make_change",
    "no_leaks",
]

_LAZY = {
    "Dies": "localflow.testing.faults",
    "ExecutorContract": "localflow.testing.executors",
    "Fails": "localflow.testing.faults",
    "FailsAtRandom": "localflow.testing.faults",
    "Fault": "localflow.testing.faults",
    "FaultyExecutor": "localflow.testing.faulty_executor",
    "FaultyStore": "localflow.testing.faulty_store",
    "Full": "localflow.testing.faults",
    "Hangs": "localflow.testing.faults",
    "Late": "localflow.testing.faults",
    "Loses": "localflow.testing.faults",
    "ManualExecutor": "localflow.testing.stubs",
    "NotifierContract": "localflow.testing.notifiers",
    "RecordingNotifier": "localflow.testing.stubs",
    "Repeats": "localflow.testing.faults",
    "Slow": "localflow.testing.faults",
    "StateStoreContract": "localflow.testing.stores",
    "harness": "localflow.testing.harness",
    "make_change": "localflow.testing.stubs",
    "no_leaks": "localflow.testing.leaks",
}

# Without this pytest explains failing assertions in the tests of a plugin, but not in the contracts these inherit.
if (pytest := sys.modules.get("pytest")) is not None:
    contracts = (module for name, module in _LAZY.items() if name.endswith("Contract"))
    parts = (
        f"localflow.testing.store_{part}"
        for part in ("records", "round_trips", "results", "logs", "runs", "choice", "values", "processes", "model")
    )
    more = ("localflow.testing.outcomes", "localflow.testing.executor_choices")
    pytest.register_assert_rewrite(*more, *contracts, *parts)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'localflow.testing' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value

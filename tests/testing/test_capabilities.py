"""Every test of a contract belongs to a capability, every capability has tests, and what is not promised is skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.process import ProcessExecutor
from localflow.builtin.sequential import SequentialExecutor
from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.thread import ThreadExecutor
from localflow.capabilities import CAPABILITIES, chosen_by, find_capability, made_by, role_of
from localflow.interfaces import Executor, StateStore
from localflow.testing import ExecutorContract, NotifierContract, RecordingNotifier, StateStoreContract
from localflow.testing.promises import capability_of

CONTRACTS = {"executor": ExecutorContract, "state store": StateStoreContract, "notifier": NotifierContract}


@pytest.mark.parametrize("role", CONTRACTS)
def test_tests_and_capabilities_cover_each_other(role: str) -> None:
    """No test of a contract is without a capability of its role, and no capability is without a test."""
    contract = CONTRACTS[role]
    tests = {name: capability_of(getattr(contract, name)) for name in dir(contract) if name.startswith("test_")}

    assert set(tests.values()) == {capability.name for capability in CAPABILITIES[role]}
    assert "" not in tests.values()


@pytest.mark.parametrize(
    ("subject", "chosen"),
    [
        (SequentialExecutor(), ["shares_memory", "runs_in_caller"]),
        (ThreadExecutor(), ["shares_memory", "gives_up_late_calls", "cancel", "async_capacity"]),
        (ThreadExecutor, ["shares_memory", "gives_up_late_calls", "cancel", "async_capacity?"]),
        (ProcessExecutor(workers=2), ["kills_on_timeout", "cancel", "isolates_crashes"]),
        (MemoryStateStore(), ["remove"]),
        (SqliteStateStore, ["survives", "processes", "liveness", "remove", "value_folder?"]),
        (RecordingNotifier(), []),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_choices_are_read_off_the_interface(subject: object, chosen: list[str]) -> None:
    """Attributes and methods say what an object or a class has chosen; a question mark what options decide."""
    assert chosen_by(subject) == chosen


def test_the_class_that_a_factory_makes_is_known_if_it_says_so() -> None:
    """A class makes its own, a function what its annotation says, and some functions do not say."""

    def annotated() -> ThreadExecutor:
        return ThreadExecutor()

    def wrongly() -> int:
        return 1

    def vaguely() -> Executor:
        return ThreadExecutor()

    assert made_by(SequentialExecutor) is SequentialExecutor
    assert made_by(annotated) is ThreadExecutor
    assert [made_by(wrongly), made_by(vaguely), made_by(lambda: SequentialExecutor())] == [None] * 3


def test_mistakes_are_named() -> None:
    """A capability or an object of no role is a mistake that says what there is."""
    with pytest.raises(LookupError, match="'removes' is no capability of the role 'state store'; known: records, "):
        find_capability("state store", "removes")
    with pytest.raises(TypeError, match="int is no Executor, StateStore or Notifier"):
        role_of(3)


SUITE = """
    import pytest
    from localflow.interfaces import Executor
    from localflow.testing import ExecutorContract, StateStoreContract
    from localflow.builtin.sequential import SequentialExecutor
    from localflow.builtin.memory import MemoryStateStore

    class Modest(SequentialExecutor):
        runs_in_caller = False
        shares_memory = False

    class Forever(MemoryStateStore):
        remove = MemoryStateStore.__mro__[1].remove

    class TestModest(ExecutorContract):
        @pytest.fixture
        def executor(self): return Modest()

    class TestForever(StateStoreContract):
        @pytest.fixture
        def make_store(self): return Forever
"""


def run_suite(*arguments: str, without: str = "") -> str:
    """Run the suite of plugins that promise next to nothing and return what pytest prints."""
    Path("test_modest.py").write_text(textwrap.dedent(SUITE))
    block = f"import sys; sys.modules[{without!r}] = None\n" if without else "import sys\n"
    program = f"{block}import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "test_modest.py", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "error" not in done.stdout.splitlines()[-1], done.stdout
    return done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("suite", "role"),
    [
        ("Modest and (same or submitted or stopped or given_up or is_cancelled or worker or crash)", Executor),
        ("Forever", StateStore),
    ],
    ids=["executor", "state store"],
)
def test_what_is_not_promised_is_skipped_with_the_reason(suite: str, role: type) -> None:
    """Each choice that is not made has its tests skipped, which say whose choice of what it is."""
    printed = run_suite("-k", f"Test{suite}")

    reasons = set(re.findall(rf"{suite.split()[0]} does not promise (\w+): ", printed))
    choices = {capability.name for capability in CAPABILITIES[role_of(role)] if not capability.is_required}
    assert reasons == choices


@pytest.mark.timeout(120)
def test_without_hypothesis_the_model_is_skipped_with_the_reason() -> None:
    """Everything else of the contract runs, and the skip says what to install."""
    printed = run_suite("-k", "TestForever and (model or new_store)", without="hypothesis")

    assert "hypothesis is missing: pip install 'localflow-engine[testing]'" in printed
    assert "1 passed, 1 skipped" in printed

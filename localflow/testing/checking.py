"""Checks a plugin: runs the contract of its role on it and says of each capability whether the promise is held.

The contract runs in a process of its own, test by test. A test that does not end in time is ended with all that it has
started, and one that ends its process, as a plugin may that lets tasks crash, has failed; so has one that waits in vain
for an outcome. After any of these another process goes on with the other capabilities.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from localflow.capabilities import CAPABILITIES, Capability
from localflow.errors import LocalflowError, UsageError
from localflow.testing import checked
from localflow.testing.checked.subject import Order
from localflow.testing.leaks import MARK, kill_marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Verdict: TypeAlias = Literal["held", "broken", "not promised", "not checked"]

#: After so many tests that did not end in good order, each of another capability, the rest is not tried.
GIVE_UP_AFTER = 5
#: A test that fails after so many seconds has waited in vain, as others of its capability may.
VAIN_SECONDS = 10.0
_POLL_SECONDS = 0.05
_TAIL_BYTES = 4_000


class Failure(NamedTuple):
    """A test that failed."""

    sentence: str
    """What should have been."""
    reason: str


class Finding(NamedTuple):
    """What a check has found of a capability."""

    capability: Capability
    is_promised: bool
    verdict: Verdict
    passed: int
    """How many tests passed."""
    failures: Sequence[Failure]
    note: str = ""
    """Why it was not checked."""


class CheckError(LocalflowError):
    """A check cannot begin; the message says why."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code  # type: ignore[misc] # that of what went wrong in the other process
        super().__init__(message)


class ContractTest(NamedTuple):
    """A test of the contract."""

    id: str
    capability: str
    sentence: str


class _Lines:
    """What the processes of a check have reported."""

    def __init__(self) -> None:
        self.promises: Mapping[str, bool] = {}
        self.tests: dict[str, ContractTest] = {}
        self.outcomes: dict[str, list[tuple[str, str]]] = {}
        """Of each test the outcomes of its parts that say something, with reasons."""
        self.running = ""
        self.begun_at = 0.0
        self.abandoned: set[str] = set()
        """The capabilities that are broken in a way that costs too much to see twice."""
        self.error: tuple[str, int] | None = None

    def take(self, line: Mapping[str, Any]) -> None:
        """Take a line of the report."""
        if "error" in line:
            self.error = line["error"], line["code"]
        elif "promises" in line:
            self.promises = line["promises"]
        elif "tests" in line:
            self.tests = {test.id: test for test in (ContractTest(*fields) for fields in line["tests"])}
        elif "begun" in line:
            self.running = line["begun"]
            self.begun_at = time.monotonic()
            self.outcomes.setdefault(self.running, [])
        elif "ended" in line:
            self.running = ""
        else:
            self.outcomes.setdefault(line["test"], []).append((line["outcome"], line["reason"]))

    def break_running(self, reason: str) -> None:
        """Have the test that is running failed, and the rest of its capability left out."""
        self.outcomes[self.running].append(("failed", reason))
        self.abandon(self.running)
        self.running = ""

    def abandon(self, id: str) -> None:
        """Leave out the tests of the capability that this one is of."""
        self.abandoned.add(self.tests[id].capability)

    def done(self) -> tuple[str, ...]:
        """Return the ids of the tests that another process need not run."""
        return tuple(id for id, test in self.tests.items() if id in self.outcomes or test.capability in self.abandoned)

    def has_waited_in_vain(self) -> bool:
        """Return whether the test that is running has failed, and was long about it."""
        failed = "failed" in [outcome for outcome, _ in self.outcomes.get(self.running, ())]
        return failed and time.monotonic() - self.begun_at > VAIN_SECONDS


class Check:
    """The check of the executor, state store or notifier that a table or a plugin of some name makes."""

    def __init__(
        self,
        role: str,
        name: str,
        root: Path,
        options: Mapping[str, Any],
        timeout: float,
        tell: Callable[[ContractTest, str], None] = lambda test, outcome: None,
        only: Sequence[str] = (),
    ) -> None:
        """Prepare a check; nothing runs yet.

        Args:
            role: `executor`, `state store` or `notifier`.
            name: of a table, or the one that a plugin has registered.
            root: the folder whose settings count.
            options: values of options that go before those of the settings.
            timeout: seconds after which a test that has not ended is taken for hanging.
            tell: is called with each test that has ended, and `passed`, `failed` or `skipped`.
            only: names of the capabilities to check; all of them if there are none.
        """
        self._role, self._name, self._root, self._options = role, name, root, options
        self._timeout = timeout
        self._tell = tell
        self._capabilities = [each for each in CAPABILITIES[role] if each.name in only or not only]
        self._lines = _Lines()
        self._told: set[str] = set()
        self.output = ""
        """What pytest has printed, and the plugin besides."""

    def run(self) -> list[Finding]:
        """Run the contract and return what was found of each capability.

        Raises:
            UsageError: pytest is not installed.
            CheckError: the plugin cannot be made, or not be checked where it is.
        """
        if find_spec("pytest") is None:
            raise UsageError("a check needs pytest: pip install 'localflow-engine[testing]'")
        ended_badly = 0
        with tempfile.TemporaryDirectory(prefix="localflow-check-") as folder:
            while self._run_process(Path(folder), ended_badly):
                ended_badly += 1
                if ended_badly >= GIVE_UP_AFTER:
                    break
        return [self._finding(capability) for capability in self._capabilities]

    def _run_process(self, folder: Path, number: int) -> bool:
        """Run the tests that are left in a new process; return whether it ended before they did."""
        lines = self._lines
        order, report, output = folder / f"order-{number}", folder / f"report-{number}", folder / f"output-{number}"
        only = tuple(capability.name for capability in self._capabilities)
        Order(self._role, self._name, str(self._root), self._options, str(report), only, lines.done()).write(order)
        report.touch()
        mark = uuid.uuid4().hex
        with output.open("wb") as printed:
            process = subprocess.Popen(
                [*_command(self._role, folder), "--localflow-check", str(order)],
                cwd=folder,
                env=_environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ended = self._follow(process, report)
            finally:
                kill_marked(mark)
                process.wait()
        text = output.read_bytes().decode("utf-8", "replace")
        self.output += text
        if lines.error is not None:
            raise CheckError(*lines.error)
        if ended == "vain":
            return True
        if lines.running:
            lines.break_running(self._late() if ended == "late" else _ending(process.returncode))
            self._tell_ended()
            return True
        if ended == "late" or process.returncode not in (0, 1, 5) or not lines.promises:
            problem = self._late() if ended == "late" else "pytest failed"
            raise CheckError(f"{self._role} '{self._name}' cannot be checked: {problem}\n{text[-_TAIL_BYTES:]}", 1)
        return False

    def _late(self) -> str:
        return f"it did not end within {self._timeout:g} seconds"

    def _follow(self, process: subprocess.Popen[bytes], report: Path) -> Literal["itself", "late", "vain"]:
        """Take the lines of a report until its process has ended by itself, is late, or has waited in vain."""
        heard_at = time.monotonic()
        with report.open("rb") as file:
            rest = b""
            while True:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    has_ended = False
                else:
                    has_ended = True
                if data := file.read():
                    heard_at = time.monotonic()
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._lines.take(json.loads(line))
                        if self._lines.has_waited_in_vain():
                            self._lines.abandon(self._lines.running)
                            self._lines.running = ""
                            self._tell_ended()
                            return "vain"
                    self._tell_ended()
                if has_ended:
                    return "itself"
                if time.monotonic() - heard_at > self._timeout:
                    return "late"

    def _tell_ended(self) -> None:
        for id, outcomes in self._lines.outcomes.items():
            if id not in self._told and id != self._lines.running and outcomes:
                self._told.add(id)
                names = [outcome for outcome, _ in outcomes]
                self._tell(self._lines.tests[id], "failed" if "failed" in names else names[0])

    def _finding(self, capability: Capability) -> Finding:
        tests = [test for test in self._lines.tests.values() if test.capability == capability.name]
        is_promised = self._lines.promises[capability.name]
        passed, failures, notes = 0, [], []
        for test in tests:
            outcomes = self._lines.outcomes.get(test.id)
            if outcomes is None:
                notes.append(f"given up: {GIVE_UP_AFTER} tests of other capabilities did not end in good order")
                continue
            broken = [Failure(test.sentence, reason) for outcome, reason in outcomes if outcome == "failed"]
            failures += broken
            notes += [reason for outcome, reason in outcomes if outcome == "skipped"]
            passed += not broken and "passed" in [outcome for outcome, _ in outcomes]
        if failures:
            return Finding(capability, is_promised, "broken", passed, failures)
        if not is_promised:
            return Finding(capability, is_promised, "not promised", passed, ())
        if passed:
            return Finding(capability, is_promised, "held", passed, ())
        return Finding(capability, is_promised, "not checked", 0, (), notes[0] if notes else "there is no test of it")


def _command(role: str, folder: Path) -> list[str]:
    """Return the command that runs the contract of a role, free of whatever is set up for other tests."""
    assert checked.__file__ is not None
    module = Path(checked.__file__).with_name(f"{role.replace(' ', '_')}.py")
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n")
    plain = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-c", str(settings), f"--rootdir={folder}"]
    reporter = ["-p", "localflow.testing.checked.reporter"]
    return [sys.executable, "-m", "pytest", *plain, *reporter, f"--basetemp={folder / 'tests'}", str(module)]


def _environment(mark: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    local = ",".join(filter(None, ["127.0.0.1", os.environ.get("no_proxy") or os.environ.get("NO_PROXY")]))
    path = os.pathsep.join(filter(None, [str(Path(checked.__file__ or "").parents[3]), os.environ.get("PYTHONPATH")]))
    return {
        **environment,
        MARK: mark,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": path,
        "no_proxy": local,
        "NO_PROXY": local,
    }


def _ending(returncode: int) -> str:
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"it ended the process of the tests, by {how}"

"""Plugins that fail, hang, break the rules or their promises: told by name, and kept from doing harm."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import eventually
from tests.faults.distributions import site as site
from tests.faults.test_s_store import VERBS

if TYPE_CHECKING:
    from tests.faults.conftest import Place
    from tests.faults.distributions import Site

FLOW = """
@task
def work(number):
    note("worked", number)
    return number

@flow
def main():
    return sum(future.result() for future in [work(number) for number in range(3)])
"""

NOTIFIERS = """
import time
from localflow import hookimpl
from localflow.interfaces import Notifier

class Raising(Notifier):
    def notify(self, change): raise ValueError("boom")

class Fatal(Notifier):
    def notify(self, change): raise BaseException("deep")

class Exiting(Notifier):
    def notify(self, change): raise SystemExit(0)

class Hanging(Notifier):
    def notify(self, change): time.sleep(3600)

class Closing(Notifier):
    def notify(self, change): pass
    def close(self): time.sleep(3600)

class Writing(Notifier):
    def notify(self, change):
        with open("told", "a") as file:
            file.write(f"{change.run.name} {change.name}\\n")

@hookimpl
def localflow_register_notifiers(register):
    for each in (Raising, Fatal, Exiting, Hanging, Closing, Writing):
        register(each.__name__.lower(), each)
"""

TOLD = sorted(f"work-{number} {state}" for number in range(3) for state in ("Running", "Completed"))


def told(place: Place) -> list[str]:
    """Return what the notifier `writing` was told of the task runs."""
    return sorted(line for line in (place.folder / "told").read_text().splitlines() if line.startswith("work"))


# -- G1 --------------------------------------------------------------------------------------------------------------


def test_fault_G1_a_notifier_that_raises_harms_nobody(place: Place, site: Site) -> None:
    """Whatever it raises, it is told of once and counted; other notifiers are told all, the run ends as it would."""
    site.install("loud", NOTIFIERS)
    (place.folder / "localflow.toml").write_text(
        "[notifiers.raising]\n[notifiers.fatal]\n[notifiers.exiting]\n[notifiers.writing]\n"
    )

    done = place.localflow("run", place.write(FLOW))

    assert done.returncode == 0, done.stderr
    for failure in ("raising' failed: ValueError: boom", "fatal' failed: BaseException: deep", "exiting' failed: Syst"):
        assert done.stderr.count(failure) == 1
    assert told(place) == TOLD
    changes = len((place.folder / "told").read_text().splitlines())
    assert f"notifications: {3 * changes} failed" in done.stderr


EXECUTOR = """
from localflow import SequentialExecutor, hookimpl
from localflow.interfaces import Executor

class Odd(SequentialExecutor):
    runs_in_caller = False

    def __init__(self, place: str, error: str):
        super().__init__()
        self.place = place
        self.error = {"Exception": RuntimeError, "BaseException": BaseException, "exit": SystemExit}[error]

    @property
    def capacity(self):
        self.fail("capacity")
        return None

    def start(self, report):
        self.fail("start")
        super().start(report)

    def submit(self, calls):
        self.fail("submit")
        super().submit(calls)

    def shutdown(self):
        self.fail("shutdown")
        super().shutdown()

    def fail(self, place):
        if place == self.place:
            raise self.error("out of order")

@hookimpl
def localflow_register_executors(register):
    register("odd", Odd)
"""


@pytest.mark.parametrize(
    ("where", "error", "code"),
    [
        ("start", "Exception", 2),
        ("capacity", "exit", 4),
        ("submit", "BaseException", 1),
        ("submit", "exit", 1),
        ("shutdown", "exit", 0),
    ],
)
def test_fault_G1_an_executor_that_raises_is_named(place: Place, site: Site, where: str, error: str, code: int) -> None:
    """It cannot start: nothing runs. It fails at work: what it had is CRASHED or the run stops. Always it is named."""
    site.install("odd", EXECUTOR)
    (place.folder / "localflow.toml").write_text(
        f'executor = "odd"\n[executors.odd]\nplace = "{where}"\nerror = "{error}"\n'
    )

    done = place.localflow("run", place.write(FLOW))

    assert done.returncode == code, done.stderr
    assert "executor 'odd' (localflow_odd.Odd)" in done.stderr
    assert "out of order" in done.stderr
    assert len(place.notes) == (3 if where == "shutdown" else 0)
    if where == "submit":
        assert set(place.states().values()) == {("CRASHED", "Crashed")}


FACTORIES = """
from localflow import hookimpl

class Fatal(BaseException): ...

def fatal(): raise Fatal("deep")
def exits(): raise SystemExit(0)

@hookimpl
def localflow_register_{role}s(register):
    register("fatal", fatal)
    register("exits", exits)
"""


@pytest.mark.parametrize(
    ("role", "table", "code"),
    [("executor", "executor", 2), ("notifier", "notifiers.{}", 2), ("state_store", "store", 3)],
)
@pytest.mark.parametrize(("name", "reason"), [("fatal", "Fatal: deep"), ("exits", "SystemExit: 0")])
def test_fault_G1_a_plugin_that_cannot_be_made_is_named_with_its_distribution(
    place: Place, site: Site, role: str, table: str, code: int, name: str, reason: str
) -> None:
    """Whatever its factory raises, before anything runs."""
    site.install("acme", FACTORIES.format(role=role))
    toml = f"[{table.format(name)}]\n" if "{" in table else f'{table} = "{name}"\n'
    (place.folder / "localflow.toml").write_text(toml)

    done = place.localflow("run", place.write(FLOW))

    assert (done.returncode, done.stdout, place.notes) == (code, "", [])
    plugin = f"'{name}' of plugin 'acme' of distribution 'localflow-acme' 1.2 cannot be made: {reason}"
    assert done.stderr.rstrip().endswith(plugin)
    assert "Traceback" not in done.stderr


STORE = """
from localflow import hookimpl
from localflow.builtin.memory import MemoryStateStore

class Odd(MemoryStateStore):
    left = 4

    def append(self, records):
        self.left -= 1
        if self.left < 0:
            raise {error}("out of order")
        super().append(records)

@hookimpl
def localflow_register_state_stores(register):
    register("odd", Odd)
"""


SECRETIVE = """
from typing import Annotated
from localflow import hookimpl
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.sequential import SequentialExecutor
from localflow.interfaces import Notifier, Secret

class Runner(SequentialExecutor):
    def __init__(self, api_token: str):
        super().__init__()
        self.token = api_token

    def start(self, report):
        raise RuntimeError(f"no entry with {self.token}")

class Pigeon(Notifier):
    def __init__(self, hook: Annotated[str, Secret()]):
        self.hook = hook

    def notify(self, change):
        raise RuntimeError(f"cannot reach {self.hook}")

class Shelf(MemoryStateStore):
    def __init__(self, api_token: str):
        super().__init__()
        self.token = api_token

    def list_flow_runs(self, *arguments, **options):
        raise RuntimeError(f"401 for {self.token}")

    append = check = list_flow_runs

@hookimpl
def localflow_register_executors(register):
    register("runner", Runner)

@hookimpl
def localflow_register_state_stores(register):
    register("shelf", Shelf)

@hookimpl
def localflow_register_notifiers(register):
    register("pigeon", Pigeon)
"""


@pytest.mark.parametrize(
    ("table", "command", "code", "told"),
    [
        ("executor = 'runner'\n[executors.runner]\napi_token = 'env:TOKEN'", "run", 2, "no entry with ***"),
        (
            "[notifiers.pigeon]\nhook = 'env:TOKEN'",
            "run",
            0,
            "notifier 'pigeon' failed: RuntimeError: cannot reach ***",
        ),
        (
            "store = 'shelf'\n[stores.shelf]\napi_token = 'env:TOKEN'",
            "run",
            3,
            "failed in append: RuntimeError: 401 for ***",
        ),
        (
            "store = 'shelf'\n[stores.shelf]\napi_token = 'env:TOKEN'",
            "runs",
            3,
            "failed in list_flow_runs: RuntimeError",
        ),
        ("store = 'shelf'\n[stores.shelf]\napi_token = 'env:TOKEN'", "doctor", 3, "401 for ***"),
    ],
)
def test_fault_G1_what_a_plugin_says_at_work_tells_no_secret(
    place: Place, site: Site, table: str, command: str, code: int, told: str
) -> None:
    """What it was given as a secret is masked in its errors, wherever they are told, and the plugin is named."""
    site.install("secretive", SECRETIVE)
    (place.folder / "localflow.toml").write_text(table)
    arguments = [place.write(FLOW)] if command == "run" else []

    done = place.localflow(command, *arguments, TOKEN="hunter2")

    assert done.returncode == code, done.stderr
    assert told in done.stderr + done.stdout
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_fault_G1_a_store_that_raises_stops_the_run(place: Place, site: Site, error: str) -> None:
    """Whatever it raises, it has not recorded: nothing more starts, and the exit code says that it was the store."""
    site.install("odd", STORE.format(error=error))
    (place.folder / "localflow.toml").write_text('store = "odd"\n')

    done = place.localflow("run", place.write(FLOW))

    assert done.returncode == 3, done.stderr
    named = "state store 'odd' of plugin 'odd' of distribution 'localflow-odd' 1.2"
    assert f"error: {named} failed in append: {error}: out of order\n" in done.stderr
    assert "out of order" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(place.notes) < 3
    assert "Completed" not in done.stdout


# -- G2 --------------------------------------------------------------------------------------------------------------


def test_fault_G2_a_notifier_that_hangs_is_muted(place: Place, site: Site) -> None:
    """In a call or at its end: the run goes on meanwhile, and waits for all of them together one deadline at most."""
    site.install("loud", NOTIFIERS)
    (place.folder / "localflow.toml").write_text("[notifiers.hanging]\n[notifiers.closing]\n[notifiers.writing]\n")
    shorter = "import functools, localflow.notifications as n\n"
    shorter += "n.Notifications = functools.partial(n.Notifications, deadline=1.0)\n"
    begun = time.monotonic()

    done = place.localflow("run", place.write(FLOW + shorter))

    assert time.monotonic() - begun < 20
    assert done.returncode == 0, done.stderr
    assert re.search(r"notifier 'hanging' did not (return|finish) within 1 seconds", done.stderr)
    assert "notifier 'closing' did not finish within 1 seconds" in done.stderr
    assert re.search(r"notifications: \d+ failed", done.stderr)
    assert told(place) == TOLD


# -- G3 and G4 -------------------------------------------------------------------------------------------------------

RULES = {
    "misspelt": (
        "@hookimpl\ndef localflow_register_executor(register): ...",
        "'localflow_register_executor' is no hook of localflow; did you mean 'localflow_register_executors'?",
    ),
    "unmarked": (
        "def localflow_register_notifiers(register): ...",
        "'localflow_register_notifiers' is not marked as a hook; decorate it with @localflow.hookimpl",
    ),
    "argument": (
        "@hookimpl\ndef localflow_register_executors(registry): ...",
        "localflow_register_executors has an argument 'registry'; its only argument is 'register'",
    ),
    "later": (
        "localflow_api = 2\n@hookimpl\ndef localflow_register_executors(register): ...",
        "is made for plugin API 2, this localflow has 1; install versions that fit each other",
    ),
    "odd": (
        "localflow_api = 'one'\n@hookimpl\ndef localflow_register_executors(register): ...",
        "is made for plugin API 'one', this localflow has 1",
    ),
}


def test_fault_G3_plugins_that_break_the_rules_are_refused(place: Place, site: Site) -> None:
    """Before anything runs: all of them with distribution, version and the fix, though another one is selected."""
    for name, (source, _) in RULES.items():
        site.install(name, f"from localflow import hookimpl\n{source}\n")
    site.install("loud", NOTIFIERS)
    (place.folder / "localflow.toml").write_text("[notifiers.writing]\n")

    done = place.localflow("run", place.write(FLOW))

    assert (done.returncode, done.stdout, place.notes) == (2, "", [])
    for name, (_, message) in RULES.items():
        named = f"plugin '{name}' of distribution 'localflow-{name}' 1.2"
        assert sum(named in line and message in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_fault_G3_config_validate_finds_plugins_that_nobody_selects(place: Place, site: Site) -> None:
    """It imports every plugin, and so finds what would stop a later run."""
    site.install("rude", "def localflow_register_notifier(register): ...")

    done = place.localflow("config", "validate")

    assert done.returncode == 2
    assert "did you mean 'localflow_register_notifiers'?" in done.stderr


BROKEN = {
    "missing": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "no-python": ("def f(:", "SyntaxError: invalid syntax"),
    "exits": ("import sys; sys.exit(0)", "it called sys.exit(0)"),
    "deep": ("raise BaseException('deep')", "BaseException: deep"),
    "prints": ("print('hello'); 1 / 0", "ZeroDivisionError: division by zero"),
}


def test_fault_G4_configured_plugins_that_fail_are_named(place: Place, site: Site) -> None:
    """Nothing runs; for each the error says where it is asked for, whose it is, why it fails, and what to do."""
    for name, (source, _) in BROKEN.items():
        site.install(name, source)
    (place.folder / "localflow.toml").write_text("".join(f"[executors.{name}]\n" for name in BROKEN))

    done = place.localflow("run", place.write(FLOW))

    assert (done.returncode, place.notes, done.stdout) == (2, [], "")
    for line, (name, (_, reason)) in enumerate(BROKEN.items(), start=1):
        head = f"localflow.toml:{line}: [executors.{name}] plugin '{name}' of distribution 'localflow-{name}' failed"
        [told] = [each for each in done.stderr.splitlines() if each.startswith(head)]
        assert f"failed to load: {reason}" in told
        assert f"LOCALFLOW_DISABLE_PLUGINS={name}" in told
    assert "Traceback" not in done.stderr


def test_fault_G4_a_plugin_that_is_not_configured_is_never_imported(place: Place, site: Site) -> None:
    """Neither a run nor a reading verb runs its code; `localflow plugins` does, and says what is wrong."""
    site.install("acme", "open('imported', 'w').close(); import time; time.sleep(3600)")
    program = place.write(FLOW)
    (place.folder / "localflow.toml").write_text('executor = "thread"\n[executors.thread]\nworkers = 2\n')

    (place.folder / "verbs.py").write_text(VERBS)
    verbs = [f"run {program}", "runs", "show @last", "logs @last", "graph @last", "config show", "clean --keep-last 9"]

    done = place.run("verbs.py", *verbs, LOCALFLOW_EXECUTORS__PROCESS__WORKERS="1")

    assert done.stdout.count("\n-> 0\n") == len(verbs), done.stdout + done.stderr

    assert len(place.notes) == 3
    assert not (place.folder / "imported").exists()


def test_fault_G4_a_plugin_that_prints_keeps_off_standard_output(place: Place, site: Site) -> None:
    """What it prints when it is imported does not get among the data."""
    site.install("loud", "print('hello')\n" + NOTIFIERS)
    (place.folder / "localflow.toml").write_text("[notifiers.writing]\n")

    done = place.localflow("run", place.write(FLOW))

    assert done.returncode == 0
    assert "hello" in done.stderr.splitlines()
    assert done.stdout.splitlines() == ["State(name='Completed', type=StateType.COMPLETED)"]


# -- G7 --------------------------------------------------------------------------------------------------------------

UNRELIABLE = """
import threading
from localflow import ThreadExecutor, hookimpl

class Unreliable(ThreadExecutor):
    def __init__(self, loses: int = -1):
        super().__init__(workers=2)
        self.loses = loses

    def start(self, report):
        def tell(outcomes):
            for outcome in outcomes:
                if getattr(outcome, "state", None) is None:
                    report([outcome])
                elif outcome.state.type.value == "COMPLETED" and outcome.state.result() == self.loses:
                    open("lost", "w").close()
                else:
                    report([outcome])
                    twice = threading.Thread(target=report, args=([outcome, outcome, "nonsense"],))
                    twice.start()
                    twice.join()
                    report([outcome._replace(call_id=10_000)])
        super().start(tell)

@hookimpl
def localflow_register_executors(register):
    register("unreliable", Unreliable)
"""


def test_fault_G7_outcomes_that_come_twice_are_ignored(place: Place, site: Site) -> None:
    """Twice, of a call that never was, no outcome at all, from any thread: logged, and nothing else comes of it."""
    site.install("unreliable", UNRELIABLE)
    program = place.write("import logging\nlogging.basicConfig()\n" + FLOW)

    done = place.localflow("run", program, "--executor", "unreliable")

    assert done.returncode == 0, done.stderr
    assert sorted(place.notes) == ["worked 0", "worked 1", "worked 2"]
    assert "an executor reported call 10000, which it does not have; ignored" in done.stderr
    assert "an executor reported 'nonsense', which is not an Outcome with a State; ignored" in done.stderr
    for run in place.task_runs():
        assert [moment["name"] for moment in run["history"]] == ["Pending", "Running", "Completed"]


def test_fault_G7_a_lost_outcome_holds_up_no_other_and_the_run_can_be_stopped(place: Place, site: Site) -> None:
    """How long a call takes is known to its executor alone, so it is waited for; all others end, and so does Ctrl-C."""
    site.install("unreliable", UNRELIABLE)
    (place.folder / "localflow.toml").write_text(
        'executor = "unreliable"\n[executors.unreliable]\nloses = 1\n[notifiers.log]\non = []\n'
    )
    program = place.start("-m", "localflow", "run", place.write(FLOW))
    eventually(lambda: (place.folder / "lost").exists() and len(place.notes) == 3)
    eventually(lambda: [name for _, name in place.states().values()].count("Completed") == 2)

    program.kill(signal.SIGINT)
    done = program.wait()

    assert done.returncode == 130, done.stderr
    assert place.states() == {
        "work-0": ("COMPLETED", "Completed"),
        "work-1": ("CANCELLED", "Interrupted"),
        "work-2": ("COMPLETED", "Completed"),
    }


FAULTY = """
from localflow import hookimpl
from localflow.builtin.sqlite import SqliteStateStore
from localflow.testing import FaultyStore
from pathlib import Path

def faulty(path: Path = Path(".localflow/localflow.db"), rate: float = 0.0, after: float = 0.0, seed: int = 0):
    return FaultyStore(SqliteStateStore(path), rate, execute_and_fail=after, seed=seed)

@hookimpl
def localflow_register_state_stores(register):
    register("faulty", faulty)
"""


MANY = """
@task
def work(number):
    note("worked", number)
    return number

def shown(future):
    note("shown", future.result())

@flow
def main():
    for number in range(60):
        work(number).add_done_callback(shown)
"""


@pytest.mark.parametrize("kind", ["rate", "after"])
def test_fault_G7_a_store_that_fails_before_or_after_writing_is_never_believed(
    place: Place, site: Site, kind: str
) -> None:
    """Exit code 3; no task began whose start is not stored, none was shown that is not; resume runs the others."""
    site.install("faulty", FAULTY)
    program = place.write(MANY)
    settings = {
        "LOCALFLOW_STORE": "faulty",
        "LOCALFLOW_STORES__FAULTY__PATH": "state/store.db",
        "LOCALFLOW_STORES__FAULTY__SEED": "1",
    }

    done = place.localflow("run", program, **settings, **{f"LOCALFLOW_STORES__FAULTY__{kind.upper()}": "0.03"})

    assert done.returncode == 3, done.stderr
    assert f"fails on purpose: {'nothing' if kind == 'rate' else 'all'} of this was done" in done.stderr
    assert "Completed" not in done.stdout
    begun, completed = set(), set()
    for run in place.read("show", "@last", **settings)["task_runs"]:
        names = [moment["name"] for moment in run["history"]]
        begun |= {run["name"]} if "Running" in names else set()
        completed |= {run["name"]} if "Completed" in names else set()
    worked, shown = ({f"work-{line.split()[1]}" for line in place.notes if line.startswith(w)} for w in ("w", "s"))
    assert worked <= begun
    assert set() < shown <= completed

    resumed = place.localflow("resume", "@last", **settings)

    assert resumed.returncode == 0, resumed.stderr
    assert {place.counts[f"worked {name.partition('-')[2]}"] for name in completed} == {1}
    assert len({line for line in place.notes if line.startswith("worked")}) == 60

"""`localflow plugins check`: each promise of a plugin is held or broken, whatever the plugin does to the check."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.sqlite import SqliteStateStore
from localflow.testing.store_records import make_flow_run

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Cli

pytestmark = pytest.mark.timeout(120)

PLUGINS = '''
import os
import threading
from pathlib import Path

from localflow import hookimpl
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.process import ProcessExecutor
from localflow.builtin.sequential import SequentialExecutor
from localflow.builtin.sqlite import SqliteStateStore
from localflow.builtin.thread import ThreadExecutor
from localflow.interfaces import Executor, Notifier, StateStore
from localflow.testing import FaultyExecutor, Loses


class Boastful(SequentialExecutor):
    """Says that it survives crashes of tasks."""

    isolates_crashes = True


class Merciful(ThreadExecutor):
    """Says that it stops and cancels calls, and does neither."""

    kills_on_timeout = True

    def cancel(self, call_ids):
        pass


class Patient(SequentialExecutor):
    """Says that it does not wait for late calls."""

    gives_up_late_calls = True


class Distant(ProcessExecutor):
    """Says that it shares memory, and runs calls in its caller."""

    shares_memory = True
    runs_in_caller = True


class Stuck(ThreadExecutor):
    """Does not come back from `shutdown`."""

    def shutdown(self):
        threading.Event().wait()


def deaf() -> Executor:
    """Make one whose outcomes are lost."""
    return FaultyExecutor(ThreadExecutor(workers=2), outcome=Loses())


class Forgetful(MemoryStateStore):
    """Says that others can read what it keeps in memory."""

    survives = True


class Remote(SqliteStateStore):
    """Keeps its records at an address, of which nobody else knows that it is a path."""

    def __init__(self, url: str) -> None:
        super().__init__(Path(url))


class Eternal(Remote):
    """Cannot remove anything."""

    remove = StateStore.remove


class Talkative(Notifier):
    """Writes all it knows into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def notify(self, change):
        with self.path.open("a") as file:
            file.write(repr(change).replace("\\n", " ") + "\\n")


class Silent(Notifier):
    """Tells nobody."""

    def notify(self, change):
        pass


class Refusing(Notifier):
    """Does not tell, in the way that it was told to."""

    def __init__(self, how: str = "raise") -> None:
        self.how = how

    def notify(self, change):
        if self.how == "raise":
            raise ConnectionError("nobody there")
        if self.how == "exit":
            raise SystemExit(5)
        os._exit(7)


def broken() -> Executor:
    raise RuntimeError("no such device")


@hookimpl
def localflow_register_executors(register):
    register("boastful", Boastful)
    register("merciful", Merciful)
    register("patient", Patient)
    register("distant", Distant)
    register("stuck", Stuck)
    register("deaf", deaf)
    register("broken", broken)
    register("twin", Boastful)
    register("unimportable", "no_such_module:Executor")
    register("untold", lambda: SequentialExecutor())


@hookimpl
def localflow_register_state_stores(register):
    register("forgetful", Forgetful)
    register("remote", Remote)
    register("eternal", Eternal)
    register("twin", Forgetful)


@hookimpl
def localflow_register_notifiers(register):
    register("talkative", Talkative)
    register("silent", Silent)
    register("refusing", Refusing)
'''


@pytest.fixture
def cli(own_folder: Path) -> Cli:
    """Run `python -m localflow` in the test's folder; a check takes its time where others work as well."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "localflow", *arguments]
        variables = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, encoding="utf-8", env=variables, timeout=110, check=False)

    return run


@pytest.fixture
def dubious(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution with plugins that do not keep what they promise."""
    site = own_folder / "site"
    metadata = site / "dubious-0.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dubious\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text("[localflow]\ndubious = dubious_plugins\n")
    (site / "dubious_plugins.py").write_text(textwrap.dedent(PLUGINS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def verdicts(cli: Cli) -> Any:
    """Run a check; return its exit code, the verdict on each capability, and the failures of each."""

    def run(*arguments: str) -> tuple[int, dict[str, str], dict[str, list[dict[str, str]]]]:
        done = cli("plugins", "check", *arguments, "--json")
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)["capabilities"]
        verdict = {each["name"]: each["verdict"] for each in found}
        return done.returncode, verdict, {each["name"]: each["failures"] for each in found if each["failures"]}

    return run


# -- who keeps what they promise -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("sequential", {"shares_memory", "runs_in_caller"}),
        ("thread", {"shares_memory", "gives_up_late_calls", "cancel", "async_capacity"}),
        ("memory", {"remove"}),
        ("log", set()),
    ],
)
def test_a_builtin_holds_all_it_promises(verdicts: Any, name: str, promised: set[str]) -> None:
    """What is required and what is promised is held, the rest is not promised."""
    code, found, failures = verdicts(name)

    choices = {"shares_memory", "runs_in_caller", "kills_on_timeout", "gives_up_late_calls", "cancel", "async_capacity"}
    choices |= {"isolates_crashes", "survives", "processes", "liveness", "remove", "value_folder"}
    assert (code, failures) == (0, {})
    assert {each for each, verdict in found.items() if verdict == "not promised"} == (choices & found.keys()) - promised
    assert {verdict for each, verdict in found.items() if each not in choices - promised} == {"held"}


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("process", ["kills_on_timeout", "isolates_crashes"]),
        ("sqlite", ["liveness", "remove"]),
        ("json", ["processes"]),
    ],
)
def test_some_capabilities_are_checked_alone(verdicts: Any, name: str, capabilities: list[str]) -> None:
    """With `--only` nothing else is."""
    code, found, _ = verdicts(name, *(argument for each in capabilities for argument in ("--only", each)))

    assert (code, found) == (0, dict.fromkeys(capabilities, "held"))


@pytest.mark.parametrize(
    ("name", "option"),
    [("command", 'command=["{command}"]'), ("webhook", "url={http}")],
)
def test_a_notifier_delivers_to_the_check(verdicts: Any, name: str, option: str) -> None:
    """Placeholders in its options stand for places where the check sees what arrives."""
    code, found, _ = verdicts(name, "-o", option)

    assert (code, set(found.values())) == (0, {"held"})


def test_a_table_is_checked_with_its_options(verdicts: Any, own_folder: Path) -> None:
    """A name of localflow.toml stands for what its table makes; a pool of one is given two workers."""
    (own_folder / "localflow.toml").write_text('[executors.mine]\ntype = "thread"\nworkers = 1\n')

    code, found, _ = verdicts("mine", "--only", "timeouts", "--only", "cancel")

    assert (code, found) == (0, {"timeouts": "held", "cancel": "held"})


def test_a_store_of_the_settings_is_left_alone(cli: Cli, verdicts: Any, own_folder: Path) -> None:
    """The check of a store that is in use, wherever its path leads, neither reads it nor writes it."""
    place = own_folder / "kept" / "state.db"
    (own_folder / "localflow.toml").write_text(f'store = "mine"\n[stores.mine]\ntype = "sqlite"\npath = "{place}"\n')
    (own_folder / "hello.py").write_text("from localflow import flow\n@flow\ndef main(): pass\n")
    assert cli("run", "hello.py").returncode == 0
    before = cli("runs", "--json").stdout
    files = sorted(path.relative_to(own_folder) for path in own_folder.rglob("*"))

    code, found, _ = verdicts("mine", "--only", "listing")

    assert (code, found) == (0, {"listing": "held"})
    assert cli("runs", "--json").stdout == before
    assert sorted(path.relative_to(own_folder) for path in own_folder.rglob("*")) == files


def test_the_table_tells_every_verdict(cli: Cli) -> None:
    """Each capability has a line with its verdict and what it is about."""
    done = cli("plugins", "check", "sequential", "--only", "context", "--only", "cancel")

    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["CAPABILITY", "VERDICT", "TESTS"]
    assert lines[1][:6] == ["context", "promised", "&", "held", "4", "A"]
    assert lines[2][:4] == ["cancel", "not", "promised", "Cancels"]
    assert "checking executor 'sequential' of plugin 'builtin'" in done.stderr


# -- who does not ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dubious")
def test_a_plugin_that_ends_the_process_of_its_test(verdicts: Any) -> None:
    """It is told which test that was; what comes after it is checked all the same."""
    code, found, failures = verdicts("boastful", "--only", "isolates_crashes", "--only", "async", "--only", "lifecycle")

    assert code == 1
    assert found == {"async": "held", "lifecycle": "held", "isolates_crashes": "broken"}
    [failure] = failures["isolates_crashes"]
    assert failure["sentence"].startswith("A task that kills its process is CRASHED")
    assert failure["reason"] == "it ended the process of the tests, by exit code 0"


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("merciful", ["kills_on_timeout", "cancel"]),
        ("patient", ["gives_up_late_calls"]),
        ("distant", ["shares_memory", "runs_in_caller"]),
    ],
)
@pytest.mark.usefixtures("dubious")
def test_an_executor_that_declares_what_it_does_not_do(verdicts: Any, name: str, lies: list[str]) -> None:
    """Each declaration is held to what it means, and what is true beside it is held."""
    only = [argument for each in [*lies, "context"] for argument in ("--only", each)]

    code, found, _ = verdicts(name, *only)

    assert (code, found) == (1, {"context": "held"} | dict.fromkeys(lies, "broken"))


@pytest.mark.usefixtures("dubious")
def test_a_plugin_that_hangs_does_not_hang_the_check(cli: Cli) -> None:
    """A test that does not end in time is ended, and its sentence is told."""
    done = cli("plugins", "check", "stuck", "--only", "lifecycle", "--timeout", "4")

    assert done.returncode == 1
    assert "lifecycle   promised & broken" in done.stdout
    assert "lifecycle is broken: What was begun before the start serves the calls that come after it." in done.stdout
    assert "    it did not end within 4 seconds" in done.stdout


@pytest.mark.usefixtures("dubious")
def test_waiting_in_vain_is_not_done_again_and_again(verdicts: Any) -> None:
    """Of a capability that is broken by an outcome that never comes, no other test waits for one."""
    code, found, failures = verdicts("deaf", "--only", "context", "--timeout", "12")

    assert (code, found) == (1, {"context": "broken"})
    assert [failure["reason"] for failure in failures["context"]] == ["it did not end within 12 seconds"]


@pytest.mark.usefixtures("dubious")
def test_a_store_that_others_cannot_read(verdicts: Any) -> None:
    """What it says of other openings and processes is broken, what it does alone is held."""
    only = ("survives", "processes", "liveness", "results")
    code, found, failures = verdicts("forgetful", *(argument for each in only for argument in ("--only", each)))

    assert code == 1
    assert found == {"results": "held", "survives": "broken", "processes": "broken", "liveness": "broken"}
    assert "What `append` has returned from is there" in str(failures["survives"])


@pytest.mark.usefixtures("dubious")
def test_a_notifier_that_tells_too_much(verdicts: Any) -> None:
    """Values in what arrives break its discretion."""
    code, found, failures = verdicts("talkative", "-o", "path={file}")

    assert code == 1
    assert (found["delivery"], found["discretion"]) == ("held", "broken")
    assert failures["discretion"][0]["sentence"] == "Parameters, arguments and results stay in the store."


@pytest.mark.usefixtures("dubious")
def test_a_notifier_that_nobody_hears_is_not_called_good(verdicts: Any) -> None:
    """What needs a look at what arrives is not checked, and the check says so."""
    code, found, _ = verdicts("silent")

    assert (code, found["delivery"], found["lifecycle"]) == (0, "not checked", "held")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "notify raised ConnectionError: nobody there; have it deliver to the check by {http}, {file} or"),
        ("exit", "notify raised SystemExit: 5; have it deliver to the check by {http}, {file} or {command}"),
        ("die", "it ended the process of the tests, by exit code 7"),
    ],
)
@pytest.mark.usefixtures("dubious")
def test_a_notifier_that_does_not_tell_at_all(verdicts: Any, how: str, reason: str) -> None:
    """It is broken, each capability by itself, and why is told."""
    code, found, failures = verdicts("refusing", "-o", f"how={how}")

    assert (code, set(found.values())) == (1, {"broken"})
    assert reason in failures["delivery"][0]["reason"]


def test_a_notifier_that_reaches_nobody(cli: Cli) -> None:
    """There is a table as ever, and the next move beside it."""
    with closing(socket.socket()) as taken:  # bound, so nobody else answers there, but not listening
        taken.bind(("127.0.0.1", 0))

        done = cli("plugins", "check", "webhook", "-o", f"url=http://127.0.0.1:{taken.getsockname()[1]}/")

    assert done.returncode == 1, done.stderr
    assert "delivery    promised & broken" in done.stdout
    assert "Connection refused; have it deliver to the check by {http}" in done.stdout


@pytest.mark.usefixtures("dubious")
def test_a_store_without_files_of_its_own_is_emptied_after_each_test(verdicts: Any, own_folder: Path) -> None:
    """Every test of the contract finds it empty, and so does who comes after the check."""
    place = own_folder / "remote.db"

    code, found, _ = verdicts("remote", "-o", f'url="{place}"', "--only", "listing", "--only", "remove")

    assert (code, found) == (0, {"listing": "held", "remove": "held"})
    with closing(SqliteStateStore(place)) as store:
        assert store.list_flow_runs() == []


@pytest.mark.usefixtures("dubious")
def test_a_store_with_records_in_it_is_not_checked(cli: Cli, own_folder: Path) -> None:
    """Nobody's records are removed: the check asks for an empty store."""
    place = own_folder / "remote.db"
    with closing(SqliteStateStore(place)) as store:
        store.append([make_flow_run()])

    done = cli("plugins", "check", "remote", "-o", f'url="{place}"')

    assert done.returncode == 3
    assert "has flow runs in it, and a check would remove them; name an empty one by -o OPTION=VALUE" in done.stderr
    with closing(SqliteStateStore(place)) as store:
        assert len(store.list_flow_runs()) == 1


@pytest.mark.usefixtures("dubious")
def test_a_store_that_can_neither_be_moved_nor_emptied_is_not_checked(cli: Cli, own_folder: Path) -> None:
    """It says how such a store is tested."""
    done = cli("plugins", "check", "eternal", "-o", f'url="{own_folder / "eternal.db"}"')

    assert done.returncode == 2
    assert "check it by a subclass of StateStoreContract that gives each test a store of its own" in done.stderr


# -- what cannot be checked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sequentiel"], "unknown plugin 'sequentiel'; did you mean 'sequential'?"),
        (["command"], "[notifiers.command] missing required option 'command'; give it one: -o command="),
        (["webhook"], "missing required option 'url'; give it one: -o url={http}"),
        (["thread", "-o", "worker=2"], "unknown option 'worker'; did you mean 'workers'?"),
        (["thread", "-o", "workers"], "-o takes NAME=VALUE, not 'workers'"),
        (["thread", "--only", "removing"], "'removing' is no capability of the role 'executor'; known: calls, "),
        (["twin"], "'twin' is the name of several; say which by --role executor|store|notifier"),
        (["twin", "--role", "notifier"], "unknown notifier 'twin'"),
        (
            ["broken"],
            "executor 'broken' of plugin 'dubious' of distribution 'dubious' 0.3 cannot be made: RuntimeError: no such",
        ),
        (["unimportable"], "plugin 'dubious' of distribution 'dubious' failed to load: no_such_module:Executor: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("dubious")
def test_what_cannot_be_checked_is_told(cli: Cli, arguments: list[str], told: str) -> None:
    """An unknown name, a missing option or a factory that fails is exit code 2, with the next move."""
    done = cli("plugins", "check", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_without_pytest_it_says_what_to_install() -> None:
    """It is needed for checks alone."""
    program = "import sys; sys.modules['pytest'] = None\nfrom localflow.cli import main\nsys.exit(main())"

    done = subprocess.run(
        [sys.executable, "-c", program, "plugins", "check", "sequential"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 2
    assert "a check needs pytest: pip install 'localflow-engine[testing]'" in done.stderr


# -- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dubious")
def test_the_list_tells_what_is_promised_and_what_does_not_load(cli: Cli, read_json: Any) -> None:
    """Capabilities that are choices are listed by name, a factory that cannot be imported with the reason."""
    listing = {(each["role"], each["name"]): each for each in read_json("plugins")}
    table = cli("plugins")

    assert listing["executor", "boastful"]["capabilities"] == ["shares_memory", "runs_in_caller", "isolates_crashes"]
    assert listing["executor", "untold"]["capabilities"] is None
    assert "no_such_module" in listing["executor", "unimportable"]["problem"]
    assert "kills_on_timeout, cancel, isolates_crashes" in table.stdout
    [row] = [line for line in table.stdout.splitlines() if " unimportable " in line]
    assert "cannot be used: plugin 'dubious' of distribution 'dubious' failed to load: no_such_module:Executor: " in row

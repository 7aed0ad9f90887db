"""Settings against plugins: what a project finds wrong, makes and shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pytest

import localflow
from localflow.builtin.memory import MemoryStateStore
from localflow.errors import ConfigError, CorruptStoreError, LocalflowError, PluginError, StoreError, UnknownPluginError
from localflow.guarded_store import GuardedStore
from localflow.hookspecs import hookimpl
from localflow.interfaces import AtLeast, Executor, Notifier, Secret, StateType
from localflow.plugins import Plugins, Source
from localflow.project import Project, Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from localflow.interfaces import Call, Report, StateChange

FILE = Path("localflow.toml")
INSTALLED = "installed: absent, fragile, plain, pool"


class PlainExecutor(Executor):
    """An executor without options."""

    def start(self, report: Report) -> None:
        """Do nothing."""

    def submit(self, calls: Sequence[Call]) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Do nothing."""


class PoolExecutor(PlainExecutor):
    """An executor with options of all kinds."""

    def __init__(
        self,
        workers: Annotated[int, AtLeast(1)] | None = None,
        delay: Annotated[float, AtLeast(0)] = 0.5,
        mode: Literal["fast", "safe"] = "fast",
        names: list[str] | None = None,
        env: dict[str, str] | None = None,
        daemon: bool = False,
        folder: Path = Path("work"),
        initializer: str | Callable[[], None] | None = None,
    ) -> None:
        self.options = {key: value for key, value in locals().items() if key not in ("self", "__class__")}


class FileStore(MemoryStateStore):
    """A store with a path."""

    def __init__(self, path: Path = Path(".localflow/x.db"), password: str = "") -> None:
        self.path, self.password = path, password
        super().__init__()

    @property
    def location(self) -> str:
        """Return the path."""
        return str(self.path)


class HookNotifier(Notifier):
    """A notifier that must be told where."""

    made: list[HookNotifier]

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        token: str | None = None,
        more: Annotated[list[str] | None, Secret()] = None,
    ) -> None:
        self.url, self.headers, self.token, self.more = url, headers, token, more
        type(self).made.append(self)

    def notify(self, change: StateChange) -> None:
        """Do nothing."""


class LogNotifier(Notifier):
    """The notifier that is there by default."""

    def __init__(self, logger: str = "localflow") -> None:
        self.logger = logger

    def notify(self, change: StateChange) -> None:
        """Do nothing."""


def fragile(error: str = "", secret: str = "", url: str = "", strict: bool = False) -> object:
    """Raise what the options say."""
    kinds = {
        "value": ValueError(f"no such thing:\n  {secret} {url}"),
        "type": TypeError("wrong\tkind"),
        "os": OSError(5, "disk on fire"),
        "unicode": UnicodeError("garbled"),
        "store": CorruptStoreError("x.db", "no header"),
        "silent": ValueError(),
        "exit": SystemExit(3),
    }
    if error in kinds:
        raise kinds[error]
    return {}


class Stubs:
    """The stub plugins."""

    @hookimpl
    def localflow_register_executors(self, register: Callable[[str, object], None]) -> None:
        """Register the executors."""
        register("plain", PlainExecutor)
        register("pool", PoolExecutor)
        register("fragile", fragile)
        register("absent", "nowhere_to_import:Executor")

    @hookimpl
    def localflow_register_state_stores(self, register: Callable[[str, object], None]) -> None:
        """Register the stores."""
        register("file", FileStore)
        register("fragile", fragile)

    @hookimpl
    def localflow_register_notifiers(self, register: Callable[[str, object], None]) -> None:
        """Register the notifiers."""
        register("log", LogNotifier)
        register("hook", HookNotifier)
        register("fragile", fragile)


@pytest.fixture(autouse=True)
def made() -> list[HookNotifier]:
    """Return the notifiers that a test makes."""
    HookNotifier.made = []
    return HookNotifier.made


def stubs() -> Plugins:
    """Return the stub plugins."""
    plugins = Plugins()
    plugins.add(Stubs(), Source("stubs", "localflow-stubs", "1.0"))
    return plugins


def load(text: str = "", overrides: Mapping[str, object] | None = None, head: bool = True) -> Project:
    """Return the project with this localflow.toml, in which a plain executor and a file store are the choice."""
    FILE.write_text(('executor = "plain"\nstore = "file"\n' if head else "") + text)
    return Project.load(overrides=overrides, plugins=stubs())


def problems_of(text: str, overrides: Mapping[str, object] | None = None) -> list[str]:
    """Return what is wrong with a localflow.toml whose third line is the first of this text."""
    with pytest.raises(ConfigError) as raised:
        load(text, overrides)
    assert raised.value.exit_code == 2
    assert all(problem.isprintable() for problem in raised.value.problems)
    return list(raised.value.problems)


def options_of(project: Project, name: str = "pool") -> dict[str, object]:
    """Return the options with which an executor is made."""
    executor = project.make_executor(name)
    assert isinstance(executor, PoolExecutor)
    return executor.options


# -- what is wrong --


def test_misspelt_option_as_in_the_documentation() -> None:
    """A misspelt option is shown with file, line, table and the one that was meant."""
    assert problems_of("\n[executors.pool]\nworker = 8\n") == [
        "localflow.toml:5: [executors.pool] unknown option 'worker'; did you mean 'workers'?"
    ]


VALUES = {
    "string": ('"4"', '"4" (string)'),
    "integer": ("4", "4 (integer)"),
    "float": ("4.5", "4.5 (float)"),
    "boolean": ("true", "true (boolean)"),
    "infinity": ("inf", "inf (float)"),
    "not a number": ("nan", "nan (float)"),
    "endless": ("1e400", "inf (float)"),
    "65 bits": ("99999999999999999999", "an integer of 67 bits"),
    "date": ("1979-05-27", "1979-05-27 (date)"),
    "time": ("07:32:00", "07:32:00 (time)"),
    "date-time": ("1979-05-27T07:32:00Z", "1979-05-27 07:32:00+00:00 (date-time)"),
    "array": ('["a"]', "an array"),
    "table": ('{ A = "a" }', "a table"),
    "negative": ("-1", "-1 (integer)"),
    "zero": ("0", "0 (integer)"),
}
KEYS = {
    "workers": ("an integer >= 1", ["integer"]),
    "delay": ("a number >= 0", ["integer", "float", "zero"]),
    "mode": ('"fast" or "safe"', []),
    "names": ("an array of strings", ["array"]),
    "env": ("a table of strings", ["table"]),
    "daemon": ("true or false", ["boolean"]),
    "folder": ("a path", ["string"]),
    "initializer": ("a string", ["string"]),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", VALUES)
def test_every_kind_of_value_for_every_kind_of_option(key: str, kind: str) -> None:
    """What an option does not take is refused with what it takes and what was found; the rest is taken."""
    (text, shown), (expected, fitting) = VALUES[kind], KEYS[key]
    table = f"[executors.pool]\n{key} = {text}\n"

    if kind in fitting:
        options_of(load(table))
    else:
        assert problems_of(table) == [f"localflow.toml:4: [executors.pool] {key} must be {expected}, got {shown}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[executors.pol]",
            f"3: [executors.pol] unknown executor 'pol'; did you mean 'pool'?; {INSTALLED}; "
            "a table with a name of your own needs a 'type'",
        ),
        (
            "[stores.archive]\npath = 'x'",
            "3: [stores.archive] unknown state store 'archive'; installed: file, fragile; "
            "a table with a name of your own needs a 'type'",
        ),
        (
            "[executors.big]\nworkers = 1\ntype = 'pol'",
            f"5: [executors.big] unknown executor 'pol'; did you mean 'pool'?; {INSTALLED}",
        ),
        ("[executors.big]\ntype = 3", "4: [executors.big] type must be the name of a plugin, got 3 (integer)"),
        ("[executors.big]\ntype = ''", '4: [executors.big] type must be the name of a plugin, got "" (string)'),
        ("[executors.big]\ntype = []", "4: [executors.big] type must be the name of a plugin, got an array"),
        (
            "[executors.'a\\b']",
            f"3: [executors.\"a\\\\b\"] unknown executor 'a\\b'; {INSTALLED}; "
            "a table with a name of your own needs a 'type'",
        ),
        ("[executors.plain]\nworkers = 1", "4: [executors.plain] unknown option 'workers'; it has none"),
        ("[executors.big]\ntype = 'plain'\nx = 1", "5: [executors.big] unknown option 'x'; it has none"),
        ("[notifiers.hook]", "3: [notifiers.hook] missing required option 'url'"),
        ("[notifiers.ops]\ntype = 'hook'", "3: [notifiers.ops] missing required option 'url'"),
        (
            "[notifiers.ops]\ntype = 'hook'\nurl = 'env:OPS_URL'",
            "5: [notifiers.ops] url: environment variable OPS_URL is not set",
        ),
        (
            "[notifiers.log]\non = ['Failed', 'Failled']",
            "4: [notifiers.log] on names an unknown state 'Failled'; did you mean 'Failed'?",
        ),
        (
            "[notifiers.log]\non = ['FAILED']",
            "4: [notifiers.log] on names an unknown state 'FAILED'; did you mean 'Failed'?",
        ),
        (
            "[notifiers.log]\non = ['timedout']",
            "4: [notifiers.log] on names an unknown state 'timedout'; did you mean 'TimedOut'?",
        ),
        ("[notifiers.log]\non = ['x']", "4: [notifiers.log] on names an unknown state 'x'; known: Scheduled, Pending"),
        ("[notifiers.log]\non = 'Failed'", '4: [notifiers.log] on must be an array of strings, got "Failed" (string)'),
        ("[notifiers.log]\non = [1]", "4: [notifiers.log] on[0] must be a string, got 1 (integer)"),
        ("[notifiers.log]\nflows = 'x'", '4: [notifiers.log] flows must be an array of strings, got "x" (string)'),
        (
            "[notifiers.log]\nmin_duration = -1",
            "4: [notifiers.log] min_duration must be a number >= 0, got -1 (integer)",
        ),
        ("[notifiers.log]\nflow = ['x']", "4: [notifiers.log] unknown option 'flow'; did you mean 'flows'?"),
        ("[executors.pool]\non = ['Failed']", "4: [executors.pool] unknown option 'on'; "),
    ],
)
def test_mistakes_in_tables(text: str, problem: str) -> None:
    """Each mistake in a table is one line with the place and the fix."""
    (found,) = problems_of(text)

    assert found.startswith(f"localflow.toml:{problem}")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("executor = 'pol'", f"1: unknown executor 'pol'; did you mean 'pool'?; {INSTALLED}"),
        ("\nstore = 'flie'", "2: unknown state store 'flie'; did you mean 'file'?; installed: file, fragile"),
        (
            "executor = 'bg'\n[executors.big]\ntype = 'pool'",
            "1: unknown executor 'bg'; did you mean 'big'?; installed: absent, big, fragile, plain, pool",
        ),
    ],
)
def test_mistakes_in_choices(head: str, problem: str) -> None:
    """A choice that is neither a plugin nor a table is answered with both."""
    with pytest.raises(ConfigError) as raised:
        load(head, head=False)

    assert f"localflow.toml:{problem}" in raised.value.problems


def test_all_problems_at_once_in_the_order_of_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes in the frame and in the tables, in file, variables and flags are all in one error."""
    monkeypatch.setenv("LOCALFLOW_EXECUTORS__POOL__DELAY", "soon")
    monkeypatch.setenv("LOCALFLOW_NOTIFIERS__LOG__LOGER", "x")
    text = "[executors.pool]\nworker = 1\nfolder = 3\n[limits]\nx = 0\n[notifiers.hook]\n[stores.nope]\n"

    problems = problems_of(text, {"executor": "pol", "executors.pool.workers": 0, "executors.plain.workers": 4})

    assert problems == [
        "localflow.toml:4: [executors.pool] unknown option 'worker'; did you mean 'workers'?",
        "localflow.toml:5: [executors.pool] folder must be a path, got 3 (integer)",
        "localflow.toml:7: [limits] x must be an integer >= 1, got 0 (integer)",
        "localflow.toml:8: [notifiers.hook] missing required option 'url'",
        "localflow.toml:9: [stores.nope] unknown state store 'nope'; installed: file, fragile; "
        "a table with a name of your own needs a 'type'",
        'LOCALFLOW_EXECUTORS__POOL__DELAY: [executors.pool] delay must be a number >= 0, got "soon" (string)',
        "LOCALFLOW_NOTIFIERS__LOG__LOGER: [notifiers.log] unknown option 'loger'; did you mean 'logger'?",
        "-j: [executors.pool] workers must be an integer >= 1, got 0 (integer)",
        "-j: [executors.plain] unknown option 'workers'; it has none",
        "--executor: unknown executor 'pol'; did you mean 'pool'?; " + INSTALLED,
    ]


def test_mistake_of_a_table_stays_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable for one option does not take the blame for the table."""
    monkeypatch.setenv("LOCALFLOW_NOTIFIERS__HOOK__TOKEN", "x")

    assert problems_of("[notifiers.hook]\n") == ["localflow.toml:3: [notifiers.hook] missing required option 'url'"]


def test_pyproject_tables_have_their_whole_names() -> None:
    """In pyproject.toml the line and the table are those of pyproject.toml."""
    Path("pyproject.toml").write_text(
        "[tool.localflow]\nexecutor = 'plain'\nstore = 'file'\n[tool.localflow.executors.pool]\nworker = 1\n"
    )

    with pytest.raises(ConfigError) as raised:
        Project.load(plugins=stubs())

    assert str(raised.value) == (
        "pyproject.toml:5: [tool.localflow.executors.pool] unknown option 'worker'; did you mean 'workers'?"
    )


def test_broken_plugin_is_told_where_its_name_is_missing() -> None:
    """A plugin that failed to load is the likely reason for an unknown name, and is named with it."""
    plugins = stubs()
    plugins.add(object(), Source("ray", "localflow-ray", "1.0"))
    FILE.write_text('executor = "plain"\nstore = "file"\n[executors.ray]\n[executors.x]\ntype = "xyz"\n')

    with pytest.raises(ConfigError) as raised:
        Project.load(plugins=plugins)

    (first, second, third) = raised.value.problems
    assert first.startswith(
        "localflow.toml:3: [executors.ray] plugin 'ray' of distribution 'localflow-ray' failed to load"
    )
    assert first.endswith("set LOCALFLOW_DISABLE_PLUGINS=ray")
    assert second == f"localflow.toml:5: [executors.x] unknown executor 'xyz'; {INSTALLED}"
    assert third.startswith("plugin 'ray' of distribution 'localflow-ray' failed to load: ")


def test_broken_plugin_that_nobody_asks_for_is_no_matter() -> None:
    """A plugin that failed to load stops nothing else."""
    plugins = stubs()
    plugins.add(object(), Source("ray", "localflow-ray", "1.0"))
    FILE.write_text('executor = "plain"\nstore = "file"\n')

    assert Project.load(plugins=plugins).executor == "plain"


def test_plugin_that_breaks_the_rules_stops_the_project() -> None:
    """A misspelt hook is an error before anything runs."""

    class Rude:
        def localflow_register_executer(self) -> None: ...

    plugins = stubs()
    plugins.add(Rude(), Source("rude", "localflow-rude", "1.0"))

    with pytest.raises(PluginError, match="did you mean 'localflow_register_executors'"):
        Project.load(plugins=plugins)


def test_name_registered_twice_is_an_error_of_the_table() -> None:
    """Who configures a name that two plugins offer learns which two."""
    plugins = stubs()
    plugins.add(Stubs(), Source("copies", "localflow-copies", "2.0"))
    FILE.write_text('\nexecutor = "pool"\nstore = "file"\n')

    with pytest.raises(ConfigError) as raised:
        Project.load(plugins=plugins)

    assert raised.value.problems[0].startswith(
        "localflow.toml:2: executor 'pool' is registered by plugin 'stubs' of distribution 'localflow-stubs' 1.0 and "
    )


def test_only_what_is_configured_is_imported() -> None:
    """A factory that nobody selects is not imported; one that somebody selects must import."""
    load("[executors.pool]\nworkers = 1\n")

    (problem,) = problems_of("[executors.absent]\n")
    assert problem.startswith("localflow.toml:3: [executors.absent] plugin 'stubs' of distribution 'localflow-stubs'")
    assert "No module named 'nowhere_to_import'" in problem


# -- who wins --


@pytest.mark.parametrize(
    ("file", "variable", "flag", "value", "origin"),
    [
        (None, None, None, None, "default"),
        (1, None, None, 1, "localflow.toml:4"),
        (None, "2", None, 2, "LOCALFLOW_EXECUTORS__POOL__WORKERS"),
        (1, "2", None, 2, "LOCALFLOW_EXECUTORS__POOL__WORKERS"),
        (1, None, 3, 3, "-j"),
        (1, "2", 3, 3, "-j"),
    ],
)
def test_precedence(
    monkeypatch: pytest.MonkeyPatch,
    file: int | None,
    variable: str | None,
    flag: int | None,
    value: object,
    origin: str,
) -> None:
    """Defaults < file < environment < flags, and the origin tells which it was."""
    if variable:
        monkeypatch.setenv("LOCALFLOW_EXECUTORS__POOL__WORKERS", variable)
    overrides = {"executor": "pool"} | ({"executors.pool.workers": flag} if flag else {})

    project = load(f"[executors.pool]\nworkers = {file}\n" if file else "", overrides)

    assert options_of(project)["workers"] == value
    assert Shown("executors.pool.workers", value, origin) in project.show()


def test_text_of_a_variable_is_kept_where_text_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password of digits stays text."""
    monkeypatch.setenv("LOCALFLOW_STORES__FILE__PASSWORD", "0042")
    monkeypatch.setenv("LOCALFLOW_STORES__FILE__PATH", "2024")

    store = load().open_store()

    assert isinstance(store, GuardedStore)
    assert isinstance(store.guarded, FileStore)
    assert (store.guarded.password, store.guarded.path) == ("0042", Path.cwd() / "2024")


# -- what is made --


def test_several_instances_of_one_type() -> None:
    """Each table is an instance of its own, beside the one under the plugin's name."""
    project = load(
        "[executors.pool]\nworkers = 1\n[executors.big]\ntype = 'pool'\nworkers = 8\n[executors.small]\ntype = 'pool'\n"
    )

    assert options_of(project, "pool")["workers"] == 1
    assert options_of(project, "big")["workers"] == 8
    assert options_of(project, "small")["workers"] is None
    assert project.make_executor("big") is not project.make_executor("big")


class SlowToStart(PlainExecutor):
    """An executor that begins something before it starts."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def prepare(self) -> None:
        """Note it."""
        self.events = [*self.events, "prepare"]  # a list of its own, for there are copies

    def shutdown(self) -> None:
        """Note it."""
        self.events = [*self.events, "shutdown"]


def test_the_executor_that_was_prepared_is_the_one_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow run gets the executor that got ready for it, once; it is its own from then on."""
    project = load("")
    monkeypatch.setattr(project, "make_executor", lambda name: SlowToStart())

    with project.prepared("slow"):
        chosen, another = project.choose("slow"), project.choose("slow")

    assert isinstance(chosen, SlowToStart)
    assert isinstance(another, SlowToStart)
    assert chosen.events == ["prepare"]
    assert another.events == []


def test_an_executor_that_nobody_has_chosen_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a flow run comes to nothing, what had got ready for it ends."""
    project, made = load(""), SlowToStart()
    monkeypatch.setattr(project, "make_executor", lambda name: made)

    with pytest.raises(StoreError), project.prepared("slow"):
        raise StoreError("the store cannot be opened")

    assert made.events == ["prepare", "shutdown"]


def test_an_instance_gets_ready_itself() -> None:
    """Code that holds on to an executor looks at the one its flow runs on."""
    project, instance = load(""), SlowToStart()

    with project.prepared(instance):
        chosen = project.choose(instance)

    assert chosen is instance
    assert instance.events == ["prepare"]


def test_while_a_flow_run_has_an_instance_a_copy_of_it_gets_ready_for_another() -> None:
    """An instance at work is not touched, and its copies have its options only."""
    project, instance = load(""), SlowToStart()

    with project.prepared(instance):
        chosen = project.choose(instance)
        with project.prepared(instance):
            another = project.choose(instance)

    assert isinstance(another, SlowToStart)
    assert another is not chosen
    assert chosen is instance
    assert (instance.events, another.events) == (["prepare"], ["prepare"])


def test_an_instance_that_nobody_has_chosen_is_free_for_the_next_flow_run() -> None:
    """What had got ready ends, and the next flow run has the instance itself."""
    project, instance = load(""), SlowToStart()

    with pytest.raises(StoreError), project.prepared(instance):
        raise StoreError("the store cannot be opened")

    assert instance.events == ["prepare", "shutdown"]
    assert project.choose(instance) is instance


def test_options_arrive_as_their_annotations_say() -> None:
    """Every option reaches the factory by its name, converted."""
    project = load(
        "[executors.pool]\nworkers = 2\ndelay = 3\nmode = 'safe'\nnames = ['a']\nenv = { A = 'b' }\n"
        "daemon = true\nfolder = 'f'\ninitializer = 'm:f'\n"
    )

    assert options_of(project) == {
        "workers": 2,
        "delay": 3.0,
        "mode": "safe",
        "names": ["a"],
        "env": {"A": "b"},
        "daemon": True,
        "folder": Path.cwd() / "f",
        "initializer": "m:f",
    }


def test_paths_begin_at_the_root_wherever_the_user_stands() -> None:
    """The store of a project is one and the same from all of its folders, its default path too."""
    FILE.write_text("executor = 'plain'\nstore = 'file'\n[stores.other]\ntype = 'file'\npath = 'data/y.db'\n")
    root = Path.cwd()
    Path("a/b").mkdir(parents=True)
    os.chdir("a/b")

    project = Project.load(plugins=stubs())
    other = Project.load(overrides={"store": "other"}, plugins=stubs())

    assert project.root == root
    assert project.open_store().location == str(root / ".localflow/x.db")
    assert other.open_store().location == str(root / "data/y.db")


def test_executor_property_is_the_choice() -> None:
    """A flow that names no executor gets the configured one."""
    assert load().executor == "plain"
    assert load(overrides={"executor": "pool"}).executor == "pool"


def test_unknown_executor_of_a_flow_is_answered_with_plugins_and_tables() -> None:
    """A name given in code is looked up like one in the file."""
    project = load("[executors.big]\ntype = 'pool'\n")

    with pytest.raises(UnknownPluginError) as raised:
        project.make_executor("bgi")

    assert str(raised.value) == (
        "unknown executor 'bgi'; did you mean 'big'?; installed: absent, big, fragile, plain, pool"
    )


def test_notifiers_are_made_with_what_they_want_to_hear(
    made: list[HookNotifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of ours stay here, all others reach the factory."""
    monkeypatch.setenv("OPS_URL", "https://x")
    project = load(
        "[notifiers.ops]\ntype = 'hook'\nurl = 'env:OPS_URL'\nheaders = { A = 'b' }\n"
        "on = ['Crashed', 'TimedOut']\nflows = ['etl']\nmin_duration = 5\n[notifiers.log]\non = []\n"
    )

    notifications = project.make_notifications()

    (notifier,) = made
    assert (notifier.url, notifier.headers) == ("https://x", {"A": "b"})
    assert notifications.wants("Crashed", StateType.CRASHED)
    assert notifications.wants("TimedOut", StateType.FAILED)
    assert not notifications.wants("Failed", StateType.FAILED)


def test_log_is_there_by_default() -> None:
    """Without any table, failures, crashes and cancellations are logged."""
    notifications = load().make_notifications()

    assert notifications.wants("TimedOut", StateType.FAILED)
    assert notifications.wants("WorkerLost", StateType.CRASHED)
    assert notifications.wants("Cancelled", StateType.CANCELLED)
    assert not notifications.wants("Completed", StateType.COMPLETED)


@pytest.mark.parametrize(
    ("text", "failed", "completed"),
    [("logger = 'x'", True, False), ("on = ['Completed']", False, True), ("on = []", False, False)],
)
def test_table_of_log_changes_it(text: str, failed: bool, completed: bool) -> None:
    """[notifiers.log] changes what it says and leaves the rest; an empty list switches it off."""
    notifications = load(f"[notifiers.log]\n{text}\n").make_notifications()

    assert notifications.wants("Failed", StateType.FAILED) is failed
    assert notifications.wants("Completed", StateType.COMPLETED) is completed


def test_notifier_without_filters_hears_everything() -> None:
    """A notifier that asks for nothing special is told of every state."""
    notifications = load("[notifiers.hook]\nurl = 'x'\n").make_notifications()

    assert notifications.wants("Running", StateType.RUNNING)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        ("value", "no such thing: *** https://***@h/?***"),
        ("type", "wrong kind"),
        ("silent", "ValueError"),
    ],
)
def test_values_that_a_constructor_refuses(error: str, problem: str) -> None:
    """A ValueError or TypeError of the constructor is a mistake in its table, without any secret of it."""
    project = load(f"[executors.fragile]\nerror = '{error}'\nsecret = 'hush'\nurl = 'https://a:b@h/?c=d'\n")

    with pytest.raises(ConfigError) as raised:
        project.make_executor("fragile")

    assert raised.value.problems == (f"localflow.toml:3: [executors.fragile] {problem}",)
    assert "hush" not in repr(raised.value.__cause__)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("os", StoreError, "cannot be made: OSError: [Errno 5] disk on fire"),
        ("unicode", StoreError, "cannot be made: UnicodeError: garbled"),
        ("exit", StoreError, "cannot be made: SystemExit: 3"),
        ("store", CorruptStoreError, "x.db: no header; nothing was changed; run 'localflow doctor --repair'"),
        ("none", PluginError, "state store 'fragile': its factory made dict, which is not a StateStore"),
    ],
)
def test_stores_that_cannot_be_opened(error: str, kind: type[LocalflowError], message: str) -> None:
    """What keeps a store from opening is a StoreError, whatever its plugin raised."""
    project = load(f"[stores.fragile]\nerror = '{error}'\n", {"store": "fragile"})

    with pytest.raises(kind) as raised:
        project.open_store()

    assert message in str(raised.value)
    if message.startswith("cannot be made"):
        assert str(raised.value).startswith("state store 'fragile' of plugin 'stubs' of distribution '")


@pytest.mark.parametrize("section", ["executors", "notifiers"])
def test_plugins_that_fail_to_make_anything(section: str) -> None:
    """Other exceptions of a constructor are its plugin's, not the table's."""
    project = load(f"[{section}.fragile]\nerror = 'os'\n")

    with pytest.raises(PluginError, match=r"fragile' of plugin .* cannot be made: OSError: \[Errno 5\] disk on fire$"):
        project.make_executor("fragile") if section == "executors" else project.make_notifications()


def test_factories_must_make_what_they_are_registered_for() -> None:
    """An executor's factory makes executors."""
    with pytest.raises(PluginError, match="executor 'fragile': its factory made dict, which is not an Executor"):
        load().make_executor("fragile")


def test_class_with_missing_methods_is_named() -> None:
    """An incomplete class is the plugin's mistake, with the methods it lacks."""

    class Lazy(Executor):
        def start(self, report: Report) -> None: ...

    class Plugin:
        @hookimpl
        def localflow_register_executors(self, register: Callable[[str, object], None]) -> None:
            register("lazy", Lazy)

    plugins = stubs()
    plugins.add(Plugin(), Source("lazy", "localflow-lazy", "1.0"))
    FILE.write_text("store = 'file'\nexecutor = 'lazy'")

    with pytest.raises(
        PluginError,
        match=r"^executor 'lazy' of plugin 'lazy' .*: its class Lazy lacks shutdown, submit$",
    ):
        Project.load(plugins=plugins).make_executor("lazy")


def test_missing_options_of_a_plugin_used_without_a_table() -> None:
    """What is chosen needs its required options, too."""

    def needy(address: str) -> Executor:
        return PlainExecutor()

    class Plugin:
        @hookimpl
        def localflow_register_executors(self, register: Callable[[str, object], None]) -> None:
            register("needy", needy)

    plugins = stubs()
    plugins.add(Plugin(), Source("needy", "localflow-needy", "1.0"))
    FILE.write_text("executor = 'plain'\nstore = 'file'")

    with pytest.raises(ConfigError, match=r"^\[executors.needy\] missing required option 'address'$"):
        Project.load(plugins=plugins).make_executor("needy")
    with pytest.raises(ConfigError, match=r"^--executor: \[executors.needy\] missing required option 'address'$"):
        Project.load(overrides={"executor": "needy"}, plugins=plugins)


def test_loading_makes_nothing(tmp_path: Path) -> None:
    """A project is looked at without a trace."""
    load("[stores.file]\n[notifiers.hook]\nurl = 'x'\n")

    assert [path.name for path in tmp_path.iterdir()] == ["localflow.toml"]
    assert HookNotifier.made == []


# -- what is shown --


def test_everything_in_force_is_shown_with_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices, tables, limits, and the defaults of what is in use; of each where it comes from."""
    monkeypatch.setenv("LOCALFLOW_LIMITS__GPU", "2")
    project = load("[executors.big]\ntype = 'pool'\nworkers = 2\n[limits]\ndatabase = 1\n", {"executor": "big"})

    shown = {row.key: (row.value, row.origin) for row in project.show()}

    assert shown == {
        "executor": ("big", "--executor"),
        "store": ("file", "localflow.toml:2"),
        "executors.big.type": ("pool", "localflow.toml:4"),
        "executors.big.workers": (2, "localflow.toml:5"),
        "executors.big.delay": (0.5, "default"),
        "executors.big.mode": ("fast", "default"),
        "executors.big.names": (None, "default"),
        "executors.big.env": (None, "default"),
        "executors.big.daemon": (False, "default"),
        "executors.big.folder": ("work", "default"),
        "executors.big.initializer": (None, "default"),
        "stores.file.path": (".localflow/x.db", "default"),
        "stores.file.password": ("***", "default"),
        "notifiers.log.logger": ("localflow", "default"),
        "notifiers.log.on": (["Failed", "Crashed", "Cancelled"], "default"),
        "notifiers.log.flows": (None, "default"),
        "notifiers.log.min_duration": (0.0, "default"),
        "limits.database": (1, "localflow.toml:7"),
        "limits.gpu": (2, "LOCALFLOW_LIMITS__GPU"),
    }
    json.dumps(shown)


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is shown nor any representation holds a secret, wherever it comes from."""
    monkeypatch.setenv("HOOK", "https://canary-1")
    monkeypatch.setenv("LOCALFLOW_STORES__FILE__PASSWORD", "canary-2")
    project = load(
        "[notifiers.a]\ntype = 'hook'\nurl = 'env:HOOK'\ntoken = 'canary-3'\nheaders = { api_key = 'canary-4' }\n"
        "[notifiers.b]\ntype = 'hook'\nurl = 'https://canary-5:canary-6@host/path?canary-7#canary-8'\n"
        "headers = { Authorization = 'env:HOOK' }\nmore = ['https://host/canary-9']\n"
    )

    shown = {row.key: row.value for row in project.show()}

    assert "canary" not in repr([shown, project, project.settings, *project.settings.notifiers.values()])
    assert shown["notifiers.b.url"] == "https://***@host/path?***"
    assert shown["notifiers.a.headers"] == {"api_key": "***"}
    assert (shown["notifiers.a.more"], shown["notifiers.b.more"]) == (None, "***")


def test_secrets_are_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a secret of the wrong type is masked."""
    monkeypatch.setenv("HOOK", "canary-1")
    monkeypatch.setenv("LOCALFLOW_STORES__FILE__PASSWORD", '["canary-2"]')

    problems = problems_of(
        "[notifiers.a]\ntype = 'hook'\nurl = 'x'\ntoken = 3141\nheaders = { api_key = 2718 }\n"
        "[executors.pool]\nworkers = 'env:HOOK'\nmode = 'https://canary-3@x'\n"
    )

    assert len(problems) == 4
    assert not any(secret in "".join(problems) for secret in ("canary", "3141", "2718"))


# -- with the real plugins --


def test_real_defaults() -> None:
    """Without any settings: sequential, sqlite beneath the working directory, and a log of failures."""
    project = Project.load()

    shown = {row.key: row.value for row in project.show()}

    assert (shown["executor"], shown["store"]) == ("sequential", "sqlite")
    assert (shown["stores.sqlite.path"], shown["stores.sqlite.durability"]) == (".localflow/localflow.db", "process")
    assert shown["notifiers.log.on"] == ["Failed", "Crashed", "Cancelled"]
    assert isinstance(project.make_executor("thread"), Executor)


def test_example_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that the documentation shows are right."""
    monkeypatch.setenv("OPS_WEBHOOK_URL", "https://ops.example/hook")
    FILE.write_text(
        """
executor = "process"            # what a flow that names none gets
store = "sqlite"

[executors.process]             # options of a built-in, under its own name
workers = 8

[executors.big]                 # another instance under a name of yours
type = "process"
workers = 2

[stores.archive]
type = "json"
path = "runs"

[notifiers.ops]
type = "webhook"
url = "env:OPS_WEBHOOK_URL"
on = ["Failed", "Crashed"]

[limits]                        # at most n task runs with this tag at once, across all runs on this machine
database = 1
"""
    )

    project = Project.load()

    assert project.executor == "process"
    assert project.settings.limits == {"database": 1}
    assert isinstance(project.make_executor("big"), Executor)
    assert not project.make_notifications().wants("Completed", StateType.COMPLETED)


def test_misspelt_option_of_the_documentation() -> None:
    """The error that the documentation shows is the one that appears."""
    FILE.write_text('executor = "process"\nstore = "sqlite"\n\n[executors.process]\nworker = 8\n')

    with pytest.raises(ConfigError) as raised:
        Project.load()

    assert str(raised.value) == (
        "localflow.toml:5: [executors.process] unknown option 'worker'; did you mean 'workers'?"
    )


def test_loading_without_a_file_imports_little() -> None:
    """What has nothing to check is not imported."""
    program = (
        "import sys, localflow.project as p; p.Project.load();"
        "print([m for m in ('tomli', 'sqlite3', 'psutil', 'importlib.metadata', 'click', 'rich') if m in sys.modules])"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(localflow.__file__).parent.parent)}

    ran = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)

    assert (ran.stdout, ran.stderr) == ("[]\n", "")

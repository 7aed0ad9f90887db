"""Plugins as real modules, and as real distributions on `sys.path`."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import localflow
from localflow.builtin.log import LogNotifier
from localflow.errors import LocalflowError, PluginError, PluginLoadError, UnknownPluginError
from localflow.hookspecs import hookimpl
from localflow.plugins import Listed, Plugins, Source, installed_plugins
from localflow.version import DISTRIBUTION, __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Source("mine", "localflow-mine", "1.2")
MINE = "plugin 'mine' of distribution 'localflow-mine' 1.2"
HOOKS = "localflow_register_executors, localflow_register_state_stores, localflow_register_notifiers"
REPAIR = "repair or uninstall it, or set LOCALFLOW_DISABLE_PLUGINS="

GOOD = """
    from localflow import hookimpl
    @hookimpl
    def localflow_register_executors(register):
        register("{name}", dict)
"""


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules that a test has made."""
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def plugin(source: str) -> types.ModuleType:
    """Return a module with this source."""
    module = types.ModuleType("mine")
    exec(textwrap.dedent(source), module.__dict__)
    return module


def with_plugin(source: str | object) -> Plugins:
    """Return plugins with one of this source."""
    plugins = Plugins()
    plugins.add(plugin(source) if isinstance(source, str) else source, SOURCE)
    return plugins


def error_of(source: str | object) -> PluginError:
    """Return what stops everything because of this plugin."""
    with pytest.raises(PluginError) as raised:
        with_plugin(source).check()
    assert raised.value.exit_code == 2
    return raised.value


class Distributions:
    """A folder on `sys.path` into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = itertools.count()

    def install(self, name: str, source: str, version: str = "1.0", entry_point: str | None = None) -> None:
        """Install a distribution with a plugin of the same name, less its prefix."""
        number = next(self.numbers)
        module = re.sub(r"\W", "_", f"module_{number}_{self.folder.name}_{self.folder.parent.name}")
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        plugin = entry_point or f"{name.removeprefix('localflow-')} = {module}"
        (info / "entry_points.txt").write_text(f"[console_scripts]\nx = x:x\n\n[localflow]\n{plugin}\n")


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distributions:
    """Return a place to install distributions to."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Distributions(folder)


def run_python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that finds what is installed in the folder."""
    path = os.pathsep.join([str(folder), str(Path(localflow.__file__).parent.parent)])
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)


# -- built-ins --


def test_builtins_are_registered() -> None:
    """The built-ins come in by the hooks, under the names of the documentation."""
    plugins = Plugins.load()

    assert {"sequential", "thread", "process"} <= set(plugins.names("executor"))
    assert {"sqlite", "json", "memory"} <= set(plugins.names("state store"))
    assert {"log", "command", "webhook"} <= set(plugins.names("notifier"))
    assert plugins.get_factory("notifier", "log") is LogNotifier


def test_loading_imports_no_builtin() -> None:
    """Dotted names are enough: nothing heavy is imported before somebody asks for it."""
    ran = run_python(
        """
        import sys
        from localflow.plugins import installed_plugins
        assert "localflow.builtin" not in sys.modules, "loaded at import"
        installed_plugins()
        print(sorted(name for name in sys.modules if name.startswith("localflow.builtin.")))
        print([name for name in ("importlib.metadata", "sqlite3", "asyncio", "click", "rich") if name in sys.modules])
        """,
        Path(),
    )

    assert ran.stderr == ""
    assert ran.stdout == "[]\n[]\n"


def test_plugins_are_loaded_once() -> None:
    """Every part of a process sees the same plugins."""
    assert installed_plugins() is installed_plugins()


# -- looking up --


def test_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    """A misspelt name comes with a suggestion and a list of what is installed."""
    plugins = with_plugin(GOOD.format(name="dask"))

    with pytest.raises(UnknownPluginError) as raised:
        plugins.get_factory("executor", "dusk")

    assert str(raised.value) == "unknown executor 'dusk'; did you mean 'dask'?; installed: dask"
    assert (raised.value.role, raised.value.name, raised.value.installed) == ("executor", "dusk", ("dask",))


def test_names_belong_to_their_role() -> None:
    """An executor is no state store."""
    plugins = with_plugin(GOOD.format(name="dask"))

    assert plugins.get_factory("executor", "dask") is dict
    with pytest.raises(UnknownPluginError, match=r"^unknown state store 'dask'; installed: $"):
        plugins.get_factory("state store", "dask")


def test_strange_names_stay_on_one_line() -> None:
    """A name with control characters does no harm to the terminal."""
    with pytest.raises(UnknownPluginError, match=r"^unknown executor 'a\\nb\\x1b'; installed: $"):
        Plugins().get_factory("executor", "a\nb\x1b")


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("nowhere:Thing", "nowhere:Thing: ModuleNotFoundError: No module named 'nowhere'"),
        ("math:Thing", "math:Thing: AttributeError: module 'math' has no attribute 'Thing'"),
        ("math:pi", "math:pi: TypeError: pi is not callable"),
    ],
)
def test_factory_that_cannot_be_imported(factory: str, reason: str) -> None:
    """A factory given by name fails when it is asked for, naming its plugin."""
    plugins = with_plugin(GOOD.replace("dict", repr(factory)).format(name="dask"))

    plugins.check()
    with pytest.raises(PluginLoadError) as raised:
        plugins.get_factory("executor", "dask")

    assert str(raised.value) == (
        f"plugin 'mine' of distribution 'localflow-mine' failed to load: {reason}; {REPAIR}mine"
    )
    assert raised.value.__cause__ is not None


def test_factory_by_name_is_imported_when_asked_for(distributions: Distributions) -> None:
    """A name may lead to an attribute of an attribute."""
    plugins = with_plugin(GOOD.replace("dict", "'pathlib:Path.home'").format(name="dask"))

    assert plugins.get_factory("executor", "dask") == Path.home


# -- rules --


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            """
            @hookimpl
            def localflow_register_executor(register): ...
            """,
            f"{MINE}: 'localflow_register_executor' is no hook of localflow; "
            "did you mean 'localflow_register_executors'?",
            id="misspelt",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_stores(register): ...
            """,
            f"{MINE}: 'localflow_register_stores' is no hook of localflow; "
            "did you mean 'localflow_register_state_stores'?",
            id="half-remembered",
        ),
        pytest.param(
            """
            def localflow_register_notifier(register): ...
            """,
            f"{MINE}: 'localflow_register_notifier' is no hook of localflow; "
            "did you mean 'localflow_register_notifiers'?",
            id="misspelt-and-unmarked",
        ),
        pytest.param(
            """
            @hookimpl
            def register_executors(register): ...
            """,
            f"{MINE}: 'register_executors' is no hook of localflow; did you mean 'localflow_register_executors'?",
            id="without-the-prefix",
        ),
        pytest.param(
            """
            @hookimpl
            def zzz(register): ...
            """,
            f"{MINE}: 'zzz' is no hook of localflow; the hooks are {HOOKS}",
            id="like-no-hook",
        ),
        pytest.param(
            """
            @hookimpl(specname="localflow_register_executor")
            def anything(register): ...
            """,
            f"{MINE}: 'localflow_register_executor' is no hook of localflow; "
            "did you mean 'localflow_register_executors'?",
            id="misspelt-specname",
        ),
        pytest.param(
            """
            def localflow_register_executors(register): ...
            """,
            f"{MINE}: 'localflow_register_executors' is not marked as a hook; decorate it with @localflow.hookimpl",
            id="unmarked",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(registry): ...
            """,
            f"{MINE}: localflow_register_executors has an argument 'registry'; its only argument is 'register'",
            id="misspelt-argument",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register, config): ...
            """,
            f"{MINE}: localflow_register_executors has an argument 'config'; its only argument is 'register'",
            id="one-argument-too-many",
        ),
        pytest.param(
            """
            localflow_api = 2
            @hookimpl
            def localflow_from_the_future(register): ...
            """,
            f"{MINE} is made for plugin API 2, this localflow has 1; "
            "install versions that fit each other, or set LOCALFLOW_DISABLE_PLUGINS=mine",
            id="api-of-the-future",
        ),
        pytest.param(
            """
            localflow_api = "1"
            """,
            f"{MINE} is made for plugin API '1', this localflow has 1; "
            "install versions that fit each other, or set LOCALFLOW_DISABLE_PLUGINS=mine",
            id="api-as-text",
        ),
        pytest.param(
            """
            localflow_api = True
            """,
            f"{MINE} is made for plugin API True, this localflow has 1; "
            "install versions that fit each other, or set LOCALFLOW_DISABLE_PLUGINS=mine",
            id="api-as-truth",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register):
                register("", dict)
            """,
            f"{MINE}: localflow_register_executors registers the name ''; a name has letters, digits, - and _ only",
            id="empty-name",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register):
                register("a.b\\n", dict)
            """,
            f"{MINE}: localflow_register_executors registers the name 'a.b\\n'; "
            "a name has letters, digits, - and _ only",
            id="strange-name",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register):
                register(dict, "x")
            """,
            f"{MINE}: localflow_register_executors registers the name <class 'dict'>; "
            "a name has letters, digits, - and _ only",
            id="the-wrong-way-round",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_notifiers(register):
                register("x", "module.name")
            """,
            f"{MINE}: localflow_register_notifiers registers 'module.name' for 'x'; "
            "a factory is a callable, or 'module:name' of one",
            id="no-colon",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_notifiers(register):
                register("x", None)
            """,
            f"{MINE}: localflow_register_notifiers registers None for 'x'; "
            "a factory is a callable, or 'module:name' of one",
            id="no-factory",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register):
                yield "x", dict
            """,
            f"{MINE}: localflow_register_executors returned a generator; it must only call register(...)",
            id="generator",
        ),
        pytest.param(
            """
            @hookimpl
            async def localflow_register_executors(register):
                register("x", dict)
            """,
            f"{MINE}: localflow_register_executors returned a coroutine; it must only call register(...)",
            id="coroutine",
        ),
        pytest.param(
            """
            @hookimpl
            def localflow_register_executors(register):
                return [("x", dict)]
            """,
            f"{MINE}: localflow_register_executors returned a list; it must only call register(...)",
            id="list",
        ),
    ],
)
def test_plugins_that_break_the_rules(source: str, message: str) -> None:
    """A plugin that cannot be meant as it is stops everything, named with its distribution and the fix."""
    assert str(error_of("from localflow import hookimpl\n" + textwrap.dedent(source))) == message


def test_all_plugins_that_break_the_rules_are_named() -> None:
    """One error tells of all of them."""
    plugins = Plugins()
    for name in ("a", "b"):
        plugins.add(plugin("def localflow_x(): ..."), Source(name, f"localflow-{name}", "1"))

    with pytest.raises(PluginError) as raised:
        plugins.check()

    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "plugin 'a' of distribution 'localflow-a' 1",
        "plugin 'b' of distribution 'localflow-b' 1",
    ]


def test_plugin_that_breaks_the_rules_registers_nothing() -> None:
    """One mistake keeps out all of the plugin."""
    plugins = with_plugin(GOOD.format(name="dask") + "\n    def localflow_oops(): ...\n")

    assert plugins.names("executor") == []


class Instance:
    """A plugin may be an object."""

    localflow_api = 1

    @hookimpl
    def localflow_register_executors(self, register: object) -> None:
        """Register one."""
        register("of-an-object", dict)  # type: ignore[operator]

    @hookimpl(specname="localflow_register_notifiers")
    def other_name(self, register: object) -> None:
        """Register one under another name."""
        register("by-specname", "builtins:dict")  # type: ignore[operator]

    @hookimpl(optionalhook=True)
    def localflow_of_a_later_version(self, register: object) -> None:
        """Be ready for a hook that this version does not have."""

    def helper(self) -> None:
        """Do something else."""


def test_plugin_may_be_an_object() -> None:
    """Methods are hooks too, also under another name; optional hooks of later versions are let be."""
    plugins = with_plugin(Instance())

    plugins.check()
    assert plugins.names("executor") == ["of-an-object"]
    assert plugins.names("notifier") == ["by-specname"]


def test_plugin_that_is_a_class_is_refused() -> None:
    """A class in the place of its instance is found out by its `self`."""
    message = f"{MINE}: localflow_register_executors has an argument 'self'; its only argument is 'register'"

    assert str(error_of(Instance)) == message


def test_hook_without_arguments_is_allowed() -> None:
    """A hook may leave out what it does not need."""
    with_plugin("from localflow import hookimpl\n@hookimpl\ndef localflow_register_executors(): ...").check()


# -- broken plugins --


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("", f"it has none of the hooks {HOOKS}", id="empty"),
        pytest.param(
            GOOD.format(name="x") + "        raise ValueError('bad\\nluck')\n",
            "localflow_register_executors: ValueError: bad luck",
            id="hook-raises",
        ),
        pytest.param(
            GOOD.format(name="x") + "        raise SystemExit\n",
            "localflow_register_executors: it called sys.exit()",
            id="hook-exits",
        ),
        pytest.param(
            GOOD.format(name="x") + "        register('y')\n",
            "localflow_register_executors: TypeError: _register.<locals>.register() missing 1 required positional "
            "argument: 'factory'",
            id="hook-forgets-the-factory",
        ),
        pytest.param(
            "class Odd(Exception):\n    def __str__(self): raise KeyError\n"
            + textwrap.dedent(GOOD.format(name="x"))
            + "    raise Odd\n",
            "localflow_register_executors: Odd: <no message: str() of it raised KeyError>",
            id="hook-raises-what-cannot-be-printed",
        ),
    ],
)
def test_broken_plugins_register_nothing_and_stop_nothing(source: str, reason: str) -> None:
    """A plugin that fails is remembered, and told of where it might matter."""
    plugins = with_plugin(source)

    plugins.check()
    assert plugins.names("executor") == []
    with pytest.raises(UnknownPluginError) as raised:
        plugins.get_factory("executor", "x")
    assert str(raised.value).splitlines() == [
        "unknown executor 'x'; installed: ",
        f"plugin 'mine' of distribution 'localflow-mine' failed to load: {reason}; {REPAIR}mine",
    ]


def test_name_of_a_broken_plugin_raises_its_error() -> None:
    """Where the name is the plugin's own, its failure is the answer."""
    with pytest.raises(
        PluginLoadError, match=r"^plugin 'mine' of distribution 'localflow-mine' failed to load: it has"
    ):
        with_plugin("").get_factory("executor", "mine")


def test_interrupt_while_loading_is_passed_on() -> None:
    """Ctrl-C while plugins load ends the program as always."""
    with pytest.raises(KeyboardInterrupt):
        with_plugin(GOOD.format(name="x") + "        raise KeyboardInterrupt\n")


# -- names registered twice --


def test_name_registered_twice_names_both() -> None:
    """Who selects the name learns which two plugins offer it; nobody else is troubled."""
    plugins = Plugins()
    plugins.add(plugin(GOOD.format(name="dask")), Source("a", "localflow-a", "1.0"))
    plugins.add(plugin(GOOD.format(name="dask")), Source("b", "localflow-b", "2.0"))
    plugins.add(plugin(GOOD.format(name="other")), SOURCE)

    plugins.check()
    assert plugins.get_factory("executor", "other") is dict
    with pytest.raises(PluginError) as raised:
        plugins.get_factory("executor", "dask")
    assert str(raised.value) == (
        "executor 'dask' is registered by plugin 'a' of distribution 'localflow-a' 1.0 "
        "and by plugin 'b' of distribution 'localflow-b' 2.0; "
        "uninstall one of them, or set LOCALFLOW_DISABLE_PLUGINS=b"
    )


def test_name_of_a_builtin_cannot_be_taken() -> None:
    """A stranger that calls itself `log` replaces nothing silently."""
    plugins = Plugins.load()
    plugins.add(plugin(GOOD.replace("executors", "notifiers").format(name="log")), SOURCE)

    with pytest.raises(PluginError) as raised:
        plugins.get_factory("notifier", "log")

    assert str(raised.value).startswith("notifier 'log' is registered by plugin 'builtin' of distribution 'localflow-")
    assert f" and by {MINE}; uninstall one of them, or set LOCALFLOW_DISABLE_PLUGINS=mine" in str(raised.value)


def test_name_of_a_builtin_that_is_taken_shows_when_others_are_imported(distributions: Distributions) -> None:
    """Who uses built-ins only has nothing to do with it; once the stranger is there, the name belongs to neither."""
    distributions.install("localflow-mine", GOOD.format(name="thread"), version="1.2")
    plugins = Plugins.load()

    before = plugins.get_source("executor", "thread")
    problems = plugins.problems()

    assert before.plugin == "builtin"
    assert [problem.partition(" is registered by ")[0] for problem in problems] == ["executor 'thread'"]
    with pytest.raises(PluginError, match=r"of distribution 'localflow-mine' 1\.2; uninstall one of them"):
        plugins.get_factory("executor", "thread")


def test_name_may_be_used_in_two_roles() -> None:
    """An executor and a state store of one name do not meet."""
    both = GOOD.format(name="both") + GOOD.replace("executors", "state_stores").format(name="both")

    plugins = with_plugin(both)

    assert plugins.get_factory("executor", "both") is plugins.get_factory("state store", "both") is dict


# -- distributions --


def test_installed_plugin_is_found(distributions: Distributions) -> None:
    """An entry point of the group is all it takes."""
    distributions.install("localflow-dask", GOOD.format(name="dask"), version="3.1")

    plugins = Plugins.load()

    assert plugins.get_factory("executor", "dask") is dict
    assert Listed("executor", "dask", "dask", "localflow-dask", "3.1") in plugins.listing()


def test_entry_point_may_name_an_object(distributions: Distributions) -> None:
    """`module:attribute` in the entry point is the plugin itself."""
    module = f"objects_{distributions.folder.parent.name.replace('-', '_')}"
    (distributions.folder / f"{module}.py").write_text(
        "from localflow import hookimpl\n"
        "class Plugin:\n"
        "    @hookimpl\n"
        "    def localflow_register_executors(self, register):\n"
        "        register('dask', dict)\n"
        "plugin = Plugin()\n"
    )
    distributions.install("localflow-dask", "", entry_point=f"dask = {module}:plugin")

    assert Plugins.load().get_factory("executor", "dask") is dict


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys; sys.exit(3)", "it called sys.exit(3)"),
        ("raise BaseException('deep')", "BaseException: deep"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise ValueError", "ValueError"),
        ("from localflow.errors import PluginError; raise PluginError('sorry')", "PluginError: sorry"),
    ],
)
def test_import_that_fails_stops_only_who_selects_it(distributions: Distributions, source: str, reason: str) -> None:
    """A broken distribution is named with its reason where its name is asked for; all others work."""
    distributions.install("localflow-good", GOOD.format(name="good"))
    distributions.install("localflow-bad", source)

    plugins = Plugins.load()

    plugins.check()
    assert plugins.get_factory("executor", "good") is dict
    with pytest.raises(PluginLoadError) as raised:
        plugins.get_factory("executor", "bad")
    assert str(raised.value).startswith(f"plugin 'bad' of distribution 'localflow-bad' failed to load: {reason}")
    assert str(raised.value).endswith("set LOCALFLOW_DISABLE_PLUGINS=bad")
    assert "\n" not in str(raised.value)
    with pytest.raises(UnknownPluginError, match="plugin 'bad' of distribution 'localflow-bad' failed to load"):
        plugins.get_factory("executor", "unknown")


@pytest.mark.parametrize("line", ["bad", "bad = ", "bad = :x", "bad = a b c", "bad = nowhere:x[extra]"])
def test_broken_entry_points_do_no_harm(distributions: Distributions, line: str) -> None:
    """Damaged metadata of one distribution keeps nobody else out."""
    distributions.install("localflow-bad", "", entry_point=line)
    distributions.install("localflow-good", GOOD.format(name="good"))

    plugins = Plugins.load()

    plugins.check()
    assert plugins.get_factory("executor", "good") is dict
    with pytest.raises(LocalflowError):
        plugins.get_factory("executor", "bad")


def test_disabled_plugins_are_not_imported(distributions: Distributions, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOCALFLOW_DISABLE_PLUGINS keeps out entry points by name, spaces or not."""
    for name in ("a", "b", "c"):
        distributions.install(f"localflow-{name}", "raise SystemExit" if name != "c" else GOOD.format(name="c"))
    monkeypatch.setenv("LOCALFLOW_DISABLE_PLUGINS", "a, b,,unknown")

    plugins = Plugins.load()

    assert [row for row in plugins.listing() if row.problem] == []
    assert plugins.get_factory("executor", "c") is dict


def test_one_distribution_found_twice_counts_once(
    distributions: Distributions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is first on the path hides the same distribution further down, as for imports."""
    distributions.install("Localflow.Dask", GOOD.format(name="old"), version="1.0", entry_point=None)
    nearer = tmp_path / "nearer"
    nearer.mkdir()
    monkeypatch.syspath_prepend(str(nearer))
    Distributions(nearer).install("localflow-dask", GOOD.format(name="new"), version="2.0")

    plugins = Plugins.load()

    assert "new" in plugins.names("executor")
    assert "old" not in plugins.names("executor")


def test_two_distributions_may_name_their_entry_points_alike(distributions: Distributions) -> None:
    """Entry points are told apart by their distributions."""
    for letter in "ab":
        distributions.install(f"localflow-{letter}", GOOD.format(name=letter))
        info = next(distributions.folder.glob(f"localflow_{letter}-*"))
        text = (info / "entry_points.txt").read_text()
        (info / "entry_points.txt").write_text(text.replace(f"{letter} = module", "same = module"))

    plugins = Plugins.load()

    plugins.check()
    assert {"a", "b"} <= set(plugins.names("executor"))


def test_one_module_behind_two_entry_points(distributions: Distributions) -> None:
    """A module published twice registers once; the second entry point is listed as what it is."""
    distributions.install("localflow-a", GOOD.format(name="a"))
    text = next(distributions.folder.glob("*.dist-info/entry_points.txt")).read_text()
    distributions.install("localflow-b", "", entry_point=text.splitlines()[-1].replace("a =", "b =", 1))

    plugins = Plugins.load()

    assert plugins.get_factory("executor", "a") is dict
    with pytest.raises(PluginLoadError, match="failed to load: another entry point has loaded it; "):
        plugins.get_factory("executor", "b")


def test_listing_tells_all(distributions: Distributions) -> None:
    """Every name with its plugin, distribution and version; what cannot be used with the reason."""
    distributions.install("localflow-bad", "import nowhere", version="0.9")
    distributions.install("localflow-rude", "def localflow_x(): ...", version="0.8")
    distributions.install("localflow-log", GOOD.replace("executors", "notifiers").format(name="log"), version="0.7")

    listing = Plugins.load().listing()

    assert Listed("executor", "sequential", "builtin", DISTRIBUTION, __version__) in listing
    broken = {row.plugin: row for row in listing if not row.role}
    assert broken["bad"][:5] == ("", "", "bad", "localflow-bad", "0.9")
    assert "No module named 'nowhere'" in broken["bad"].problem
    assert "'localflow_x' is no hook" in broken["rude"].problem
    logs = [row for row in listing if row.name == "log"]
    assert [row.distribution for row in logs] == [DISTRIBUTION, "localflow-log"]
    assert all("is registered by" in row.problem for row in logs)


def test_what_plugins_print_stays_off_standard_output(distributions: Distributions) -> None:
    """Standard output belongs to data: prints of plugins go to standard error."""
    module = "print('at import')\n" + textwrap.dedent(GOOD.format(name="noisy")) + "    print('in the hook')\n"
    distributions.install("localflow-noisy", module)

    ran = run_python(
        "from localflow.plugins import installed_plugins; print(installed_plugins().names('executor'))",
        distributions.folder,
    )

    assert ran.stdout == "['futures', 'noisy', 'process', 'sequential', 'thread']\n"
    assert ran.stderr.split("\n")[:2] == ["at import", "in the hook"]


def test_strangers_are_imported_when_a_name_is_missing(distributions: Distributions) -> None:
    """Who asks for built-ins runs no code of others; who asks for another name has all of them imported, once."""
    distributions.install("localflow-slow", "print('imported')\n" + textwrap.dedent(GOOD.format(name="slow")))

    ran = run_python(
        """
        import sys
        from localflow.plugins import installed_plugins
        plugins = installed_plugins()
        plugins.get_factory("executor", "thread"), plugins.get_factory("notifier", "webhook")
        print(next(name for name in plugins.iter_names("executor") if name == "thread"), file=sys.stderr)
        print("before", file=sys.stderr)
        plugins.get_factory("executor", "slow")
        plugins.names("executor"), plugins.listing(), plugins.get_factory("executor", "slow")
        """,
        distributions.folder,
    )

    assert ran.stderr.split() == ["thread", "before", "imported"]


def test_looking_up_from_many_threads_imports_once(distributions: Distributions) -> None:
    """Threads that ask at the same time wait for one import, and all of them find the name."""
    distributions.install("localflow-slow", "print('imported')\n" + textwrap.dedent(GOOD.format(name="slow")))

    ran = run_python(
        """
        import threading
        from localflow.plugins import installed_plugins
        gate, found = threading.Barrier(8), []
        def ask():
            gate.wait()
            found.append(installed_plugins().get_factory("executor", "slow"))
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(found))
        """,
        distributions.folder,
    )

    assert (ran.stdout, ran.stderr) == ("8\n", "imported\n")


def test_plugin_may_run_a_flow_on_built_ins_at_import(distributions: Distributions) -> None:
    """Looking up what is there already does no harm while plugins are imported."""
    eager = "from localflow.plugins import installed_plugins\ninstalled_plugins().get_factory('executor', 'thread')\n"
    distributions.install("localflow-eager", eager + textwrap.dedent(GOOD.format(name="eager")))

    assert Plugins.load().get_factory("executor", "eager") is dict


def test_plugin_that_asks_for_plugins_at_import_is_broken(distributions: Distributions) -> None:
    """Asking for others while they are imported neither hangs nor loops."""
    distributions.install(
        "localflow-eager", "from localflow.plugins import installed_plugins; installed_plugins().names('executor')"
    )

    ran = run_python(
        """
        from localflow.plugins import installed_plugins
        print(*[row.problem for row in installed_plugins().listing() if row.problem])
        """,
        distributions.folder,
    )

    assert ran.stdout.startswith(
        "plugin 'eager' of distribution 'localflow-eager' failed to load: "
        "PluginError: a plugin asked for plugins while it was imported; "
    )


@pytest.mark.parametrize("place", ["zip", "egg-info", "egg"])
def test_other_kinds_of_installation_are_found(tmp_path: Path, place: str) -> None:
    """Zip files, development links and eggs are looked into as well."""
    site = tmp_path / "dask-1.0.egg"
    site.mkdir()
    Distributions(site).install("localflow-dask", GOOD.format(name="dask"))
    info = next(site.glob("*.dist-info"))
    if place == "zip":
        site = Path(shutil.make_archive(str(tmp_path / "all"), "zip", site))
    else:
        (info / "METADATA").rename(info / "PKG-INFO")
        info.rename(site / ("localflow_dask.egg-info" if place == "egg-info" else "EGG-INFO"))

    ran = run_python(
        "from localflow.plugins import installed_plugins; print(installed_plugins().names('executor'))", site
    )

    assert "'dask'" in ran.stdout
    assert ran.stderr == ""


def test_folders_that_are_not_there_are_passed_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stale path does no harm."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "gone"), "", *sys.path])

    assert "sequential" in Plugins.load().names("executor")


def test_looking_up_from_many_threads_leaves_standard_output_alone() -> None:
    """Factories are imported with output turned to stderr; turned back it is the stream that was there."""
    script = (
        "import sys, threading\n"
        "from localflow import flow\n"
        "@flow\ndef nothing(): pass\n"
        "before = sys.stdout\n"
        "threads = [threading.Thread(target=nothing) for _ in range(6)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert sys.stdout is before\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr

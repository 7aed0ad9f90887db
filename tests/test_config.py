"""Settings from localflow.toml, pyproject.toml, variables and flags, as far as no plugin is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from localflow.config import RESERVED_VARIABLES, Settings, config_error, load_settings
from localflow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path("localflow.toml")
PYPROJECT = Path("pyproject.toml")
KNOWN = (
    "; known: LOCALFLOW_EXECUTOR, LOCALFLOW_STORE, LOCALFLOW_EXECUTORS__NAME__OPTION, "
    "LOCALFLOW_STORES__NAME__OPTION, LOCALFLOW_NOTIFIERS__NAME__OPTION, LOCALFLOW_LIMITS__TAG, "
    "LOCALFLOW_RETENTION__OPTION"
)
INSTALLED = {"executors": ["sequential", "process", "my-pool"], "stores": ["sqlite"], "notifiers": ["log"]}


def load(
    text: str | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Return the settings of a localflow.toml with this text, nothing being wrong with them."""
    settings, problems = read(text, environ, overrides)
    assert problems == []
    return settings


def problems_of(text: str | None = None, environ: Mapping[str, str] | None = None, **overrides: object) -> list[str]:
    """Return what is wrong with a localflow.toml of this text."""
    return read(text, environ, overrides)[1]


def read(
    text: str | None, environ: Mapping[str, str] | None, overrides: Mapping[str, object] | None
) -> tuple[Settings, list[str]]:
    """Return the settings, and what is wrong with them."""
    if text is not None:
        FILE.write_text(text)
    settings, problems = load_settings(None, overrides, environ or {}, lambda section: INSTALLED[section])
    return settings, list(config_error(problems).problems)


def options(settings: Settings, section: str, name: str) -> dict[str, tuple[object, str]]:
    """Return the options of a table with their origins."""
    values = getattr(settings, section)[name].values
    return {key: (value.value, str(value.origin)) for key, value in values.items()}


# -- where the file is --


def test_without_a_file_there_are_defaults() -> None:
    """No file anywhere: sequential, sqlite, and the working directory as root."""
    settings = load()

    assert (settings.executor, settings.store) == ("sequential", "sqlite")
    assert (settings.root, settings.file) == (Path.cwd(), None)
    assert not any([settings.executors, settings.stores, settings.notifiers, settings.limits])
    assert {str(origin) for origin in settings.origins.values()} == {"default"}


def test_file_of_the_nearest_parent_is_found() -> None:
    """The nearest localflow.toml upwards counts, and its folder is the root."""
    FILE.write_text('executor = "far"')
    Path("a/b/c").mkdir(parents=True)
    Path("a/localflow.toml").write_text('executor = "near"')

    settings, problems = load_settings(Path("a/b/c"))

    assert problems == []
    assert (settings.executor, settings.root) == ("near", Path.cwd() / "a")
    assert settings.file == Path.cwd() / "a" / "localflow.toml"


def test_directory_that_does_not_exist_is_searched_upwards() -> None:
    """The search begins at a name; nothing has to be there."""
    FILE.write_text('executor = "x"')

    settings, _ = load_settings(Path("no/such/folder"))

    assert settings.executor == "x"


def test_deleted_working_directory_is_an_error() -> None:
    """A working directory that is gone is named as what is wrong."""
    here = Path.cwd()
    Path("gone").mkdir()
    os.chdir("gone")
    (here / "gone").rmdir()

    with pytest.raises(ConfigError, match=r"^the working directory cannot be read .*; change to one that exists$"):
        load_settings()


def test_empty_file_is_a_file() -> None:
    """A localflow.toml with nothing in it marks the root and stops the search."""
    PYPROJECT.write_text('[tool.localflow]\nexecutor = "x"')

    settings = load("")

    assert settings.executor == "sequential"
    assert settings.file == Path.cwd() / FILE


def test_pyproject_is_read_where_there_is_no_file() -> None:
    """[tool.localflow] counts, with lines and tables as they stand in pyproject.toml."""
    PYPROJECT.write_text(
        '[project]\nname = "x"\n[tool.localflow]\nexecutor = "p"\n[tool.localflow.executors.p]\ntype = "q"\n'
    )
    Path("a").mkdir()

    settings, problems = load_settings(Path("a"))

    assert problems == []
    assert settings.root == Path.cwd()
    assert str(settings.origins["executor"]) == "pyproject.toml:4"
    assert options(settings, "executors", "p") == {"type": ("q", "pyproject.toml:6")}


def test_problems_in_pyproject_name_its_tables() -> None:
    """A mistake is shown under the name that its table has in pyproject.toml."""
    PYPROJECT.write_text("[tool.localflow]\nexecutor = 1\nexecuter = 1\n[tool.localflow.limits]\na = 0\n")

    assert problems_of() == [
        "pyproject.toml:2: [tool.localflow] executor must be a name in quotes, got 1 (integer)",
        "pyproject.toml:3: [tool.localflow] unknown key 'executer'; did you mean 'executor'?",
        "pyproject.toml:5: [tool.localflow.limits] a must be an integer >= 1, got 0 (integer)",
    ]


def test_localflow_toml_further_up_beats_pyproject() -> None:
    """pyproject.toml is read only where there is no localflow.toml at all."""
    FILE.write_text('executor = "x"')
    Path("a").mkdir()
    Path("a/pyproject.toml").write_text('[tool.localflow]\nexecutor = "y"')

    settings, _ = load_settings(Path("a"))

    assert settings.executor == "x"


def test_nearest_pyproject_with_the_table_counts() -> None:
    """A pyproject.toml without [tool.localflow] is passed by, also one that mentions localflow."""
    PYPROJECT.write_text('[tool.localflow]\nexecutor = "x"')
    Path("a/b").mkdir(parents=True)
    Path("a/pyproject.toml").write_text('[project]\ndependencies = ["localflow-engine"]\n[tool.other]\n')
    Path("a/b/pyproject.toml").write_text("[broken")

    settings, problems = load_settings(Path("a/b"))

    assert problems == []
    assert settings.executor == "x"


def test_broken_pyproject_that_mentions_us_is_an_error() -> None:
    """What might hold our table must be readable."""
    PYPROJECT.write_text("[tool.localflow]\nexecutor =\n")

    with pytest.raises(ConfigError, match=r"^pyproject.toml:2:11: Invalid value$"):
        load_settings()


def test_directory_named_pyproject_is_passed_by() -> None:
    """Only localflow.toml is ours alone."""
    PYPROJECT.mkdir()

    assert load().file is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tool]\nlocalflow = 3", "pyproject.toml:2: tool.localflow must be a table, got 3 (integer)"),
        ("[[tool.localflow]]", "pyproject.toml:1: tool.localflow must be a table, got an array"),
    ],
)
def test_tool_localflow_that_is_no_table(text: str, problem: str) -> None:
    """[tool.localflow] must be a table."""
    PYPROJECT.write_text(text)

    assert problems_of() == [problem]


def test_tool_that_is_no_table_is_passed_by() -> None:
    """Other mistakes in pyproject.toml are for others to report."""
    PYPROJECT.write_text('tool = "localflow"')

    assert load().file is None


# -- what may stand in it --


def test_everything_is_read_with_its_line() -> None:
    """Each value of each table comes with the line on which it stands."""
    settings = load(
        """executor = "big"
store = "archive"

[executors.big]
type = "process"
workers = 2
env = { A = "1" }

[stores]
archive = { type = "json", path = "runs" }

[notifiers]
ops.type = "webhook"
ops.on = [
    "Failed",
]

[limits]
database = 1
"a b" = 2
"""
    )

    assert (settings.executor, settings.store) == ("big", "archive")
    assert {key: str(origin) for key, origin in settings.origins.items()} == {
        "executor": "localflow.toml:1",
        "store": "localflow.toml:2",
        "limits.database": "localflow.toml:19",
        'limits."a b"': "localflow.toml:20",
    }
    assert options(settings, "executors", "big") == {
        "type": ("process", "localflow.toml:5"),
        "workers": (2, "localflow.toml:6"),
        "env": ({"A": "1"}, "localflow.toml:7"),
    }
    assert options(settings, "stores", "archive") == {
        "type": ("json", "localflow.toml:10"),
        "path": ("runs", "localflow.toml:10"),
    }
    assert options(settings, "notifiers", "ops") == {
        "type": ("webhook", "localflow.toml:13"),
        "on": (["Failed"], "localflow.toml:14"),
    }
    assert settings.limits == {"database": 1, "a b": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("executer = 'x'", "unknown key 'executer'; did you mean 'executor'?"),
        ("stroe = 'x'", "unknown key 'stroe'; did you mean 'store'?"),
        ("limit = 3", "unknown key 'limit'; did you mean 'limits'?"),
        ("zzz = 3", "unknown key 'zzz'; known: executor, store, executors, stores, notifiers, limits, retention"),
        ('"a\\nb" = 3', "unknown key 'a\\nb'; known: executor, store, executors, stores, notifiers, limits, retention"),
        ("[executor]", "executor must be a name in quotes, got a table; options go in a table [executors.NAME]"),
        ("[store.x]\na = 1", "store must be a name in quotes, got a table; options go in a table [stores.NAME]"),
        ("[excutors.process]", "unknown table [excutors]; did you mean 'executors'?"),
        ("[notifier.x]", "unknown table [notifier]; did you mean 'notifiers'?"),
        ("['a b'.x]", 'unknown table ["a b"]; known: executors, stores, notifiers, limits, retention'),
        ("[tool.localflow]", "unknown table [tool]; known: executors, stores, notifiers, limits, retention"),
        ("executor = 4", "executor must be a name in quotes, got 4 (integer)"),
        ("executor = ''", 'executor must be a name in quotes, got "" (string)'),
        ("executor = ['x']", "executor must be a name in quotes, got an array"),
        ("store = true", "store must be a name in quotes, got true (boolean)"),
        ("executors = 'process'", "executors must be a table, got \"process\" (string); did you mean 'executor'?"),
        ("stores = []", "stores must be a table, got an array; did you mean 'store'?"),
        ("notifiers = 1.5", "notifiers must be a table, got 1.5 (float)"),
        ("limits = 1979-05-27", "limits must be a table, got 1979-05-27 (date)"),
        ("executors.workers = 4", "[executors] 'workers' must be a table, as in [executors.NAME], got 4 (integer)"),
        ("[[executors.x]]", "[executors] 'x' must be a table, as in [executors.NAME], got an array"),
        ("notifiers.token = 'x'", "[notifiers] 'token' must be a table, as in [notifiers.NAME], got *** (string)"),
        ("[executors.'']", "[executors] a table needs a name that is not empty"),
        ("limits.a = 0", "[limits] a must be an integer >= 1, got 0 (integer)"),
        ("limits.a = '1'", '[limits] a must be an integer >= 1, got "1" (string)'),
        ("limits.a = true", "[limits] a must be an integer >= 1, got true (boolean)"),
        ("limits.a = 1.0", "[limits] a must be an integer >= 1, got 1.0 (float)"),
        ("limits.a = 9223372036854775808", "[limits] a must be an integer >= 1, got an integer of 64 bits"),
        ("limits.'a b' = {}", '[limits] "a b" must be an integer >= 1, got a table'),
        ("[executors." + "a." * 500 + "a]", "tables or arrays are nested too deeply"),
    ],
)
def test_mistakes_in_the_frame(text: str, problem: str) -> None:
    """Keys and tables that do not belong, or hold the wrong kind of thing, are named with file and line."""
    assert problems_of(f"\n{text}\n") == [f"localflow.toml:2: {problem}"]


def test_all_mistakes_are_found_in_the_order_of_their_lines() -> None:
    """One look at the error is enough to repair the whole file."""
    text = "store = 1\nx = 1\n[executors]\ny = 2\n[limits]\nz = 0\n"

    problems = problems_of(text, {"LOCALFLOW_X": "1"}, executor=7)

    assert problems == [
        "localflow.toml:1: store must be a name in quotes, got 1 (integer)",
        "localflow.toml:2: unknown key 'x'; known: executor, store, executors, stores, notifiers, limits, retention",
        "localflow.toml:4: [executors] 'y' must be a table, as in [executors.NAME], got 2 (integer)",
        "localflow.toml:6: [limits] z must be an integer >= 1, got 0 (integer)",
        f"LOCALFLOW_X: unknown variable{KNOWN}",
        "--executor: executor must be a name in quotes, got 7 (integer)",
    ]


@hypothesis_settings(deadline=None)
@given(
    st.recursive(
        st.one_of(st.integers(), st.booleans(), st.text("ab", max_size=3)),
        lambda inner: st.dictionaries(
            st.sampled_from(["executor", "executors", "store", "stores", "notifiers", "limits", "type", "x"]), inner
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_any_toml_is_either_right_or_explained(value: dict[str, object]) -> None:
    """Whatever valid TOML is given, there are settings and one-line problems, never another exception."""
    FILE.write_text("\n".join(f"{key} = {inline(item)}" for key, item in value.items()))

    settings, problems = load_settings(environ={})

    assert settings.executor
    assert all(str(problem).startswith("localflow.toml:") and "\n" not in str(problem) for problem in problems)


def inline(value: object) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, (bool, int)) else f'"{value}"'


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen, their tables too."""
    settings = load("[executors.x]\na = 1\n[limits]\nt = 1")

    with pytest.raises(AttributeError):
        settings.executor = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.executors["y"] = settings.executors["x"]  # type: ignore[index]
    with pytest.raises(TypeError):
        settings.executors["x"].values["b"] = settings.executors["x"].values["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        settings.limits["t"] = 2  # type: ignore[index]


def test_representation_of_settings_holds_no_options() -> None:
    """What is logged by accident gives no secret away."""
    assert "hush" not in repr(load("[notifiers.x]\ntoken = 'hush'"))


# -- variables --


def test_variables_beat_the_file_and_flags_beat_variables() -> None:
    """Defaults < file < environment < flags, for each value by itself."""
    text = 'executor = "a"\nstore = "a"\n[executors.process]\nworkers = 1\nx = 1\ny = 1\n'
    environ = {
        "LOCALFLOW_EXECUTOR": "b",
        "LOCALFLOW_STORE": "b",
        "LOCALFLOW_EXECUTORS__PROCESS__WORKERS": "2",
        "LOCALFLOW_EXECUTORS__PROCESS__X": "2",
    }

    settings = load(text, environ, {"executor": "c", "executors.process.workers": 3})

    assert (settings.executor, settings.store) == ("c", "b")
    assert {key: str(origin) for key, origin in settings.origins.items()} == {
        "executor": "--executor",
        "store": "LOCALFLOW_STORE",
    }
    assert options(settings, "executors", "process") == {
        "workers": (3, "-j"),
        "x": (2, "LOCALFLOW_EXECUTORS__PROCESS__X"),
        "y": (1, "localflow.toml:6"),
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("many", "many"),
        ("true", True),
        ('["a"]', ["a"]),
        ('{A = "1"}', {"A": "1"}),
        ('{"A": "1"}', {"A": "1"}),
    ],
)
def test_variables_hold_toml_or_text(text: str, value: object) -> None:
    """What reads as a value is one, everything else is text."""
    settings = load(environ={"LOCALFLOW_EXECUTORS__PROCESS__X": text})

    assert options(settings, "executors", "process") == {"x": (value, "LOCALFLOW_EXECUTORS__PROCESS__X")}


@pytest.mark.parametrize("text", ["4", "true", "process", '"process"'])
def test_names_in_variables_are_text(text: str) -> None:
    """An executor may be called 4."""
    assert load(environ={"LOCALFLOW_EXECUTOR": text}).executor == text.strip('"')


@pytest.mark.parametrize("name", ["my-pool", "my_pool", "My-Pool", "MY_POOL"])
def test_variables_find_tables_of_the_file_by_any_spelling(name: str) -> None:
    """A variable has neither small letters nor dashes, and still means the table."""
    settings = load(f"[executors.{name}]\nMax-Tasks = 1", {"LOCALFLOW_EXECUTORS__MY_POOL__MAX_TASKS": "2"})

    assert options(settings, "executors", name) == {"Max-Tasks": (2, "LOCALFLOW_EXECUTORS__MY_POOL__MAX_TASKS")}


def test_variables_find_installed_plugins_by_any_spelling() -> None:
    """Without a table in the file, the name of a plugin is recognised."""
    settings = load(environ={"LOCALFLOW_EXECUTORS__MY_POOL__WORKERS": "2"})

    assert list(settings.executors) == ["my-pool"]


def test_variables_prefer_the_exact_spelling() -> None:
    """Of two names that look alike in capitals, the one with the same signs is meant."""
    settings = load("[executors.a-b]\n[executors.a_b]\n", {"LOCALFLOW_EXECUTORS__A_B__X": "1"})

    assert options(settings, "executors", "a-b") == {}
    assert list(options(settings, "executors", "a_b")) == ["x"]


def test_variables_make_tables() -> None:
    """An instance may be described by variables alone; its name is in small letters."""
    environ = {"LOCALFLOW_EXECUTORS__BIG__TYPE": "process", "LOCALFLOW_EXECUTORS__BIG__WORKERS": "2"}

    settings = load(environ=environ)

    assert options(settings, "executors", "big") == {
        "type": ("process", "LOCALFLOW_EXECUTORS__BIG__TYPE"),
        "workers": (2, "LOCALFLOW_EXECUTORS__BIG__WORKERS"),
    }


def test_variables_set_limits() -> None:
    """A limit of the file is changed, a new one gets its tag in small letters."""
    settings = load("[limits]\nMy-Tag = 1", {"LOCALFLOW_LIMITS__MY_TAG": "2", "LOCALFLOW_LIMITS__OTHER": "3"})

    assert settings.limits == {"My-Tag": 2, "other": 3}


def test_empty_variables_count_as_not_set() -> None:
    """`LOCALFLOW_EXECUTOR= localflow run ...` switches a variable off."""
    environ = {"LOCALFLOW_EXECUTOR": "", "LOCALFLOW_EXECUTORS__PROCESS__WORKERS": "", "LOCALFLOW_NONSENSE": ""}

    settings = load(environ=environ)

    assert settings.executor == "sequential"
    assert not settings.executors


def test_reserved_and_foreign_variables_are_let_be() -> None:
    """Variables that are no settings of ours are not looked at."""
    environ = dict.fromkeys(RESERVED_VARIABLES, "x") | {"LOCALFLOWER": "1", "localflow_executor": "x", "PATH": "x"}

    assert load(environ=environ).executor == "sequential"


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        ("LOCALFLOW_EXECUTER", "unknown variable; did you mean 'LOCALFLOW_EXECUTOR'?"),
        ("LOCALFLOW_DISABLE_PLUGIN", "unknown variable; did you mean 'LOCALFLOW_DISABLE_PLUGINS'?"),
        (
            "LOCALFLOW_EXECUTOR__PROCESS__WORKERS",
            "unknown variable; did you mean 'LOCALFLOW_EXECUTORS__PROCESS__WORKERS'?",
        ),
        ("LOCALFLOW_NOTIFIER__A__B", "unknown variable; did you mean 'LOCALFLOW_NOTIFIERS__A__B'?"),
        ("LOCALFLOW_", f"unknown variable{KNOWN}"),
        ("LOCALFLOW_WORKERS", f"unknown variable{KNOWN}"),
        ("LOCALFLOW_EXECUTORS", "names no option; write LOCALFLOW_EXECUTORS__NAME__OPTION"),
        ("LOCALFLOW_EXECUTORS__PROCESS", "names no option; write LOCALFLOW_EXECUTORS__NAME__OPTION"),
        ("LOCALFLOW_EXECUTORS____WORKERS", "names no option; write LOCALFLOW_EXECUTORS__NAME__OPTION"),
        (
            "LOCALFLOW_EXECUTORS__PROCESS__ENV__A",
            "names more than a table and an option; set the option as a whole: "
            "LOCALFLOW_EXECUTORS__PROCESS__ENV='{A = ...}'",
        ),
        ("LOCALFLOW_LIMITS", "names no tag; write LOCALFLOW_LIMITS__TAG"),
        ("LOCALFLOW_LIMITS__A", '[limits] a must be an integer >= 1, got "x" (string)'),
    ],
)
def test_mistakes_in_variables(variable: str, problem: str) -> None:
    """A variable of ours that means nothing is an error with the one that was meant."""
    assert problems_of(environ={variable: "x"}) == [f"{variable}: {problem}"]


def test_strange_variables_stay_on_one_line() -> None:
    """Even the name of a variable may hold anything."""
    assert problems_of(environ={"LOCALFLOW_A\nB\x1b": "x"}) == [f"LOCALFLOW_A\\nB\\x1b: unknown variable{KNOWN}"]


# -- flags --


def test_flags_reach_any_option() -> None:
    """A dotted key names a choice, a limit or an option; the table's name may have dots of its own."""
    overrides = {"store": "s", "executors.a.b.workers": 4, "stores.s.path": "p", "limits.x": 1}

    settings = load(overrides=overrides)

    assert str(settings.origins["store"]) == "--store"
    assert options(settings, "executors", "a.b") == {"workers": (4, "-j")}
    assert options(settings, "stores", "s") == {"path": ("p", "--stores.s.path")}
    assert settings.limits == {"x": 1}


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("executor", "", '--executor: executor must be a name in quotes, got "" (string)'),
        ("store", None, "--store: store must be a name in quotes, got nothing"),
        ("limits.x", 0, "--limits.x: [limits] x must be an integer >= 1, got 0 (integer)"),
        ("executors.workers", 4, "-j: unknown setting 'executors.workers'"),
        ("nonsense", 4, "--nonsense: unknown setting 'nonsense'"),
    ],
)
def test_mistakes_in_flags(key: str, value: object, problem: str) -> None:
    """A flag with a wrong value is named as the user typed it."""
    assert problems_of(**{key: value}) == [problem]

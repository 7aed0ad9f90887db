"""The public door: what `localflow` exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import localflow

HEAVY = (
    "pluggy cloudpickle psutil click rich tomli sqlite3 asyncio urllib.request http multiprocessing concurrent.futures "
    "ast ctypes dataclasses datetime difflib hashlib inspect logging pathlib platform random shutil socket subprocess "
    "tempfile tokenize traceback uuid "
    "localflow.engine localflow.flow_calls localflow.interfaces localflow.plugins localflow.project"
)


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_all_is_sorted_and_without_repetition() -> None:
    """The list of public names reads well: constants, classes, functions, each by the alphabet."""
    kinds = (str.isupper, lambda name: name[0].isupper(), lambda name: True)  # constants, classes, functions

    names = sorted(set(localflow.__all__))

    ranked = sorted(names, key=lambda name: next(rank for rank, is_kind in enumerate(kinds) if is_kind(name)))
    assert list(localflow.__all__) == ranked


@pytest.mark.parametrize("name", localflow.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """What is listed is there, lazily loaded or not."""
    namespace: dict[str, Any] = {}

    exec(f"from localflow import {name}", namespace)

    assert namespace[name] is getattr(localflow, name)


def test_star_import_gives_exactly_what_is_listed() -> None:
    """`from localflow import *` and `__all__` agree."""
    namespace: dict[str, Any] = {}

    exec("from localflow import *", namespace)

    assert set(namespace) - {"__builtins__"} == set(localflow.__all__)


def test_nothing_public_is_missing_from_the_list() -> None:
    """Every name in the module that looks public is listed, or is a submodule, or a name for type checkers."""
    from types import ModuleType

    public = {
        name
        for name, value in vars(localflow).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert public - set(localflow.__all__) <= {"annotations", "TYPE_CHECKING", "Any"}


def test_the_names_of_the_contract_are_there() -> None:
    """Names that users' programs import."""
    expected = """
        flow task Flow Task TaskFuture MappedFutures State StateType
        quote unmapped allow_failure wait as_completed
        INPUTS TASK_SOURCE RUN_ID FLOW_PARAMETERS NO_CACHE exponential_backoff
        get_run_context get_run_logger tags
        SequentialExecutor ThreadExecutor ProcessExecutor hookimpl
        Scheduled Pending Running Completed Failed Crashed Cancelled AwaitingRetry Retrying
    """

    assert set(expected.split()) <= set(localflow.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading does not swallow typos."""
    with pytest.raises(AttributeError, match="'localflow' has no attribute 'nonsense'"):
        localflow.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        exec("from localflow import nonsense")


def test_dir_shows_the_lazy_names() -> None:
    """Completion in a REPL offers executors before they are loaded."""
    assert run("import localflow; print(set(localflow.__all__) - set(dir(localflow)))") == "set()"


def test_import_loads_nothing_heavy() -> None:
    """`import localflow` does not pay for plugins, workers, stores or the command line."""
    code = f"import localflow, sys; print([name for name in {HEAVY.split()!r} if name in sys.modules])"

    assert run(code) == "[]"


def test_import_loads_no_part_before_it_is_touched() -> None:
    """Whoever needs one name, such as a worker process that loads a task, does not pay for the others."""
    code = "import localflow, sys; print(*sorted(name for name in sys.modules if name.startswith('localflow.')))"

    assert run(code) == "localflow.shadowing localflow.tags localflow.version"


def test_tags_is_the_function_whatever_is_imported() -> None:
    """The module of the same name does not take its place."""
    code = "import localflow, localflow.engine, localflow.tags; print(type(localflow.tags).__name__)"

    assert run(code) == "function"


def test_import_loads_no_builtin_plugin() -> None:
    """Executors and stores come in only when somebody uses them."""
    code = "import localflow, sys; print([name for name in sys.modules if name.startswith('localflow.builtin')])"

    assert run(code) == "[]"


def test_import_starts_no_thread_and_creates_no_file() -> None:
    """Importing has no effect beyond the import."""
    code = "import localflow, os, threading; print(threading.active_count(), os.listdir())"

    assert run(code) == "1 []"


def test_decorating_loads_nothing_heavy() -> None:
    """Defining flows and tasks costs nothing but the definition."""
    code = f"""
from localflow import INPUTS, TASK_SOURCE, exponential_backoff, flow, task
@task(tags=["a"], executor="process", retries=2, retry_delay_seconds=exponential_backoff(1), timeout_seconds=3,
      cache_policy=INPUTS + TASK_SOURCE, log_prints=True, on_failure=lambda task, run, state: None)
def t(x): return x
@flow(name="f", executor="thread", retries=1, timeout_seconds=3)
async def f(): return t(1)
import sys
print([name for name in {HEAVY.split()!r} if name in sys.modules])
"""

    assert run(code) == "[]"


def test_a_sequential_flow_starts_without_loading_workers_or_the_command_line() -> None:
    """A hello-world in memory needs neither cloudpickle nor psutil, click or rich."""
    code = """
import os, sys
os.environ["LOCALFLOW_STORE"] = "memory"
from localflow import flow, task
@task
def hello(): return "hello"
@flow
def main(): return hello()
assert main().result() == "hello"
print([name for name in "psutil click rich asyncio localflow.builtin.process".split() if name in sys.modules])
"""

    assert run(code) == "[]"


def test_the_version_is_a_text() -> None:
    """`localflow.__version__` tells the version."""
    assert localflow.__version__.split(".")[0].isdigit()


def test_the_package_is_typed() -> None:
    """Type checkers are told that the annotations count."""
    from importlib.resources import files

    assert (files("localflow") / "py.typed").is_file()

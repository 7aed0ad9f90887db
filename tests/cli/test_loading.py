"""`FILE[:flow]` becomes a flow; whatever stands against it is said in one message."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import cloudpickle
import pytest

from localflow.errors import FlowNotFoundError, UsageError
from localflow.loading import MODULE_NAME, load_flow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE = """
from localflow import flow

@flow
def only():
    return __name__, __file__
"""

SEVERAL = """
from localflow import flow, task

@task
def add(): ...

@flow(name="Load: all of it")
def load(): ...

@flow
def clean(): ...

def plain(): ...

again = clean
"""


@pytest.fixture(autouse=True)
def undo_loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own module table, path and arguments."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    known = set(sys.modules)

    yield

    if MODULE_NAME in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.unregister_pickle_by_value(sys.modules[MODULE_NAME])
    for name in set(sys.modules) - known:
        if name in (MODULE_NAME, "neighbour", "broken_neighbour"):
            del sys.modules[name]


def write(path: Path, text: str) -> str:
    """Write a flow file and return its name as a user types it."""
    path.write_text(text)
    return path.name


def test_the_only_flow_of_a_file_needs_no_name(own_folder: Path) -> None:
    """The file is executed under a name of our own, so its script part does not run."""
    file = write(own_folder / "one.py", ONE + '\nif __name__ == "__main__":\n    raise SystemExit(3)\n')

    flow = load_flow(file)

    assert flow.name == "only"
    assert flow.fn() == (MODULE_NAME, str(own_folder / "one.py"))


def test_the_flow_called_main_is_the_one_meant(own_folder: Path) -> None:
    """Of several flows `main` needs no name, whatever the flow's own name is."""
    file = write(own_folder / "flows.py", SEVERAL + '\n@flow(name="Everything")\ndef main(): ...\n')

    assert load_flow(file).name == "Everything"


@pytest.mark.parametrize("name", ["load", "Load: all of it"])
def test_a_flow_is_named_by_its_variable_or_its_own_name(own_folder: Path, name: str) -> None:
    """Both are names a reader of the file knows."""
    file = write(own_folder / "flows.py", SEVERAL)

    assert load_flow(f"{file}:{name}").name == "Load: all of it"


def test_the_folder_of_the_file_comes_first_on_the_path(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules beside the file are found, as with `python FILE`, from any working directory."""
    folder = own_folder / "project"
    folder.mkdir()
    write(folder / "neighbour.py", "word = 'hello'")
    write(
        folder / "flows.py",
        "from neighbour import word\nfrom localflow import flow\n\n@flow\ndef f():\n    return word",
    )

    assert load_flow("project/flows.py").fn() == "hello"
    assert sys.path[0] == str(folder)
    assert sys.argv == [str(folder / "flows.py")]


def test_imported_flows_are_not_the_files_own(own_folder: Path) -> None:
    """They count only when named."""
    write(own_folder / "neighbour.py", SEVERAL)
    file = write(own_folder / "flows.py", "from neighbour import clean\n" + ONE)

    assert load_flow(file).name == "only"
    assert load_flow(f"{file}:clean").name == "clean"


def test_a_file_of_imported_flows_only_lists_them(own_folder: Path) -> None:
    """The message says how to name one."""
    write(own_folder / "neighbour.py", SEVERAL)
    file = write(own_folder / "flows.py", "from neighbour import clean, load")

    with pytest.raises(
        FlowNotFoundError, match=r"no flow of its own; flows it imports: flows.py:clean, flows.py:load$"
    ):
        load_flow(file)


def test_what_the_file_defines_travels_by_value(own_folder: Path) -> None:
    """Workers cannot import it, so functions and classes of it are pickled whole."""
    file = write(own_folder / "one.py", ONE + "\nclass Point:\n    x = 1\n")

    packed = cloudpickle.dumps(load_flow(file).fn.__globals__["Point"])
    program = f"import pickle; print(pickle.loads({packed!r}).x)"
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert elsewhere.stdout == "1\n", elsewhere.stderr


def test_dataclasses_and_annotations_find_their_module(own_folder: Path) -> None:
    """The module is known to the interpreter while it is executed."""
    file = write(
        own_folder / "flows.py",
        "from __future__ import annotations\nfrom dataclasses import KW_ONLY, dataclass\n"
        "@dataclass\nclass Point:\n    x: int\n    _: KW_ONLY\n    y: int = 0\n" + ONE,
    )

    assert load_flow(file).name == "only"


def test_a_file_may_have_any_suffix_and_any_encoding_it_declares(own_folder: Path) -> None:
    """Python reads the source, whatever the file is called; a name with a colon is no trouble either."""
    (own_folder / "flows:v1.txt").write_bytes(b"# coding: latin-1\nword = '\xe9'\n" + ONE.encode())

    assert load_flow("flows:v1.txt").name == "only"
    assert load_flow("flows:v1.txt:only").name == "only"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lod", "holds no flow 'lod'; did you mean 'load'?"),
        ("xyz", "holds no flow 'xyz'; it holds flows.py:load, flows.py:clean"),
        ("", "holds no flow ''; it holds flows.py:load, flows.py:clean"),
        ("add", "'add' in 'flows.py' is of type Task, not a flow"),
        ("plain", "'plain' in 'flows.py' is of type function, not a flow; put @flow on it"),
    ],
)
def test_a_name_that_is_no_flow_is_answered_with_those_there_are(own_folder: Path, name: str, message: str) -> None:
    """A typing mistake gets a suggestion."""
    file = write(own_folder / "flows.py", SEVERAL)

    with pytest.raises(FlowNotFoundError) as caught:
        load_flow(f"{file}:{name}")

    assert message in str(caught.value)


def test_several_flows_and_none_named_lists_them(own_folder: Path) -> None:
    """Each as it would be typed; one flow under two names counts once."""
    file = write(own_folder / "flows.py", SEVERAL)

    with pytest.raises(FlowNotFoundError) as caught:
        load_flow(file)

    assert str(caught.value) == "'flows.py' holds several flows, name one: flows.py:load, flows.py:clean"


def test_a_name_that_two_flows_have_asks_for_the_variable(own_folder: Path) -> None:
    """Nothing is guessed."""
    twice = "from localflow import flow\n@flow(name='same')\ndef a(): ...\n@flow(name='same')\ndef b(): ...\n"
    file = write(own_folder / "flows.py", twice)

    with pytest.raises(FlowNotFoundError, match=r"several flows named 'same', name a variable: flows.py:a, flows.py:b"):
        load_flow(f"{file}:same")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "'bad.py' holds no flow of its own; put @flow on a function"),
        ("", "'bad.py' holds no flow of its own; put @flow on a function"),
        ("def f(:\n", "'bad.py' is not valid Python:\n  File"),
        ("x = '\0'", "'bad.py' is not valid Python:\n"),
        ("  x = 1", "IndentationError: unexpected indent"),
        ("import sys\nsys.exit(7)", "called sys.exit(7) when it was loaded; move what should only run as a script"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise GeneratorExit", "raised an exception when it was loaded:\nTraceback"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(own_folder: Path, source: str, message: str) -> None:
    """Each in one message, never an exception of another kind."""
    file = write(own_folder / "bad.py", source)

    with pytest.raises(UsageError) as caught:
        load_flow(file)

    assert message in str(caught.value)


def test_an_exception_is_shown_with_the_users_frames_only(own_folder: Path) -> None:
    """Neither the loader's frames nor those of a decorator are of interest, in chained exceptions too."""
    write(
        own_folder / "broken_neighbour.py",
        "def go():\n    try:\n        1 / 0\n    except ArithmeticError:\n        f()",
    )
    source = "from localflow import task\nimport broken_neighbour\n@task\ndef t(wait_for): ...\n"
    file = write(own_folder / "bad.py", source)
    other = write(own_folder / "other.py", "import broken_neighbour\nbroken_neighbour.go()")

    with pytest.raises(UsageError) as decorated:
        load_flow(file)
    with pytest.raises(UsageError) as chained:
        load_flow(other)

    assert "bad.py" in str(decorated.value)
    assert "ReservedArgumentError" in str(decorated.value)
    assert "ZeroDivisionError" in str(chained.value)
    assert "broken_neighbour.py" in str(chained.value)
    for caught in decorated, chained:
        assert "/localflow/" not in str(caught.value)


def test_a_syntax_error_of_an_imported_module_is_an_exception_of_the_file(own_folder: Path) -> None:
    """The traceback leads from the file to the module at fault."""
    write(own_folder / "broken_neighbour.py", "def f(:")
    file = write(own_folder / "bad.py", "import broken_neighbour")

    with pytest.raises(UsageError) as caught:
        load_flow(file)

    assert "'bad.py' raised an exception when it was loaded" in str(caught.value)
    assert "import broken_neighbour" in str(caught.value)


def test_a_missing_file_gets_a_suggestion(own_folder: Path) -> None:
    """A folder and a path that no system takes are told apart."""
    write(own_folder / "flows.py", ONE)

    for reference, message in {
        "flow.py": "no such file: 'flow.py'; did you mean 'flows.py'?",
        "nowhere/at_all.py:f": "no such file: 'nowhere/at_all.py'",
        ".": "'.' is a folder; name a Python file in it",
        "x" * 5000: "cannot read",
        "a\0b": "cannot read",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_flow(reference)
        assert message in str(caught.value)


def test_ctrl_c_during_loading_is_not_an_error_of_the_file(own_folder: Path) -> None:
    """It ends the command."""
    file = write(own_folder / "slow.py", "raise KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt):
        load_flow(file)

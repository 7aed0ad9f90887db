"""docs/plugins.md is as the code is: its examples pass the contracts, every hook and method is told as it is."""

from __future__ import annotations

import doctest
import importlib
import inspect
import operator
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Optional, Union

import pytest
import tomli

import localflow
from localflow import hookspecs, interfaces
from localflow.errors import PluginError
from localflow.interfaces import AtLeast, Secret
from localflow.options import fitted, read_options
from localflow.plugins import Plugins, Source
from localflow.scaffold import write_plugin
from localflow.testing.store_records import make_flow_run, make_running, make_task_run

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
LOCALFLOW = Path(localflow.__file__).parents[1]
INTERFACES = ("Executor", "StateStore", "Notifier", "Claim")
HOOKS = [name for name in vars(hookspecs) if name.startswith("localflow_")]
#: A value for each annotation that the table of options names.
VALUES = {
    "str": "text",
    "int": 3,
    "float": 3,
    "bool": True,
    "list[str]": ["a"],
    "tuple[int, ...]": [1, 2],
    "dict[str, float]": {"a": 0.5},
    'Literal["process", "full"]': "full",
    "Path": "runs",
    "Annotated[int, AtLeast(1)]": 1,
    "Annotated[str, Secret()]": "hush",
    "Optional[int]": 3,
    "Union[int, str]": "text",
}


class Section(NamedTuple):
    """A heading of the page with what is below it, up to the next one."""

    title: str
    text: str

    @property
    def signature(self) -> str:
        """The line below the heading."""
        return self.text.strip().split("\n", 1)[0]

    @property
    def examples(self) -> list[str]:
        """The blocks of Python."""
        return re.findall(r"^```python\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)


def sections() -> list[Section]:
    """Return the sections of the page."""
    parts = re.split(r"^#{2,3} (.*)\n", PAGE, flags=re.MULTILINE)
    return [Section(title.strip("`"), text) for title, text in zip(parts[1::2], parts[2::2], strict=True)]


def section(title: str) -> Section:
    """Return the section of this heading."""
    (found,) = [each for each in sections() if each.title == title]
    return found


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Return the files of the page: each begins with a block that names it, and goes on with those that follow.

    A block that begins with a method is of the class before it.
    """
    found: dict[str, str] = {}
    name = ""
    for block in blocks("python"):
        if block.startswith(">>> "):
            continue
        if named := re.match(r"# (\w+\.py)\n", block):
            name = named[1]
        if re.match(r"def |@(property|staticmethod)\n", block):
            block = textwrap.indent(block, "    ")
        found[name] = f"{found[name]}\n{block}" if name in found else block
    return found


def members() -> dict[str, Any]:
    """Return what an author of a plugin may implement: the methods and properties of each interface, and the hooks."""
    found: dict[str, Any] = {hook: getattr(hookspecs, hook) for hook in HOOKS}
    for name in INTERFACES:
        for attribute, value in vars(getattr(interfaces, name)).items():
            if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                found[f"{name}.{attribute}"] = value
    return found


def told(path: str, member: Any) -> str:
    """Return the line that a section must have below its heading."""
    owner, _, name = path.rpartition(".")
    function = member.fget if isinstance(member, property) else member
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    text = str(signature.replace(parameters=parameters)).replace("'", "")
    line = f"`{name}{text.removeprefix('()') if isinstance(member, property) else text}`"
    if not owner:
        return line
    is_required = owner == "Claim" or name in getattr(interfaces, owner).__abstractmethods__
    return f"{line}, {'required' if is_required else 'optional'}"


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the files of the page where they can be imported."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in files():
        sys.modules.pop(name.removesuffix(".py"), None)


# -- nothing is missing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", members())
def test_each_hook_and_method_is_told_as_it_is(path: str) -> None:
    """It has a section with its signature, whether it is required, words about it and an example."""
    found = section(path)

    assert found.signature == told(path, members()[path])
    assert any(path.rpartition(".")[2] in example for example in found.examples)
    assert len(found.text.split("```")[0].strip().split("\n\n")) > 1


def test_no_other_hook_or_method_is_told() -> None:
    """What has gone from the code has gone from the page."""
    titles = [each.title for each in sections()]

    assert [
        title for title in titles if re.fullmatch(r"localflow_\w+|[A-Z]\w+\.\w+", title) and title not in members()
    ] == []


def test_what_an_executor_declares_is_told() -> None:
    """The table has every attribute with its default, and no other; the one that the engine sets is spoken of."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section("An executor").text, re.MULTILINE)
    attributes = interfaces.Executor.__annotations__
    declared = [name for name, annotation in attributes.items() if "ClassVar" in annotation]

    assert rows == [(name, str(getattr(interfaces.Executor, name))) for name in declared]
    assert [name for name in attributes if f"`{name}`" not in section("An executor").text] == []


def test_what_a_state_store_declares_is_told() -> None:
    """Its attributes are spoken of."""
    attributes = interfaces.StateStore.__annotations__

    assert [name for name in attributes if f"`{name}`" not in section("A state store").text] == []


@pytest.mark.parametrize("path", re.findall(r"^\| `(localflow\.[\w.]+)` \|", PAGE, re.MULTILINE))
def test_what_else_may_be_used_is_there(path: str) -> None:
    """Each name of the table can be imported from where it says."""
    module, _, name = path.rpartition(".")

    assert hasattr(importlib.import_module(module), name)


# -- what is told is so ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_examples_pass_the_contracts(examples: Path) -> None:
    """The executor, the state store and the notifier of the page pass the suites and run flows, by its own tests."""
    tests = [name for name in files() if name.startswith("test_")]
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", ".", "-o", "addopts=", *tests]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=examples,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 120


def test_hooks_register_the_examples(examples: Path) -> None:
    """The plugin of the page gives each class its name, and its options are those that localflow.toml may have."""
    plugins = Plugins()

    plugins.add(importlib.import_module("localflow_examples"), Source("examples", "localflow-examples", "1"))

    plugins.check()
    assert plugins.get_factory("executor", "crew").__name__ == "CrewExecutor"
    assert plugins.get_factory("state store", "shelf").__name__ == "ShelfStateStore"
    assert plugins.get_factory("notifier", "lines").__name__ == "LinesNotifier"
    assert list(read_options(plugins.get_factory("executor", "crew")).known) == ["workers"]


def test_sessions_print_what_they_show(examples: Path) -> None:
    """What is asked of the state store of the page is answered as it says."""
    flow_run = make_flow_run()
    task_runs = [make_task_run(flow_run, number) for number in (1, 2, 3)]
    names = {
        "store": importlib.import_module("shelf").ShelfStateStore(),
        "flow_run": flow_run,
        "task_runs": task_runs,
        "running": make_running(task_runs[0]),
    }
    session = "\n".join(block for block in blocks("python") if block.startswith(">>> "))
    test = doctest.DocTestParser().get_doctest(session, names, "docs/plugins.md", None, 0)

    ended = doctest.DocTestRunner().run(test)

    assert ended.attempted >= 3
    assert ended.failed == 0


def test_first_plugin_has_the_files_that_are_listed(tmp_path: Path) -> None:
    """The listing names each file that is written, in its order, and no other."""
    (command,) = re.findall(r"^\$ localflow plugins new (\w+ [\w-]+)$", PAGE, re.MULTILINE)
    (listing,) = [block for block in blocks("text") if block.startswith("localflow-pigeon/")]

    written = write_plugin(*command.split(), tmp_path)

    folder = tmp_path / listing.splitlines()[0]
    assert [line.split()[0] for line in listing.splitlines()[1:]] == sorted(
        str(path.relative_to(folder)) for path in written
    )


def test_first_plugin_takes_the_settings_that_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of the page is right for the plugin that was written, found by the entry point of the page."""
    package = write_plugin("notifier", "pigeon", tmp_path)[0].parent
    (settings,) = [block for block in blocks("toml") if block.startswith("# localflow.toml")]
    (pyproject,) = [block for block in blocks("toml") if block.startswith("# pyproject.toml")]
    entry_points = tomli.loads(pyproject)["project"]["entry-points"]["localflow"]
    metadata = package / "src" / "localflow_pigeon-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: localflow-pigeon\nVersion: 0.1\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[localflow]", *lines]))
    (tmp_path / "localflow.toml").write_text(settings)
    monkeypatch.setenv("PYTHONPATH", f"{package / 'src'}:{LOCALFLOW}")

    done = subprocess.run(
        [sys.executable, "-m", "localflow", "config", "validate"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "localflow.toml is valid\n"), done.stderr


def test_annotations_take_what_the_table_says() -> None:
    """Each annotation of the table of options is one, and takes a value such as it says."""
    vocabulary = {"Annotated": Annotated, "Literal": Literal, "Optional": Optional, "Union": Union}
    vocabulary |= {"AtLeast": AtLeast, "Path": Path, "Secret": Secret}
    rows = re.findall(r"^\| (`.*`) \| .* \|$", section("Options").text, re.MULTILINE)
    annotations = [annotation for row in rows for annotation in re.findall(r"`(.*?)`", row)]

    assert annotations == list(VALUES)
    for annotation, value in VALUES.items():
        assert fitted(value, eval(annotation, vocabulary), "option", Path("/")) is not None


def test_other_version_is_refused_as_shown() -> None:
    """The message is the one on the page, with both versions."""
    (message,) = [block for block in blocks("text") if "plugin API" in block]
    plugin = type("Pigeon", (), {"localflow_api": interfaces.API_VERSION + 1})()
    plugins = Plugins()

    plugins.add(plugin, Source("pigeon", "localflow-pigeon", "0.1"))

    with pytest.raises(PluginError) as caught:
        plugins.check()
    assert str(caught.value) == message.strip()


def test_version_of_the_example_is_the_one_there_is(examples: Path) -> None:
    """The hooks of the page are of this version."""
    stated = operator.attrgetter("localflow_api")(importlib.import_module("localflow_examples"))

    assert stated == interfaces.API_VERSION

"""Keep every core busy with real work: a census of the Python standard library.

Parses every source file of the running Python's standard library, some 200 kB of source in each task, and adds the
parts up in further tasks. Files that do not parse (the library's own tests hold some on purpose) are counted and named.

    localflow run examples/stdlib_census.py --executor process
    localflow run examples/stdlib_census.py --executor sequential
    localflow run examples/stdlib_census.py --executor process -p tests=false
    localflow run examples/stdlib_census.py --executor process -p folder=src

You should see the same report whatever executor makes it, on two cores in little more than half the time. Its figures
depend on your Python; 3.11.7 gives

    modules           1781
    lines             857247
    functions         58754
    longest function  test_factory in test/test_abc.py, 671 lines
    most imported     unittest (862), sys (684), test (671), os (564), io (227), re (223), warnings (207), time (161)
    not parsed        9
      lib2to3/tests/data/bom.py
      ...
"""

import ast
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from localflow import flow, task

STDLIB = Path(sysconfig.get_path("stdlib"))
INSTALLED_LATER = {"site-packages", "dist-packages"}
TESTS = {"test", "tests", "idle_test"}

BYTES_PER_TASK = 200_000  # some 60 ms of work: long beside the cost of a task run, short beside the whole
PARTS_PER_MERGE = 16


class Function(NamedTuple):
    """A function as the report names it; the longer one is the greater."""

    lines: int
    file: str
    name: str


NO_FUNCTION = Function(0, "", "")


@dataclass
class Census:
    """What was found in some of the files; `lines` and the rest are those of the modules that parsed."""

    modules: int = 0
    lines: int = 0
    functions: int = 0
    longest: Function = NO_FUNCTION
    importers: Counter[str] = field(default_factory=Counter)
    not_parsed: list[str] = field(default_factory=list)

    def add(self, other: "Census") -> None:
        """Take in what another census found."""
        self.modules += other.modules
        self.lines += other.lines
        self.functions += other.functions
        self.longest = max(self.longest, other.longest)
        self.importers.update(other.importers)
        self.not_parsed.extend(other.not_parsed)


@task
def survey(folder: Path, files: list[str]) -> Census:
    """Take the census of a few files."""
    census = Census()
    for file in files:
        census.add(survey_file(folder, file))
    return census


@task
def merge(parts: list[Census]) -> Census:
    """Add several censuses up."""
    census = Census()
    for part in parts:
        census.add(part)
    return census


@task
def write_report(census: Census) -> str:
    longest = census.longest
    by_importers = sorted(census.importers.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"modules           {census.modules}",
        f"lines             {census.lines}",
        f"functions         {census.functions}",
        f"longest function  {longest.name} in {longest.file}, {longest.lines} lines",
        f"most imported     {', '.join(f'{name} ({count})' for name, count in by_importers[:8])}",
        f"not parsed        {len(census.not_parsed)}",
        *(f"  {file}" for file in sorted(census.not_parsed)),
    ]
    return "\n".join(lines)


@flow(name="Standard library census")
def main(folder: Path = STDLIB, tests: bool = True) -> None:
    """Report on the Python files in `folder`, packages installed into it left out.

    Args:
        folder: where to look, at any depth.
        tests: whether the folders of tests count too.
    """
    parts = [survey(folder, files) for files in portions(folder, find_files(folder, tests))]
    while len(parts) > PARTS_PER_MERGE:
        parts = [merge(parts[at : at + PARTS_PER_MERGE]) for at in range(0, len(parts), PARTS_PER_MERGE)]
    report = write_report(merge(parts))
    print(report.result())


def find_files(folder: Path, tests: bool) -> list[str]:
    """Return the paths of the source files, relative to `folder`."""
    left_out = INSTALLED_LATER if tests else INSTALLED_LATER | TESTS
    files = (path.relative_to(folder) for path in folder.rglob("*.py") if path.is_file())
    return [file.as_posix() for file in files if left_out.isdisjoint(file.parts[:-1])]


def portions(folder: Path, files: list[str]) -> Iterator[list[str]]:
    """Deal the files out in portions of about the same size, the largest files first.

    So no long task is left for the end, when the other workers have nothing more to do.
    """
    sizes = {file: (folder / file).stat().st_size for file in files}
    portion: list[str] = []
    filled = 0
    for file in sorted(files, key=lambda file: (-sizes[file], file)):
        if portion and filled + sizes[file] > BYTES_PER_TASK:
            yield portion
            portion, filled = [], 0
        portion.append(file)
        filled += sizes[file]
    if portion:
        yield portion


def survey_file(folder: Path, file: str) -> Census:
    """Parse one file and count what is in it."""
    source = (folder / file).read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler, about code that is not ours
            tree = ast.parse(source, file)
    except (SyntaxError, ValueError):  # a wrong encoding is a SyntaxError too; null bytes are a ValueError
        return Census(not_parsed=[file])
    functions: list[Function] = []
    imported: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions.append(Function((node.end_lineno or node.lineno) - node.lineno + 1, file, node.name))
            case ast.Import():
                imported.update(alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                imported.add(module.partition(".")[0])
    longest = max(functions, default=NO_FUNCTION)
    return Census(1, len(source.splitlines()), len(functions), longest, Counter(imported))


if __name__ == "__main__":
    state = main()
    print(state)
    sys.exit(0 if state.is_completed() else 1)

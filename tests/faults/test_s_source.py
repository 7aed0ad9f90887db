"""What the source code never does, whoever calls it with whatever."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import localflow

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(localflow.__file__).parent

_SQL = re.compile(r"\s*(SELECT|INSERT|REPLACE|UPDATE|DELETE|CREATE|DROP|ALTER|ATTACH|VACUUM|PRAGMA|WITH)\b")


class Source:
    """A module's syntax tree."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.nodes = [*ast.walk(ast.parse(text))]
        literal, other = set(), set()
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target, value in pairs(node):
                    (literal if isinstance(value, ast.Constant) else other).add(dotted(target))
            elif isinstance(node, ast.arg):
                other.add(node.arg)
            elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.comprehension | ast.NamedExpr):
                other |= {dotted(each) for each in ast.walk(node.target)}
        self.literals = literal - other
        """Names that stand for a literal wherever they are bound in this module."""

    def is_constant(self, node: ast.AST) -> bool:
        """Return whether a piece of text is a literal, a name of one, or a constant: `VERSION`, `statements.ADD`."""
        if isinstance(node, ast.FormattedValue):
            return self.is_constant(node.value)
        if isinstance(node, ast.IfExp):
            return self.is_constant(node.body) and self.is_constant(node.orelse)
        name = dotted(node)
        return isinstance(node, ast.Constant) or name in self.literals or name.rpartition(".")[2].lstrip("_").isupper()

    def place(self, node: ast.AST) -> str:
        """Return file and line of a node."""
        return f"{self.name}:{getattr(node, 'lineno', 0)}"


@functools.cache
def package() -> list[Source]:
    """Return every module of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [Source(str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")) for path in paths]


def pairs(node: ast.Assign) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield what is assigned to what; a tuple to a tuple item by item."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        elif isinstance(target, ast.Tuple):
            yield from ((each, node.value) for each in target.elts)
        else:
            yield target, node.value


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for names and attributes, an empty string for all else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def pieces(node: ast.AST) -> list[ast.AST]:
    """Return what a text is put together from, by an f-string, `+`, `%` or `format`; nothing for other nodes."""
    if isinstance(node, ast.JoinedStr):
        return list(node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return [*(pieces(node.left) or [node.left]), *(pieces(node.right) or [node.right])]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return [node.func.value, *node.args, *(keyword.value for keyword in node.keywords)]
    return []


def mixed_sql(source: Source) -> list[str]:
    """Return the places where SQL is put together from anything that is not a constant."""
    found = []
    for node in source.nodes:
        parts = pieces(node)
        texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if texts and _SQL.match(texts[0]) and not all(map(source.is_constant, parts)):
            found.append(source.place(node))
        if (
            isinstance(node, ast.Call)
            and dotted(node.func).rpartition(".")[2] in ("execute", "executemany", "executescript")
            and any(not source.is_constant(part) for argument in node.args[:1] for part in pieces(argument))
        ):
            found.append(source.place(node))
    return found


def test_fault_S9_sql_is_never_put_together_from_values() -> None:
    """Statements are literals and constants; values are bound."""
    assert [place for source in package() for place in mixed_sql(source)] == []


def test_fault_S9_the_lint_sees_what_it_is_for() -> None:
    """Each way to put a value into SQL is found, and constants are let be."""
    bad = [
        'f"SELECT * FROM run WHERE name = {name}"',
        '"DELETE FROM run WHERE id = " + run_id',
        '"SELECT %s" % name',
        '"INSERT INTO run VALUES ({})".format(name)',
        'cursor.execute(f"{statement}")',
    ]
    good = ['f"PRAGMA user_version = {VERSION}"', "cursor.execute(statements.ADD, (name,))", 'x = " y"\n"SELECT 1" + x']

    assert [bool(mixed_sql(Source("x", line))) for line in bad + good] == [
        *[True] * len(bad),
        *[False] * len(good),
    ]


#: What is never called, and where it is all the same.
FORBIDDEN = {
    "eval": (),
    "exec": ("loading.py",),  # the flow's own file
    "os.system": (),
    "os.popen": (),
    "tempfile.mktemp": (),
    "yaml.load": (),
    "marshal.loads": (  # it makes plain data only
        "builtin/process/transport.py",  # frames of its own workers
        "builtin/remote.py",  # what the engine and the pool it runs calls in send each other
        "builtin/storage/blocks.py",  # what an engine of the same user has recorded
        "builtin/storage/spooled.py",  # likewise
        "payloads.py",  # where the buffers of an argument are
    ),
    "shelve.open": (),
    "pickle.load": (),
    "cloudpickle.load": (),
    "cloudpickle.loads": (),
    "pickle.loads": (
        "payloads.py",  # a value that somebody asks for
        "builtin/process/worker.py",  # from the engine that started it
        "builtin/process/outcomes.py",  # its own, to see that it can be read
    ),
}


def test_fault_S13_dangerous_calls_are_not_made() -> None:
    """No shell, no evaluation of texts, no predictable names of temporary files; pickles are read in known places."""
    found = set()
    for source in package():
        for node in source.nodes:
            if not isinstance(node, ast.Call):
                continue
            name = dotted(node.func)
            if name in FORBIDDEN and source.name not in FORBIDDEN[name]:
                found.add(f"{source.place(node)} calls {name}")
            if any(keyword.arg == "shell" for keyword in node.keywords):
                found.add(f"{source.place(node)} passes shell=")

    assert found == set()


def test_fault_S13_nothing_listens() -> None:
    """No module binds a socket or starts a server."""
    servers = {"http.server", "socketserver", "wsgiref", "xmlrpc.server", "asyncio.start_server"}
    found = {
        source.place(node)
        for source in package()
        if source.name != "testing/checked/mailbox.py"  # takes what a notifier sends, while `plugins check` checks it
        for node in source.nodes
        if (isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("listen", "start_server"))
        or (isinstance(node, ast.Import) and servers & {alias.name for alias in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module in servers)
    }

    assert found == set()

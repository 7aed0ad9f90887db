"""What the source of a module says of its names: the text that gives each its value, without running it."""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Any

from localflow.typed import NamedTuple

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable


class Expression(NamedTuple):
    """What stands in the source: without its places and comments, and the names in it."""

    text: str
    names: tuple[str, ...]
    callee: tuple[str, ...] = ()  # of a decorator: the names that lead to it


class Source(NamedTuple):
    """What a module's source says of its names, and of its functions and classes by their qualified names."""

    given: dict[str, list[Expression]]
    bodies: dict[str, list[Expression]]
    decorators: dict[str, list[Expression]]
    defaults: dict[str, list[Expression]]
    imported: dict[str, tuple[str, str]]
    stars: list[tuple[str, str]]

    def has_when_loaded(self, name: str) -> bool:
        """Return whether a name has its value once the module is loaded: not one that is None until it is needed."""
        if name in self.imported or name in self.decorators or self.stars or not any(self):
            return True
        return not all(each.text.endswith(" Constant(value=None)") for each in self.given.get(name, ()))


_sources: dict[str, tuple[list[str], Source]] = {}


def source_of(space: dict[str, Any]) -> Source:
    """Return what the source of a module, given by its names, says; nothing if it has none or it cannot be read."""
    file = space.get("__file__")
    lines = linecache.getlines(file, space) if isinstance(file, str) else []
    known = _sources.get(file) if isinstance(file, str) else None
    if known is None or known[0] is not lines:
        source = Source({}, {}, {}, {}, {}, [])
        import ast  # which most code does not need

        try:
            body = ast.parse("".join(lines)).body
        except (SyntaxError, ValueError, RecursionError):
            body = []
        _note(body, "", source)
        known = (lines, source)
        if lines:
            _sources[str(file)] = known
    return known[1]


def _note(body: Iterable[ast.stmt], owner: str, source: Source) -> None:
    """Put into `source` what the statements of a module, or of a class of it, say."""
    import ast

    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{owner}.{statement.name}" if owner else statement.name
            source.decorators.setdefault(name, []).extend(map(_expression, statement.decorator_list))
            if isinstance(statement, ast.ClassDef):
                source.bodies.setdefault(name, [])
                _note(statement.body, name, source)
            else:
                defaults = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
                source.defaults.setdefault(name, []).extend(map(_expression, defaults))
        elif isinstance(statement, ast.ImportFrom) and not owner:
            module = "." * statement.level + (statement.module or "")
            for alias in statement.names:
                if alias.name == "*":
                    source.stars.append((module, ""))
                else:
                    source.imported[alias.asname or alias.name] = (module, alias.name)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            value = _expression(*targets, *filter(None, [statement.value]))
            if owner:
                source.bodies[owner].append(value)
            else:
                for name in {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}:
                    source.given.setdefault(name, []).append(value)
        else:
            for field in ("body", "handlers", "orelse", "finalbody"):
                inner = getattr(statement, field, ())
                _note(inner if isinstance(inner, list) else (), owner, source)


def _expression(*nodes: ast.expr) -> Expression:
    import ast

    names = {
        n.id if isinstance(n, ast.Name) else n.attr
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, (ast.Name, ast.Attribute))
    }
    callee: list[str] = []
    node = nodes[0]
    while isinstance(node, (ast.Call, ast.Attribute)):
        if isinstance(node, ast.Attribute):
            callee.append(node.attr)
            node = node.value
        else:
            node = node.func
    callee += [node.id] if isinstance(node, ast.Name) else []
    return Expression(" ".join(map(ast.dump, nodes)), tuple(sorted(names)), tuple(reversed(callee)))

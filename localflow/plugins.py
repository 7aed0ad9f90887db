"""Load the plugins once, find executors, state stores and notifiers by name, list what is installed.

Built-ins are there at once. Which names the others have is known to their code alone, so all of them are imported when
a name is asked for that the built-ins do not have, and not before: who uses built-ins only runs no code of strangers.

What a plugin does wrong is kept until it matters:

- its import or one of its hooks fails: it counts as broken, and is named where a name is looked up that nobody has;
- it breaks the rules (a misspelt hook, a wrong argument, an API of another version): `check` raises, nothing runs;
- it registers a name that somebody else has, a built-in too: looking up that name raises and names both.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import operator
import os
import re
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pluggy

from localflow import hookspecs
from localflow.errors import PluginError, PluginLoadError, UnknownPluginError, suggestion
from localflow.interfaces import API_VERSION
from localflow.printable import printable
from localflow.states import exception_text
from localflow.typed import NamedTuple
from localflow.version import DISTRIBUTION, __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.metadata import Distribution, EntryPoint

Role: TypeAlias = Literal["executor", "state store", "notifier"]

GROUP = "localflow"
DISABLE_VARIABLE = "LOCALFLOW_DISABLE_PLUGINS"

_HOOKS: dict[str, Role] = {
    "localflow_register_executors": "executor",
    "localflow_register_state_stores": "state store",
    "localflow_register_notifiers": "notifier",
}
BUILTIN = "builtin"
"""The plugin of what comes with localflow."""

_BUILTIN = "localflow.builtin"
_redirection = threading.RLock()


class Source(NamedTuple):
    """Where a plugin comes from."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' of distribution '{self.distribution}' {self.version}"


class Registration(NamedTuple):
    """A name that a plugin gave to a factory."""

    role: Role
    name: str
    factory: Callable[..., Any] | str
    source: Source


class Listed(NamedTuple):
    """A line of `localflow plugins`: a registered name, or a plugin that gave none."""

    role: str
    name: str
    plugin: str
    distribution: str
    version: str
    problem: str = ""
    """Why it cannot be used; empty if it can."""


class Plugins:
    """The plugins of this installation: the built-ins, and one for each entry point of the group `localflow`."""

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._registered: dict[Role, dict[str, list[Registration]]] = {role: {} for role in _HOOKS.values()}
        self._errors: list[tuple[Source, PluginError]] = []
        self._disabled = frozenset(disabled)
        self._find_others: Callable[[], list[tuple[EntryPoint, Distribution]]] = list
        self._others: deque[tuple[EntryPoint, Distribution]] | None = None
        """The installed plugins that are still to be imported; None before they are looked for."""
        self._lock = threading.RLock()
        self._is_importing = False

    @classmethod
    def load(cls) -> Plugins:
        """Load the built-ins; others follow when they are needed, unless `LOCALFLOW_DISABLE_PLUGINS` names them."""
        names = os.environ.get(DISABLE_VARIABLE, "").split(",")
        plugins = cls(disabled=filter(None, map(str.strip, names)))
        plugins.add(importlib.import_module(_BUILTIN), Source(BUILTIN, DISTRIBUTION, __version__))
        plugins._find_others = _entry_points
        return plugins

    def import_all(self) -> None:
        """Import every installed plugin, unless that is done; what is wrong with one is kept for later."""
        with self._lock:
            if self._is_importing:
                raise PluginError("a plugin asked for plugins while it was imported; let it wait until it is used")
            self._is_importing = True
            try:
                if self._others is None:
                    self._others = deque(self._find_others())
                while self._others:
                    self._add_entry_point(*self._others[0])
                    self._others.popleft()
            finally:
                self._is_importing = False

    # -- looking up --

    def names(self, role: Role) -> list[str]:
        """Return the names registered for a role."""
        self.import_all()
        return sorted(self._registered[role])

    def iter_names(self, role: Role) -> Iterator[str]:
        """Yield the names registered for a role, and import plugins only if the reader goes on after those known."""
        known = sorted(self._registered[role])
        yield from known
        yield from (name for name in self.names(role) if name not in known)

    def get_factory(self, role: Role, name: str) -> Callable[..., Any]:
        """Return what makes the executor, state store or notifier of this name.

        Raises:
            UnknownPluginError: nobody registered it; tells of the broken plugins, for one of them might have.
            PluginLoadError: its plugin is broken.
            PluginError: two plugins registered it.
        """
        by_name = self._registered[role]
        if name not in by_name:
            self.import_all()
        found = by_name.get(name)
        if found is None:
            raise self._unknown(role, name)
        if len(found) > 1:
            raise PluginError(_registered_twice(found))
        return _imported(found[0])

    def get_source(self, role: Role, name: str) -> Source:
        """Return the plugin that registered this name; raises like `get_factory`."""
        self.get_factory(role, name)
        return self._registered[role][name][0].source

    def check(self) -> None:
        """Raise a PluginError if an imported plugin breaks the rules; one whose import failed does not matter here."""
        wrong = [str(error) for _, error in self._errors if not isinstance(error, PluginLoadError)]
        if wrong:
            raise PluginError("\n".join(wrong))

    def problems(self) -> list[str]:
        """Return what is wrong with installed plugins: those that do not load, and names registered twice."""
        return list(dict.fromkeys(listed.problem for listed in self.listing() if listed.problem))

    def listing(self) -> list[Listed]:
        """Return every registered name, by role and name, then the plugins that could not register any."""
        self.import_all()
        names = [
            Listed(role, name, *registration.source, _registered_twice(found) if len(found) > 1 else "")
            for role, by_name in self._registered.items()
            for name, found in sorted(by_name.items())
            for registration in found
        ]
        return names + [Listed("", "", *source, str(error)) for source, error in self._errors]

    def _unknown(self, role: Role, name: str) -> PluginError:
        broken = [error for _, error in self._errors]
        for error in broken:
            if isinstance(error, PluginLoadError) and error.plugin == name:
                return error
        return UnknownPluginError(role, printable(name), self.names(role), [str(error) for error in broken])

    # -- taking in --

    def add(self, plugin: object, source: Source) -> None:
        """Take in a plugin: a module or an object with hooks. What is wrong with it is kept for later."""
        try:
            with _reasons(source, passing=PluginError), _stdout_to_stderr():
                for registration in self._registrations(plugin, source):
                    self._registered[registration.role].setdefault(registration.name, []).append(registration)
        except PluginError as error:
            self._errors.append((source, error))

    def _add_entry_point(self, entry_point: EntryPoint, distribution: Distribution) -> None:
        if entry_point.name in self._disabled:
            return
        source = Source(printable(entry_point.name), printable(distribution.name), printable(distribution.version))
        try:
            with _reasons(source), _stdout_to_stderr():
                plugin = entry_point.load()
        except PluginError as error:
            self._errors.append((source, error))
        else:
            self.add(plugin, source)

    def _registrations(self, plugin: Any, source: Source) -> list[Registration]:
        """Check a plugin against the rules, call its hooks, and return what they register: all of it or nothing."""
        api = getattr(plugin, "localflow_api", API_VERSION)
        if type(api) is not int or api != API_VERSION:
            raise PluginError(
                f"{source} is made for plugin API {printable(repr(api))}, this localflow has {API_VERSION}; "
                f"install versions that fit each other, or set {DISABLE_VARIABLE}={source.plugin}"
            )
        hooks = list(self._hooks_of(plugin, source))
        if not hooks:
            raise PluginLoadError(source.plugin, source.distribution, f"it has none of the hooks {', '.join(_HOOKS)}")
        try:
            self._manager.register(plugin, name=f"{source.distribution}:{source.plugin}")
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{source}: {' '.join(str(error).split())}") from error
        except ValueError as error:
            raise PluginLoadError(source.plugin, source.distribution, "another entry point has loaded it") from error
        made: list[Registration] = []
        others = self._manager.get_plugins() - {plugin}
        for hook in dict.fromkeys(hooks):
            register = _register(_HOOKS[hook], hook, source, made)
            with _reasons(source, hook, passing=PluginError):
                returned = self._manager.subset_hook_caller(hook, others)(register=register)
            if returned:
                raise PluginError(f"{source}: {hook} returned {_closed(returned[0])}; it must only call register(...)")
        return made

    def _hooks_of(self, plugin: object, source: Source) -> Iterator[str]:
        """Yield the hooks that a plugin has; raise for what was meant to be one."""
        for name in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, name)
            if options is None:
                if name.startswith(f"{hookspecs.PROJECT}_") and inspect.isroutine(getattr(plugin, name)):
                    raise PluginError(_misspelt(source, name) if name not in _HOOKS else _unmarked(source, name))
                continue
            hook = options.get("specname") or name
            if hook in _HOOKS:
                _check_arguments(getattr(plugin, name), hook, source)
                yield hook
            elif not options.get("optionalhook"):
                raise PluginError(_misspelt(source, hook))


_loaded: Plugins | None = None
_loading = threading.Lock()


def installed_plugins() -> Plugins:
    """Return the plugins of this process."""
    global _loaded
    if _loaded is None:
        with _loading:
            _loaded = _loaded or Plugins.load()
    return _loaded


# -- one plugin ------------------------------------------------------------------------------------------------------


def _register(role: Role, hook: str, source: Source, made: list[Registration]) -> Callable[[str, Any], None]:
    def register(name: str, factory: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise PluginError(
                f"{source}: {hook} registers the name {printable(repr(name))}; a name has letters, digits, - and _ only"
            )
        is_path = isinstance(factory, str) and re.fullmatch(r"[\w.]+:[\w.]+", factory)
        if not is_path and not callable(factory):
            raise PluginError(
                f"{source}: {hook} registers {printable(repr(factory))} for '{name}'; "
                "a factory is a callable, or 'module:name' of one"
            )
        made.append(Registration(role, name, factory, source))

    return register


def _imported(registration: Registration) -> Callable[..., Any]:
    factory, source = registration.factory, registration.source
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        quietly = contextlib.nullcontext() if module in sys.modules else _stdout_to_stderr()
        with _reasons(source, factory), quietly:
            found = operator.attrgetter(attribute)(importlib.import_module(module))
            if not callable(found):
                raise TypeError(f"{attribute} is not callable")
        factory = found
    return factory


def _check_arguments(function: Callable[..., object], hook: str, source: Source) -> None:
    for parameter in inspect.signature(function).parameters.values():
        is_given = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if is_given and parameter.default is parameter.empty and parameter.name != "register":
            raise PluginError(f"{source}: {hook} has an argument '{parameter.name}'; its only argument is 'register'")


def _misspelt(source: Source, name: str) -> str:
    near = suggestion(name, _HOOKS) or f"; the hooks are {', '.join(_HOOKS)}"
    return f"{source}: '{printable(name)}' is no hook of localflow{near}"


def _unmarked(source: Source, name: str) -> str:
    return f"{source}: '{name}' is not marked as a hook; decorate it with @localflow.hookimpl"


def _registered_twice(found: list[Registration]) -> str:
    first = found[0]
    by = " and by ".join(str(registration.source) for registration in found)
    return (
        f"{first.role} '{first.name}' is registered by {by}; "
        f"uninstall one of them, or set {DISABLE_VARIABLE}={found[-1].source.plugin}"
    )


def _closed(returned: Any) -> str:
    if inspect.iscoroutine(returned):
        returned.close()  # it would warn that nobody awaited it
    return f"a {type(returned).__name__}"


@contextlib.contextmanager
def _reasons(source: Source, place: str = "", passing: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Turn whatever a plugin's code raises, `sys.exit()` too, into a PluginLoadError."""
    try:
        yield
    except (KeyboardInterrupt, passing):
        raise
    except BaseException as error:
        text = exception_text(error)
        if isinstance(error, SystemExit):
            reason = f"it called sys.exit({text})"
        else:
            reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        reason = printable(" ".join(reason.split()))
        reason = f"{place}: {reason}" if place else reason
        raise PluginLoadError(source.plugin, source.distribution, reason) from error


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep what plugins print off standard output, which belongs to the data of the command line."""
    # The redirection is the whole process's: two at once would put back each other's stream.
    with _redirection, contextlib.redirect_stdout(sys.stderr):
        yield


# -- entry points ----------------------------------------------------------------------------------------------------


def _entry_points() -> list[tuple[EntryPoint, Distribution]]:
    """Return the entry points of all distributions, the first of each name, sorted by name."""
    if not _may_have_entry_points():
        return []
    from importlib.metadata import distributions

    found: dict[str, list[tuple[EntryPoint, Distribution]]] = {}
    for distribution in distributions():
        try:  # one at a time: damaged metadata of some other distribution is not our concern
            ours = [(each, distribution) for each in distribution.entry_points if each.group == GROUP]
            if ours:
                found.setdefault(re.sub(r"[-_.]+", "-", distribution.name).lower(), ours)
        except Exception:
            continue
    return sorted((pair for pairs in found.values() for pair in pairs), key=lambda pair: pair[0].name)


def _may_have_entry_points() -> bool:
    """Look for our group in the files of entry points; importing `importlib.metadata` takes longer than all else here.

    True also where distributions may be found in other ways: zip files, finders of their own.
    """
    for finder in sys.meta_path:
        if hasattr(finder, "find_distributions") and getattr(finder, "__module__", "") != "_frozen_importlib_external":
            return True
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - a Path for each file costs more than reading it
        except NotADirectoryError:
            return True
        except (OSError, TypeError):
            continue
        for name in names:
            if name[-10:].lower().endswith((".dist-info", "egg-info")):
                try:
                    text = Path(folder, name, "entry_points.txt").read_bytes()
                except OSError:
                    continue
                if f"[{GROUP}]".encode() in text:
                    return True
    return False

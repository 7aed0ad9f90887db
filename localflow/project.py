"""A project: a folder with its settings and the plugins installed, and what the two make together."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

from localflow.config import DEFAULT, LIMITS, RETENTION, SECTIONS, Problem, Settings, Table, config_error, load_settings
from localflow.errors import LocalflowError, PluginError, StoreError, UnknownPluginError, suggestion
from localflow.instances import claim, release
from localflow.interfaces import AtLeast, Executor, Notifier, StateStore
from localflow.interrupts import STOPS
from localflow.masking import MASK, dotted, found, masked, without
from localflow.options import REQUIRED, Bound, Option, Options, bind, read_options
from localflow.plugins import BUILTIN, Plugins, installed_plugins
from localflow.printable import printable
from localflow.states import STATE_NAMES, exception_text
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from localflow.config import Section
    from localflow.limits import Limits
    from localflow.notifications import Notifications, Subscription
    from localflow.plugins import Role, Source

_ROLES: Mapping[Section, Role] = {"executors": "executor", "stores": "state store", "notifiers": "notifier"}
_CHOICES: Mapping[Section, str] = {"executors": "executor", "stores": "store"}

# The notifier that is there without being asked for, and what it is told of unless its table says otherwise.
_DEFAULT_NOTIFIER = "log"
_DEFAULT_ON = ["Failed", "Crashed", "Cancelled"]

# Keys of a notifier's table that say what it is told of; its factory never sees them.
_FILTERS: Mapping[str, Option] = {
    "on": Option("on", list[str], None),
    "flows": Option("flows", list[str], None),
    "min_duration": Option("min_duration", Annotated[float, AtLeast(0)], 0.0),
}


_current: ContextVar[Project | None] = ContextVar("localflow_project", default=None)


class Shown(NamedTuple):
    """A line of `localflow config show`."""

    key: str
    value: object
    """Plain JSON-safe data, secrets masked; None for a default that leaves the choice to the plugin."""
    origin: str


class Project:
    """A folder with its settings and the plugins installed. Loading it starts and creates nothing."""

    def __init__(self, root: Path, settings: Settings, plugins: Plugins) -> None:
        #: The folder of localflow.toml (or of pyproject.toml); the working directory if there is neither.
        self.root = root
        self.settings = settings
        self.plugins = plugins
        self._ready: dict[object, list[Executor]] = {}
        """Executors that get ready for flows about to run on them, by name or by the identity of an instance."""
        self._secrets: list[object] = []
        """What has been given to plugins and is not to be shown."""

    @classmethod
    def load(
        cls,
        directory: Path | None = None,
        overrides: Mapping[str, object] | None = None,
        plugins: Plugins | None = None,
    ) -> Project:
        """Read the settings of a directory and check all of them, against the plugins too.

        Args:
            directory: where to look for localflow.toml first; the working directory by default.
            overrides: values of command-line flags by dotted key, such as `{"executors.process.workers": 4}`.
            plugins: the plugins to use; those installed by default.

        Raises:
            ConfigError: with everything that is wrong.
            PluginError: an installed plugin breaks the rules.
        """
        plugins = plugins or installed_plugins()
        settings, problems = load_settings(
            directory, overrides, installed=lambda section: plugins.iter_names(_ROLES[section])
        )
        project = cls(settings.root, settings, plugins)
        problems.extend(project._problems())
        plugins.check()  # now that those are imported that something is asked of
        if problems:
            raise config_error(problems)
        return project

    @classmethod
    def current(cls) -> Project:
        """Return the project that a block of code has asked for, else load that of the working directory."""
        return _current.get() or cls.load()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have flows that are called in the block run with this project."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @property
    def executor(self) -> str:
        """The name of the executor of a flow that names none."""
        return self.settings.executor

    def choose(self, executor: str | Executor) -> Executor:
        """Return the executor that a flow or task names, or gives: it is the flow run's own until it is released."""
        try:
            return self._ready[_key(executor)].pop()
        except (KeyError, IndexError):
            return self._own(executor)

    @contextmanager
    def prepared(self, executor: str | Executor | None) -> Iterator[None]:
        """Let an executor get ready that the block will choose, whatever else that does before."""
        if executor is None:
            yield
            return
        made = self._own(executor)
        ready = self._ready.setdefault(_key(executor), [])
        ready.append(made)
        try:
            with suppress(Exception):  # which shows when it starts
                made.prepare()
            yield
        finally:
            places = [place for place, each in enumerate(ready) if each is made]
            for place in places:  # it was never started
                del ready[place]
                with suppress(Exception):
                    made.shutdown()
                release(made)

    def _own(self, executor: str | Executor) -> Executor:
        return self.make_executor(executor) if isinstance(executor, str) else claim(executor)

    def make_executor(self, name: str) -> Executor:
        """Return a fresh executor by the name of a table or of a plugin, not started."""
        table = self._table("executors", name)
        made = self._construct(table, self._checked(table))
        if not isinstance(made, Executor):
            raise _foreign(table, made, "an Executor")
        return made

    @property
    def state_directory(self) -> Path:
        """The folder for what engines on this machine share besides the store."""
        return self.root / ".localflow"

    def limits_of(self) -> Callable[[Callable[[Any, Any], None]], Limits] | None:
        """Return what makes the limits of the settings for an engine; None if there are none."""
        limits = self.settings.limits
        if not limits:
            return None
        from localflow.limits import Limits

        return lambda on_granted: Limits(self.state_directory / "limits", limits, on_granted)

    def open_store(self, name: str | None = None) -> StateStore:
        """Open the state store of the settings, or another one by the name of a table or of a plugin.

        Raises:
            StoreError: it cannot be opened.
        """
        table = self._table("stores", name or self.settings.store)
        made = self._construct(table, self._checked(table))
        if not isinstance(made, StateStore):
            raise _foreign(table, made, "a StateStore")
        source = self._source(table)
        if source.plugin == BUILTIN:
            return made
        from localflow.guarded_store import GuardedStore

        return GuardedStore(made, self._from_plugin(table), self.discreet)

    @contextmanager
    def opened_store(self) -> Iterator[StateStore]:
        """Open the state store of the settings for the block; raises StoreError."""
        store = self.open_store()
        try:
            yield store
        finally:
            store.close()

    def repair_store(self) -> list[str]:
        """Have the files of the state store of the settings mended, and return what was done, a line for each thing.

        Raises:
            StoreError: that cannot be done, or the class of the store has no method `repair`.
        """
        table = self._table("stores", self.settings.store)
        bound = self._checked(table)
        repair = getattr(self._factory(table), "repair", None)
        if repair is None:
            raise StoreError(f"{self._from_plugin(table)} cannot be repaired by localflow; see its documentation")
        done: list[str] = repair(**bound.arguments)
        return done

    def make_notifications(self) -> Notifications:
        """Return the notifiers of the settings, each with what it wants to be told of."""
        from localflow.notifications import Notifications

        subscriptions = [self._subscription(table) for table in self._tables_in_use("notifiers")]
        return Notifications(subscriptions, discreet=self.discreet)

    def discreet(self, text: str) -> str:
        """Return a text with everything masked that has been given to plugins as a secret."""
        return without(self._secrets, text)

    def try_plugins(self) -> None:
        """Make every executor and notifier of the settings once, for only constructors know some mistakes.

        Raises:
            ConfigError, PluginError: the first of them.
        """
        for table in self._tables_in_use("executors"):
            self.make_executor(table.name)
        self.make_notifications().close()

    def sections_of(self, name: str) -> list[Section]:
        """Return the sections in which a table has this name, or for which a plugin has registered it."""
        return [
            section
            for section, role in _ROLES.items()
            if name in self.settings.tables(section) or name in self.plugins.names(role)
        ]

    def names_in(self, sections: Iterable[Section]) -> set[str]:
        """Return the names of the tables in these sections, and those that plugins have registered for them."""
        return {
            name
            for section in sections
            for name in (*self.settings.tables(section), *self.plugins.names(_ROLES[section]))
        }

    def role_of(self, section: Section, name: str) -> tuple[Role, Source]:
        """Return what the tables of a section are of, and the plugin behind one of them; raises PluginError."""
        self._factory(self._table(section, name))
        kind = self._table(section, name).values.get("type")
        role = _ROLES[section]
        return role, self.plugins.get_source(role, str(kind.value) if kind else name)

    def options_of(self, section: Section, name: str) -> Mapping[str, Any]:
        """Return the options of a table as its factory gets them; raises ConfigError or PluginError."""
        return self._checked(self._table(section, name)).arguments

    def make(self, section: Section, name: str) -> object:
        """Return what the factory of a table makes, whatever it is; raises ConfigError, PluginError or StoreError."""
        table = self._table(section, name)
        return self._construct(table, self._checked(table))

    def show(self) -> list[Shown]:
        """Return every value in force with its origin, among them the defaults of all that is in use."""
        settings = self.settings
        shown = [
            Shown(choice, getattr(settings, choice), str(settings.origins.get(choice, DEFAULT)))
            for choice in _CHOICES.values()
        ]
        for section in SECTIONS:
            for table in self._tables_in_use(section):
                shown.extend(self._show_table(table))
        for heading, options in ((LIMITS, settings.limits), (RETENTION, settings.retention)):
            for option, value in options.items():
                key = dotted(heading, option)
                shown.append(Shown(key, value, str(settings.origins.get(key, DEFAULT))))
        return shown

    def show_store(self, name: str) -> list[Shown]:
        """Return the options of a state store by the name of a table or of a plugin, defaults among them."""
        return list(self._show_table(self._table("stores", name)))

    # -- tables --

    def _table(self, section: Section, name: str) -> Table:
        """Return the table of this name, an empty one for a plugin that is used without."""
        table = self.settings.tables(section).get(name)
        if table is None:
            choice = _CHOICES.get(section, "")
            is_chosen = getattr(self.settings, choice, None) == name
            table = Table(section, name, self.settings.origins.get(choice, DEFAULT) if is_chosen else DEFAULT)
        return table

    def _tables_in_use(self, section: Section) -> list[Table]:
        """Return the tables of a section, and one for what is in use without."""
        tables = self.settings.tables(section)
        name = getattr(self.settings, _CHOICES[section]) if section in _CHOICES else _DEFAULT_NOTIFIER
        return [*tables.values(), *([self._table(section, name)] if name not in tables else [])]

    def _factory(self, table: Table) -> Callable[..., Any]:
        """Find the factory of a table: that of its `type`, which is the table's own name where it has none."""
        kind = table.values.get("type")
        try:
            return self.plugins.get_factory(_ROLES[table.section], str(kind.value) if kind else table.name)
        except UnknownPluginError as error:
            tables = self.settings.tables(table.section)
            if kind or table.name in tables or not tables:
                raise
            names = {*error.installed, *map(printable, tables)}
            raise UnknownPluginError(error.role, error.name, names, str(error).split("\n")[1:]) from None

    def _bind(self, table: Table) -> Bound:
        """Check the options of a table, and those of a notifier that are ours rather than its factory's."""
        options = read_options(self._factory(table))
        if table.section != "notifiers":
            return bind(table, options, self.root, os.environ, ("type",))
        bound = bind(table, Options({**options.known, **_FILTERS}, options.is_open), self.root, os.environ, ("type",))
        wrong = [name for name in bound.arguments.get("on", ()) if name not in STATE_NAMES]
        return bound._replace(
            problems=[*bound.problems, *(table.problem(_unknown_state(name), "on") for name in wrong)]
        )

    # -- checking --

    def _problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the tables and names, knowing the plugins."""
        for section in SECTIONS:
            for table in self._tables_in_use(section):
                if table.origin is not DEFAULT:  # what is there by default is left unimported
                    yield from self._table_problems(table)

    def _table_problems(self, table: Table) -> Iterable[Problem]:
        kind = table.values.get("type")
        if kind and not (isinstance(kind.value, str) and kind.value):
            return [table.problem(f"type must be the name of a plugin, got {found(kind.value)}", "type")]
        try:
            return self._bind(table).problems
        except PluginError as error:
            first, *broken = str(error).split("\n")
            if table.name not in self.settings.tables(table.section):
                problem = Problem(table.origin, first)
            elif kind or not isinstance(error, UnknownPluginError):
                problem = table.problem(first, "type")
            else:
                problem = table.problem(f"{first}; a table with a name of your own needs a 'type'")
            return [problem, *(Problem(DEFAULT, text) for text in broken)]

    # -- making --

    def _checked(self, table: Table) -> Bound:
        bound = self._bind(table)
        self.plugins.check()  # an executor that is named in code alone may have had plugins imported
        self._secrets.extend(bound.secrets)
        if bound.problems:
            raise config_error(bound.problems)
        return bound

    def _construct(self, table: Table, bound: Bound) -> object:
        filters = _FILTERS if table.section == "notifiers" else {}
        options = {key: value for key, value in bound.arguments.items() if key not in filters}
        factory = self._factory(table)
        if missing := getattr(factory, "__abstractmethods__", ()):
            lacking = ", ".join(sorted(missing))
            raise PluginError(f"{self._from_plugin(table)}: its class {factory.__name__} lacks {lacking}")
        try:
            return factory(**options)
        except (LocalflowError, *STOPS):
            raise
        except BaseException as error:  # sys.exit() in a factory is no end of the program
            told = printable(" ".join(exception_text(error).split())) or type(error).__name__
            reason = without(bound.secrets, told)
            cause = error if reason == told else None
            if isinstance(error, (ValueError, TypeError)) and not isinstance(error, UnicodeError):
                raise config_error([table.problem(reason)]) from cause
            kind = StoreError if table.section == "stores" else PluginError
            raise kind(f"{self._from_plugin(table)} cannot be made: {type(error).__name__}: {reason}") from cause

    def _from_plugin(self, table: Table) -> str:
        """Return a table's role and name with the plugin and distribution behind it, for messages."""
        return f"{_named(table)} of {self._source(table)}"

    def _source(self, table: Table) -> Source:
        kind = table.values.get("type")
        return self.plugins.get_source(_ROLES[table.section], str(kind.value) if kind else table.name)

    def _subscription(self, table: Table) -> Subscription:
        from localflow.notifications import Subscription

        bound = self._checked(table)
        notifier = self._construct(table, bound)
        if not isinstance(notifier, Notifier):
            raise _foreign(table, notifier, "a Notifier")
        on, flows = (bound.arguments.get(key, _default_filter(table, key)) for key in ("on", "flows"))
        return Subscription(
            table.name,
            notifier,
            on=None if on is None else frozenset(on),
            flows=None if flows is None else frozenset(flows),
            min_duration=bound.arguments.get("min_duration", 0.0),
        )

    # -- showing --

    def _show_table(self, table: Table) -> Iterator[Shown]:
        filters = _FILTERS if table.section == "notifiers" else {}
        options = read_options(self._factory(table)).known
        for key in dict.fromkeys([*table.values, *options, *filters]):
            given = table.values.get(key)
            if given is not None:
                value, origin = given.value, given.origin
            else:
                value, origin = _default_filter(table, key) if key in filters else options[key].default, DEFAULT
            if value is not REQUIRED:
                is_secret = key in options and options[key].is_secret
                shown = MASK if is_secret and value is not None else masked(value, key)
                yield Shown(dotted(table.section, table.name, key), shown, str(origin))


def _key(executor: str | Executor) -> object:
    return executor if isinstance(executor, str) else id(executor)


def _default_filter(table: Table, key: str) -> Any:
    return _DEFAULT_ON if key == "on" and table.name == _DEFAULT_NOTIFIER else _FILTERS[key].default


def _unknown_state(name: str) -> str:
    alike = [known for known in STATE_NAMES if known.lower() == name.lower()]
    near = suggestion(alike[0] if alike else name, STATE_NAMES)
    return f"on names an unknown state '{printable(name)}'{near or '; known: ' + ', '.join(STATE_NAMES)}"


def _named(table: Table) -> str:
    return f"{_ROLES[table.section]} '{printable(table.name)}'"


def _foreign(table: Table, made: object, expected: str) -> PluginError:
    return PluginError(f"{_named(table)}: its factory made {type(made).__name__}, which is not {expected}")

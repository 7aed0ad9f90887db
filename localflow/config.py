"""localflow.toml, environment variables and command-line flags -> frozen Settings, with the origin of each value.

What is defined here is the frame: which tables there are, and who wins. What the tables of executors, state stores and
notifiers may hold is known to the plugins alone, so `Project` checks that.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from localflow.errors import ConfigError, suggestion
from localflow.masking import dotted, found
from localflow.printable import printable
from localflow.retention import EXPECTED, is_right, unknown_states
from localflow.tomlfile import TomlFile, nests_too_deeply, parse_value, read_toml
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FILE_NAME = "localflow.toml"
ENV_PREFIX = "LOCALFLOW_"

#: Variables that are no settings; whoever reads one of them adds it here.
RESERVED_VARIABLES = (
    "LOCALFLOW_CAPTURE_DESCRIPTORS",
    "LOCALFLOW_DISABLE_PLUGINS",
    "LOCALFLOW_ENGINE",
    "LOCALFLOW_FAILPOINT",
)

Section = Literal["executors", "stores", "notifiers"]
SECTIONS: tuple[Section, ...] = ("executors", "stores", "notifiers")
LIMITS = "limits"
RETENTION = "retention"
CHOICES: Mapping[str, str] = MappingProxyType({"executor": "sequential", "store": "sqlite"})

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_FLAGS = {"executor": "--executor", "store": "--store"}


class Origin(NamedTuple):
    """Where a value comes from."""

    kind: Literal["file", "environment", "flag", "default"]
    name: str
    """The file, the environment variable, the flag; or `default`."""
    line: int = 0
    root: str = ""
    """The table of the file that holds all of localflow's: `tool.localflow` in pyproject.toml."""

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


DEFAULT = Origin("default", "default")


class Value(NamedTuple):
    """A value and where it comes from."""

    value: object
    origin: Origin
    text: str | None = None
    """How an environment variable words it, for options that want text whatever it looks like."""


class Problem(NamedTuple):
    """A mistake in the settings: one line of a ConfigError."""

    origin: Origin
    text: str
    table: str = ""

    def __str__(self) -> str:
        table = ".".join(filter(None, (self.origin.root, self.table)))
        place = "" if self.origin is DEFAULT else f"{self.origin}: "
        return f"{place}[{table}] {self.text}" if table else f"{place}{self.text}"


class Table(NamedTuple):
    """The options of one executor, state store or notifier, such as `[executors.process]`."""

    section: Section
    name: str
    origin: Origin
    values: Mapping[str, Value] = _EMPTY

    def __repr__(self) -> str:
        return f"<Table {self.section}.{self.name}>"  # there may be secrets in it

    def problem(self, text: str, key: str | None = None) -> Problem:
        """Word a mistake in this table, at the place of `key` if that is in it."""
        value = self.values.get(key) if key is not None else None
        return Problem(value.origin if value else self.origin, text, dotted(self.section, self.name))


class Settings(NamedTuple):
    """What is in force, whoever said it."""

    root: Path
    """The folder of the file; the folder where the search began if there is no file."""
    file: Path | None = None
    executor: str = CHOICES["executor"]
    """The executor of a flow that names none."""
    store: str = CHOICES["store"]
    executors: Mapping[str, Table] = _EMPTY
    stores: Mapping[str, Table] = _EMPTY
    notifiers: Mapping[str, Table] = _EMPTY
    limits: Mapping[str, int] = _EMPTY
    """At most so many task runs with this tag at once."""
    retention: Mapping[str, object] = _EMPTY
    """Which flow runs are removed by and by, by the options of `retention.Rule`; empty if none are."""
    origins: Mapping[str, Origin] = _EMPTY
    """Where `executor`, `store`, `limits.TAG` and `retention.OPTION` come from; other options have it beside them."""

    def tables(self, section: Section) -> Mapping[str, Table]:
        """Return the tables of a section by name."""
        tables: Mapping[str, Table] = getattr(self, section)
        return tables


def load_settings(
    directory: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    installed: Callable[[Section], Iterable[str]] = lambda section: (),
) -> tuple[Settings, list[Problem]]:
    """Read the settings in force in a directory, and all mistakes that show without knowing any plugin.

    Args:
        directory: where the search for the file begins; the working directory by default.
        overrides: values of command-line flags by dotted key, such as `executors.process.workers`.
        environ: the environment, `os.environ` by default.
        installed: gives the names of the plugins of a section, to recognise them in variables.

    Raises:
        ConfigError: the file cannot be read as TOML at all.
    """
    start = _absolute(directory)
    file = _find_file(start)
    reader = _Reader(installed)
    if file is not None:
        reader.read_file(file)
    reader.read_environment(os.environ if environ is None else environ)
    reader.read_overrides(overrides or {})
    reader.check_retention()
    settings = reader.settings(start if file is None else file.path.parent, file.path if file else None)
    return settings, sorted(reader.problems, key=_place)


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """Return the error that lists all problems, each once, in the order of their places."""
    return ConfigError(list(dict.fromkeys(str(problem) for problem in sorted(problems, key=_place))))


def _place(problem: Problem) -> tuple[int, int]:
    return ("file", "environment", "flag", "default").index(problem.origin.kind), problem.origin.line


def _absolute(directory: Path | None) -> Path:
    try:
        return Path(os.path.abspath(directory or "."))  # noqa: PTH100 - keeps links as the user wrote them
    except OSError as error:
        message = f"the working directory cannot be read ({error.strerror}); change to one that exists"
        raise ConfigError([message]) from error


def _find_file(start: Path) -> TomlFile | None:
    folders = (start, *start.parents)
    for folder in folders:
        file = read_toml(folder / FILE_NAME)
        if file is not None:
            return file
    for folder in folders:
        file = read_toml(folder / "pyproject.toml", mentioning=b"localflow")
        tool = file.values.get("tool") if file is not None else None
        if file is not None and isinstance(tool, dict) and "localflow" in tool:
            return file
    return None


class _Reader:
    """Takes in one source after the other, the later ones winning, and collects what is wrong."""

    def __init__(self, installed: Callable[[Section], Iterable[str]]) -> None:
        self.problems: list[Problem] = []
        self._installed = installed
        self._chosen = {name: Value(default, DEFAULT) for name, default in CHOICES.items()}
        self._tables: dict[Section, dict[str, Table]] = {section: {} for section in SECTIONS}
        self._limits: dict[str, Value] = {}
        self._retention: dict[str, Value] = {}

    def settings(self, root: Path, file: Path | None) -> Settings:
        origins = {name: value.origin for name, value in self._chosen.items()}
        origins |= {dotted(LIMITS, tag): value.origin for tag, value in self._limits.items()}
        origins |= {dotted(RETENTION, option): value.origin for option, value in self._retention.items()}
        return Settings(
            root=root,
            file=file,
            executor=str(self._chosen["executor"].value),
            store=str(self._chosen["store"].value),
            executors=MappingProxyType(self._tables["executors"]),
            stores=MappingProxyType(self._tables["stores"]),
            notifiers=MappingProxyType(self._tables["notifiers"]),
            limits=MappingProxyType(
                {tag: value.value for tag, value in self._limits.items() if isinstance(value.value, int)}
            ),
            retention=MappingProxyType({option: value.value for option, value in self._retention.items()}),
            origins=MappingProxyType(origins),
        )

    # -- the file --

    def read_file(self, file: TomlFile) -> None:
        prefix = ("tool", "localflow") if file.path.name != FILE_NAME else ()
        values: object = file.values
        for part in prefix:
            values = values[part] if isinstance(values, dict) else None

        def origin(*key: str) -> Origin:
            return Origin("file", file.shown, file.line(*prefix, *key), dotted(*prefix))

        if not isinstance(values, dict):
            at = origin()._replace(root="")
            self.problems.append(Problem(at, f"{dotted(*prefix)} must be a table, got {found(values)}"))
            return
        for key, value in values.items():
            self._read_top(key, value, origin)

    def _read_top(self, key: str, value: object, origin: Callable[..., Origin]) -> None:
        if nests_too_deeply(value):
            self._complain(origin(key), "tables or arrays are nested too deeply")
        elif key in CHOICES:
            self._choose(key, Value(value, origin(key)))
        elif key in (LIMITS, RETENTION) or key in SECTIONS:
            if not isinstance(value, dict):
                hint = suggestion(key, CHOICES)
                self._complain(origin(key), f"{key} must be a table, got {found(value)}{hint}")
            elif key == LIMITS:
                for tag, limit in value.items():
                    self._limit(tag, Value(limit, origin(key, tag)))
            elif key == RETENTION:
                for option, given in value.items():
                    self._retain(option, Value(given, origin(key, option)))
            else:
                section = next(known for known in SECTIONS if known == key)
                for name, options in value.items():
                    self._read_table(section, name, options, origin)
        elif isinstance(value, dict):
            known = (*SECTIONS, LIMITS, RETENTION)
            self._complain(origin(key), f"unknown table [{dotted(key)}]{_nearest(key, known)}")
        else:
            known = (*CHOICES, *SECTIONS, LIMITS, RETENTION)
            self._complain(origin(key), f"unknown key '{printable(key)}'{_nearest(key, known)}")

    def _read_table(self, section: Section, name: str, options: object, origin: Callable[..., Origin]) -> None:
        if not isinstance(options, dict):
            text = f"'{printable(name)}' must be a table, as in [{section}.NAME], got {found(options, name)}"
            self._complain(origin(section, name), text, section)
        elif not name:
            self._complain(origin(section, name), "a table needs a name that is not empty", section)
        else:
            values = {key: Value(value, origin(section, name, key)) for key, value in options.items()}
            self._tables[section][name] = Table(section, name, origin(section, name), MappingProxyType(values))

    # -- environment variables --

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Read `LOCALFLOW_...`; a variable that is set to nothing counts as not set."""
        for variable in sorted(environ):
            if variable.startswith(ENV_PREFIX) and environ[variable] and variable not in RESERVED_VARIABLES:
                self._read_variable(variable, environ[variable])

    def _read_variable(self, variable: str, text: str) -> None:
        origin = Origin("environment", printable(variable))
        value = Value(parse_value(text), origin, text)
        head, *rest = variable.removeprefix(ENV_PREFIX).split("__")
        section = next((known for known in SECTIONS if known.upper() == head), None)
        if head in ("EXECUTOR", "STORE") and not rest:
            self._choose(head.lower(), value if isinstance(value.value, str) else value._replace(value=text))
        elif head == LIMITS.upper() and len(rest) == 1 and rest[0]:
            self._limit(_recognise(rest[0], self._limits) or rest[0].lower(), value)
        elif head == RETENTION.upper() and len(rest) == 1 and rest[0]:
            self._retain(rest[0].lower(), value)
        elif section is not None and len(rest) == 2 and all(rest):
            known = _recognise(rest[0], self._tables[section]) or _recognise(rest[0], self._installed(section))
            name = known or rest[0].lower()
            table = self._tables[section].get(name)
            key = _recognise(rest[1], table.values if table else ()) or rest[1].lower()
            self._set_option(section, name, key, value)
        else:
            self._complain(origin, _unknown_variable(head, rest))

    # -- command-line flags --

    def read_overrides(self, overrides: Mapping[str, object]) -> None:
        for key, given in overrides.items():
            section_name, _, rest = key.partition(".")
            name, _, option = rest.rpartition(".")
            section = next((known for known in SECTIONS if known == section_name), None)
            value = Value(given, Origin("flag", "-j" if option == "workers" else _FLAGS.get(key, f"--{key}")))
            if key in CHOICES:
                self._choose(key, value)
            elif section is not None and name and option:
                self._set_option(section, name, option, value)
            elif section_name == LIMITS and rest:
                self._limit(rest, value)
            elif section_name == RETENTION and rest:
                self._retain(rest, value)
            else:
                self._complain(value.origin, f"unknown setting '{printable(key)}'")

    # -- all of them --

    def _choose(self, key: str, value: Value) -> None:
        if isinstance(value.value, str) and value.value:
            self._chosen[key] = value
            return
        hint = f"; options go in a table [{key}s.NAME]" if isinstance(value.value, dict) else ""
        self._complain(value.origin, f"{key} must be a name in quotes, got {found(value.value)}{hint}")

    def _limit(self, tag: str, value: Value) -> None:
        if type(value.value) is int and 1 <= value.value < 2**63:
            self._limits[tag] = value
        else:
            text = f"{dotted(tag)} must be an integer >= 1, got {found(value.value)}"
            self._complain(value.origin, text, LIMITS)

    def _retain(self, option: str, value: Value) -> None:
        if option not in EXPECTED:
            text = f"unknown option '{printable(option)}'{_nearest(option, EXPECTED)}"
        elif not is_right(option, value.value):
            text = f"{option} must be {EXPECTED[option]}, got {found(value.value)}"
        elif option == "states" and isinstance(value.value, list) and (unknown := unknown_states(value.value)):
            text = f"states names an {'; '.join(unknown)}"
        else:
            self._retention[option] = value
            return
        self._complain(value.origin, text, RETENTION)

    def check_retention(self) -> None:
        """Refuse to remove every run of some states as soon as it ends."""
        if self._retention.keys() == {"states"}:
            text = "states alone would remove each run as it ends; set older_than or keep_last beside it"
            self._complain(self._retention["states"].origin, text, RETENTION)

    def _set_option(self, section: Section, name: str, key: str, value: Value) -> None:
        table = self._tables[section].get(name) or Table(section, name, value.origin)
        values = MappingProxyType({**table.values, key: value})
        self._tables[section][name] = Table(section, name, table.origin, values)

    def _complain(self, origin: Origin, text: str, table: str = "") -> None:
        self.problems.append(Problem(origin, text, table))


def _nearest(word: str, known: Iterable[str]) -> str:
    return suggestion(word, known) or f"; known: {', '.join(known)}"


def _recognise(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a variable means: it has neither small letters nor dashes."""
    wanted = _plain(word)
    nearest = None
    for name in names:
        if name == word.lower():  # at once: to know more names, plugins may have to be imported
            return name
        if nearest is None and _plain(name) == wanted:
            nearest = name
    return nearest


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name.lower())


def _unknown_variable(head: str, rest: list[str]) -> str:
    sections = [section.upper() for section in SECTIONS]
    if head in sections and len(rest) > 2:
        whole = f"{ENV_PREFIX}{head}__{rest[0]}__{rest[1]}"
        return f"names more than a table and an option; set the option as a whole: {whole}='{{{rest[2]} = ...}}'"
    if head in sections:
        return f"names no option; write {ENV_PREFIX}{head}__NAME__OPTION"
    if head == LIMITS.upper():
        return f"names no tag; write {ENV_PREFIX}{head}__TAG"
    if head == RETENTION.upper():
        return f"names no option; write {ENV_PREFIX}{head}__OPTION"
    names = [choice.upper() for choice in CHOICES]
    reserved = [variable.removeprefix(ENV_PREFIX) for variable in RESERVED_VARIABLES]
    near = suggestion(head, sections if rest else [*names, *reserved])
    if near:
        meant = near.split("'")[1]
        return f"unknown variable; did you mean '{ENV_PREFIX}{'__'.join([meant, *rest])}'?"
    known = [
        *names,
        *(f"{section}__NAME__OPTION" for section in sections),
        f"{LIMITS.upper()}__TAG",
        f"{RETENTION.upper()}__OPTION",
    ]
    return f"unknown variable; known: {', '.join(ENV_PREFIX + name for name in known)}"

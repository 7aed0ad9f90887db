"""What a check is of: the table or plugin of a name, made anew for each test in a place where it can do no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from localflow.capabilities import CAPABILITIES, find_capability
from localflow.errors import ConfigError, PluginError, StoreError
from localflow.interfaces import Executor, Notifier, StateStore
from localflow.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from localflow.config import Section
    from localflow.testing.checked.mailbox import Mailbox

#: The section of a settings file for each role.
SECTIONS: Mapping[str, Section] = {"executor": "executors", "state store": "stores", "notifier": "notifiers"}


class Order(NamedTuple):
    """What is to be checked, as it is told to the process that does it."""

    role: str
    name: str
    root: str
    """The folder whose settings count."""
    options: Mapping[str, Any]
    """Values of options that go before those of the settings."""
    report: str
    """The file that the process writes its report to."""
    only: Sequence[str] = ()
    """The capabilities whose tests are run."""
    done: Sequence[str] = ()
    """Tests that are left out: another process has run them."""

    @classmethod
    def read(cls, path: str) -> Order:
        """Read an order from a file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """Write the order to a file."""
        path.write_text(json.dumps(self._asdict()))


class Subject:
    """What is checked.

    A state store is given files in the folder of the test, whatever its settings say of paths. One that has no files
    must be empty, and is emptied after each test.
    """

    def __init__(self, order: Order, mailbox: Mailbox) -> None:
        self.role = order.role
        self._section, self._name = SECTIONS[order.role], order.name
        prefix = f"{self._section}.{order.name}"
        self._overrides = {f"{prefix}.{key}": mailbox.addressed(value) for key, value in order.options.items()}
        self._project = Project.load(Path(order.root), self._overrides)
        options = self._project.options_of(self._section, order.name)
        paths = {key: value for key, value in options.items() if isinstance(value, Path)}
        if order.role == "state store":
            moved = {f"{prefix}.{key}": f"checked/{path.name}" for key, path in paths.items()}
            self._overrides |= {"store": order.name, **moved}
        if options.get("workers") == 1:  # what the contract is about needs two
            self._overrides[f"{prefix}.workers"] = 2
        self._project = Project.load(Path(order.root), self._overrides)
        self._has_files = bool(paths)

    def executor(self) -> Executor:
        """Make the executor, not started."""
        return self._project.make_executor(self._name)

    def notifier(self) -> Notifier:
        """Make the notifier."""
        made = self._project.make(self._section, self._name)
        if not isinstance(made, Notifier):
            raise PluginError(f"notifier '{self._name}': its factory made {type(made).__name__}, which is no Notifier")
        return made

    def store_maker(self, folder: Path) -> Callable[[], StateStore]:
        """Return a callable that opens a store of this test's own, the same one each time."""
        return Project(folder, self._project.settings, self._project.plugins).open_store

    def is_shared(self, store: StateStore) -> bool:
        """Return whether every test is given the same store, for nothing is known that would tell one from another."""
        return store.survives and not self._has_files

    def empty(self, store: StateStore) -> None:
        """Remove what a test has left in a store that the next one is given, too."""
        if self.is_shared(store):
            store.remove([summary.flow_run.root_id for summary in store.list_flow_runs()])

    def promises(self, folder: Path) -> dict[str, bool]:
        """Make it once and return what it promises.

        Raises:
            ConfigError, PluginError, StoreError: it cannot be made, or a store cannot be checked where it is.
        """
        made: Executor | StateStore | Notifier
        if self.role == "executor":
            made = self.executor()
        elif self.role == "notifier":
            made = self.notifier()
        else:
            made = self.store_maker(folder)()
        try:
            if isinstance(made, StateStore) and self.is_shared(made):
                _refuse_full(made)
            return {capability.name: bool(capability.is_promised(made)) for capability in CAPABILITIES[self.role]}
        finally:
            if isinstance(made, (StateStore, Notifier)):
                made.close()


def _refuse_full(store: StateStore) -> None:
    """Raise unless a store that all tests share is empty, and can be emptied."""
    if not find_capability("state store", "remove").is_promised(store):
        raise PluginError(
            f"state store {store.location} can neither be put elsewhere by an option that is a path, nor emptied; "
            "check it by a subclass of StateStoreContract that gives each test a store of its own"
        )
    if store.list_flow_runs(1):
        raise StoreError(
            f"state store {store.location} has flow runs in it, and a check would remove them; "
            "name an empty one by -o OPTION=VALUE"
        )


def error_of(error: BaseException) -> dict[str, object]:
    """Return an error that ends a check as what is told of it."""
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    return {"error": "\n".join(lines), "code": getattr(error, "exit_code", 4)}

"""What the contract of a state store works with: records, texts and values out of the ordinary, the fixtures."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from localflow.interfaces import Execution, FlowRun, LogEntry, Payload, StateChange, StateType, TaskRun
from localflow.testing.promises import skip_unless_promised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Record, StateStore

ODD_TEXTS = (
    "",
    "\x00",
    "a\x00b",
    "\udcff",
    "caf\udce9",
    "\ud83d\ude00",
    "\U0001f600",
    "line\nbreak\r\n\u2028",
    "'); DROP TABLE flow_runs; --",
    "\x1b[31m",
    '{"$text": "x"}',
    "\\udcff",
    "x" * 200_000,
)

ODD_VALUES: tuple[object, ...] = (
    *ODD_TEXTS,
    None,
    True,
    0,
    -1,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    10**5000,
    0.1,
    -0.0,
    1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    [],
    {},
    {"": [{}]},
    {"$float": "nan"},
    {"\udcff": 1},
    [[[[["deep"]]]]],
)


def make_flow_run(**fields: Any) -> FlowRun:
    """Return a flow run with an id of its own; `fields` say what is special about it."""
    id = fields.setdefault("id", uuid.uuid4().hex[:20])
    defaults: dict[str, Any] = {"name": "brave-otter", "flow": "etl", "created_at": 1700000000.25, "root_id": id}
    return FlowRun(**defaults | fields)


def make_task_run(flow_run: FlowRun, number: int = 1, **fields: Any) -> TaskRun:
    """Return a task run of a flow run; `fields` say what is special about it."""
    defaults: dict[str, Any] = {
        "name": f"load-{number}",
        "task": "load",
        "ordinal": number - 1,
        "created_at": 1700000001.5,
    }
    return TaskRun(flow_run, number, **defaults | fields)


def make_running(run: FlowRun | TaskRun, sequence: int = 1, **fields: Any) -> StateChange:
    """Return the change of a run to RUNNING."""
    defaults: dict[str, Any] = {
        "type": StateType.RUNNING,
        "name": "Running",
        "message": "",
        "timestamp": 1700000002.125,
    }
    return StateChange(run, sequence, **defaults | fields)


def make_completed(run: FlowRun | TaskRun, sequence: int = 2, **fields: Any) -> StateChange:
    """Return the change of a run to COMPLETED, executed and with a result."""
    defaults: dict[str, Any] = {
        "type": StateType.COMPLETED,
        "name": "Completed",
        "message": "",
        "timestamp": 1700000003.0625,
        "previous": "Running",
        "execution": Execution("pid 1234", 1234, 1700000002.1, 1700000003.05, 0.75, 50 << 20),
        "result": Payload("json", b'{"rows": 3}'),
    }
    return StateChange(run, sequence, **defaults | fields)


def make_log_entry(run: FlowRun | TaskRun, message: str = "loading", **fields: Any) -> LogEntry:
    """Return something a run has said; `fields` say what is special about it."""
    defaults: dict[str, Any] = {"attempt": 1, "timestamp": 1700000002.5, "level": 20, "source": "etl.load"}
    return LogEntry(run, message=message, **defaults | fields)


def changes_of(records: list[Record], run: FlowRun | TaskRun | None = None) -> list[StateChange]:
    """Return the state changes among records, those of one run if it is given."""
    return [record for record in records if isinstance(record, StateChange) and run in (None, record.run)]


def run_in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work` with 0, 1, ... in threads of their own and raise the first exception of any of them."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class StoreFixtures:
    """The fixtures of the contract; a plugin's test gives `make_store`."""

    @pytest.fixture
    def make_store(self) -> Callable[[], StateStore]:
        """Return a callable that opens the same store each time it is called."""
        raise NotImplementedError("give the test class a fixture `make_store` that returns a callable")

    @pytest.fixture
    def open_store(
        self, make_store: Callable[[], StateStore], request: pytest.FixtureRequest
    ) -> Iterator[Callable[[], StateStore]]:
        """Open the store like `make_store`, and close what was opened at the end of the test.

        A test of what the store does not promise is skipped.
        """
        opened: list[StateStore] = []

        def open_store() -> StateStore:
            if opened and not opened[0].survives:
                pytest.skip(f"{type(opened[0]).__name__} does not promise survives: no opening finds what another left")
            opened.append(make_store())
            skip_unless_promised(opened[0], request.function)
            return opened[-1]

        yield open_store
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, open_store: Callable[[], StateStore]) -> StateStore:
        """Open the store once."""
        return open_store()

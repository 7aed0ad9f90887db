"""What cannot be pickled, or does harm when it is: it concerns its own task and is told by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place

#: Beside each fault a task that must not notice, before and after, and in which process it was.
NEIGHBOUR = """
@task
def neighbour():
    note("neighbour", os.getpid())
"""


def run(place: Place, source: str, returncode: int = 1, **environment: str) -> dict[str, dict[str, Any]]:
    """Run a program on worker processes and return what is recorded of its task runs, by name."""
    place.write(NEIGHBOUR + source)
    done = place.localflow("run", "flows.py", "--executor", "process", **environment)
    assert done.returncode == returncode, done.stderr
    return {each["name"]: each for each in place.task_runs()}


def message(task_run: dict[str, Any]) -> str:
    """Return the message of the state of a task run that FAILED because something could not travel."""
    assert task_run["state"]["type"] == "FAILED"
    text: str = task_run["state"]["message"]
    return text


# -- B1, B2: what cannot be pickled ----------------------------------------------------------------------------------

UNPICKLABLE = """
import socket, sqlite3

@task
def use(value):
    note("used")

@task
def add_project(connection):
    note("used")

class Client:
    def __init__(self):
        self.settings = {"pool": [threading.Lock()]}

@flow
def main():
    lock = threading.Lock()

    @task
    def closure():
        note("used", lock)

    [neighbour() for _ in range(2)]
    connection = sqlite3.connect(":memory:")
    with socket.socket() as free_socket, open("written", "w") as file:
        futures = [add_project(connection), use({"lock": lock}), use(Client()), use(x for x in "abc"),
            use(free_socket), use(file), closure()]
        wait(futures)
    connection.close()
    [neighbour() for _ in range(2)]
"""


def test_fault_B1_what_cannot_be_sent_fails_its_own_task_by_name(place: Place) -> None:
    """The message names task, parameter, type and the part inside; no function is called, no worker replaced."""
    found = run(place, UNPICKLABLE, LOCALFLOW_EXECUTORS__PROCESS__WORKERS="1")

    assert message(found["add_project-0"]).startswith(
        "Task 'add_project': argument 'connection' (sqlite3.Connection) cannot be sent to a worker process; open it"
    )
    beginning = "Task 'use': argument 'value' ({}) cannot be sent to a worker process"
    for name, kind, part in (
        ("use-0", "dict", ": its part value['lock'] (_thread.lock) cannot be pickled; "),
        ("use-1", "__localflow_main__.Client", ": its part value.settings['pool'][0] (_thread.lock) cannot be pickled"),
        ("use-2", "generator", "; "),
        ("use-3", "socket.socket", "; "),
        ("use-4", "_io.TextIOWrapper", "; "),
    ):
        assert message(found[name]).startswith(beginning.format(kind) + part)
    assert message(found["closure-0"]).startswith("Task 'closure': variable 'lock' (_thread.lock), which its function")
    assert found["use-0"]["cause"]["exception_type"] == "UnpicklableError"
    assert len(place.notes) == 4
    assert len(set(place.notes)) == 1  # one worker for all neighbours


def test_fault_B2_a_result_that_cannot_be_sent_fails_its_task_by_name(place: Place) -> None:
    """That the task succeeded is said, with the part of the result that is at fault and what to do instead."""
    found = run(
        place,
        """
@task
def connect():
    return {"name": "db", "lock": threading.Lock()}

@task
def plain_function():
    return lambda: 3

@flow
def main():
    lost, kept = connect(), plain_function()
    lost.wait()
    note(type(lost.result(raise_on_failure=False)).__name__, kept.result()())
    neighbour()
""",
    )

    text = message(found["connect-0"])
    assert text.startswith("Task 'connect' succeeded but its result (dict) cannot be sent from a worker process")
    assert "its part result['lock'] (_thread.lock) cannot be pickled" in text
    assert "such as a path" in text
    assert "use the thread executor" in text
    assert "UnpicklableError 3" in place.notes


# -- B3, B4: exceptions ----------------------------------------------------------------------------------------------

EXCEPTIONS = """
class Fine(Exception): pass

class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")

class Attribute(Exception):
    def __init__(self, response):
        super().__init__(response.status if hasattr(response, "status") else response.missing)

class Holding(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()

class Reducing(Exception):
    def __reduce__(self): raise RuntimeError("not this one")

class Response:
    status = "502"

@task
def fail(number):
    class Local(Exception): pass
    kinds = [lambda: Fine("fine"), lambda: TwoArguments(1, 2), lambda: Attribute(Response()), lambda: Holding("held"),
        lambda: Reducing("reduced"), lambda: Local("local")]
    error = kinds[number]()
    error.add_note("a note of it")
    raise error

@flow
def main(numbers: list):
    for number in numbers:
        future = fail(number)
        try:
            future.result()
        except TaskFailedError as error:
            note("other", error.original_type, error.message.replace(" ", "_"), "in fail" in error.traceback_text)
        except Exception as error:
            note("same", type(error).__name__, error, isinstance(error, Fine), error.__notes__[0])
    neighbour()
"""


def fail(place: Place, *numbers: int) -> list[str]:
    """Run tasks that raise, and return what came out of `result()` and, to this, the causes that are recorded."""
    place.write(NEIGHBOUR + "from localflow.errors import TaskFailedError" + EXCEPTIONS)
    done = place.localflow("run", "flows.py", "--executor", "process", "-p", f"numbers={[*numbers]}")
    assert done.returncode == 1, done.stderr
    *failed, neighbour = place.task_runs()
    assert neighbour["state"]["type"] == "COMPLETED"
    for each in failed:
        assert each["cause"]["traceback_text"].endswith("a note of it\n")
    return [f"{note} {each['cause']['exception_type']}" for note, each in zip(place.notes, failed, strict=False)]


def test_fault_B3_an_exception_that_cannot_be_pickled_is_told_in_words(place: Place) -> None:
    """It stands as TaskFailedError with its true type's name and traceback; what survives the way is raised again."""
    assert fail(place, 0, 3, 4, 5) == [
        "same Fine fine True a note of it Fine",
        "other Holding held True Holding",
        "other Reducing reduced True Reducing",
        "same Local local False a note of it Local",
    ]


def test_fault_B4_an_exception_that_cannot_be_rebuilt_is_told_in_words(place: Place) -> None:
    """Its `__init__` takes other arguments, or does something with them."""
    assert fail(place, 1, 2) == [
        "other TwoArguments 1_and_2 True TwoArguments",
        "other Attribute 502 True Attribute",
    ]


# -- B5: objects that act when they are pickled or unpickled ---------------------------------------------------------

TABLE = """
TASK_TIMEOUT = 1.0

def act(how):
    if how == "segv":
        faulthandler._sigsegv()
    elif how == "exit":
        sys.exit(0)
    elif how == "_exit":
        os._exit(0)
    elif how == "raise":
        raise RuntimeError("trapped")
    elif how == "sleep":
        time.sleep(60)

class Trap:
    def __init__(self, when, how):
        self.when, self.how = when, how
    def __reduce__(self):
        if self.when == "pickle":
            act(self.how)
        return rebuild, (self.when, self.how)

def rebuild(when, how):
    act(how)

@task(timeout_seconds=TASK_TIMEOUT)
def take(trap):
    note("took")

@task(timeout_seconds=TASK_TIMEOUT)
def give(when, how):
    return Trap(when, how)

def outcome(future):
    state = future.wait(30)
    note("outcome", state.type.name, state.name)
"""
ACTIONS = ("segv", "exit", "_exit", "raise", "sleep")
EXPECTED = {
    "segv": "CRASHED WorkerLost",
    "exit": "FAILED Failed",
    "_exit": "CRASHED WorkerLost",
    "raise": "FAILED Failed",
    "sleep": "FAILED TimedOut",
}


def outcomes(place: Place) -> list[str]:
    """Return what the programs of the table have noted of their tasks, in order."""
    assert "took" not in place.notes
    assert any(note.startswith("neighbour") for note in place.notes)
    return [note.removeprefix("outcome ") for note in place.notes if note.startswith("outcome ")]


@pytest.mark.parametrize("how", ACTIONS)
def test_fault_B5_pickle_argument(place: Place, how: str) -> None:
    """What an argument does when it is pickled happens in the user's own process, at the call that passes it.

    `raise` and `exit` fail the task, whose name they get. `segv`, `_exit` and `sleep` are no others' than the
    program's: it would end, or wait, in the same way if it pickled the object itself.
    """
    if how in ("segv", "_exit", "sleep"):
        pytest.skip("arguments are pickled in the process of the flow, which is the user's own")
    found = run(place, f"{TABLE}\n@flow\ndef main():\n    outcome(take(Trap('pickle', '{how}')))\n    neighbour()")

    assert outcomes(place) == [EXPECTED[how]]
    assert message(found["take-0"]).startswith("Task 'take': argument 'trap' (")


def test_fault_B5_unpickle_argument(place: Place) -> None:
    """An argument that crashes, exits, raises or hangs when it is unpickled does so in a worker, as that task."""
    body = """
@flow
def main():
    for how in ("segv", "exit", "_exit", "raise", "sleep"):
        outcome(take(Trap("unpickle", how)))
    neighbour()
"""
    run(place, TABLE + body)

    assert outcomes(place) == [EXPECTED[how] for how in ACTIONS]


def test_fault_B5_pickle_result(place: Place) -> None:
    """A result that crashes, exits, raises or hangs when it is pickled does so in its worker, as its task."""
    body = """
@flow
def main():
    for how in ("segv", "exit", "_exit", "raise", "sleep"):
        outcome(give("pickle", how))
    neighbour()
"""
    found = run(place, TABLE + body)

    assert outcomes(place) == [EXPECTED[how] for how in ACTIONS]
    assert message(found["give-3"]).startswith("Task 'give' succeeded but its result")


def test_fault_B5_unpickle_result(place: Place) -> None:
    """A result is not unpickled before somebody asks: its task COMPLETED, and what takes it is hit.

    Asked for in the flow or in a callback it acts there, in the user's process, and there `sys.exit()` and an
    exception are exceptions; of a crash there nothing could be seen but its end.
    """
    body = """
@flow
def main():
    def ask(future):
        try:
            future.result()
        except BaseException as error:
            note("asked", type(error).__name__)

    for how in ("segv", "exit", "_exit", "raise", "sleep"):
        future = give("unpickle", how)
        state = future.wait(30)
        assert state.type.name == "COMPLETED", state
        outcome(take(future))
        if how in ("exit", "raise"):
            told = threading.Event()
            future.add_done_callback(lambda future: (ask(future), told.set()))
            assert told.wait(10)
            ask(future)
    neighbour()
"""
    run(place, TABLE + body)

    assert outcomes(place) == [EXPECTED[how] for how in ACTIONS]
    assert place.counts["asked TaskFailedError"] == 2
    assert place.counts["asked RuntimeError"] == 2


# -- B6: chains, groups, notes, texts --------------------------------------------------------------------------------

CHAINS = """
@task
def chained():
    try:
        try:
            {}["root"]
        except KeyError as error:
            raise ValueError("middle") from error
    except ValueError as error:
        error.add_note("a note")
        raise RuntimeError("top") from error

@task
def long_chain():
    error = None
    for number in reversed(range(30)):
        link = ValueError(number)
        link.__cause__, error = error, link
    raise error

@task
def cyclic():
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    raise one

@task
def group():
    raise ExceptionGroup("several", [ValueError("leaf 1"), ExceptionGroup("deep", [KeyError("leaf 2")])])

@task
def endless():
    raise ValueError("a" * 10_000_000 + " the end")

def causes(error):
    found = []
    while error is not None and len(found) < 40:
        found.append(type(error).__name__)
        error = error.__cause__
    return found

@flow
def main():
    for task in (chained, long_chain, cyclic, group, endless):
        error = task().result(raise_on_failure=False)
        note(task.name, len(causes(error)), *causes(error)[:3])
"""


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_fault_B6_the_whole_story_of_a_failure_is_told_within_bounds(place: Place, executor: str) -> None:
    """Causes come back, all of the chain is in the text without our frames, what is endless is cut in the middle."""
    place.write(CHAINS)
    done = place.localflow("run", "flows.py", "--executor", executor)
    assert done.returncode == 1, done.stderr
    found = {each["task"]: each for each in place.task_runs()}

    notes = place.notes
    assert notes[0] == "chained 3 RuntimeError ValueError KeyError"
    if executor == "process":
        assert notes[1] == "long_chain 16 ValueError ValueError ValueError"
    assert notes[3] == "group 1 ExceptionGroup"
    text = found["chained"]["cause"]["traceback_text"]
    assert [text.count(each) for each in ("KeyError: 'root'", "ValueError: middle", "RuntimeError: top", "a note")] == [
        1, 1, 1, 1,
    ]  # fmt: skip
    assert '{}["root"]' in text
    assert "localflow/" not in text
    assert "leaf 1" in found["group"]["cause"]["traceback_text"]
    assert "leaf 2" in found["group"]["cause"]["traceback_text"]
    cause = found["endless"]["cause"]
    for each in (cause["traceback_text"], cause["message"]):
        assert len(each) < 300_000
        assert each.rstrip().endswith("the end")
    assert len(found["endless"]["state"]["message"]) < 11_000
    assert found["endless"]["state"]["message"].startswith("Task run encountered an exception: ValueError: aaa")
    assert len(done.stderr) < 200_000


# -- B7: nesting -----------------------------------------------------------------------------------------------------


def test_fault_B7_nesting_without_end_fails_a_task_and_no_stack_overflows(place: Place) -> None:
    """A list in lists a hundred thousand times is refused in both directions; one that holds itself is no problem."""
    found = run(
        place,
        """
def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value

@task
def take(value):
    return 1

@task
def give():
    return deep()

@task
def loop():
    value = [1]
    value.append(value)
    return value

@task
def is_loop(value):
    return value[1] is value

@flow
def main():
    refused, lost, circle = take(deep()), give(), loop()
    wait([refused, lost])
    note(is_loop(circle).result(), circle.result()[1][1][0])
    neighbour()
""",
    )

    assert "argument 'value' (list) cannot be sent to a worker process; " in message(found["take-0"])
    assert "its result (list) cannot be sent from a worker process; " in message(found["give-0"])
    assert place.notes[0] == "True 1"
    assert found["neighbour-0"]["state"]["type"] == "COMPLETED"


# -- B8: size --------------------------------------------------------------------------------------------------------

LARGE = """
@task
def take(table, name):
    return len(table["rows"])

@task
def give(size):
    return bytearray(size)

@flow
def main(size: int):
    sent = take({"rows": bytearray(size)}, "x")
    made = give(size // 4)
    note("sent", sent.result())
    note("made", len(made.result()))
"""


def test_fault_B8_large_values_travel_and_are_warned_of(place: Place) -> None:
    """Tens of megabytes and more go both ways; the parameter that took them is named, once."""
    place.write(LARGE)
    size = 110_000_000
    done = place.localflow("run", "flows.py", "-p", f"size={size}", "--executor", "process")

    assert done.returncode == 0, done.stderr
    assert f"sent {size}" in place.notes
    assert f"made {size // 4}" in place.notes
    assert done.stderr.count("Task 'take': argument 'table' (dict) takes 110 MB, which are copied to a worker") == 1


MOVING = """
import resource

SIZE = 200_000_000

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

@task
def ready(number):
    time.sleep(0.1)  # so that each worker takes one of these
    return number

@task
def take(data, name):
    return len(data)

@task
def give():
    return bytes(SIZE)

@flow(executor=ProcessExecutor(workers=3))
def main():
    ready.map(range(3)).wait()
    data = bytes(SIZE - 1) + b"x"
    before = peak()
    moving, delays = [take(data, "x"), give()], []
    while not all(future.done() for future in moving):
        began = time.monotonic()
        neighbour().wait()
        delays.append(time.monotonic() - began)
    note("grown", (peak() - before) / SIZE)
    note("delay", max(delays, default=0))
    assert moving[0].result() == SIZE
"""


def test_fault_B8_a_large_value_takes_no_memory_of_the_engine_and_delays_nobody(place: Place) -> None:
    """Beside the argument itself there is less than a fifth of it in the engine; others start as ever meanwhile."""
    place.write(NEIGHBOUR + MOVING)

    done = place.localflow("run", "flows.py")

    noted = dict(line.split() for line in place.notes if line.startswith(("grown", "delay")))
    assert done.returncode == 0, done.stderr
    assert float(noted["grown"]) <= 0.2
    assert float(noted["delay"]) <= 0.5


VERY_LARGE = """
SIZE = 2_200_000_000

@task
def take(data, name):
    note("taken", len(data[0]) if isinstance(data, list) else len(data))

@task
def give():
    return bytes(SIZE)

@flow
def main():
    take(bytes(SIZE), "x").wait()
    take([bytes(SIZE)], "x").wait()
    take(give(), "x").wait()
    neighbour()
"""


@pytest.mark.slow
@pytest.mark.skipif("LOCALFLOW_LARGE_TESTS" not in os.environ, reason="takes 10 GB: set LOCALFLOW_LARGE_TESTS")
@pytest.mark.skipif(psutil.virtual_memory().available < 16e9, reason="needs 16 GB of free memory")
def test_fault_B8_values_of_more_than_two_gigabytes_travel(place: Place) -> None:
    """Arguments, results and what tasks hand to each other may be of any size."""
    found = run(place, VERY_LARGE, returncode=0)

    assert {each["state"]["type"] for each in found.values()} == {"COMPLETED"}
    assert place.notes.count("taken 2200000000") == 3


# -- B9: modules -----------------------------------------------------------------------------------------------------


def test_fault_B9_a_module_that_workers_lack_is_named(place: Place) -> None:
    """What only a changed sys.path finds is found; what only this process can have fails the task by name."""
    (place.folder / "elsewhere").mkdir()
    (place.folder / "elsewhere" / "distant.py").write_text("class Thing:\n    pass\ndef double(n):\n    return 2 * n\n")
    found = run(
        place,
        """
import types

sys.path.append(os.path.abspath("elsewhere"))
import distant

ghost = types.ModuleType("ghost")
exec("class Thing: pass", ghost.__dict__)
sys.modules["ghost"] = ghost

class Own:
    pass

@task
def use(value):
    return distant.double(3), isinstance(value, (distant.Thing, Own)), __name__

@flow
def main():
    found, own, lost = use(distant.Thing()), use(Own()), use(ghost.Thing())
    note(*found.result())
    note(*own.result())
    lost.wait()
    neighbour()
""",
    )

    assert place.notes[:2] == ["6 True __localflow_main__"] * 2
    text = message(found["use-2"])
    assert "worker cannot import 'ghost' (sys.path[0]=" in text
    assert str(place.folder) in text
    assert found["neighbour-0"]["state"]["type"] == "COMPLETED"


def test_fault_B9_results_of_an_earlier_process_are_of_the_classes_of_this_one(place: Place) -> None:
    """After a resume what the store has is an instance of the script's own class, in the flow and in workers."""
    place.write(
        """
import enum

class Color(enum.Enum):
    RED = 1

class Point:
    color = None

def is_own(point):
    return isinstance(point, Point) and point.color is Color.RED

@task
def make():
    point = Point()
    point.color = Color.RED
    return point

@task
def hand_on(point):
    return point

@task
def look(point):
    return is_own(point)

@task
def last():
    assert os.path.exists("mended")

@flow(executor="process")
def main():
    point = make()
    last().result()
    note(is_own(point.result()), look(point).result(), look(hand_on(point)).result(), is_own(hand_on(point).result()))
"""
    )

    failed = place.localflow("run", "flows.py")
    (place.folder / "mended").touch()
    resumed = place.localflow("resume", "@last")

    assert (failed.returncode, resumed.returncode) == (1, 0), resumed.stderr
    assert place.notes == ["True True True True"]

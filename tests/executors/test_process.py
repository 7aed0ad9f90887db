"""What the process executor does beyond the contract: workers, their options, and who gets which call."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import psutil
import pytest

from localflow import flow
from localflow.builtin.cores import usable_cores
from localflow.builtin.process import ProcessExecutor
from localflow.errors import StoreError, UnpicklableError
from localflow.payloads import Packed
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually, is_gone, numbers_in, own_children

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from localflow.interfaces import Call, Outcome


def pids(runner: CallRunner, count: int, seconds: float = 0.0) -> set[int]:
    """Return the pids of the workers that ran `count` calls."""
    outcomes = runner.run(*(runner.call(workloads.pid, seconds) for _ in range(count)))
    return {outcome.state.result() for outcome in outcomes}


# -- workers ---------------------------------------------------------------------------------------------------------


def test_workers_default_to_the_usable_cores() -> None:
    """There is one worker for each core that may be used."""
    assert ProcessExecutor().workers == usable_cores()


def test_workers_run_at_once(tmp_path: Path) -> None:
    """Calls that wait for each other meet, if there are workers enough."""
    one, other = tmp_path / "one", tmp_path / "other"

    def meet(mine: str, theirs: str) -> bool:
        workloads.note(mine, "here")
        return workloads.wait_for_file(theirs, 10)

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        outcomes = runner.run(
            runner.call(meet, str(one), str(other)), runner.call(meet, str(other), str(one)), timeout=20
        )

    assert [outcome.state.result() for outcome in outcomes] == [True, True]


def test_workers_start_on_demand_and_stay(runner: CallRunner) -> None:
    """A single call after the other needs a single worker, the same all the time."""
    found = set()

    for _ in range(10):
        found |= pids(runner, 1)

    assert len(found) == 1
    assert os.getpid() not in found


def test_workers_know_nothing_of_the_engine(runner: CallRunner) -> None:
    """Their supervisor imports what tasks need, for each import delays the first result of every flow run."""
    heavy = {"asyncio", "hashlib", "multiprocessing", "pathlib", "pluggy", "psutil", "random", "socket", "sqlite3"}

    [outcome] = runner.run(runner.call(lambda: sorted(sys.modules)))

    loaded = outcome.state.result()
    ours = {f"localflow.{name}" for name in ("engine", "flow_calls", "flow_runs", "plugins", "project", "scheduler")}
    assert heavy.intersection(loaded) == set()
    assert ours.intersection(loaded) == set()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_workers_beyond_the_cores_begin_with_what_tasks_often_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would get in each other's way if each imported it, so their supervisor does it for them."""
    (tmp_path / "meeting.py").write_text(
        "import sys\n"
        "is_prepared = 'cloudpickle' in sys.modules\n"
        "from localflow.testing.workloads import meet\n"
        "def prepared(*arguments): return meet(*arguments) and is_prepared\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with CallRunner(ProcessExecutor(workers=2)) as runner:
            import meeting  # type: ignore[import-not-found]

            calls = [runner.call(meeting.prepared, str(tmp_path / "met"), name, 2) for name in ("one", "other")]
            outcomes = runner.run(*calls)
    finally:
        os.sched_setaffinity(0, cores)

    assert any(outcome.state.result() for outcome in outcomes)


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name an initializer after which a worker can tell what calls have imported."""
    (tmp_path / "remembering.py").write_text(
        "import sys\n"
        "def remember(): sys.known = {*sys.modules}\n"
        "def imported(): return sorted({*sys.modules} - sys.known)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "remembering:remember"


def test_a_first_call_of_a_function_of_a_script_imports_nothing(remembering: str) -> None:
    """What rebuilds such a function is there before the supervisor forks, or each worker would import it again."""

    def fail() -> None:
        raise ValueError(1)

    with CallRunner(ProcessExecutor(workers=1, initializer=remembering)) as runner:
        runner.run(runner.call(fail))
        [outcome] = runner.run(runner.call(lambda: sorted({*sys.modules} - sys.known)))  # type: ignore[attr-defined]

    assert outcome.state.result() == []


def test_a_first_call_of_a_function_of_a_module_imports_nothing_else(remembering: str) -> None:
    """Its worker has what it needs, though not what rebuilds functions of scripts."""
    with CallRunner(ProcessExecutor(workers=1, initializer=remembering)) as runner:
        import remembering as module  # type: ignore[import-not-found]

        runner.run(runner.call(module.imported))
        [outcome] = runner.run(runner.call(module.imported))

    assert outcome.state.result() == []


def test_later_workers_have_what_the_first_ones_were_not_kept_waiting_for() -> None:
    """The supervisor imports what tasks often need while nothing else is wanted of it."""

    def has_everything() -> bool:
        [outcome] = runner.run(runner.call(eval, "{'cloudpickle', 'localflow.tasks'} <= {*__import__('sys').modules}"))
        return bool(outcome.state.result())

    with CallRunner(ProcessExecutor(workers=1, max_tasks_per_worker=1)) as runner:
        eventually(has_everything)


def test_a_flow_whose_store_cannot_be_opened_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor is started before the store is opened, and ends if that fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".localflow").write_text("a file where the folder should be")

    @flow(executor="process")
    def main() -> None: ...

    with pytest.raises(StoreError):
        main()

    assert own_children() == []


def test_an_executor_that_cannot_start_leaves_no_process() -> None:
    """The supervisor that was prepared ends with the attempt to start."""
    lock = threading.Lock()
    executor = ProcessExecutor(workers=1, initializer=lambda: lock.locked())
    executor.prepare()

    with pytest.raises(UnpicklableError):
        executor.start(lambda outcomes: None)

    assert own_children() == []


def test_a_worker_leads_a_session_of_its_own(runner: CallRunner) -> None:
    """Signals of the terminal do not reach workers, and all of one can be killed at once."""
    [outcome] = runner.run(runner.call(lambda: (os.getpid(), os.getsid(0), os.getpgid(0))))

    pid, session, group = outcome.state.result()
    assert pid == session == group


def test_a_worker_has_no_main_module_and_no_input(runner: CallRunner) -> None:
    """Workers never see the user's main module, and reading from stdin finds nothing."""
    [outcome] = runner.run(
        runner.call(
            lambda: (sorted(name for name in vars(sys.modules["__main__"]) if name[0] != "_"), sys.stdin.read())
        )
    )

    assert tuple(outcome.state.result()) == ([], "")


def test_a_script_has_a_blank_module_in_workers(tmp_path: Path) -> None:
    """By whatever name it was loaded; dataclasses, say, look into the module that a class says it is of."""
    import subprocess

    (tmp_path / "flows.py").write_text("""
from __future__ import annotations
from dataclasses import dataclass
from localflow import flow, task

@task
def measure():
    @dataclass
    class Length:
        metres: float
    return Length(2.5).metres

@flow(executor="process")
def main():
    return measure()

if __name__ == "__main__":
    assert main().result() == 2.5
""")

    for how in (["flows.py"], ["-m", "localflow", "run", "flows.py"]):
        done = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr


def test_workers_leave_no_descriptors_to_programs_that_tasks_start(runner: CallRunner) -> None:
    """A program started by a task, with inheritance on, has only its own standard streams."""
    import subprocess

    def inherited() -> int:
        listing = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True)
        return len(listing.stdout.split())

    [outcome] = runner.run(runner.call(inherited))

    assert outcome.state.result() == 4  # and that of the listing


def test_max_tasks_per_worker_replaces_workers_between_tasks(tmp_path: Path) -> None:
    """No worker runs more tasks than told, and every task runs once."""
    log = tmp_path / "log"

    with CallRunner(ProcessExecutor(workers=2, max_tasks_per_worker=3)) as runner:
        runs = [
            runner.call(lambda path, n: workloads.note(path, n) and os.getpid(), str(log), str(n)) for n in range(30)
        ]
        outcomes = runner.run(*runs)

    worked = [outcome.state.result() for outcome in outcomes]
    assert max(worked.count(pid) for pid in worked) <= 3
    assert len(set(worked)) >= 10
    assert sorted(numbers_in(log)) == list(range(30))


def test_a_recycled_worker_does_what_it_registered_for_its_exit(tmp_path: Path) -> None:
    """Exit handlers run and output is flushed when a worker ends in peace."""
    farewell = tmp_path / "farewell"

    def register(path: str) -> None:
        import atexit

        atexit.register(workloads.note, path, "bye")

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(runner.call(register, str(farewell)))

    assert farewell.read_text() == "bye\n"


def test_the_initializer_runs_once_in_each_worker_before_its_tasks(tmp_path: Path) -> None:
    """The initializer has run in every worker that runs a task."""
    log = tmp_path / "log"

    def prepare() -> None:
        workloads.note(str(log), str(os.getpid()))
        sys.modules["prepared"] = sys

    with CallRunner(ProcessExecutor(workers=2, initializer=prepare)) as runner:
        outcomes = runner.run(
            *(runner.call(lambda: (time.sleep(0.05), "prepared" in sys.modules, os.getpid())[1:]) for _ in range(4))
        )

    facts = [outcome.state.result() for outcome in outcomes]
    assert all(prepared for prepared, _ in facts)
    assert sorted(numbers_in(log)) == sorted({pid for _, pid in facts})


def test_the_initializer_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text names the initializer, as localflow.toml does."""
    (tmp_path / "preparing.py").write_text("import os\ndef prepare():\n    os.environ['PREPARED'] = 'yes'\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with CallRunner(ProcessExecutor(workers=1, initializer="preparing:prepare")) as runner:
        [outcome] = runner.run(runner.call(os.getenv, "PREPARED"))

    assert outcome.state.result() == "yes"


@pytest.mark.parametrize("name", ["", "module", "module:", ":function"])
def test_an_initializer_needs_module_and_function(name: str) -> None:
    """The executor refuses another text when it is made, which tells of it before anything runs."""
    with pytest.raises(ValueError, match=f"^initializer must be 'module:function', got '{name}'$"):
        ProcessExecutor(initializer=name)


def test_env_is_the_environment_of_workers_only() -> None:
    """Variables given as an option are set in workers, beside those of this process."""
    with CallRunner(ProcessExecutor(workers=1, env={"ONLY_THERE": "1"})) as runner:
        [outcome] = runner.run(runner.call(lambda: (os.environ["ONLY_THERE"], "PATH" in os.environ)))

    assert tuple(outcome.state.result()) == ("1", True)
    assert "ONLY_THERE" not in os.environ


@pytest.mark.parametrize(("workers", "threads"), [(1, usable_cores()), (1000, 1)])
def test_numeric_libraries_share_the_cores(monkeypatch: pytest.MonkeyPatch, workers: int, threads: int) -> None:
    """Each worker tells numeric libraries to take its share of the cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    with CallRunner(ProcessExecutor(workers=workers)) as runner:
        [outcome] = runner.run(runner.call(os.getenv, "OMP_NUM_THREADS"))

    assert outcome.state.result() == str(threads)


def test_the_users_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of threads that the user has set is kept."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "13")

    with CallRunner(ProcessExecutor(workers=1, env={"MKL_NUM_THREADS": "14"})) as runner:
        [outcome] = runner.run(runner.call(lambda: (os.environ["OPENBLAS_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])))

    assert tuple(outcome.state.result()) == ("13", "14")


def test_interpreter_flags_are_those_of_the_engine(runner: CallRunner) -> None:
    """Workers are as strict about warnings and as optimized as this process."""
    [outcome] = runner.run(runner.call(lambda: (sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions)))

    assert tuple(outcome.state.result()) == (sys.flags.optimize, sys.flags.utf8_mode, sys.warnoptions)


# -- what functions see ----------------------------------------------------------------------------------------------


def test_a_changed_import_path_reaches_workers_at_once(
    runner: CallRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder put on sys.path while workers are at work is on theirs for the next call."""

    def load() -> str:
        import newly_written  # type: ignore[import-not-found]

        return str(newly_written.WORD)

    [before] = runner.run(runner.call(load))
    (tmp_path / "newly_written.py").write_text("WORD = 'found'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    [after] = runner.run(runner.call(load))

    assert before.state.type is StateType.FAILED
    assert after.state.result() == "found"


def test_workers_start_in_the_engines_folder(runner: CallRunner) -> None:
    """Relative paths mean the same in a task and in the flow."""
    [outcome] = runner.run(runner.call(os.getcwd))

    assert outcome.state.result() == os.getcwd()  # noqa: PTH109 - the same call in both places


def test_a_module_that_cannot_be_imported_travels_by_value(
    runner: CallRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions of a module outside sys.path run, together with what they use of it."""
    import importlib.util

    file = tmp_path / "off_the_path.py"
    file.write_text("FACTOR = 3\ndef triple(x): return helper(x)\ndef helper(x): return FACTOR * x\n")
    spec = importlib.util.spec_from_file_location("off_the_path", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "off_the_path", module)
    spec.loader.exec_module(module)

    [outcome] = runner.run(runner.call(module.triple, 5))

    assert outcome.state.result() == 15


def test_a_function_is_sent_to_a_worker_once(runner: CallRunner) -> None:
    """However many calls there are, a function by value is rebuilt once in a worker."""
    count = {"calls": 0}

    def counting() -> int:
        count["calls"] += 1
        return count["calls"]

    found = [runner.run(runner.call(counting))[0].state.result() for _ in range(5)]

    assert found == [1, 2, 3, 4, 5]
    assert count == {"calls": 0}


def test_thousands_of_functions_do_not_pile_up(runner: CallRunner) -> None:
    """Functions made anew for each call all run, and those used again later too."""

    def make(number: int) -> Any:
        return lambda: number

    functions = [make(number) for number in range(2500)]
    outcomes = runner.run(*(runner.call(function) for function in functions))
    again = runner.run(*(runner.call(function) for function in functions[:50]))

    assert [outcome.state.result() for outcome in outcomes] == list(range(2500))
    assert [outcome.state.result() for outcome in again] == list(range(50))


def test_one_object_twice_among_the_arguments_stays_one(runner: CallRunner) -> None:
    """The same data passed twice is the same object in the task."""
    [made] = runner.run(runner.call(lambda: {1, 2}))
    packed = made.state.packed_data
    assert isinstance(packed, Packed)

    outcomes = runner.run(
        runner.call(lambda a, b: a is b, packed, packed), runner.call(lambda a, b: a is b, given := [1], given)
    )

    assert [outcome.state.result() for outcome in outcomes] == [True, True]


@pytest.mark.parametrize("megabytes", [1, 64])
def test_large_arguments_and_results_travel(runner: CallRunner, megabytes: int) -> None:
    """What is much larger than a pipe passes both ways."""
    data = os.urandom(1 << 20) * megabytes

    [outcome] = runner.run(runner.call(workloads.identity, bytearray(data)), timeout=50)

    assert outcome.state.result() == data


def test_a_worker_that_does_not_read_holds_nobody_up(runner: CallRunner, tmp_path: Path) -> None:
    """Large arguments sent ahead to a worker that is busy are run by the other one, as if they had not been sent."""
    release = tmp_path / "release"
    runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
    long = runner.call(workloads.wait_for_file, str(release))
    large = [runner.call(len, bytes(4 << 20)) for _ in range(8)]

    runner.executor.submit([long, *large])
    outcomes = runner.wait_for(large)
    release.touch()
    [last] = runner.wait_for([long])
    [after] = runner.run(runner.call(workloads.identity, "after"))

    assert [outcome.state.result() for outcome in outcomes] == [4 << 20] * 8
    assert last.state.result() is True
    assert after.state.result() == "after"


def test_functions_of_the_standard_library_travel_by_reference(runner: CallRunner) -> None:
    """A module that is frozen into the interpreter is importable like any other, and is not sent."""
    outcomes = runner.run(runner.call(os.getenv, "PATH"), runner.call(os.path.join, "a", "b"), runner.call(len, [1]))

    assert [outcome.state.result() for outcome in outcomes] == [os.environ["PATH"], "a/b", 1]
    assert "os" not in cloudpickle.list_registry_pickle_by_value()


# -- who gets which call ---------------------------------------------------------------------------------------------


def test_nothing_waits_behind_a_long_call(runner: CallRunner, tmp_path: Path) -> None:
    """Calls that were sent ahead to a worker in a long call are taken back and run by the other one, once."""
    release, log = tmp_path / "release", tmp_path / "log"
    runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
    long = runner.call(workloads.wait_for_file, str(release))
    short = [runner.call(workloads.note, str(log), str(number)) for number in range(60)]

    runner.executor.submit([*short[:30], long, *short[30:]])
    outcomes = runner.wait_for(short)
    release.touch()
    [outcome] = runner.wait_for([long])

    assert outcome.state.result() is True
    assert {outcome.state.type for outcome in outcomes} == {StateType.COMPLETED}
    assert sorted(numbers_in(log)) == list(range(60))


def test_nothing_waits_behind_a_long_call_while_others_stream_by(runner: CallRunner, tmp_path: Path) -> None:
    """Calls behind a long one are taken back even if the other worker never runs out of calls."""
    release = tmp_path / "release"
    runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
    long = runner.call(workloads.wait_for_file, str(release))
    behind = [runner.call(workloads.identity, number) for number in range(40)]
    open_calls = {call.id for call in behind}

    def stream(outcome: Outcome) -> list[Call]:
        open_calls.discard(outcome.call_id)
        return [runner.call(workloads.pid, 0.001)] if open_calls else []

    runner.on_outcome = stream
    runner.executor.submit([long, *behind, *(runner.call(workloads.pid, 0.001) for _ in range(40))])
    outcomes = runner.wait_for(behind)
    release.touch()
    runner.wait_for([long])

    assert [outcome.state.result() for outcome in outcomes] == list(range(40))


def test_an_idle_worker_takes_over_what_another_has_not_begun(runner: CallRunner) -> None:
    """When one worker was given all the longer calls, the other one does its share of them."""
    runner.run(*(runner.call(workloads.pid, 0.01) for _ in range(4)))  # both workers are there
    runner.run(*(runner.call(workloads.identity, number) for number in range(300)))  # calls are short, it learns
    slow, quick = [[runner.call(workloads.pid, seconds) for _ in range(20)] for seconds in (0.005, 0)]
    alternating = [call for pair in zip(slow, quick, strict=True) for call in pair]

    runner.executor.submit(alternating)
    outcomes = runner.wait_for(slow)

    assert len({outcome.state.result() for outcome in outcomes}) == 2


def test_short_calls_are_sent_ahead_and_long_ones_are_not() -> None:
    """Capacity grows while calls are short, and shrinks to a call for each worker when they are long."""
    executor = ProcessExecutor(workers=2)

    with CallRunner(executor) as runner:
        unknown = executor.capacity
        seen: list[int] = []  # the greatest counts: a machine that is busy makes a short call long now and then
        runner.on_outcome = lambda outcome: seen.append(executor.capacity) or ()  # type: ignore[func-returns-value]
        runner.run(*(runner.call(workloads.identity, number) for number in range(300)))
        short = max(seen)
        runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(8)))
        long = executor.capacity

    assert unknown == 2
    assert short > 20
    assert long == 2


def test_an_idle_engine_takes_no_time(runner: CallRunner, tmp_path: Path) -> None:
    """While a long call runs nothing in this process is busy."""
    release = tmp_path / "release"
    call = runner.call(workloads.wait_for_file, str(release))
    runner.run(*(runner.call(workloads.identity, number) for number in range(100)))
    runner.submit(call)

    before = time.process_time()
    threading.Event().wait(0.5)
    used = time.process_time() - before
    release.touch()
    runner.wait_for([call])

    assert used < 0.05


# -- cancel and shutdown ---------------------------------------------------------------------------------------------


def test_a_running_call_can_be_cancelled(runner: CallRunner, tmp_path: Path) -> None:
    """A running call ends CANCELLED with its worker; calls that waited run elsewhere."""
    log = tmp_path / "pids"
    running = runner.call(lambda path: workloads.note(path, str(os.getpid()), 60), str(log))
    runner.executor.submit([running])
    eventually(lambda: numbers_in(log))

    runner.executor.cancel([running.id])
    [cancelled] = runner.wait_for([running])
    [following] = runner.run(runner.call(workloads.identity, 1))

    assert cancelled.state.type is StateType.CANCELLED
    assert is_gone(numbers_in(log)[0])
    assert following.state.result() == 1


def test_calls_that_have_not_begun_can_be_cancelled(tmp_path: Path) -> None:
    """Cancelled calls never run, whether sent ahead or not; the others and the running one are not touched."""
    release, log = tmp_path / "release", tmp_path / "log"

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(*(runner.call(workloads.identity, number) for number in range(100)))
        running = runner.call(workloads.wait_for_file, str(release))
        waiting = [runner.call(workloads.note, str(log), str(number)) for number in range(40)]
        runner.executor.submit([running, *waiting])
        runner.executor.cancel([call.id for call in waiting[::2]])
        cancelled = runner.wait_for(waiting[::2])
        release.touch()
        completed = runner.wait_for([running, *waiting[1::2]])

    assert {outcome.state.type for outcome in cancelled} == {StateType.CANCELLED}
    assert {outcome.state.type for outcome in completed} == {StateType.COMPLETED}
    assert sorted(numbers_in(log)) == list(range(1, 40, 2))


def test_shutdown_kills_what_runs_with_all_it_has_started(tmp_path: Path) -> None:
    """A task that is running at shutdown is gone at once, and so is its child."""
    log = tmp_path / "pids"

    def family(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "60"])
        workloads.note(path, f"{os.getpid()}\n{child.pid}", 60)

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.submit(runner.call(family, str(log)))
        eventually(lambda: len(numbers_in(log)) == 2)
        before = time.monotonic()

    assert time.monotonic() - before < 2
    assert all(is_gone(pid) for pid in numbers_in(log))


@pytest.mark.parametrize("new_session", [False, True])
def test_what_completed_tasks_leave_running_goes_on_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, new_session: bool
) -> None:
    """A process that a completed task leaves running outlives its worker and the executor, and is named once."""
    log = tmp_path / "pids"

    def leave_behind(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "60"], start_new_session=new_session)
        workloads.note(path, f"{child.pid}\n{os.getpid()}")

    with CallRunner(ProcessExecutor(workers=1, max_tasks_per_worker=1)) as runner:
        runner.run(runner.call(leave_behind, str(log)))
        child, worker = numbers_in(log)
        eventually(lambda: is_gone(worker))
        runner.run(runner.call(workloads.identity, 1))
        alive_meanwhile = not is_gone(child)

    assert alive_meanwhile
    assert not is_gone(child)
    os.kill(child, signal.SIGKILL)
    assert caplog.text.count(f"tasks have left processes running, which go on: {child}") == 1


@pytest.mark.parametrize("new_session", [False, True])
def test_what_tasks_have_started_ends_with_them_when_they_are_killed(tmp_path: Path, new_session: bool) -> None:
    """At a shutdown in the middle of a task, the processes it has started are killed with it."""
    log = tmp_path / "pids"

    def start_and_stay(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "60"], start_new_session=new_session)
        workloads.note(path, str(child.pid))
        time.sleep(60)

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.submit(runner.call(start_and_stay, str(log)))
        eventually(lambda: log.exists() and numbers_in(log))

    eventually(lambda: is_gone(numbers_in(log)[0]))


def test_shutdown_from_inside_a_report_ends_everything() -> None:
    """The thread that reports may shut the executor down."""
    executor = ProcessExecutor(workers=1)
    runner = CallRunner(executor)
    runner.on_outcome = lambda outcome: executor.shutdown() or ()  # type: ignore[func-returns-value]
    before = set(psutil.Process().children())
    executor.start(runner.report)

    runner.run(runner.call(workloads.identity, 1))

    eventually(lambda: set(psutil.Process().children()) <= before)


def test_an_exit_handler_that_hangs_is_not_waited_for_long() -> None:
    """A worker that does not end when told to is killed after a grace."""

    def register() -> None:
        import atexit

        atexit.register(time.sleep, 60)

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        runner.run(runner.call(register))
        before = time.monotonic()

    assert 1.5 < time.monotonic() - before < 4


def test_the_engine_opens_nothing_that_other_programs_inherit(runner: CallRunner) -> None:
    """All descriptors that the executor opens in this process are closed in the programs it starts."""
    before = {number for number in range(256) if is_inheritable(number)}

    runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(4)))

    assert {number for number in range(256) if is_inheritable(number)} <= before


def is_inheritable(descriptor: int) -> bool:
    """Return whether programs that this process starts would have this descriptor."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def test_a_flow_called_in_a_task_is_recorded(tmp_path: Path) -> None:
    """What a flow inside a task records comes to the engine with the task's outcome."""
    from localflow import flow, task
    from localflow.records import FlowRun

    @task
    def double(value: int) -> int:
        return 2 * value

    @flow
    def inner() -> Any:
        return double(4)

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        call = runner.call(inner)
        [outcome] = runner.run(call)

    [nested] = [record for record in outcome.records if isinstance(record, FlowRun)]
    assert nested.parent_id == call.task_run.id
    assert outcome.state.result() == 8


def test_a_second_start_is_refused(runner: CallRunner) -> None:
    """One executor object serves one flow run at a time, and says so."""
    with pytest.raises(RuntimeError, match="give each flow run its own"):
        runner.executor.start(runner.report)


def test_submit_before_start_is_refused() -> None:
    """The mistake to submit before the start is told."""
    runner = CallRunner(ProcessExecutor(workers=1))

    with pytest.raises(RuntimeError, match="not started"):
        runner.executor.submit([runner.call(workloads.identity, 1)])


def test_an_executor_that_is_dropped_while_workers_are_replaced_ends_with_the_program(
    run_program: Callable[[str], str], tmp_path: Path
) -> None:
    """Without `shutdown`, and with nobody who refers to it, it leaves no process behind and does not hang."""
    log = tmp_path / "pids"

    run_program(f"""
import gc
runner = CallRunner(ProcessExecutor(workers=2, max_tasks_per_worker=1))
runner.executor.start(runner.report)
calls = [runner.call(lambda: workloads.note({str(log)!r}, str(os.getpid()))) for _ in range(20)]
runner.submit(*calls)
runner.wait_until(lambda: len(runner.outcomes) >= 3)
del runner, calls
gc.collect()
""")

    assert len(numbers_in(log)) >= 3
    eventually(lambda: all(is_gone(pid) for pid in numbers_in(log)))

"""What the executor `futures` makes of pools, beyond the contract."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localflow import FuturesExecutor, flow, task
from localflow.errors import ConfigError
from localflow.project import Project
from localflow.states import WORKER_LOST, StateType
from localflow.testing import workloads
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually, is_gone, numbers_in

if TYPE_CHECKING:
    from collections.abc import Callable

LOCALFLOW = str(Path(sys.executable).with_name("localflow"))

pytestmark = pytest.mark.usefixtures("servers_of_pools")


class CountingPool(concurrent.futures.ProcessPoolExecutor):
    """Counts what it is given."""

    submitted = 0

    def submit(self, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Count."""
        type(self).submitted += 1
        return super().submit(*args, **kwargs)


class EagerPool(concurrent.futures.Executor):
    """Runs everything inside `submit`."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run it."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


class ScriptedPool(EagerPool):
    """Answers its first call as it is told to, and all after it as they should be."""

    def __init__(
        self, answer: Callable[[], object] | None = None, future: concurrent.futures.Future[Any] | None = None
    ) -> None:
        self.answer = answer
        self.future = future

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run it, or not."""
        answer, self.answer = self.answer, None
        future, self.future = self.future, None
        if answer is not None:
            return super().submit(answer)
        return future or super().submit(fn, *args, **kwargs)


class UnwillingPool(concurrent.futures.ProcessPoolExecutor):
    """A pool of two processes that refuses as many calls as it is told to."""

    def __init__(self, error: Exception, refusals: int) -> None:
        super().__init__(2, mp_context=multiprocessing.get_context("spawn"))
        self.error = error
        self.refusals = refusals

    def submit(self, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Refuse it, or not."""
        if self.refusals:
            self.refusals -= 1
            raise self.error
        return super().submit(*args, **kwargs)


def process_pool(**options: Any) -> FuturesExecutor:
    """Return an executor over a pool of two processes."""
    return FuturesExecutor(concurrent.futures.ProcessPoolExecutor, workers=2, **options)


class TestPools:
    """Pools as factories make them."""

    def test_threads_share_memory_and_processes_do_not(self) -> None:
        """What a pool can do is found out when it is made."""
        threads = FuturesExecutor("concurrent.futures:ThreadPoolExecutor", max_workers=3)
        processes = process_pool()

        with CallRunner(threads), CallRunner(processes):
            shared = threads.shares_memory, processes.shares_memory
            capacities = threads.capacity, processes.capacity

        assert shared == (True, False)
        assert capacities == (6, 2)

    def test_an_option_says_what_cannot_be_known(self) -> None:
        """A pool of somebody's own is taken for one elsewhere, unless an option says that it shares memory."""
        given = object()
        copied = FuturesExecutor(EagerPool)
        shared = FuturesExecutor(EagerPool, shares_memory=True)

        with CallRunner(copied) as runner:
            [one] = runner.run(runner.call(workloads.identity, 5))
            capacity = copied.capacity
        with CallRunner(shared) as runner:
            [other] = runner.run(runner.call(workloads.identity, given))

        assert (one.state.result(), capacity) == (5, None)
        assert other.state.result() is given

    def test_a_pool_that_runs_calls_at_once_needs_no_depth(self) -> None:
        """A long chain of calls, each submitted by the report of the one before, does not nest."""
        with CallRunner(FuturesExecutor(EagerPool, shares_memory=True, workers=1)) as runner:
            runner.on_outcome = lambda outcome: (
                [runner.call(workloads.identity, value + 1)] if (value := outcome.state.result()) < 3000 else []
            )
            runner.submit(runner.call(workloads.identity, 1))
            runner.wait_until(lambda: len(runner.outcomes) == 3000)

    def test_the_number_of_workers_reaches_the_pool(self, tmp_path: Path) -> None:
        """`workers`, which is what -j sets, is `max_workers` for a factory that takes that."""
        with CallRunner(process_pool()) as runner:
            outcomes = runner.run(*(runner.call(workloads.meet, str(tmp_path / "crowd"), n, 2) for n in "ab"))

        assert all(outcome.state.result() for outcome in outcomes)

    def test_processes_are_not_forked_from_the_engine(self) -> None:
        """Workers are children of a fork server, or exec'd, unless somebody wants them otherwise."""
        with CallRunner(process_pool()) as runner:
            [outcome] = runner.run(runner.call(os.getppid))

        assert sys.platform != "linux" or outcome.state.result() != os.getpid()

    def test_a_start_method_is_named_in_a_table(self) -> None:
        """`mp_context` may be a text."""
        with CallRunner(process_pool(mp_context="spawn")) as runner:
            [outcome] = runner.run(runner.call(os.getppid))

        assert outcome.state.result() == os.getpid()

    def test_what_is_no_pool_is_refused(self) -> None:
        """A factory that makes something else is told so at the start."""
        with pytest.raises(TypeError, match="made dict, which is no concurrent"):
            FuturesExecutor("builtins:dict").start(lambda outcomes: None)

    def test_what_only_a_pool_shows_is_refused_at_the_start(self) -> None:
        """A function that makes processes cannot be told to share memory, either."""
        executor = FuturesExecutor(lambda: concurrent.futures.ProcessPoolExecutor(1), shares_memory=True)

        with pytest.raises(ValueError, match=r"shares_memory must be false for .*ProcessPoolExecutor"):
            executor.start(lambda outcomes: None)

    def test_many_short_calls_travel_together(self) -> None:
        """Bundles go to processes when calls are short, each answered by itself."""
        CountingPool.submitted = 0

        with CallRunner(FuturesExecutor(CountingPool, max_workers=2)) as runner:
            outcomes = runner.run(*(runner.call(workloads.identity, number) for number in range(2000)))

        assert [outcome.state.result() for outcome in outcomes] == list(range(2000))
        assert CountingPool.submitted < 1000

    def test_long_calls_travel_alone(self) -> None:
        """A worker is never behind another one's long call while some are free."""
        CountingPool.submitted = 0

        with CallRunner(FuturesExecutor(CountingPool, max_workers=2)) as runner:
            runner.run(*(runner.call(workloads.pid, 0.02) for _ in range(20)))

        assert CountingPool.submitted == 20


class TestBrokenPools:
    """A pool that breaks is replaced."""

    def test_calls_in_hand_crash_and_others_run_in_a_new_pool(self, tmp_path: Path) -> None:
        """The end of a worker is told of what the pool had in hand, and of nothing that waited."""
        release = tmp_path / "release"

        with CallRunner(process_pool()) as runner:
            beside = runner.call(workloads.begin_and_wait, str(tmp_path / "begun"), str(release))
            fatal = runner.call(_when_there, str(tmp_path / "begun"))
            waiting = [runner.call(workloads.identity, number) for number in range(20)]
            runner.executor.submit([beside, fatal, *waiting])
            lost = runner.wait_for([beside, fatal])
            others = runner.wait_for(waiting)

        assert {(outcome.state.type, outcome.state.name) for outcome in lost} == {(StateType.CRASHED, WORKER_LOST)}
        assert fatal.task_run.name in lost[1].state.message
        assert "BrokenProcessPool" in lost[1].state.message
        assert [outcome.state.result() for outcome in others] == list(range(20))

    def test_a_flow_tries_again_what_crashed(self, tmp_path: Path) -> None:
        """`retry_on_crash` gives a second attempt in the new pool."""
        mark = tmp_path / "mark"

        @task(retries=1, retry_on_crash=True)
        def crash_once(path: Path) -> str:
            if not path.exists():
                path.touch()
                os._exit(3)
            return "done"

        @flow(executor=process_pool())
        def main() -> object:
            return crash_once(mark)

        assert main().result() == "done"

    def test_a_pool_that_somebody_has_shut_down_is_replaced(self) -> None:
        """A call that a pool does not take any more goes to a new one."""
        pools: list[concurrent.futures.Executor] = []

        def make() -> concurrent.futures.Executor:
            pools.append(concurrent.futures.ThreadPoolExecutor(2))
            return pools[-1]

        with CallRunner(FuturesExecutor(make)) as runner:
            runner.run(runner.call(workloads.identity, 1))
            pools[0].shutdown()
            [outcome] = runner.run(runner.call(workloads.identity, 2))

        assert outcome.state.result() == 2
        assert len(pools) == 2

    def test_a_pool_that_always_breaks_ends_all_the_same(self) -> None:
        """Calls are CRASHED, not tried for ever, when no worker can start."""
        with CallRunner(process_pool(initializer=os._exit, initargs=(3,))) as runner:
            outcomes = runner.run(*(runner.call(workloads.identity, number) for number in range(4)))

        assert {outcome.state.name for outcome in outcomes} == {WORKER_LOST}

    def test_a_call_that_hangs_ends_with_the_executor(self, tmp_path: Path) -> None:
        """Shutdown kills processes in calls that nobody waits for any more."""
        with CallRunner(process_pool()) as runner:
            runner.submit(runner.call(_note_pid_and_hang, str(tmp_path / "pid")))
            eventually(lambda: numbers_in(tmp_path / "pid"))

        eventually(lambda: is_gone(numbers_in(tmp_path / "pid")[0]))


class TestUnrulyPools:
    """A pool that errs costs the calls that it errs with, and no others."""

    @pytest.mark.parametrize("answer", [None, [], [b"xx"], [None], 7])
    def test_what_is_no_answer_crashes_its_call_alone(self, answer: object) -> None:
        """The message tells what came, and the calls after it are answered."""
        pool = ScriptedPool(lambda: answer)

        with CallRunner(FuturesExecutor(lambda: pool, workers=1)) as runner:
            [lost] = runner.run(runner.call(workloads.identity, 1))
            [well] = runner.run(runner.call(workloads.identity, 2))

        assert (lost.state.type, lost.state.name) == (StateType.CRASHED, WORKER_LOST)
        assert f"ScriptedPool gave no answer to 'identity-1' (attempt 1/1), but {answer!r}: " in lost.state.message
        assert well.state.result() == 2

    def test_a_thread_that_gives_no_outcome_is_told(self) -> None:
        """In a pool that shares memory an answer is what the call returned."""
        pool = ScriptedPool(lambda: {"not": "it"})

        with CallRunner(FuturesExecutor(lambda: pool, workers=1, shares_memory=True)) as runner:
            [lost] = runner.run(runner.call(workloads.identity, 1))
            [well] = runner.run(runner.call(workloads.identity, 2))

        assert "but {'not': 'it'}" in lost.state.message
        assert well.state.result() == 2

    def test_empty_raised_by_a_future_is_no_empty_inbox(self) -> None:
        """`queue.Empty` in the middle of an item answers its call like any other exception."""

        def fail() -> object:
            raise queue.Empty

        class Odd(concurrent.futures.Future[Any]):
            def cancelled(self) -> bool:
                return bool(fail())

        future = Odd()
        future.set_result(None)
        pool = ScriptedPool(future=future)

        with CallRunner(FuturesExecutor(lambda: pool, workers=1)) as runner:
            [lost] = runner.run(runner.call(workloads.identity, 1))
            [well] = runner.run(runner.call(workloads.identity, 2))

        assert "Empty" in lost.state.message
        assert well.state.result() == 2

    def test_a_future_that_cannot_be_cancelled_is_passed_by(self, caplog: pytest.LogCaptureFixture) -> None:
        """What `cancel()` raises is logged; the call is answered when its future is done."""

        class Odd(concurrent.futures.Future[Any]):
            def cancel(self) -> bool:
                raise OSError("no line")

        future = Odd()
        pool = ScriptedPool(future=future)

        with CallRunner(FuturesExecutor(lambda: pool, workers=2)) as runner:
            held = runner.call(workloads.identity, 1)
            runner.submit(held)
            eventually(lambda: pool.future is None)  # it has been submitted
            runner.executor.cancel([held.id])
            eventually(lambda: "ScriptedPool cannot cancel a call: OSError: no line" in caplog.text)
            [well] = runner.run(runner.call(workloads.identity, 2))
            future.set_result(None)
            [lost] = runner.wait_for([held])

        assert well.state.result() == 2
        assert lost.state.name == WORKER_LOST

    def test_a_pool_that_refuses_a_call_once_is_asked_again(self) -> None:
        """A passing error costs nothing, and no new pool is made."""
        made: list[UnwillingPool] = []

        with CallRunner(FuturesExecutor(lambda: _appended(made, UnwillingPool(OSError("busy"), 1)))) as runner:
            [outcome] = runner.run(runner.call(workloads.identity, 5))

        assert outcome.state.result() == 5
        assert len(made) == 1

    @pytest.mark.parametrize("error", [OSError("busy"), NotImplementedError("later")])
    def test_a_refusal_costs_only_the_calls_refused(self, tmp_path: Path, error: Exception) -> None:
        """Calls that the pool has in hand go on while others are refused for a reason of their own."""
        made: list[UnwillingPool] = []
        begun, release = tmp_path / "begun", tmp_path / "release"

        with CallRunner(FuturesExecutor(lambda: _appended(made, UnwillingPool(error, 0)), workers=2)) as runner:
            running = runner.call(workloads.begin_and_wait, str(begun), str(release))
            runner.submit(running)
            eventually(begun.exists)
            made[0].refusals = 2
            [refused] = runner.run(runner.call(workloads.identity, 2))
            release.touch()
            [went_on] = runner.wait_for([running])

        assert len(made) == 1
        assert (refused.state.type, refused.state.name) == (StateType.CRASHED, WORKER_LOST)
        assert f"did not take 'identity-2' (attempt 1/1): {type(error).__name__}: {error}" in refused.state.message
        assert went_on.state.type is StateType.COMPLETED

    def test_a_pool_that_was_shut_down_finishes_what_it_is_at(self, tmp_path: Path) -> None:
        """Only a broken pool's processes are killed when another takes its place."""
        made: list[UnwillingPool] = []
        begun, release = tmp_path / "begun", tmp_path / "release"

        def make() -> UnwillingPool:
            return _appended(made, UnwillingPool(RuntimeError("it was shut down"), 0))

        with CallRunner(FuturesExecutor(make, workers=2)) as runner:
            running = runner.call(workloads.begin_and_wait, str(begun), str(release))
            runner.submit(running)
            eventually(begun.exists)
            made[0].refusals = 1
            [other] = runner.run(runner.call(workloads.identity, 2))
            release.touch()
            [went_on] = runner.wait_for([running])

        assert len(made) == 2
        assert other.state.result() == 2
        assert went_on.state.type is StateType.COMPLETED

    def test_a_replaced_pool_ends_with_the_executor(self, tmp_path: Path) -> None:
        """A process that went on in a pool of before is killed at the end, if it is still in its call."""
        made: list[UnwillingPool] = []

        def make() -> UnwillingPool:
            return _appended(made, UnwillingPool(RuntimeError("it was shut down"), 0))

        with CallRunner(FuturesExecutor(make, workers=2)) as runner:
            runner.submit(runner.call(_note_pid_and_hang, str(tmp_path / "pid")))
            eventually(lambda: numbers_in(tmp_path / "pid"))
            made[0].refusals = 1
            runner.run(runner.call(workloads.identity, 2))

        assert len(made) == 2
        eventually(lambda: is_gone(numbers_in(tmp_path / "pid")[0]))


class TestFlows:
    """Flows on pools, by name and by object."""

    @pytest.mark.parametrize("pool", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
    def test_a_table_makes_an_executor_of_a_pool(self, tmp_path: Path, pool: str) -> None:
        """A script runs on a pool that localflow.toml names, and its own functions and classes with it."""
        (tmp_path / "localflow.toml").write_text(
            f'[executors.pool]\ntype = "futures"\nfactory = "concurrent.futures:{pool}"\nmax_workers = 2\n'
        )
        (tmp_path / "script.py").write_text(SCRIPT)

        ended = subprocess.run(
            [LOCALFLOW, "run", "script.py", "--executor", "pool"], capture_output=True, text=True, timeout=50
        )

        assert ended.returncode == 0, ended.stderr
        assert "Pair(3, 4) says 12" in ended.stdout

    def test_a_guarded_script_runs_on_processes(self, tmp_path: Path) -> None:
        """The pool imports the script in its workers; behind the guard that does no harm."""
        script = tmp_path / "script.py"
        script.write_text(
            "from localflow import FuturesExecutor\n"
            "from concurrent.futures import ProcessPoolExecutor\n" + SCRIPT + "if __name__ == '__main__':\n"
            "    print(main.with_options(executor=FuturesExecutor(ProcessPoolExecutor, max_workers=2))())\n"
        )

        ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50)

        assert "Completed" in ended.stdout, ended.stderr
        assert "Pair(3, 4) says 12" in ended.stdout

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_a_script_without_a_guard_is_told_of_it(self, tmp_path: Path, method: str) -> None:
        """Both the worker, which may not run the flow again, and the engine name the guard, in one sentence each."""
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip("this system has no such start method")
        script = tmp_path / "script.py"
        script.write_text(
            "from localflow import FuturesExecutor\n"
            "from concurrent.futures import ProcessPoolExecutor\n" + SCRIPT + "\n"
            f"pool = FuturesExecutor(ProcessPoolExecutor, max_workers=1, mp_context={method!r})\n"
            "print(main.with_options(executor=pool)().result())\n"
        )

        ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50)

        guard = "call the flow under `if __name__ == '__main__':`"
        assert f"'make-0' (attempt 1/1) cannot run while a worker process imports the script: {guard}" in ended.stderr
        assert f"Its workers import the script: {guard}" in ended.stderr
        assert "bootstrapping phase" not in ended.stderr

    def test_a_factory_that_is_no_name_is_told_with_its_line(self, tmp_path: Path) -> None:
        """The mistake is found before anything runs."""
        (tmp_path / "localflow.toml").write_text('[executors.pool]\ntype = "futures"\nfactory = "ThreadPoolExecutor"\n')

        with pytest.raises(ConfigError, match=r"localflow.toml:1.*factory must be 'module:callable'"):
            Project.load().make_executor("pool")

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ('workers = "two"', r"toml:4: \[executors.pool\] workers must be an integer >= 1, got \"two\""),
            ("workers = 0", r"toml:4: \[executors.pool\] workers must be an integer >= 1, got 0"),
            ('shares_files = "no"', "shares_files must be true or false"),
            ("max_worker = 2", "unknown option 'max_worker' of ProcessPoolExecutor; did you mean 'max_workers'"),
            ('max_workers = "two"', 'max_workers must be an integer >= 1, got "two"'),
            (
                "workers = 3\nmax_workers = 2",
                "workers and max_workers say the same, got workers = 3 and max_workers = 2",
            ),
            ("shares_memory = true", "shares_memory must be false for ProcessPoolExecutor"),
        ],
    )
    def test_an_option_that_does_not_fit_is_told_before_anything_runs(
        self, tmp_path: Path, options: str, told: str
    ) -> None:
        """`config validate` names the option, what was expected and the next move."""
        (tmp_path / "localflow.toml").write_text(
            f'[executors.pool]\ntype = "futures"\nfactory = "concurrent.futures:ProcessPoolExecutor"\n{options}\n'
        )

        with pytest.raises(ConfigError, match=told):
            Project.load().try_plugins()

    @pytest.mark.parametrize(
        ("factory", "told"),
        [
            ("concurrent.futures:ThreadPool", "there is no 'ThreadPool' in .*; did you mean 'ThreadPoolExecutor'"),
            ("concurrent.futures:NoPool", "there is no 'NoPool' in 'concurrent.futures:NoPool'; name what makes"),
            ("nomod.x:Y", "got 'nomod.x:Y': ModuleNotFoundError: .*; install the module, or put its folder on"),
            ("os:sep", "but 'os:sep' is str"),
        ],
    )
    def test_a_factory_that_is_not_there_is_told(self, tmp_path: Path, factory: str, told: str) -> None:
        """The option and what it should name are told before anything runs."""
        (tmp_path / "localflow.toml").write_text(f'[executors.pool]\ntype = "futures"\nfactory = "{factory}"\n')

        with pytest.raises(ConfigError, match=rf"localflow.toml:1: \[executors.pool\] factory must .*{told}"):
            Project.load().try_plugins()

    def test_a_factory_beside_the_script_need_not_be_on_the_path_yet(self, tmp_path: Path) -> None:
        """A module in the working directory is left for the script, whose folder comes on the path."""
        (tmp_path / "localflow.toml").write_text('[executors.pool]\ntype = "futures"\nfactory = "ownpools:make"\n')
        (tmp_path / "ownpools.py").write_text(
            "import concurrent.futures\ndef make(): return concurrent.futures.ThreadPoolExecutor(2)\n"
        )
        (tmp_path / "script.py").write_text(SCRIPT)

        valid = subprocess.run([LOCALFLOW, "config", "validate"], capture_output=True, text=True, timeout=50)
        ended = subprocess.run(
            [LOCALFLOW, "run", "script.py", "--executor", "pool"], capture_output=True, text=True, timeout=50
        )

        assert valid.returncode == 0, valid.stderr
        assert "Pair(3, 4) says 12" in ended.stdout, ended.stderr

    def test_a_missing_factory_is_told(self, tmp_path: Path) -> None:
        """A table of this type needs a factory."""
        (tmp_path / "localflow.toml").write_text('[executors.pool]\ntype = "futures"\n')

        with pytest.raises(ConfigError, match="missing required option 'factory'"):
            Project.load()

    def test_a_timeout_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        """A pool cannot stop a call, which is said when the run starts."""

        @task(timeout_seconds=30)
        def quick() -> int:
            return 1

        @flow(executor=FuturesExecutor(concurrent.futures.ThreadPoolExecutor, max_workers=1))
        def main() -> object:
            return quick()

        assert main().result() == 1
        assert "cannot stop its code" in caplog.text

    def test_what_cannot_be_sent_is_named(self) -> None:
        """An argument that cannot be pickled fails its task with a message that names it."""

        @task
        def use(lock: object) -> None: ...

        @flow(executor=process_pool())
        def main() -> object:
            return use(threading.Lock())

        with pytest.raises(Exception, match=r"argument 'lock' \(_thread.lock\) cannot be sent to a worker process"):
            main().result()

    @pytest.mark.parametrize("shares_files", [True, False])
    def test_large_values_arrive(self, shares_files: bool) -> None:
        """Arrays go by files where workers see them, as bytes where not, also those that processes have made."""
        numpy = pytest.importorskip("numpy")

        @task
        def make(size: int) -> Any:
            return numpy.arange(size)

        @task
        def add_up(one: Any, other: Any) -> int:
            return int(one.sum() + other.sum())

        @flow(executor=process_pool(shares_files=shares_files))
        def main() -> object:
            near = make(100_000)
            far = make.with_options(executor="process")(100_000)
            return add_up(near, far)

        assert main().result() == 2 * sum(range(100_000))


SCRIPT = """
from localflow import flow, task

class Pair:
    def __init__(self, one, other):
        self.one, self.other = one, other
    def __repr__(self):
        return f"Pair({self.one}, {self.other})"

def multiply(pair):
    return pair.one * pair.other

@task
def make(one, other):
    return Pair(one, other)

@task(log_prints=True)
def tell(pair):
    return f"{pair} says {multiply(pair)}"

@flow
def main():
    print(tell(make(3, 4)).result())
"""


def _appended(made: list[UnwillingPool], pool: UnwillingPool) -> UnwillingPool:
    made.append(pool)
    return pool


def _when_there(path: str) -> None:
    """End the process as soon as a file is there."""
    workloads.wait_for_file(path)
    os._exit(7)


def _note_pid_and_hang(path: str) -> None:
    """Note the pid, then wait for what never comes."""
    workloads.note(path, str(os.getpid()))
    workloads.wait_for_file("/nowhere", 60)

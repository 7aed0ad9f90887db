"""What runs log, print and write is recorded under its run, and reaches the terminal as before, once."""

from __future__ import annotations

import builtins
import io
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from localflow import ThreadExecutor, flow, get_run_logger, task
from localflow.logs import recording
from localflow.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localflow.records import LogEntry

EXECUTORS = ("sequential", "thread", "process")

HEAD = """
import logging, os, subprocess, sys
from localflow import flow, get_run_logger, task
"""


class Done(NamedTuple):
    stdout: str
    stderr: str
    entries: list[LogEntry]

    def said(self, run: str, *sources: str) -> list[str]:
        """Return the messages of a run, of all or of some sources."""
        return [e.message for e in self.entries if e.run.name == run and (not sources or e.source in sources)]


def entries_of_newest_run() -> list[LogEntry]:
    """Return what is recorded of the newest flow run."""
    with closing(Project.load().open_store()) as store:
        flow_run = store.list_flow_runs()[0].flow_run
        return [entry for _, entry in store.read_logs(flow_run.id)]


def run_program(source: str, **environment: str) -> Done:
    """Run a program of its own with pipes for stdout and stderr."""
    Path("program.py").write_text(HEAD + source)
    done = subprocess.run(
        [sys.executable, "program.py"], capture_output=True, encoding="utf-8", timeout=50, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Done(done.stdout, done.stderr, entries_of_newest_run())


@contextmanager
def unconfigured() -> Iterator[None]:
    """Take pytest's own handlers off the root logger for the block."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    yield
    root.handlers = handlers


# -- whose it is -----------------------------------------------------------------------------------------------------

CROWD = """
@task
def talk(me):
    log = get_run_logger()
    for n in range(100):
        log.info("log %s %s", me, n)
        print("print", me, n)
        if RAW:
            os.write(1, f"raw {me} {n}\\n".encode())

EXECUTORS = {"thread": ThreadExecutor(workers=4), "process": ProcessExecutor(workers=4)}

@flow(executor=EXECUTORS.get(KIND, KIND))
def main():
    for me in range(8):
        talk(me)

assert main().is_completed()
"""


@pytest.mark.parametrize("kind", EXECUTORS)
def test_all_that_tasks_say_at_once_is_found_under_each_of_them(kind: str) -> None:
    """Eight tasks that log, print and write a hundred lines each lose none of them, to nobody else."""
    raw = kind != "thread"
    kinds = ("log", "print", "raw") if raw else ("log", "print")
    setting = f"from localflow import ProcessExecutor, ThreadExecutor\nKIND, RAW = {kind!r}, {raw}\n"

    done = run_program(setting + CROWD)

    for me in range(8):
        for each in kinds:
            said = [line for line in done.said(f"talk-{me}") if line.startswith(each)]
            assert said == [f"{each} {me} {n}" for n in range(100)]
    assert len(done.entries) == 8 * 100 * len(kinds)
    written = {f"{each} {me} {n}": 1 for each in kinds[1:] for me in range(8) for n in range(100)}
    assert Counter(done.stdout.splitlines()) == Counter(written)
    assert done.stderr.count("| INFO    | talk-") == 800


def test_threads_of_one_task_do_not_mix_their_lines(own_folder: Path) -> None:
    """Lines that threads of a task write piece by piece at the same time stay whole."""
    from contextvars import copy_context

    barrier = threading.Barrier(4)

    def speak(me: int) -> None:
        barrier.wait()
        for n in range(50):
            for piece in (f"{me}", " says ", f"{n}", "\n"):
                sys.stdout.write(piece)

    @task
    def crowd() -> None:
        threads = [threading.Thread(target=copy_context().run, args=(speak, me)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @flow
    def main() -> None:
        crowd()

    main()

    said = Counter(entry.message for entry in entries_of_newest_run())
    assert said == Counter({f"{me} says {n}": 1 for me in range(4) for n in range(50)})


def test_body_and_subflow_and_task_have_lines_of_their_own() -> None:
    """What the body of a flow and the body of a flow it calls print belongs to each of them."""
    done = run_program("""
@task
def add(): print("in task", end="")

@flow
def inner():
    print("in inner")

@flow
def main():
    print("in main")
    add()
    inner()
    print("at the end", end="")

main()
""")

    with closing(Project.load().open_store()) as store:
        newest = [summary.flow_run for summary in store.list_flow_runs()]
        by_flow = {run.flow: [(e.run.name, e.message) for _, e in store.read_logs(run.id)] for run in newest}
        names = {run.flow: run.name for run in newest}
    assert by_flow["inner"] == [(names["inner"], "in inner")]
    assert by_flow["main"] == [
        (names["main"], "in main"), ("add-0", "in task"), (names["main"], "at the end"),
    ]  # fmt: skip
    assert done.stdout == "in main\nin taskin inner\nat the end"


def test_a_logger_taken_into_a_thread_still_knows_its_run() -> None:
    """The logger of a run speaks for it in threads that know nothing of the run."""

    @task
    def start() -> None:
        thread = threading.Thread(target=get_run_logger().warning, args=("from a thread",))
        thread.start()
        thread.join()

    @flow
    def main() -> None:
        start()

    main()

    assert [(entry.run.name, entry.message) for entry in entries_of_newest_run()] == [("start-0", "from a thread")]


def test_entries_tell_level_source_attempt_and_time() -> None:
    """Each entry has its level, where it was said, the attempt and an instant within the run."""

    @task(retries=1)
    def flaky() -> None:
        logging.getLogger("lib").error("bad %s", "luck")
        print("out")
        print("err", file=sys.stderr)
        if len(tries) < 1:
            tries.append(1)
            raise ValueError

    tries: list[int] = []

    @flow
    def main() -> None:
        flaky()

    main()

    entries = entries_of_newest_run()
    assert [(e.attempt, e.level, e.source, e.message) for e in entries] == [
        (attempt, *rest)
        for attempt in (1, 2)
        for rest in ((40, "lib", "bad luck"), (20, "stdout", "out"), (30, "stderr", "err"))
    ]
    assert [e.timestamp for e in entries] == sorted(e.timestamp for e in entries)


# -- get_run_logger --------------------------------------------------------------------------------------------------


def test_outside_any_run_the_logger_is_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    """A task called as a plain function may log: it is logger `localflow` then, and nothing fails."""

    @task
    def speak() -> str:
        get_run_logger().warning("hello")
        return "done"

    assert speak() == "done"

    assert [(record.name, record.message) for record in caplog.records] == [("localflow", "hello")]


def test_handlers_of_the_user_get_the_names_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """Formatters can name the run, `extra` of the caller stays, and the place of the call is the user's line."""

    @task
    def speak() -> None:
        get_run_logger().warning("hello", extra={"colour": "red"})

    @flow
    def main() -> None:
        speak()

    main()

    record: Any = next(record for record in caplog.records if record.name == "localflow.task_runs")
    assert (record.run_name, record.colour) == ("speak-0", "red")
    assert record.flow_run_name == entries_of_newest_run()[0].run.flow_run.name
    assert (record.funcName, Path(record.pathname).name) == ("speak", "test_logs.py")


def test_a_run_logger_can_be_sent_elsewhere() -> None:
    """Pickled and loaded where there is no run, the logger is the plain one."""
    loggers: list[Any] = []

    @flow
    def main() -> None:
        loggers.append(get_run_logger())

    main()

    assert pickle.loads(pickle.dumps(loggers[0])).logger.name == "localflow"


# -- levels and the terminal -----------------------------------------------------------------------------------------

LEVELS = """
@task
def speak():
    for name in (None, "lib"):
        log = logging.getLogger(name) if name else get_run_logger()
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("%s %s", name or "run", level)

@flow(executor=os.environ["KIND"])
def main():
    speak()
"""


@pytest.mark.parametrize("kind", EXECUTORS)
def test_without_logging_configured_infos_are_recorded_and_nothing_more_than_before_is_shown(kind: str) -> None:
    """Of libraries only warnings reach the terminal, as Python does it; of runs' loggers all from INFO on."""
    done = run_program(LEVELS + "\nmain()\nlogging.getLogger('lib').info('after')", KIND=kind)

    assert done.said("speak-0") == [
        f"{who} {level}" for who in ("run", "lib") for level in ("info", "warning", "error")
    ]
    assert done.stdout == ""
    shown = [re.sub(r"^[\d:.]+", "TIME", line) for line in done.stderr.splitlines()]
    assert shown == [
        "TIME | INFO    | speak-0 | run info",
        "TIME | WARNING | speak-0 | run warning",
        "TIME | ERROR   | speak-0 | run error",
        "lib warning",
        "lib error",
    ]


@pytest.mark.parametrize("kind", EXECUTORS)
def test_with_logging_configured_handlers_show_what_they_would_and_nothing_twice(kind: str) -> None:
    """The user's format and level hold on the terminal, for workers as well."""
    configured = "logging.basicConfig(level='WARNING', format='mine %(name)s %(message)s')\n"

    done = run_program(LEVELS + configured + "main()", KIND=kind)

    assert done.stderr.splitlines() == [
        "mine localflow.task_runs run warning",
        "mine localflow.task_runs run error",
        "mine lib lib warning",
        "mine lib lib error",
    ]
    recorded = done.said("speak-0")
    assert [line for line in recorded if line.startswith("run")] == ["run info", "run warning", "run error"]
    assert [line for line in recorded if line.startswith("lib")][-2:] == ["lib warning", "lib error"]
    assert len(recorded) == len(set(recorded))


def test_debug_records_are_recorded_where_the_user_wants_them() -> None:
    """A root logger at DEBUG has DEBUG records recorded."""
    done = run_program(LEVELS + "logging.basicConfig(level='DEBUG', filename='all.log')\nmain()", KIND="thread")

    assert "lib debug" in done.said("speak-0")
    assert done.stderr == ""


@pytest.mark.parametrize("kind", EXECUTORS)
def test_logging_configured_inside_a_run_works(kind: str) -> None:
    """`basicConfig` in a task finds no handler of ours in its way; what its handler writes is not recorded again."""
    done = run_program(
        """
@task
def speak():
    logging.basicConfig(level="INFO", format="mine %(message)s")
    logging.getLogger("lib").info("hello")

@flow(executor=os.environ["KIND"])
def main():
    speak()
main()
""",
        KIND=kind,
    )

    assert done.said("speak-0") == ["hello"]
    assert done.stderr.splitlines() == (["mine hello"] if kind != "process" else [])


def test_a_handler_made_before_the_run_is_not_recorded_as_output() -> None:
    """A handler that holds the real stderr writes to the descriptor, and the record is recorded once all the same."""
    done = run_program(LEVELS + "logging.basicConfig(format='mine %(message)s')\nmain()", KIND="sequential")

    assert Counter(done.said("speak-0", "stderr")) == Counter()


def test_loggers_that_do_not_propagate_are_recorded() -> None:
    """A logger with a handler of its own and no parents is heard."""
    handler = logging.StreamHandler(stream := io.StringIO())
    logger = logging.getLogger("alone")
    logger.propagate = False
    logger.addHandler(handler)

    @flow
    def main() -> None:
        logger.warning("hello")
        logger.info("quietly")

    try:
        with unconfigured():
            main()
    finally:
        logger.removeHandler(handler)
        logger.propagate = True

    assert [entry.message for entry in entries_of_newest_run()] == ["hello", "quietly"]
    assert stream.getvalue() == "hello\n"


def test_exceptions_and_odd_records_are_recorded_as_text() -> None:
    """Tracebacks are part of the message, arguments that do not fit are told, and what is endless is cut."""
    done = run_program("""
logging.raiseExceptions = False

class Odd:
    def __repr__(self): raise RuntimeError

@flow
def main():
    log = get_run_logger()
    try:
        {}["key"]
    except KeyError:
        log.exception("lookup failed")
    log.info("%d items", "many")
    log.info("%d", Odd())
    log.info("x" * 200_000)
    log.info("where", stack_info=True)
    log.info("\\ud800 half a pair")
main()
""")

    said = [entry.message for entry in done.entries]
    assert said[0].startswith("lookup failed\nTraceback (most recent call last):")
    assert said[0].endswith("KeyError: 'key'")
    assert "'%d items' (arguments ('many',) do not fit" in said[1]
    assert "<tuple>" in said[2]
    assert len(said[3]) < 70_000
    assert "Stack (most recent call last)" in said[4]
    assert len(said) == 6


def test_a_record_logged_while_another_is_shown_makes_no_circle() -> None:
    """A handler that itself logs and prints does not have that recorded, and does not go on for ever."""
    done = run_program("""
class Chatty(logging.Handler):
    def emit(self, record):
        print("shown:", record.getMessage())
        logging.getLogger("other").warning("handled")

logging.getLogger("lib").addHandler(Chatty())
logging.getLogger("lib").propagate = False

@flow
def main():
    logging.getLogger("lib").warning("hello")
main()
""")

    assert [entry.message for entry in done.entries] == ["hello"]
    assert done.stdout == "shown: hello\n"


# -- a worker that has needed no `logging` so far ----------------------------------------------------------------------

AS_A_WORKER = """
import os, sys, types
builtin = sys.modules["localflow.builtin"] = types.ModuleType("localflow.builtin")
import localflow
builtin.__path__ = [os.path.join(localflow.__path__[0], "builtin")]
from localflow.builtin.process.worker import Capture
from localflow.context import TaskContext, entered
from localflow.records import FlowRun, TaskRun

told = os.dup(1)
Capture(*[os.open(name, os.O_CREAT | os.O_RDWR) for name in ("stdout", "stderr", "log")])
assert "logging" not in sys.modules
lines = []
run = TaskRun(FlowRun("id", "name", "flow", 0.0, "id"), 1, "run", "task", 0, 0.0)
with entered(TaskContext(run, 1, [], lines.append, log_prints=True)):
    call()
os.write(told, repr([line.message for line in lines]).encode())
"""

LOG = 'logging.getLogger("lib").info("said")'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"import logging; {LOG}", 1),
        (f"import logging.handlers; {LOG.replace('logging', 'logging.handlers.logging')}", 1),
        (f"import localflow.echo, logging; {LOG}", 1),
        (f"import localflow.log_records, logging; {LOG}", 1),
        ("from localflow import get_run_logger; get_run_logger().info('said')", 1),
        ("print('said')", 1),
        (f"import logging; logging.basicConfig(level=20, filename='configured'); {LOG}", 1),
        (f"import logging; logging.getLogger().setLevel(30); {LOG}", 0),
        ("import logging; logging.getLogger('localflow.own').warning('not said')", 0),
    ],
)
def test_whoever_imports_logging_first_in_a_worker_no_record_is_missed(own_folder: Path, body: str, said: int) -> None:
    """It is there from the start for the task, and nobody has to wait for it where no task logs."""
    source = f"def call(): {body}\n{AS_A_WORKER}"

    done = subprocess.run([sys.executable, "-c", source], capture_output=True, encoding="utf-8", timeout=50, check=True)

    assert done.stdout == str(["said"] * said)


def test_threads_that_import_logging_at_once_miss_no_record(own_folder: Path) -> None:
    """Whichever of them comes first, by whatever module, all go on with records taken."""
    source = f"""
import contextvars, threading

def log(module):
    together.wait()
    __import__(module)
    import logging
    {LOG}

def call():
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(log, module))
        for module in ("logging", "logging.handlers", "localflow.logs", "localflow.echo") * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

together = threading.Barrier(8)
{AS_A_WORKER}"""

    done = subprocess.run([sys.executable, "-c", source], capture_output=True, encoding="utf-8", timeout=50, check=True)

    assert done.stdout == str(["said"] * 8)


def test_a_child_that_imports_logging_first_logs_as_it_would_without_us(own_folder: Path) -> None:
    """What a task forks is no worker: its records go to Python's own handler."""
    source = f"""
def call():
    pid = os.fork()
    if not pid:
        import logging
        logging.getLogger("lib").info("quiet")
        logging.getLogger("lib").warning("from the child")
        os._exit(len(lines))
    assert os.waitpid(pid, 0)[1] == 0
{AS_A_WORKER}"""

    subprocess.run([sys.executable, "-c", source], timeout=50, check=True)

    assert Path("stderr").read_text() == "from the child\n"


# -- print -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXECUTORS)
def test_prints_become_log_lines_where_asked_for(kind: str) -> None:
    """`log_prints` sends what a run prints to its logger; a file of its own and other runs are left alone."""
    done = run_program(
        """
import io

@task(log_prints=True)
def logged():
    print("a", 1, sep="-", end="!\\n")
    print("to err", file=sys.stderr)
    print("elsewhere", file=io.StringIO())
    sys.stdout.write("written\\n")

@task
def plain():
    print("plain")

@flow(executor=os.environ["KIND"])
def main():
    logged()
    plain()
main()
""",
        KIND=kind,
    )

    assert [(e.level, e.source, e.message) for e in done.entries if e.run.name == "logged-0"] == [
        (20, "localflow.task_runs", "a-1!"),
        (20, "localflow.task_runs", "to err"),
        (20, "stdout", "written"),
    ]
    assert done.said("plain-0", "stdout") == ["plain"]
    assert sorted(done.stdout.splitlines()) == ["plain", "written"]
    assert [line.split("|", 1)[1] for line in done.stderr.splitlines()] == [
        " INFO    | logged-0 | a-1!",
        " INFO    | logged-0 | to err",
    ]


def test_tasks_inherit_log_prints_of_their_flow() -> None:
    """`log_prints` of a flow holds for its body and for tasks that say nothing of it."""

    @task
    def silent() -> None:
        print("inherited")

    @task(log_prints=False)
    def loud() -> None:
        print("not logged")

    @flow(log_prints=True)
    def main() -> None:
        print("body")
        silent()
        loud()

    main()

    assert [(e.source, e.message) for e in entries_of_newest_run()] == [
        ("localflow.flow_runs", "body"), ("localflow.task_runs", "inherited"), ("stdout", "not logged"),
    ]  # fmt: skip


# -- the streams -----------------------------------------------------------------------------------------------------


def test_nothing_of_ours_is_left_behind() -> None:
    """After the last run everything is as it was, also when two overlap."""
    before = (sys.stdout, sys.stderr, builtins.print, logging.Logger.callHandlers, logging.getLogger().level)

    with recording():
        with recording():
            assert sys.stdout is not before[0]
        assert sys.stdout is not before[0]
        assert builtins.print is not before[2]

    after = (sys.stdout, sys.stderr, builtins.print, logging.Logger.callHandlers, logging.getLogger().level)
    assert after == before
    assert logging.getLogger("localflow.task_runs").level == logging.NOTSET


def test_levels_are_restored_unless_somebody_has_changed_them() -> None:
    """A level set during the run stays, the very level that records are kept from included."""
    root = logging.getLogger()
    before = root.level
    try:
        with unconfigured():
            with recording():
                assert root.level == logging.INFO
            assert root.level == before == logging.WARNING

            for level in (logging.ERROR, logging.INFO):
                root.setLevel(logging.WARNING)
                with recording():
                    root.setLevel(level)
                assert root.level == level
    finally:
        root.setLevel(before)


def test_streams_that_somebody_replaces_stay_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into a stream of the user is not recorded, and a stream put in place during the run stays there."""
    mine, real = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", real)

    @flow
    def main() -> None:
        with redirect_stdout(io.StringIO()) as text:
            print("hidden")
        assert text.getvalue() == "hidden\n"
        print("seen")
        sys.stdout = mine

    main()

    assert sys.stdout is mine
    assert real.getvalue() == "seen\n"
    assert [entry.message for entry in entries_of_newest_run()] == ["seen"]


def test_streams_look_like_the_real_ones() -> None:
    """Programs find in sys.stdout what they found there before."""
    done = run_program("""
@flow
def main():
    out = sys.stdout
    assert (out.encoding, out.fileno(), out.isatty(), out.closed) == ("utf-8", 1, False, False)
    import io
    assert isinstance(out, io.TextIOWrapper)
    out.buffer.write(b"bytes\\n")
    out.flush()
    out.writelines(["one\\n", "two\\n"])
    out.reconfigure(line_buffering=True)
    try:
        out.write(b"bytes")
    except TypeError as error:
        print("refused:", error, file=sys.stderr)
    print("prompted:", input("prompt> "))
sys.stdin = __import__("io").StringIO("answer\\n")
main()
""")

    assert done.stdout == "bytes\none\ntwo\nprompt> prompted: answer\n"
    assert "refused: write() argument must be str" in done.stderr


def test_a_stream_kept_beyond_the_run_goes_on() -> None:
    """Who took sys.stdout during the run may write to it afterwards."""
    done = run_program("""
kept = []
@flow
def main():
    kept.append(sys.stdout)
main()
print("later", file=kept[0])
""")

    assert done.stdout == "later\n"


@pytest.mark.parametrize("kind", EXECUTORS)
def test_forked_children_write_and_log_as_they_would_without_us(kind: str) -> None:
    """A child that a task forks has the real streams; where descriptors are caught, what it writes is the task's."""
    done = run_program(
        """
import multiprocessing

def child():
    assert sys.stdout is sys.__stdout__
    print("child prints")
    logging.getLogger("lib").warning("child logs")
    logging.getLogger("lib").info("child is quiet")

@task
def fork():
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0

@flow(executor=os.environ["KIND"])
def main():
    fork()
assert main().is_completed()
""",
        KIND=kind,
    )

    assert done.stdout == "child prints\n"
    assert done.stderr == "child logs\n"
    assert sorted(done.said("fork-0")) == ([] if kind == "thread" else ["child logs", "child prints"])


def test_runs_in_processes_of_a_plugin_bring_their_lines_with_the_outcome() -> None:
    """An executor that knows nothing of logs has all that its tasks log and print recorded, and shown once."""
    done = run_program("""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import cloudpickle
from localflow.interfaces import Executor

def run(call):
    return cloudpickle.dumps(cloudpickle.loads(call).run("elsewhere"))

class Pool(Executor):
    shares_memory = False

    def start(self, report):
        self.report = report
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def submit(self, calls):
        for call in calls:
            future = self.pool.submit(run, cloudpickle.dumps(call))
            future.add_done_callback(lambda future: self.report([cloudpickle.loads(future.result())]))

    def shutdown(self):
        self.pool.shutdown()

@task
def speak(n):
    print("out", n)
    print("err", n, file=sys.stderr)
    get_run_logger().info("info %s", n)
    logging.getLogger("lib").warning("warning %s", n)

@flow
def main():
    for n in range(2):
        speak(n)

if __name__ == "__main__":
    assert main.with_options(executor=Pool())().is_completed()
""")

    for n in range(2):
        assert done.said(f"speak-{n}") == [f"{each} {n}" for each in ("out", "err", "info", "warning")]
    assert done.stdout == "out 0\nout 1\n"
    shown = [line.split("| ")[-1] for line in done.stderr.splitlines()]
    assert shown == [f"{each} {n}" for n in range(2) for each in ("err", "info", "warning")]


@pytest.mark.parametrize("kind", [*EXECUTORS, "pool"])
def test_what_a_flow_in_a_task_says_is_shown_and_recorded_once(kind: str) -> None:
    """Also where the task runs in another process, from which it comes with the outcome."""
    done = run_program(
        """
from concurrent.futures import ProcessPoolExecutor
from localflow import FuturesExecutor

@task
def step():
    print("task prints")
    print("task errs", file=sys.stderr)
    get_run_logger().info("task logs")

@flow
def inner():
    print("flow prints")
    get_run_logger().info("flow logs")
    step()

@task
def call():
    inner()

@flow
def main():
    call()

if __name__ == "__main__":
    kind = os.environ["KIND"]
    pool = FuturesExecutor(ProcessPoolExecutor, workers=1) if kind == "pool" else kind
    assert main.with_options(executor=pool)().is_completed()
""",
        KIND=kind,
    )

    with closing(Project.load().open_store()) as store:
        runs = [summary.flow_run.id for summary in store.list_flow_runs()]
        recorded = sorted(entry.message for run in runs for _, entry in store.read_logs(run))
    assert recorded == ["flow logs", "flow prints", "task errs", "task logs", "task prints"]
    shown = [line.split("| ")[-1] for text in (done.stdout, done.stderr) for line in text.splitlines()]
    assert sorted(shown) == recorded


# -- floods ----------------------------------------------------------------------------------------------------------


def test_a_flood_is_capped_with_a_note_of_what_was_dropped() -> None:
    """A task that prints without end has 10 MiB recorded, and the last entry says what is missing."""
    done = run_program("""
@task
def flood():
    line = "x" * 99_999
    for _ in range(120):
        sys.stdout.write(line[:49_999] + "\\n" + line[:49_999] + "\\n")
    print("the end")

@flow
def main():
    flood()
main()
""")

    kept = done.entries[:-1]
    assert sum(len(entry.message) + 1 for entry in kept) == len(kept) * 50_000 <= 10 * 1024 * 1024
    assert len(kept) == 209
    assert done.entries[-1].message == "... truncated 1550008 bytes (32 lines)"
    assert done.stdout.count("\n") == 241


def test_lines_without_end_are_recorded_in_pieces() -> None:
    """A line of a megabyte, written in small pieces, is recorded whole in several entries."""

    @flow
    def main() -> None:
        for _ in range(1024):
            sys.stdout.write("y" * 1024)

    main()

    messages = [entry.message for entry in entries_of_newest_run()]
    assert "".join(messages) == "y" * 1024 * 1024
    assert max(map(len, messages)) <= 1 << 16


def test_what_a_long_task_says_is_stored_while_it_runs(own_folder: Path) -> None:
    """A line can be read from the store before the task that said it has ended."""
    said, read = threading.Event(), threading.Event()

    @task
    def long() -> None:
        print("working")
        said.set()
        assert read.wait(20)

    @flow(executor=ThreadExecutor(workers=1))
    def main() -> None:
        future = long()
        assert said.wait(20)
        for _ in range(200):
            if entries_of_newest_run():
                break
            threading.Event().wait(0.05)
        found.extend(entry.message for entry in entries_of_newest_run())
        read.set()
        future.wait()

    found: list[str] = []
    main()

    assert found == ["working"]

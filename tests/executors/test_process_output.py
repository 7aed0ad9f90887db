"""What tasks write and log comes back whole, in order and under its own task, while they run and after they crash."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from localflow.builtin.process import ProcessExecutor
from localflow.context import current_run
from localflow.records import LogLine
from localflow.states import StateType
from localflow.testing import workloads
from localflow.testing.leaks import open_files
from localflow.testing.running import CallRunner
from tests.executors.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import Call, Outcome

LIMIT = 10 << 20


def said(runner: CallRunner, call: Call, source: str | None = None) -> list[str]:
    """Return what a call has said."""
    return [line.message for line in runner.lines.get(call.id, ()) if source in (None, line.source)]


def say(runner: CallRunner, function: Callable[..., Any], *args: Any) -> list[str]:
    """Run a call to its end and return what it has said."""
    call = runner.call(function, *args)
    runner.run(call)
    return said(runner, call)


@pytest.fixture
def single() -> Iterator[CallRunner]:
    """Drive a process executor of one worker."""
    with CallRunner(ProcessExecutor(workers=1)) as runner:
        yield runner


# -- whose, and in which order ---------------------------------------------------------------------------------------


def test_everything_comes_back_under_its_own_task() -> None:
    """Log lines, prints and raw writes of tasks that run at once: nothing is missing, mixed or out of order."""

    def speak(name: str) -> None:
        for number in range(100):
            logging.getLogger("speaker").info("%s log %d", name, number)
            print(f"{name} print {number}")
            os.write(1, f"{name} write {number}\n".encode())

    with CallRunner(ProcessExecutor(workers=4)) as runner:
        calls = [runner.call(speak, f"task {number}") for number in range(8)]
        runner.run(*calls)

    for number, call in enumerate(calls):
        kinds = ("log", "print", "write")
        assert said(runner, call) == [f"task {number} {kind} {count}" for count in range(100) for kind in kinds]
        assert {line.source for line in runner.lines[call.id]} == {"speaker", "stdout"}


def test_thousands_of_tiny_tasks_keep_their_lines_apart() -> None:
    """Calls that are sent ahead by the dozen get their own line each."""

    def speak(number: int) -> None:
        print(number)

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        calls = [runner.call(speak, number) for number in range(2000)]
        runner.run(*calls)

    assert [said(runner, call) for call in calls] == [[str(number)] for number in range(2000)]


def test_a_silent_task_has_no_lines(runner: CallRunner) -> None:
    """What is silent is not given its neighbours' lines."""

    def speak(number: int) -> None:
        if number % 3 == 0:
            print(number)

    calls = [runner.call(speak, number) for number in range(300)]
    outcomes = runner.run(*calls)

    assert [said(runner, call) for call in calls] == [[str(n)] if n % 3 == 0 else [] for n in range(300)]
    assert all(len(outcome.lines) == (n % 3 == 0) for n, outcome in enumerate(outcomes))


def test_programs_that_a_task_starts_are_heard(runner: CallRunner) -> None:
    """What children write, to stdout and to stderr, is the task's."""

    def start(name: str) -> None:
        print(f"{name} before")
        subprocess.run(["sh", "-c", f"echo {name} out; echo {name} err >&2"], check=True)
        print(f"{name} after")

    calls = [runner.call(start, f"task {number}") for number in range(6)]
    runner.run(*calls)

    for number, call in enumerate(calls):
        name = f"task {number}"
        assert said(runner, call, "stdout") == [f"{name} before", f"{name} out", f"{name} after"]
        assert said(runner, call, "stderr") == [f"{name} err"]


def test_c_code_is_heard_in_order() -> None:
    """What C code prints by its own buffers comes in order, also what has no line end."""

    def speak() -> None:
        library = ctypes.CDLL(None)
        print("one")
        library.printf(b"two\n")
        print("three")
        library.puts(b"four")
        library.printf(b"five")

    with CallRunner(ProcessExecutor(workers=1, env={"PYTHONUNBUFFERED": ""})) as runner:
        assert say(runner, speak) == ["one", "two", "three", "four", "five"]
        assert say(runner, speak) == ["one", "two", "three", "four", "five"]


def test_levels_and_sources_are_told(runner: CallRunner) -> None:
    """Stdout counts as INFO, stderr as WARNING; log lines keep their own, with the time they were made."""

    def speak() -> None:
        print("out")
        print("err", file=sys.stderr)
        logging.getLogger("deep.down").error("log")

    before = time.time()
    call = runner.call(speak)
    runner.run(call)
    lines = runner.lines[call.id]

    assert [(line.source, line.level, line.message) for line in lines] == [
        ("stdout", 20, "out"),
        ("stderr", 30, "err"),
        ("deep.down", 40, "log"),
    ]
    assert all(before <= line.timestamp <= time.time() for line in lines)


def test_prints_of_a_task_with_log_prints_are_log_lines(runner: CallRunner) -> None:
    """The option reaches the worker."""

    def speak() -> None:
        print("hello")

    call = runner.call(speak)._replace(log_prints=True)
    runner.run(call)

    [line] = runner.lines[call.id]
    assert (line.message, line.source) == ("hello", "localflow.task_runs")


def test_a_line_without_end_is_a_line(single: CallRunner) -> None:
    """It ends with its call; the next call begins a new one. Empty lines count."""

    def speak(text: str) -> None:
        sys.stdout.write(text)

    calls = [single.call(speak, text) for text in ("a\nb", "c", "\n\nd\n", "")]
    single.run(*calls)

    assert [said(single, call) for call in calls] == [["a", "b"], ["c"], ["", "", "d"], []]


def test_what_a_stream_holds_back_is_the_calls(single: CallRunner) -> None:
    """A stream that writes late writes at the end of the call at the latest."""

    def buffer() -> None:
        sys.stdout.reconfigure(line_buffering=False)  # type: ignore[union-attr]
        print("held back")

    assert say(single, buffer) == ["held back"]
    assert say(single, print, "next") == ["next"]


def test_pieces_of_a_line_become_one(runner: CallRunner, tmp_path: Path) -> None:
    """A line that is written bit by bit, while others look, is one line."""

    def speak(path: str) -> None:
        for piece in ("one ", "two ", "three\n"):
            os.write(1, piece.encode())
            time.sleep(0.3)

    assert say(runner, speak, str(tmp_path)) == ["one two three"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"\xff\xfe\x00\x01", "\\xff\\xfe\x00\x01"),
        (b"\x1b[31mred\x1b[0m\r", "\x1b[31mred\x1b[0m"),
        (b"a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e", "a\x0bb\x0cc\x85d\u2028e"),
    ],
)
def test_any_bytes_can_be_written(runner: CallRunner, data: bytes, text: str) -> None:
    """What is no UTF-8 is told in escapes, control characters as they are; only line ends end a line."""
    assert say(runner, os.write, 1, data + b"\n") == [text]


def test_surrogates_can_be_printed_and_logged(runner: CallRunner) -> None:
    """A text that is no proper one neither fails its task nor gets lost."""

    def speak() -> None:
        print("\udcff")
        logging.getLogger().warning("\udcfe")

    assert say(runner, speak) == ["\\udcff", "\udcfe"]


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1, 300_000])
def test_a_very_long_line_comes_in_pieces(runner: CallRunner, size: int) -> None:
    """Nothing of it is lost, and no character is cut in two."""
    text = "\u20ac" * (size // 3) + "x" * (size % 3)

    lines = say(runner, os.write, 1, text.encode() + b"\nnext\n")

    assert "".join(lines[:-1]) == text
    assert lines[-1] == "next"
    assert all(len(line.encode()) <= 1 << 16 for line in lines)


def test_threads_of_a_task_speak_at_once(runner: CallRunner) -> None:
    """Log lines of several threads are all there, those of each thread in order."""

    def speak(count: int) -> None:
        context = current_run()
        assert context is not None

        def work(name: str) -> None:
            for number in range(count):
                context.log(LogLine(time.time(), 20, name, str(number)))
                os.write(1, f"{name} {number}\n".encode())

        threads = [threading.Thread(target=work, args=(f"thread-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    call = runner.call(speak, 200)
    runner.run(call)

    for number in range(4):
        name = f"thread-{number}"
        assert said(runner, call, name) == [str(count) for count in range(200)]
        written = [line for line in said(runner, call, "stdout") if line.startswith(name)]
        assert written == [f"{name} {count}" for count in range(200)]


def test_background_writes_belong_to_the_next_call(single: CallRunner, tmp_path: Path) -> None:
    """What is written between two calls is told with the later one, once."""
    release, done = tmp_path / "release", tmp_path / "done"

    def leave_thread(path: str, other: str) -> None:
        def work() -> None:
            workloads.wait_for_file(path)
            os.write(1, b"in between\n")
            workloads.note(other, "done")

        threading.Thread(target=work, daemon=True).start()

    assert say(single, leave_thread, str(release), str(done)) == []
    release.touch()
    eventually(done.exists)

    assert say(single, print, "second") == ["in between", "second"]
    assert say(single, print, "third") == ["third"]


def test_a_program_that_begins_the_file_anew_is_heard(single: CallRunner) -> None:
    """A shell that opens /dev/stderr to overwrite it costs nobody anything that comes after."""

    def overwrite() -> None:
        subprocess.run(["sh", "-c", "echo one >/dev/stderr"], check=True)

    assert say(single, print, "before") == ["before"]
    assert say(single, overwrite) == ["one"]
    assert say(single, overwrite) == ["one"]
    assert say(single, print, "after") == ["after"]


# -- while it runs, and after a crash --------------------------------------------------------------------------------


def test_lines_come_while_the_call_runs(runner: CallRunner, tmp_path: Path) -> None:
    """Whatever a call says is told within a second, long before its end, and not again at its end."""

    def speak(path: str) -> None:
        print("print")
        logging.getLogger("task").info("log")
        os.write(2, b"write\n")
        workloads.wait_for_file(path)
        print("last")

    release = tmp_path / "release"
    call = runner.call(speak, str(release))
    runner.submit(call)

    runner.wait_until(lambda: len(said(runner, call)) == 3, timeout=2)
    assert runner.outcomes == []
    release.touch()
    [outcome] = runner.wait_for([call])

    assert sorted(said(runner, call)) == ["last", "log", "print", "write"]
    assert [line.message for line in outcome.lines] == ["last"]


def test_looking_at_the_wrong_moment_mixes_nothing() -> None:
    """While a report keeps the executor from hearing that calls have ended, the next ones speak already."""

    def speak(number: int) -> None:
        print(number)

    def dawdle(outcome: Outcome) -> tuple[()]:
        time.sleep(0.002)
        return ()

    with CallRunner(ProcessExecutor(workers=2)) as runner:
        runner.run(*[runner.call(workloads.identity, 1) for _ in range(300)])
        runner.on_outcome = dawdle
        calls = [runner.call(speak, number) for number in range(1000)]
        runner.executor.submit(calls)
        runner.wait_for(calls)

    assert [said(runner, call) for call in calls] == [[str(number)] for number in range(1000)]


@pytest.mark.parametrize("crash", [(workloads.end_process, 3), (workloads.kill_process, 9), (workloads.read_null,)])
def test_a_crash_loses_nothing(runner: CallRunner, crash: tuple[Any, ...]) -> None:
    """What was said before a crash comes with the outcome, the line that had not ended included."""

    def speak_and_die(function: Callable[..., Any], *args: Any) -> None:
        print("print")
        logging.getLogger("task").info("log")
        os.write(1, b"unfinished")
        function(*args)

    call = runner.call(speak_and_die, *crash)
    [outcome] = runner.run(call)

    assert outcome.state.type is StateType.CRASHED
    assert said(runner, call) == ["print", "log", "unfinished"]


def test_calls_sent_ahead_of_a_crash_get_only_their_own(single: CallRunner) -> None:
    """Lines of the call that crashed stay with it, those of calls before and after with them."""

    def speak(number: int) -> None:
        print(number)
        if number == 20:
            os._exit(1)

    single.run(*[single.call(workloads.identity, 1) for _ in range(100)])
    calls = [single.call(speak, number) for number in range(40)]
    single.executor.submit(calls)
    single.wait_for(calls)

    assert [said(single, call) for call in calls] == [[str(number)] for number in range(40)]


def test_a_timeout_loses_nothing(runner: CallRunner) -> None:
    """What a call has said before it was killed is there."""

    def speak() -> None:
        print("begun")
        time.sleep(60)

    call = runner.call(speak)._replace(timeout_seconds=0.3)
    runner.run(call)

    assert said(runner, call) == ["begun"]


# -- floods ----------------------------------------------------------------------------------------------------------


def dropped(lines: list[LogLine]) -> int:
    """Return how many bytes the last line says were dropped."""
    assert lines[-1].source == "localflow"
    match = re.fullmatch(r"\.\.\. truncated (\d+) bytes", lines[-1].message)
    assert match is not None
    return int(match[1])


def test_a_flood_is_cut_off_and_said_so(single: CallRunner) -> None:
    """Of one call ten megabytes are kept, the first ones; the next call is as if nothing had been."""

    def flood(size: int) -> None:
        line = b"x" * 999 + b"\n"
        for _ in range(size // 1000):
            os.write(1, line)

    call = single.call(flood, 30_000_000)
    single.run(call)
    lines = single.lines[call.id]
    kept = sum(len(line.message) + 1 for line in lines[:-1])

    assert 0.8 * LIMIT < kept <= LIMIT
    assert kept + dropped(lines) == 30_000_000
    assert say(single, print, "next") == ["next"]


def test_a_flood_of_log_lines_is_cut_off(single: CallRunner) -> None:
    """Log lines count like all other text."""

    def flood() -> None:
        for _ in range(12_000):
            logging.getLogger("task").info("x" * 2000)

    call = single.call(flood)
    single.run(call)
    lines = single.lines[call.id]
    kept = sum(len(line.message) for line in lines[:-1])

    assert kept <= LIMIT
    assert kept + dropped(lines) == 24_000_000


@pytest.mark.parametrize("line", [b"y\n", b"y" * 100, b"\xff" * 500 + b"\n"], ids=["short", "endless", "binary"])
def test_a_flood_of_c_code_fills_no_memory(single: CallRunner, line: bytes) -> None:
    """What a program writes at full speed for a second is read and given back as it comes."""

    def flood(line: bytes, seconds: float) -> int:
        pieces = line * (65536 // len(line))
        deadline, written = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            written += os.write(1, pieces)
        return written

    before = memory()
    call = single.call(flood, line, 1.5)
    single.submit(call)
    most = 0
    while not single.outcomes:
        most = max(most, memory())
        time.sleep(0.01)

    written = single.outcomes[0].state.result()
    assert written > 500 << 20
    assert most - before < max(400 << 20, written * 3 // 4)  # on a busy machine the reader comes later, but it comes
    assert len(single.lines[call.id]) < 110_000
    assert dropped(single.lines[call.id]) > 400 << 20


def memory() -> int:
    """Return how many bytes this process and its memory files take."""
    held = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if "memfd:" in str(descriptor.readlink()):
                held += descriptor.stat().st_blocks * 512
    return held + int(psutil.Process().memory_info().rss)


def test_a_worker_that_lives_long_keeps_no_output(single: CallRunner) -> None:
    """What was told is given back, however much it becomes over many calls."""

    def speak() -> None:
        os.write(1, (b"x" * 99 + b"\n") * 5000)

    single.run(*[single.call(speak) for _ in range(100)])

    files = [number for number, target in open_files().items() if "memfd:" in target]
    assert len(files) >= 3
    assert sum(os.fstat(number).st_blocks * 512 for number in files) < 2 << 20


# -- what is no call's -----------------------------------------------------------------------------------------------


def test_the_initializer_is_heard_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker writes before its first call goes to the same stream of the engine, and to no call."""

    def begin() -> None:
        print("initialized")
        print("with care", file=sys.stderr)

    with CallRunner(ProcessExecutor(workers=1, initializer=begin)) as runner:
        assert say(runner, print, "hello") == ["hello"]

    assert capsys.readouterr() == ("initialized\n", "with care\n")


def test_a_start_that_fails_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker wrote that could not start is not lost."""

    def begin() -> None:
        print("about to fail")
        raise ValueError

    with CallRunner(ProcessExecutor(workers=1, initializer=begin)) as runner:
        [outcome] = runner.run(runner.call(print, "hello"))

    assert outcome.state.type is StateType.CRASHED
    assert outcome.lines == ()
    assert capsys.readouterr().out == "about to fail\n" * 3


def test_what_is_written_at_the_exit_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker writes after its last call goes to the engine's streams."""

    def register() -> None:
        import atexit

        atexit.register(print, "goodbye")

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        assert say(runner, register) == []

    assert capsys.readouterr().out == "goodbye\n"


def test_what_calls_say_is_not_written_by_the_executor(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines of calls are for the engine to show: neither the executor nor the worker writes them anywhere."""

    def speak() -> None:
        print("print")
        os.write(2, b"write\n")
        logging.getLogger("task").warning("log")

    with CallRunner(ProcessExecutor(workers=1)) as runner:
        assert sorted(say(runner, speak)) == ["log", "print", "write"]

    assert capfd.readouterr() == ("", "")


def test_a_program_without_streams(run_program: Callable[[str], str], tmp_path: Path) -> None:
    """Where the engine has neither stdout nor stderr, tasks print all the same."""
    output = tmp_path / "output"
    program = (
        "os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"
        "with CallRunner(ProcessExecutor(workers=1)) as runner:\n"
        "    call = runner.call(print, 'hello')\n"
        "    [outcome] = runner.run(call)\n"
        f"open({str(output)!r}, 'w').write(repr([line.message for line in outcome.lines]))\n"
    )

    run_program(program)

    assert output.read_text() == "['hello']"


def test_outcomes_of_refused_calls_have_no_lines(runner: CallRunner) -> None:
    """A call that never reached a worker has said nothing."""
    outcomes: list[Outcome] = runner.run(runner.call(workloads.identity, threading.Lock()))

    assert outcomes[0].lines == ()

"""The process executor works wherever Python does: unguarded scripts, `-c`, stdin, odd folders, flags and locales."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# The main module is executed once: nothing of it is guarded, and it counts.
PROGRAM = """
import os, sys
from localflow.builtin.process import ProcessExecutor
from localflow.testing.running import CallRunner

with open("executed", "a") as file:
    file.write("once\\n")

OFFSET = 100

class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second
    def total(self):
        return self.first + self.second

def add(pair, more):
    return Pair(pair.total(), more + OFFSET)

with CallRunner(ProcessExecutor(workers=2)) as runner:
    outcomes = runner.run(*(runner.call(add, Pair(n, n), 1) for n in range(4)))
    results = [outcome.state.result() for outcome in outcomes]

assert all(isinstance(result, Pair) for result in results)
print(*(result.total() for result in results))
"""
EXPECTED = "101 103 105 107\n"


def run(arguments: Sequence[str], cwd: Path, source: str = "", **environment: str) -> str:
    """Run Python with arguments in a folder and return what it printed; it must end well and in silence."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        input=source,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=30,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def test_an_unguarded_script(tmp_path: Path) -> None:
    """A script without a `__main__` guard runs, and its body is executed once."""
    (tmp_path / "script.py").write_text(PROGRAM)

    assert run(["script.py"], tmp_path) == EXPECTED
    assert (tmp_path / "executed").read_text() == "once\n"


def test_a_program_on_the_command_line(tmp_path: Path) -> None:
    """`python -c` runs."""
    assert run(["-c", PROGRAM], tmp_path) == EXPECTED


def test_a_program_from_stdin(tmp_path: Path) -> None:
    """`python -` runs, though nobody could import its main module again."""
    assert run(["-"], tmp_path, source=PROGRAM) == EXPECTED


def test_an_interactive_session(tmp_path: Path) -> None:
    """A session in which the lines are typed one after the other runs."""
    session = """
from localflow.builtin.process import ProcessExecutor
from localflow.testing.running import CallRunner
def add(a, b): return a + b

with CallRunner(ProcessExecutor(workers=1)) as runner: print(runner.run(runner.call(add, 1, 2))[0].state.result())

"""
    finished = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=session,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=True,
    )

    assert finished.stdout == "3\n"
    assert finished.stderr.replace(">>> ", "").replace("... ", "").strip() == ""


def test_a_module_run_with_m(tmp_path: Path) -> None:
    """`python -m` runs, though the main module has the name of a file."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(PROGRAM)

    assert run(["-m", "package"], tmp_path) == EXPECTED


@pytest.mark.parametrize(
    "flags", [["-O"], ["-OO"], ["-B"], ["-X", "dev"], ["-X", "utf8"], ["-W", "error"]], ids=" ".join
)
def test_interpreter_flags(tmp_path: Path, flags: list[str]) -> None:
    """Flags that change how code runs are no obstacle."""
    (tmp_path / "script.py").write_text(PROGRAM)

    assert run([*flags, "script.py"], tmp_path) == EXPECTED


def test_isolated_mode(tmp_path: Path) -> None:
    """`python -I`, which sees no variables and no folder of the script, runs."""
    (tmp_path / "script.py").write_text(PROGRAM)

    assert run(["-I", "script.py"], tmp_path) == EXPECTED


@pytest.mark.parametrize("name", ["dataclasses", "json", "logging", "queue", "select", "sqlite3"])
def test_a_script_called_like_a_module_of_the_standard_library(tmp_path: Path, name: str) -> None:
    """Whoever imports the module gets that and not the script, which is executed once."""
    (tmp_path / f"{name}.py").write_text(PROGRAM)

    assert run([f"{name}.py"], tmp_path) == EXPECTED
    assert (tmp_path / "executed").read_text() == "once\n"


def test_modules_beside_the_script_do_not_hide_the_standard_library(tmp_path: Path) -> None:
    """A file that is named like a module of the standard library, in the current folder, disturbs no worker."""
    (tmp_path / "marshal.py").write_text("raise SystemExit('the wrong marshal')")
    (tmp_path / "selectors.py").write_text("raise SystemExit('the wrong selectors')")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "script.py").write_text(PROGRAM)

    assert run(["elsewhere/script.py"], tmp_path) == EXPECTED


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_a_bare_locale(tmp_path: Path, locale: str) -> None:
    """Workers print any text as UTF-8, also where the locale knows ASCII only, and also what is no text."""
    source = """
from localflow.builtin.process import ProcessExecutor
from localflow.testing.running import CallRunner
with CallRunner(ProcessExecutor(workers=1)) as runner:
    [outcome] = runner.run(runner.call(lambda: print("caf\\u00e9 \\udcff") or "\\udcff"))
assert outcome.state.result() == "\\udcff", outcome
print(ascii(outcome.lines[0].message))
"""
    output = run(["-c", source], tmp_path, LC_ALL=locale, PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")

    assert output == "'caf\\xe9 \\\\udcff'\n"


@pytest.mark.skipif(sys.version_info[:3] == (3, 13, 0), reason="Python 3.13.0 itself fails to import socket there")
def test_a_deleted_folder(tmp_path: Path) -> None:
    """A program whose current folder has been deleted runs."""
    source = PROGRAM.replace('open("executed", "a")', 'open(os.devnull, "a")')
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r})\n" + source

    assert run(["-c", code], gone) == EXPECTED


def test_an_environment_that_is_nearly_empty(tmp_path: Path) -> None:
    """A program that has cleared its environment runs."""
    assert run(["-c", "import os; os.environ.clear()\n" + PROGRAM], tmp_path) == EXPECTED


def test_a_program_that_restores_sigpipe(tmp_path: Path) -> None:
    """A program that lets SIGPIPE kill it, as filters do, survives the death of a worker."""
    source = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from localflow.builtin.process import ProcessExecutor
from localflow.testing.running import CallRunner
with CallRunner(ProcessExecutor(workers=1)) as runner:
    for _ in range(20):
        runner.run(runner.call(os._exit, 1), runner.call(len, bytes(1 << 20)))
print("alive")
"""
    assert run(["-c", source], tmp_path) == "alive\n"


def test_threads_and_forks_of_the_program_do_not_matter(run_program: Callable[[str], str]) -> None:
    """Locks that are held elsewhere, and processes that user code forks, hold no worker up."""
    output = run_program("""
import logging

def hold():
    with logging.getLogger().handlers[0].lock:
        release.wait()

logging.basicConfig()
release = threading.Event()
holder = threading.Thread(target=hold, daemon=True)
holder.start()

with CallRunner(ProcessExecutor(workers=2)) as runner:
    runner.submit(*(runner.call(workloads.identity, n) for n in range(100)))
    child = os.fork()
    if not child:
        time.sleep(60)
    runner.wait_until(lambda: len(runner.outcomes) == 100)
    started = time.monotonic()
print(time.monotonic() - started < 2, sum(outcome.state.result() for outcome in runner.outcomes))
os.kill(child, signal.SIGKILL)
os.wait()
release.set()
holder.join()
""")

    assert output == "True 4950\n"


def test_a_forked_child_cannot_use_the_executor(run_program: Callable[[str], str]) -> None:
    """A process forked by user code gets an error instead of mixing with its parent, and ends without harm to it."""
    output = run_program("""
with CallRunner(ProcessExecutor(workers=1)) as runner:
    runner.run(runner.call(workloads.identity, 1))
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            runner.submit(runner.call(workloads.identity, 2))
        except RuntimeError as error:
            print(error, flush=True)
        sys.exit(0)
    os.waitpid(child, 0)
    print(runner.run(runner.call(workloads.identity, 3))[0].state.result())
""")

    assert "not started in this process" in output
    assert output.endswith("3\n")


def test_the_first_outcome_comes_soon(run_program: Callable[[str], str]) -> None:
    """Starting a supervisor and a worker takes a fraction of a second."""
    output = run_program("""
began = time.perf_counter()
with CallRunner(ProcessExecutor(workers=2)) as runner:
    runner.run(runner.call(workloads.identity, 1))
print(time.perf_counter() - began)
""")

    assert float(output) < 1.0


def test_files_of_the_user_named_like_the_standard_library_do_not_keep_workers_from_starting(tmp_path: Path) -> None:
    """Workers import what they need themselves before the user's folders come first."""
    for name in ("token", "types", "string", "signal", "logging"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    (tmp_path / "flows.py").write_text(
        "from localflow import flow, task\n"
        "@task\ndef double(x):\n    return 2 * x\n"
        "@flow\ndef main():\n    return double(21)\n"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-m", "localflow", "run", "flows.py", "--executor", "process"],
        capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr

"""However and wherever Python was started: flows run, on all executors, and the program's body is executed once."""

from __future__ import annotations

import importlib.util
import sys
import zipapp
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import PROLOGUE

if TYPE_CHECKING:
    from tests.faults.conftest import Place

#: Nothing is guarded; each process that executed it would say so.
UNGUARDED = """
note("body")

class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second

@task
def add(pair):
    note("add", pair.first + pair.second)
    return Pair(pair.first, pair.second + 1)

@flow
def main():
    pairs = add.map([Pair(n, n) for n in range(4)])
    return [isinstance(pair, Pair) and pair.second for pair in pairs.result()]

state = main()
note("result", *state.result())
"""
EXPECTED = ["add 0", "add 2", "add 4", "add 6", "body", "result 1 2 3 4"]


# -- F1: threads and locks when workers start ------------------------------------------------------------------------


def test_fault_F1_locks_that_threads_hold_do_not_reach_workers(place: Place) -> None:
    """Workers are no forks of the program: the lock of a logging handler that a thread holds is free there."""
    place.write(
        """
import logging

handler = logging.StreamHandler()
logging.getLogger("mine").addHandler(handler)
held, over = threading.Event(), threading.Event()

def hold():
    with handler.lock:
        held.set()
        until(lambda: os.path.exists("oracle"))

threads = [threading.Thread(target=hold)] + [threading.Thread(target=over.wait) for _ in range(8)]
for thread in threads:
    thread.start()
held.wait()

@task
def work(number):
    logging.getLogger("mine").warning("in a worker")
    note("work", number)

@flow(executor=ProcessExecutor(workers=2, max_tasks_per_worker=3))
def main():
    work.map(range(12))

note(main().type.name)
over.set()
"""
    )

    done = place.run("flows.py", timeout=20)

    assert done.returncode == 0, done.stderr
    assert place.notes[-1] == "COMPLETED"
    assert len(place.notes) == 13


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
def test_fault_F1_a_warm_pool_of_blas_threads_does_no_harm(place: Place) -> None:
    """Linear algebra in the program before, and in tasks at once, comes to its end."""
    place.write(
        """
import numpy

def work(number):
    matrix = numpy.ones((300, 300))
    return float((matrix @ matrix)[0, 0])

work(0)

@flow(executor="process")
def main():
    return task(work).map(range(4))

note(*main().result())
"""
    )

    done = place.run("flows.py", timeout=30)

    assert done.returncode == 0, done.stderr
    assert place.notes == ["300.0 300.0 300.0 300.0"]


# -- F2, F3: without a guard, and without a file ---------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
def test_fault_F2_the_body_of_an_unguarded_script_is_executed_once(place: Place, executor: str) -> None:
    """No worker imports the script again."""
    place.write(UNGUARDED)

    done = place.run("flows.py", LOCALFLOW_EXECUTOR=executor)

    assert done.returncode == 0, done.stderr
    assert sorted(place.notes) == EXPECTED


def stdin(place: Place) -> list[str]:
    """`python - < flows.py`."""
    place.write(UNGUARDED)
    return ["-c", "import os, sys; os.dup2(os.open('flows.py', 0), 0); os.execv(sys.executable, [sys.executable, '-'])"]


def typed(place: Place) -> list[str]:
    """A session of `python -i`, in which the lines are typed one after the other."""
    return [each.replace("'-'", "'-i', '-q'") for each in stdin(place)]


def command(place: Place) -> list[str]:
    """`python -c ...`."""
    return ["-c", PROLOGUE + UNGUARDED]


def executed(place: Place) -> list[str]:
    """`exec(...)` in a program, in a namespace that is no module's."""
    place.write(UNGUARDED)
    return ["-c", "exec(compile(open('flows.py').read(), 'somewhere', 'exec'), {'__name__': 'nowhere'})"]


def zipped(place: Place) -> list[str]:
    """`python app.pyz`."""
    (place.folder / "app").mkdir()
    place.write(UNGUARDED, "app/__main__.py")
    zipapp.create_archive(place.folder / "app", place.folder / "app.pyz")
    return ["app.pyz"]


def by_pytest(place: Place) -> list[str]:
    """`pytest test_flows.py`, where workers import the module like any other."""
    body = UNGUARDED.replace('note("body")', "").replace(
        "state = main()", 'def test_it():\n  note("body")\n  state = main()'
    )
    place.write(body.replace('note("result"', '  note("result"'), "test_flows.py")
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_flows.py"]


def interactive(place: Place) -> list[str]:
    """`ipython flows.py`."""
    if importlib.util.find_spec("IPython") is None:
        pytest.skip("IPython is not installed")
    place.write(UNGUARDED, "flows.ipy")
    return ["-m", "IPython", "--no-banner", "flows.ipy"]


@pytest.mark.parametrize(
    "way", [stdin, typed, command, executed, zipped, by_pytest, interactive], ids=lambda way: way.__name__
)
def test_fault_F3_workers_need_no_file_to_import_the_program_from(place: Place, way: object) -> None:
    """What the program has defined travels by value, whatever `__main__` is."""
    assert callable(way)
    arguments = way(place)

    done = place.run(*arguments, LOCALFLOW_EXECUTOR="process", HOME=str(place.folder))

    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(place.notes) == EXPECTED


# -- F4: folders, environments, locales, flags -----------------------------------------------------------------------

FOLDERS = """
home = os.getcwd()

def put(line):
    with open(os.path.join(home, "said"), "a") as file:
        file.write(line + "\\n")

@task
def where():
    try:
        return os.path.relpath(os.getcwd(), home)
    except FileNotFoundError:
        return "nowhere"

"""


@pytest.mark.parametrize("store", ["sqlite", "json"])
def test_fault_F4_a_flow_that_changes_its_folder_is_recorded_where_it_began(place: Place, store: str) -> None:
    """The store stays where it is, and workers work in the folder that the run began in, the late ones too."""
    place.write(
        f"""{FOLDERS}
@flow(executor=ProcessExecutor(workers=1, max_tasks_per_worker=1))
def main():
    first = where().result()
    os.mkdir("other")
    os.chdir("other")
    note_in = os.listdir(".")
    put(f"{{first}} {{where().result()}} {{os.listdir('.')}}")

main()
"""
    )

    done = place.run("flows.py", LOCALFLOW_STORE=store)

    assert done.returncode == 0, done.stderr
    assert (place.folder / "said").read_text() == ". . []\n"
    assert len(place.read("show", "@last", LOCALFLOW_STORE=store)["task_runs"]) == 2


def test_fault_F4_the_folder_is_deleted_while_the_flow_runs(place: Place) -> None:
    """Tasks that do not need it go on, in workers that are started later too."""
    place.write(
        f"""{FOLDERS}
import shutil

os.mkdir("work")
os.chdir("work")

@flow(executor=ProcessExecutor(workers=1, max_tasks_per_worker=1))
def main():
    first = where().result()
    shutil.rmtree(home + "/work")
    put(f"{{first}} {{where().result() != first}} {{where().wait().type.name}}")

main()
"""
    )

    done = place.run("flows.py", LOCALFLOW_STORES__SQLITE__PATH=str(place.folder / "store"))

    assert done.returncode == 0, done.stderr
    assert (place.folder / "said").read_text() == "work True COMPLETED\n"


def test_fault_F4_a_folder_that_was_deleted_before_is_told(place: Place) -> None:
    """Where there is no folder, neither settings nor a store can be looked for: nothing is executed."""
    place.write(
        f"""{FOLDERS}
os.mkdir("work")
os.chdir("work")
os.rmdir(home + "/work")

@flow(executor="process")
def main():
    put("ran")

main()
"""
    )

    done = place.run("flows.py")

    assert done.returncode == 1
    assert "ConfigError: the working directory cannot be read (No such file or directory)" in done.stderr
    assert not (place.folder / "said").exists()


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_fault_F4_an_empty_environment(place: Place, executor: str) -> None:
    """Neither PATH nor HOME nor a locale is needed."""
    place.write(UNGUARDED.replace("@flow", f"@flow(executor={executor!r})"))

    done = place.run("-c", "import os, sys; os.execve(sys.executable, [sys.executable, 'flows.py'], {})")

    assert done.returncode == 0, done.stderr
    assert sorted(place.notes) == EXPECTED


def test_fault_F4_texts_survive_a_bare_locale(place: Place) -> None:
    """All of ours is UTF-8 under LC_ALL=C, without the interpreter's UTF-8 mode too."""
    place.write(
        """
@task(name="größer")
def say(text):
    print(text, "€")
    return text

@flow(executor="process")
def main(text: str):
    return say(text).result()

if __name__ == "__main__":
    sys.exit(main("žluťoučký").result() != "žluťoučký")
"""
    )
    bare = {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    done = place.run("flows.py", **bare)
    [said] = place.read("logs", "@last", **bare)

    assert done.returncode == 0, done.stderr
    assert said["message"] == "žluťoučký €"
    assert "größer-0" in place.states()


@pytest.mark.parametrize("flag", ["-I", "-O"])
def test_fault_F4_flags_of_the_interpreter(place: Place, flag: str) -> None:
    """Isolated and optimized, and workers are as the program is."""
    place.write(
        """
@task
def flags():
    return sys.flags.isolated, sys.flags.optimize

@flow(executor="process")
def main():
    return flags().result() == (sys.flags.isolated, sys.flags.optimize)

note(main().result(), sys.flags.isolated, sys.flags.optimize)
"""
    )

    done = place.run(flag, "flows.py")

    assert done.returncode == 0, done.stderr
    assert place.notes == [f"True {int(flag == '-I')} {int(flag == '-O')}"]


# -- F5: other systems -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "linux", reason="what differs on Windows and macOS cannot be tested on Linux")
def test_fault_F5_the_process_executor_runs_on_this_system(place: Place) -> None:
    """The first thing to know of another system."""
    place.write(UNGUARDED)

    done = place.run("flows.py", LOCALFLOW_EXECUTOR="process")

    assert done.returncode == 0, done.stderr

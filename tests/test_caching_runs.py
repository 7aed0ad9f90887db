"""Cached tasks in flow runs: what is computed again, and what is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from localflow import FLOW_PARAMETERS, INPUTS, NO_CACHE, RUN_ID, TASK_SOURCE, Task, flow, task

EXECUTORS = pytest.mark.parametrize("executor", ["sequential", "thread", "process"])
DEADLINE = 20.0

Ended = list[tuple[str, Any]]


def written(place: Path) -> int:
    """Return how often `note` has been called with this place, in whatever process."""
    return len(place.read_text()) if place.exists() else 0


def note(place: Path) -> None:
    """Leave a mark, whole even if several processes do so at once."""
    with place.open("a", buffering=1) as file:
        file.write("x")


def ends(called: Task[..., Any], *calls: tuple[Any, ...], executor: str = "sequential") -> Ended:
    """Run a flow that calls a task, one call after the other; return the names of the final states and the data."""

    @flow(executor=executor, validate_parameters=False)
    def main() -> Any:
        states = [called(*arguments).wait() for arguments in calls]
        return [(state.name, state.result(raise_on_failure=False)) for state in states]

    ended: Ended = main().result()
    return ended


@EXECUTORS
def test_a_result_is_used_again_in_the_run_and_in_later_runs(executor: str, tmp_path: Path) -> None:
    """The function is not called; the state is COMPLETED under the name Cached."""

    @task(cache_policy=INPUTS)
    def double(place: Path, x: int) -> int:
        note(place)
        return x * 2

    place = tmp_path / "calls"

    assert ends(double, (place, 2), (place, 2), (place, 3), executor=executor) == [
        ("Completed", 4), ("Cached", 4), ("Completed", 6),
    ]  # fmt: skip
    assert ends(double, (place, 3), (place, 2), executor=executor) == [("Cached", 6), ("Cached", 4)]
    assert written(place) == 2


@EXECUTORS
def test_a_key_is_made_of_data_not_of_futures(executor: str) -> None:
    """Two ways to one value lead to one result."""

    @task
    def make(*items: int) -> list[int]:
        return list(items)

    @task(cache_policy=INPUTS)
    def total(items: list[int], more: dict[str, Any]) -> int:
        return sum(items)

    @flow(executor=executor)
    def main() -> Any:
        one, two = make(1, 2), make(1, 2)
        first = total(one, {"deep": [one]}).wait()
        second = total(two, {"deep": [two]}).wait()
        third = total([1, 2], {"deep": [[1, 2]]}).wait()
        return [first.name, second.name, third.name]

    assert main().result() == ["Completed", "Cached", "Cached"]


def test_nothing_is_cached_unless_it_is_asked_for() -> None:
    """A task without a policy runs at every call."""
    calls = []
    plain = Task(calls.append)

    assert ends(plain, (1,), (1,)) == [("Completed", None)] * 2
    assert ends(plain.with_options(cache_policy=NO_CACHE), (1,), (1,)) == [("Completed", None)] * 2
    assert calls == [1] * 4


def test_a_variable_around_a_task_counts_as_it_is_at_the_call() -> None:
    """What was computed with another value is no answer."""

    @flow
    def main() -> Any:
        rate = 1

        @task(cache_policy=INPUTS)
        def scale(x: int) -> int:
            return x * rate

        first = scale(2).wait()
        rate = 10
        second = scale(2).wait()
        rate = 1
        return [(state.name, state.result()) for state in (first, second, scale(2).wait())]

    assert main().result() == [("Completed", 2), ("Completed", 20), ("Cached", 2)]


def test_a_task_that_changes_its_variables_hits_only_if_they_are_left_out() -> None:
    """Left in, they make it another one at each call."""
    calls = []

    def count(x: int) -> int:
        calls.append(x)
        return len(calls)

    changing, noting = (Task(count, cache_policy=policy) for policy in (INPUTS, INPUTS - "calls"))

    assert ends(changing, (1,), (1,)) == [("Completed", 1), ("Completed", 2)]
    assert ends(noting, (1,), (2,), (1,)) == [("Completed", 3), ("Completed", 4), ("Cached", 3)]


def test_refresh_cache_replaces_the_result() -> None:
    """For all who look for it later."""
    calls = []

    @task(cache_policy=INPUTS - "calls")
    def count() -> int:
        calls.append(1)
        return len(calls)

    assert ends(count, ()) == [("Completed", 1)]
    assert ends(count.with_options(refresh_cache=True), ()) == [("Completed", 2)]
    assert ends(count, ()) == [("Cached", 2)]


@pytest.mark.parametrize("expiration", [0.3, timedelta(seconds=0.3)])
def test_a_result_expires(expiration: Any) -> None:
    """Afterwards it is computed again."""
    calls = []

    @task(cache_policy=INPUTS - "calls", cache_expiration=expiration)
    def count() -> int:
        calls.append(1)
        return len(calls)

    began = time.monotonic()
    found = ends(count, (), ())
    if time.monotonic() - began < 0.3:  # on a machine that is too busy for anything else to be seen
        assert found == [("Completed", 1), ("Cached", 1)]
    while len(calls) < 2 and time.monotonic() - began < DEADLINE:
        found = ends(count, ())

    assert time.monotonic() - began >= 0.3
    assert found == [("Completed", 2)]


def test_a_task_that_failed_runs_again() -> None:
    """Only results are kept."""
    calls = []

    @task(cache_policy=INPUTS - "calls", retries=1)
    def shaky(x: int) -> int:
        calls.append(x)
        if len(calls) < 4:
            raise ValueError(len(calls))
        return len(calls)

    assert [name for name, _ in ends(shaky, (1,), (1,), (1,))] == ["Failed", "Completed", "Cached"]
    assert len(calls) == 4


@EXECUTORS
def test_an_argument_without_a_key_means_no_caching_and_a_warning(
    executor: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One warning for the task, which names the argument; leaving it out helps."""

    @task(cache_policy=INPUTS)
    def use(place: Path, things: list[object]) -> int:
        note(place)
        return len(things)

    place = tmp_path / "calls"
    with caplog.at_level(logging.WARNING):
        assert ends(use, (place, [object()]), (place, [object()]), executor=executor) == [("Completed", 1)] * 2

    warnings = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert len(warnings) == 1
    assert "task 'use' is not cached: argument 'things' (list)" in warnings[0]
    assert "leave it out with cache_policy=INPUTS - 'things'" in warnings[0]
    assert written(place) == 2
    narrowed = use.with_options(cache_policy=INPUTS - "things")
    assert ends(narrowed, (place, [object()]), (place, [object()]), executor=executor) == [
        ("Completed", 1),
        ("Cached", 1),
    ]


def test_a_result_that_cannot_be_pickled_is_computed_each_time() -> None:
    """It is no failure either."""

    @task(cache_policy=INPUTS)
    def lock(x: int) -> Any:
        return threading.Lock()

    assert [name for name, _ in ends(lock, (1,), (1,))] == ["Completed", "Completed"]
    assert [name for name, _ in ends(lock, (1,))] == ["Completed"]


def test_run_id_keeps_results_in_their_run() -> None:
    """And FLOW_PARAMETERS among runs of the same parameters."""
    within, by_parameters = (
        Task(lambda x: x, name="f", cache_policy=INPUTS + policy) for policy in (RUN_ID, FLOW_PARAMETERS)
    )

    @flow
    def main(day: Any) -> Any:
        return [[called(1).wait().name for _ in range(2)] for called in (within, by_parameters)]

    assert main((1,)).result() == [["Completed", "Cached"], ["Completed", "Cached"]]
    assert main((1,)).result() == [["Completed", "Cached"], ["Cached", "Cached"]]
    assert main((2,)).result() == [["Completed", "Cached"], ["Completed", "Cached"]]


@EXECUTORS
def test_a_key_function_decides(executor: str) -> None:
    """It sees the run that it makes the key for."""

    def by_parity(context: Any, parameters: dict[str, Any]) -> str | None:
        assert context.task_run.task == "parity"
        assert context.flow_run.flow == "main"
        return None if parameters["x"] == 0 else f"parity {parameters['x'] % 2}"

    @task(cache_key_fn=by_parity)
    def parity(x: int, unused: int = 5) -> int:
        return x

    assert ends(parity, (1,), (3,), (2,), (0,), (0,), executor=executor) == [
        ("Completed", 1), ("Cached", 1), ("Completed", 2), ("Completed", 0), ("Completed", 0),
    ]  # fmt: skip


def test_a_key_function_that_fails_means_no_caching_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The task runs."""
    failing = Task(lambda x: x, name="f", cache_key_fn=lambda context, parameters: str(1 / 0))

    with caplog.at_level(logging.WARNING):
        assert ends(failing, (1,), (1,)) == [("Completed", 1)] * 2
    assert caplog.text.count("its cache_key_fn raised ZeroDivisionError") == 1


@EXECUTORS
def test_the_runs_of_a_map_are_cached_one_by_one(executor: str) -> None:
    """Items that were seen before are answered, the rest runs."""

    @task(cache_policy=INPUTS)
    def square(x: int) -> int:
        return x * x

    @flow(executor=executor)
    def main(items: list[int]) -> Any:
        states = [future.wait() for future in square.map(items)]
        return [(state.name, state.result()) for state in states]

    assert main([1, 2]).result() == [("Completed", 1), ("Completed", 4)]
    assert main([2, 3]).result() == [("Cached", 4), ("Completed", 9)]


SCRIPT = """
import sys
from pathlib import Path
from localflow import INPUTS, TASK_SOURCE, flow, task

@task(cache_policy=POLICY)
def work(names, x):
    with Path("calls").open("a") as file:
        file.write("x")
    return x + 1

@flow(executor="sequential")
def main():
    state = work({"alpha", "beta", "gamma"}, 1).wait()
    print(state.name, state.result())
    return state

if __name__ == "__main__":
    main()
"""


def run_script(text: str, seed: int, *command: str) -> str:
    """Run a script in the current folder in a process of its own."""
    Path("script.py").write_text(text)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, *command, "script.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


def test_results_are_used_again_by_other_processes() -> None:
    """Whatever their hash seed, and whether Python or the command line runs the file."""
    script = SCRIPT.replace("POLICY", "INPUTS")

    assert run_script(script, 1) == "Completed 2"
    assert run_script(script, 2) == "Cached 2"
    assert run_script(script, 3, "-m", "localflow", "run") == "Cached 2"
    assert written(Path("calls")) == 1


@pytest.mark.parametrize(("policy", "edited"), [("INPUTS", "Cached 2"), ("INPUTS + TASK_SOURCE", "Completed 3")])
def test_editing_a_task_matters_only_if_its_source_is_part_of_the_key(policy: str, edited: str) -> None:
    """Its decorator and what stands around it do not matter at all."""
    script = SCRIPT.replace("POLICY", policy)

    assert run_script(script, 1) == "Completed 2"
    assert run_script("# a comment\n" + script.replace("@task(", "@task(retries=2, "), 1) == "Cached 2"
    assert run_script(script.replace("x + 1", "x + 2"), 1) == edited


BEHAVIOUR = """
import dataclasses, enum, functools, logging, math, sys
from localflow import INPUTS, TASK_SOURCE, flow, task

log = logging.getLogger("script")
RATE = 2
TABLE = {"deep": [20]}

class Size(enum.Enum):
    BIG = 200
    SMALL = "small"

class Base:
    def up(self, x):
        return x + 3

class Config(Base):
    lr = 4
    deep = [{"k": 5}]
    default = None

    @property
    def half(self):
        return 6

    @functools.cached_property
    def third(self):
        return 7

    @staticmethod
    def plain(x):
        return even(x)

    def step(self, x):
        return x * 8

Config.default = Config()

@dataclasses.dataclass
class Row:
    a: int = 9
    names: set = dataclasses.field(default_factory=lambda: {"a", "b", "c"})

def even(x):
    return odd(x) if x else 10

def odd(x):
    return even(x - 1) if x else 11

@functools.lru_cache
def kept(x):
    return x * 12

def make(base):
    return lambda x: x + base

@task(cache_policy=INPUTS + TASK_SOURCE)
def use(what, x):
    return x

@task(cache_policy=INPUTS + TASK_SOURCE)
def glob(x):
    log.info("%s", math.pi)
    return x * RATE

@task(cache_policy=INPUTS + TASK_SOURCE)
def recurse(x):
    return even(x)

@task(cache_policy=INPUTS + TASK_SOURCE)
def build(x):
    return Row(x).a + TABLE["deep"][0] + glob.fn(1) + kept(x)

@flow(executor="sequential")
def main():
    values = {
        "config": Config(), "class": Config, "lambda": lambda x: x * RATE, "function": odd, "kept": kept, "row": Row(1),
        "sizes": {Size.BIG, Size.SMALL}, "closure": make(13), "method": Config().step,
    }
    states = {name: use(value, 1) for name, value in values.items()}
    states |= {"glob": glob(1), "recurse": recurse(1), "build": build(1)}
    print(*[name for name, state in states.items() if state.wait().name != "Cached"])

if __name__ == "__main__":
    main()
"""
CONFIGS = "config class method"


@pytest.mark.parametrize(
    ("old", "new", "computed"),
    [
        ("# nothing", "", ""),
        ("RATE = 2", "RATE = 3", "lambda glob build"),
        ("[20]", "[21]", "build"),
        ("200", "201", "sizes"),
        ("x + 3", "x + 4", CONFIGS),
        ("lr = 4", "lr = 5", CONFIGS),
        ('"k": 5', '"k": 6', CONFIGS),
        ("return 6", "return 7", CONFIGS),
        ("return 7", "return 8", CONFIGS),
        ("x * 8", "x * 9", CONFIGS),
        ("int = 9", "int = 8", "row build"),
        ('"b", "c"}', '"b", "d"}', "row build"),
        ("else 10", "else 12", f"{CONFIGS} function recurse"),
        ("else 11", "else 12", f"{CONFIGS} function recurse"),
        ("x * 12", "x * 13", "kept build"),
        ("make(13)", "make(14)", "closure"),
    ],
)
def test_code_of_a_script_counts_with_all_that_it_does(old: str, new: str, computed: str) -> None:
    """Its members, the helpers it calls and the globals it reads; what is not concerned is used again."""
    first = run_script(BEHAVIOUR, 1)
    again = run_script(BEHAVIOUR.replace(old, new), 2)

    names = "config class lambda function kept row sizes closure method glob recurse build"
    assert first == names
    assert set(again.split()) == set(computed.split())


REFUSED = """
import threading
from localflow import INPUTS, TASK_SOURCE, flow, task

lock = threading.Lock()

def locked(x):
    with lock:
        return x

@task(cache_policy=POLICY)
def work(x):
    return locked(x)

@task(cache_policy=INPUTS)
def use(function, x):
    return function(x)

@flow(executor="sequential")
def main():
    print(*[CALL.wait().name for _ in range(2)])

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("policy", "call", "names"),
    [
        ("INPUTS + TASK_SOURCE", "work(1)", "Completed Completed"),
        ("INPUTS", "work(1)", "Completed Cached"),
        ("INPUTS", "use(locked, 1)", "Completed Completed"),
    ],
)
def test_a_global_without_fingerprint_means_no_caching(policy: str, call: str, names: str) -> None:
    """Nobody knows whether it is the same; with INPUTS alone the globals of the task are no part of the key."""
    assert run_script(REFUSED.replace("POLICY", policy).replace("CALL", call), 1) == names


ALTERNATIVES = """
import sys
from localflow import INPUTS, flow, task

if CHOICE:
    @task(cache_policy=INPUTS)
    def work(x):
        return x + 1
else:
    @task(cache_policy=INPUTS)
    def work(x):
        return x + 2

@flow(executor="sequential")
def main():
    state = work(1).wait()
    print(state.name, state.result())

if __name__ == "__main__":
    main()
"""


def test_two_tasks_of_one_name_in_a_file_share_no_results() -> None:
    """Whichever of them a run happens to define."""
    assert run_script(ALTERNATIVES.replace("CHOICE", "1 > 0"), 1) == "Completed 2"
    assert run_script(ALTERNATIVES.replace("CHOICE", "1 < 0"), 1) == "Completed 3"
    assert run_script(ALTERNATIVES.replace("CHOICE", "1 > 0"), 1) == "Cached 2"


CONCURRENT = """
import sys, time
from pathlib import Path
from localflow import INPUTS, flow, task

@task(cache_policy=INPUTS)
def work(x):
    me = Path(f"running-{sys.argv[1]}")
    me.touch()
    deadline = time.monotonic() + 2
    while len(list(Path().glob("running-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    return [x] * 100_000

@flow(executor=sys.argv[2])
def main():
    return work(7)

print(main().result() == [7] * 100_000)
"""


@pytest.mark.parametrize("executor", ["sequential", "process"])
def test_two_processes_that_want_one_result_at_once_both_get_it_whole(executor: str) -> None:
    """One may wait for the other or compute it as well; a third finds it."""
    Path("script.py").write_text(CONCURRENT)
    both = [
        subprocess.Popen([sys.executable, "script.py", name, executor], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    outputs = [process.communicate(timeout=50)[0] for process in both]

    assert outputs == ["True\n", "True\n"]
    marks = len(list(Path().glob("running-*")))
    third = subprocess.run(
        [sys.executable, "script.py", "c", executor], capture_output=True, text=True, timeout=50, check=True
    )
    assert third.stdout == "True\n"
    assert len(list(Path().glob("running-*"))) == marks


def test_show_says_why_a_run_was_computed_or_not() -> None:
    """In the messages of its states."""
    script = SCRIPT.replace("POLICY", "INPUTS")
    messages = []
    for _ in range(2):
        run_script(script, 1)
        shown = subprocess.run(
            [sys.executable, "-m", "localflow", "show", "@last", "--json"], capture_output=True, timeout=50, check=True
        )
        run = json.loads(shown.stdout)["task_runs"][0]
        messages.append([(change["name"], change["message"]) for change in run["history"]])

    assert messages[0][-2:] == [("Running", "not from the cache: there is no result with its key"), ("Completed", "")]
    name, message = messages[1][-1]
    assert name == "Cached"
    assert message.startswith("used the result of task run 'work-0' of flow run '")


def test_a_hit_needs_no_worker_and_no_attempt() -> None:
    """The run goes from PENDING to COMPLETED."""
    doubled = Task(lambda x: x * 2, name="double", cache_policy=INPUTS + TASK_SOURCE)
    seen = []

    assert ends(doubled, (1,)) == [("Completed", 2)]
    hooked = doubled.with_options(
        on_running=lambda task, run, state: seen.append(state.name),
        on_completion=lambda task, run, state: seen.append(state.name),
    )
    assert ends(hooked, (1,)) == [("Cached", 2)]
    assert seen == ["Cached"]


def test_a_cached_result_must_be_kept() -> None:
    """Caching and `persist_result=False` exclude each other, which is said at decoration."""
    with pytest.raises(TypeError, match="@task 'work': a cached result must be kept"):
        task(name="work", cache_policy=INPUTS, persist_result=False)(lambda: 1)

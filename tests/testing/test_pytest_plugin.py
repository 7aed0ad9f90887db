"""The fixtures that pytest finds wherever localflow is installed, in test suites of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

FLOW = """
    import asyncio, os, threading, time
    import pytest
    from localflow import flow, task, get_run_logger

    @task
    def add(a, b):
        get_run_logger().info("adding")
        return a + b

    @flow
    def totals(numbers):
        return [add(number, 1) for number in numbers]

    @flow
    async def later():
        await asyncio.sleep(0)
        return "later"
"""


def run_tests(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a test module in the folder of this test."""
    Path("test_it.py").write_text(textwrap.dedent(FLOW) + textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_it.py"]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.timeout(60)
def test_a_flow_is_run_and_looked_at() -> None:
    """The final state, the result, the history and the log of a run are there, and no file is left."""
    done = run_tests("""
        def test_totals(localflow_run, localflow_folder):
            first, second = localflow_run(totals, [1, 2]), localflow_run(totals, numbers=[5])

            assert first.state.is_completed()
            assert (first.result(), second.result()) == ([2, 3], [6])
            assert first.history("add-1") == second.history("add-0") == ["Pending", "Running", "Completed"]
            assert first.history()[-1] == "Completed"
            assert [entry.message for entry in second.logs("add-0")] == ["adding"]
            assert first.task_run("add-0").run.flow_run == first.flow_run
            assert [each.run.name for each in first.read().task_runs] == ["add-0", "add-1"]
            assert list(localflow_folder.iterdir()) == []

        def test_async_flows_too(localflow_run):
            assert localflow_run(later).result() == "later"
    """)

    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(60)
def test_settings_of_the_place_do_not_matter() -> None:
    """A localflow.toml and variables of where the tests are run change nothing in them."""
    Path("localflow.toml").write_text('executor = "no-such-executor"\n')

    done = run_tests(
        "def test_it(localflow_run): assert localflow_run(totals, [1]).state.is_completed()", LOCALFLOW_STORE="nowhere"
    )

    assert done.returncode == 0, done.stdout


def install_broken_plugin(site: Path) -> None:
    """Install a distribution whose plugin breaks the rules."""
    metadata = site / "bad-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[localflow]\nbad = bad_plugin\n")
    (site / "bad_plugin.py").write_text("def localflow_register_executor(register): pass\n")


UNKNOWN_EXECUTOR = """
    from localflow.errors import PluginError

    class TestUnknown:
        @pytest.fixture
        def localflow_executor(self):
            return "no-such"

        def test_it(self, localflow_run):
            with pytest.raises(PluginError) as raised:
                localflow_run(totals, [1])
            assert ("'bad'" in str(raised.value)) is BAD

    def test_later(localflow_run):
        assert localflow_run(totals, [1]).state.is_completed()
"""


@pytest.mark.timeout(60)
def test_an_unknown_executor_is_the_trouble_of_its_test_alone(tmp_path: Path) -> None:
    """It has broken plugins imported, which the next test does not get to see."""
    install_broken_plugin(tmp_path / "site")

    done = run_tests(UNKNOWN_EXECUTOR.replace("BAD", "True"), PYTHONPATH=str(tmp_path / "site"))

    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(60)
def test_a_plugin_that_is_disabled_stays_disabled(tmp_path: Path) -> None:
    """`LOCALFLOW_DISABLE_PLUGINS`, which messages advise to set, is no setting that tests are kept from."""
    install_broken_plugin(tmp_path / "site")

    done = run_tests(
        UNKNOWN_EXECUTOR.replace("BAD", "False"), PYTHONPATH=str(tmp_path / "site"), LOCALFLOW_DISABLE_PLUGINS="bad"
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(60)
def test_an_executor_and_a_store_of_the_tests_own_are_used() -> None:
    """A fixture of the same name takes the place: flows run there, and their states go there."""
    done = run_tests("""
        from localflow.testing import FaultyStore
        from localflow import ThreadExecutor
        from localflow.plugins import installed_plugins

        @pytest.fixture
        def localflow_executor():
            return ThreadExecutor(workers=2)

        @pytest.fixture
        def localflow_store():
            return FaultyStore(installed_plugins().get_factory("state store", "memory")())

        def test_it(localflow_run, localflow_store):
            run = localflow_run(totals, [1])

            assert run.task_run("add-0").execution.worker != threading.current_thread().name
            assert [each.flow_run for each in localflow_store.list_flow_runs()] == [run.flow_run]
    """)

    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("leak", "named"),
    [
        ("threading.Thread(target=end.wait, daemon=True, name='lost').start()", "thread lost"),
        ("kept.append(open('lost', 'w'))", "descriptor"),
        ("kept.append(subprocess.Popen(['sleep', '60']))", "process"),
    ],
    ids=["thread", "file", "process"],
)
def test_what_is_left_behind_fails_the_test(leak: str, named: str) -> None:
    """A thread, a file and a process that outlive their test are named; without the fixture nobody minds."""
    source = f"""
        import subprocess
        end, kept = threading.Event(), []

        @pytest.fixture(scope="module", autouse=True)
        def everything_ends():
            yield
            end.set()
            for each in kept:
                (each.kill(), each.wait()) if hasattr(each, "kill") else each.close()

        @pytest.mark.usefixtures("localflow_no_leaks")
        def test_leaky():
            {leak}

        def test_nobody_looks():
            {leak}
    """

    done = run_tests(source)

    assert done.returncode == 1
    assert f"left behind: {named}" in done.stdout
    assert "2 passed, 1 error" in done.stdout


@pytest.mark.timeout(60)
def test_who_does_not_use_it_pays_nothing() -> None:
    """A run of pytest that asks for none of the fixtures imports nothing of localflow."""
    Path("test_it.py").write_text(
        "import sys\ndef test_it(): assert not [name for name in sys.modules if name.split('.')[0] == 'localflow']\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--trace-config", "test_it.py"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "localflow_pytest" in done.stdout


def test_fixtures_have_the_prefix_and_a_document() -> None:
    """What `pytest --fixtures` shows of ours begins with localflow_ and says what it is for."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--fixtures", "-q"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    ours = [line for line in done.stdout.splitlines() if "localflow_pytest.py" in line]
    assert len(ours) == 5
    assert all(line.startswith("localflow_") for line in ours)
    assert "no docstring" not in done.stdout

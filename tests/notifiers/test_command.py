"""The notifier `command`, with real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import localflow
from localflow.builtin.command import CommandNotifier
from localflow.events import DeliveryError, describe
from localflow.interfaces import Cause, Notifier
from localflow.testing import NotifierContract, make_change

if TYPE_CHECKING:
    from collections.abc import Callable


def python(code: str, *arguments: str) -> list[str]:
    """Return the command line that runs Python code."""
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def wait_until_gone(pid: int) -> None:
    """Return when no process with this id is running, fail if one still is after 10 seconds."""
    deadline = time.monotonic() + 10.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


KEEP = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"


class TestContract(NotifierContract):
    @pytest.fixture
    def notifier(self, tmp_path: Path) -> Notifier:
        """Run a command that appends its stdin to a file."""
        return CommandNotifier(python(KEEP, str(tmp_path / "inbox")))

    @pytest.fixture
    def delivered(self, tmp_path: Path) -> Callable[[], list[str]]:
        """Read the file."""
        inbox = tmp_path / "inbox"
        return lambda: inbox.read_text("utf-8").splitlines() if inbox.exists() else []


def test_event_is_one_line_of_json_on_stdin(tmp_path: Path) -> None:
    """The command reads the event as `describe` makes it."""
    change = make_change(message="two\nlines", cause=Cause("exception", "ValueError", "Zürich"))
    notifier = CommandNotifier(python(KEEP, str(tmp_path / "inbox")))

    notifier.notify(change)

    text = (tmp_path / "inbox").read_text()
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    assert json.loads(text) == describe(change)


def test_arguments_never_meet_a_shell(tmp_path: Path) -> None:
    """Words with spaces and shell characters arrive as they are."""
    words = ["a b", "$HOME", "; touch owned", "*", "`id`"]
    code = "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))"

    CommandNotifier(python(code, "words", *words)).notify(make_change())

    assert json.loads((tmp_path / "words").read_text()) == words
    assert not (tmp_path / "owned").exists()


def test_env_is_added_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees its own variables beside those of the program."""
    monkeypatch.setenv("INHERITED", "yes")
    code = "import os; open('seen', 'w').write(os.environ['INHERITED'] + os.environ['CHANNEL'])"

    CommandNotifier(python(code), env={"CHANNEL": "#ops"}).notify(make_change())

    assert (tmp_path / "seen").read_text() == "yes#ops"


def test_large_event_need_not_be_read() -> None:
    """A command that ignores its stdin is no failure, however long the event."""
    CommandNotifier(python("pass")).notify(make_change(message="x" * 1_000_000))


def test_flood_of_output_is_survived() -> None:
    """Megabytes on stdout and stderr neither block the command nor pile up."""
    code = "import sys; [s.write('x' * 65536) for _ in range(200) for s in (sys.stdout, sys.stderr)]"

    CommandNotifier(python(code)).notify(make_change())


def test_output_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """What the command prints stays off the terminal of the flow."""
    CommandNotifier(python("import sys; print('out'); print('err', file=sys.stderr)")).notify(make_change())

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(3)", "exited with code 3"),
        ("raise SystemExit('no such channel')", "exited with code 1: no such channel"),
        ("print('sorry'); raise SystemExit(2)", "exited with code 2: sorry"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal SIGKILL"),
        ("raise SystemExit('\\033[2J\\nx')", r"exited with code 1: \x1b[2J\nx"),
    ],
)
def test_failing_command_is_a_failure(code: str, expected: str) -> None:
    """The error names the exit code or signal and the end of what was printed, in one line."""
    with pytest.raises(DeliveryError) as raised:
        CommandNotifier(python(code)).notify(make_change())

    assert str(raised.value) == f"command '{sys.executable}' {expected}"


def test_error_keeps_only_the_end_of_the_output() -> None:
    """The last words of a talkative command are the ones that matter."""
    code = "import sys; sys.stderr.write('x' * 1_000_000 + 'the reason'); sys.exit(1)"

    with pytest.raises(DeliveryError, match=r"the reason$") as raised:
        CommandNotifier(python(code)).notify(make_change())

    assert len(str(raised.value)) < 1_000


def test_error_hides_the_arguments() -> None:
    """The arguments of a command may be secrets."""
    with pytest.raises(DeliveryError) as raised:
        CommandNotifier(python("raise SystemExit(1)", "canary")).notify(make_change())

    assert "canary" not in str(raised.value)


def test_missing_command_is_a_failure() -> None:
    """The error names the command that does not exist."""
    notifier = CommandNotifier(["no-such-command", "--now"])

    with pytest.raises(DeliveryError, match=r"^command 'no-such-command' cannot be run: No such file or directory$"):
        notifier.notify(make_change())


@pytest.mark.parametrize("command", [[], [""], "echo hello"])
def test_command_must_be_a_list_of_words(command: list[str]) -> None:
    """A command that cannot be one is refused at once."""
    with pytest.raises(ValueError, match="command must be a list"):
        CommandNotifier(command)


def test_hanging_command_is_killed_with_its_children(tmp_path: Path) -> None:
    """At the timeout the whole process group ends, and the error says so."""
    code = """if True:
        import os, subprocess, sys, time
        print("still here", file=sys.stderr, flush=True)
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(3600)"])
        open("pids.new", "w").write(f"{os.getpid()} {child.pid}")
        os.rename("pids.new", "pids")
        time.sleep(3600)
    """

    with pytest.raises(DeliveryError, match=r"did not end within 1 seconds and was killed: still here"):
        CommandNotifier(python(code), timeout=1.0).notify(make_change())

    for pid in (tmp_path / "pids").read_text().split():
        wait_until_gone(int(pid))


def test_command_that_closes_its_output_and_hangs_is_killed() -> None:
    """Closed streams do not pass for the end of the command."""
    code = "import os, time; os.close(1); os.close(2); time.sleep(3600)"

    with pytest.raises(DeliveryError, match="did not end within"):
        CommandNotifier(python(code), timeout=0.5).notify(make_change())


def test_endless_flood_ends_at_the_timeout() -> None:
    """A command that never stops printing is killed like any other."""
    started = time.monotonic()

    with pytest.raises(DeliveryError, match="did not end within"):
        CommandNotifier(python("while True: print('x' * 10000)"), timeout=0.5).notify(make_change())

    assert time.monotonic() - started < 5.0


def test_what_runs_on_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    """A command that leaves a process behind, with its streams open, has ended when it ends."""
    code = """if True:
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(3600)"])
        open("pid", "w").write(str(child.pid))
    """
    started = time.monotonic()

    CommandNotifier(python(code), timeout=9.0).notify(make_change())

    assert time.monotonic() - started < 5.0
    pid = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(pid)
    psutil.Process(pid).kill()
    wait_until_gone(pid)


def test_command_does_not_survive_the_program(tmp_path: Path) -> None:
    """A program that ends while a command hangs takes the command with it."""
    code = """if True:
        import os, sys, threading, time
        from localflow.builtin.command import CommandNotifier
        from localflow.testing import make_change

        hanging = "import os, time; open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid'); "
        notifier = CommandNotifier([sys.executable, "-c", hanging + "time.sleep(3600)"], timeout=3600)
        threading.Thread(target=notifier.notify, args=(make_change(),), daemon=True).start()
        while not os.path.exists("pid"):
            time.sleep(0.01)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(localflow.__file__).parents[1])}

    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=30, check=False)

    assert done.returncode == 0
    wait_until_gone(int((tmp_path / "pid").read_text()))

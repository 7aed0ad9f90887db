"""The notifier `command`: runs a command for each state change, with the event as one line of JSON on its stdin."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Annotated

from localflow.events import DeliveryError, describe
from localflow.interfaces import AtLeast, Notifier, StateChange
from localflow.printable import printable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

_TAIL_BYTES = 500
_CHUNK_BYTES = 65_536
_POLL_SECONDS = 0.05


class CommandNotifier(Notifier):
    """Runs a command for each state change.

    The command is run as it is given, never by a shell, in a process group of its own: Ctrl-C in the terminal does not
    reach it. What it prints is not shown; the end of it is part of the error if the command fails.
    """

    def __init__(
        self,
        command: list[str],
        timeout: Annotated[float, AtLeast(0.1)] = 5.0,
        env: dict[str, str] | None = None,
    ) -> None:
        """Keep the options.

        Args:
            command: the program and its arguments.
            timeout: seconds after which the command is killed, with every process it started. More than 10 has no
                effect: localflow gives up a notifier that takes longer.
            env: variables to add to the environment.
        """
        if isinstance(command, str) or not command or not command[0]:
            raise ValueError("command must be a list of the program and its arguments, such as ['notify-send', 'done']")
        self._command = list(command)
        self._timeout = timeout
        self._env = dict(env or {})

    def notify(self, change: StateChange) -> None:
        """Run the command and wait for its end; raises DeliveryError unless it exits with 0."""
        import atexit
        import json
        import subprocess
        import tempfile

        with tempfile.TemporaryFile() as stdin:  # a file and not a pipe: the command need not read it
            stdin.write(json.dumps(describe(change)).encode() + b"\n")
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **self._env},
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise DeliveryError(f"command {self._name} cannot be run: {reason}") from error

        def end() -> None:
            _kill_group(process)

        atexit.register(end)  # the program may end while this thread waits
        try:
            self._wait(process)
        finally:
            end()
            atexit.unregister(end)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout as stdout, process.stderr as stderr:
            tails = _drain(process, (stdout.fileno(), stderr.fileno()), time.monotonic() + self._timeout)
        output = tails[1] or tails[0]
        said = f": {printable(output)}" if output else ""
        if process.returncode is None:
            raise DeliveryError(
                f"command {self._name} did not end within {self._timeout:g} seconds and was killed{said}"
            )
        if process.returncode < 0:
            raise DeliveryError(f"command {self._name} was ended by signal {_signal_name(-process.returncode)}{said}")
        if process.returncode > 0:
            raise DeliveryError(f"command {self._name} exited with code {process.returncode}{said}")

    @property
    def _name(self) -> str:
        return f"'{printable(self._command[0])}'"  # without its arguments: they may hold secrets


def _drain(process: subprocess.Popen[bytes], streams: Sequence[int], until: float) -> list[str]:
    """Read what the process prints until it ends or time is up; return the end of each stream.

    Its own end counts, not that of its streams: what it leaves running in the background may keep these open.
    """
    import selectors
    import subprocess

    tails = dict.fromkeys(streams, b"")
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            os.set_blocking(stream, False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_SECONDS)
            if has_ended and not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                tails[key.fd] = (tails[key.fd] + chunk)[-_TAIL_BYTES:]
                if not chunk:
                    selector.unregister(key.fd)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, until - time.monotonic()))
    return [tail.decode("utf-8", "replace").strip() for tail in tails.values()]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all it started; one that has ended is left alone, and so is what it left running."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)

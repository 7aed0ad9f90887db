"""A process that outlives the engine by a moment: it ends what is left of a Ray that was the engine's own.

Most processes of a Ray die with who has started it. Two, and what tasks have started, would stay for minutes after
`kill -9`. So this one reads from a pipe which only the engine has: first the pid of the raylet, whose children all have
that in their environment, and then its end. It is run as a file, by itself, and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time

import psutil

_VARIABLE = "RAY_RAYLET_PID"
_SECONDS = 20.0
_PAUSE = 0.1


def main(folder: str) -> None:
    """Wait for the end of the engine, then for that of its Ray, whose session is in `folder`."""
    raylets = sys.stdin.read().split()
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        left = [process for process in psutil.process_iter() if _belongs(process, folder, raylets)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            break
        time.sleep(_PAUSE)
    shutil.rmtree(folder, ignore_errors=True)


def _belongs(process: psutil.Process, folder: str, raylets: list[str]) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        line = " ".join(process.cmdline())
        if folder in line or process.environ().get(_VARIABLE) in raylets:
            return True
        # Ray's processes change their command lines, and some spoil their environment by that. The engine has files of
        # the folder open as well, and so may somebody who reads them.
        return line.startswith("ray::") and any(file.path.startswith(folder) for file in process.open_files())
    except (psutil.Error, OSError):  # it is somebody else's, or gone
        return False


if __name__ == "__main__":
    main(sys.argv[1])

"""What every test gets: its own folder, a clean environment, and the check that nothing of ours is left behind."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from localflow.testing import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What is ignored here, as in a shell's background, programs that the tests start would ignore as well.
for _signal, _disposition in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _disposition)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own, with none of the user's settings."""
    for name in list(os.environ):
        if name.startswith("LOCALFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_leaks(own_folder: Path) -> Iterator[None]:
    """Fail a test that leaves processes, threads or file descriptors behind."""
    try:
        with leaks.no_leaks():
            yield
    except leaks.LeakError as error:
        pytest.fail(str(error), pytrace=False)

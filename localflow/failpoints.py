"""Places where a test may have this process die: with `LOCALFLOW_FAILPOINT=name:n` it is killed at the n-th arrival.

Only so can a test stop an engine between two steps that follow each other within a microsecond. Several may be given,
separated by commas; `name:n:stop` stops the process (SIGSTOP) instead, so that somebody else decides.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "LOCALFLOW_FAILPOINT"

_ARMED = os.environ.get(VARIABLE)
_lock = threading.Lock()
_arrivals: dict[str, int] = {}


def reach(name: str) -> None:
    """Arrive at a failpoint; without the variable nothing happens."""
    if _ARMED:
        _arrive(name, _ARMED)


def _arrive(name: str, armed: str) -> None:
    with _lock:
        _arrivals[name] = arrival = _arrivals.get(name, 0) + 1
    for each in armed.split(","):
        wanted, _, rest = each.partition(":")
        count, _, action = rest.partition(":")
        if wanted == name and arrival == int(count or 1):
            os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)

"""How the workers of a cluster of ours are started: without the user's main module.

Dask starts workers by multiprocessing, which imports the main module in each of them. A script without a guard would
begin again there, and so on. localflow sends the functions of the main module by value, so workers need none of it.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from multiprocessing import spawn
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORKER = "Dask Worker process"  # how the names of such processes begin
_MAIN = ("init_main_from_name", "init_main_from_path")
#: What dask puts into the environment of this process when it starts a worker.
_VARIABLE = "PYTHONHASHSEED"

_lock = threading.Lock()
_users = 0
_real = spawn.get_preparation_data
_seed: str | None = None


@contextmanager
def main_left_alone() -> Iterator[None]:
    """Keep the main module out of dask's workers, and their settings out of this process, as long as the block lasts.

    Other processes that multiprocessing starts are prepared as ever.
    """
    global _users, _real, _seed
    with _lock:
        _users += 1
        if _users == 1:
            _real, _seed = spawn.get_preparation_data, os.environ.get(_VARIABLE)
            spawn.get_preparation_data = _preparation_data
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                spawn.get_preparation_data = _real
                if _seed is None:
                    os.environ.pop(_VARIABLE, None)


def _preparation_data(name: str) -> dict[str, Any]:
    data = _real(name)
    if name.startswith(_WORKER):
        for key in _MAIN:
            data.pop(key, None)
    return data

"""A Ray of this machine for all tests that do not need one of their own: its start takes seconds."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest
import ray
from localflow_ray.connection import Wanted, connect, disconnect

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Small, as there may be several Rays at once.
STORE_BYTES = 150 << 20


@pytest.fixture(scope="session")
def ray_there() -> Iterator[None]:
    """Have this process connected to a Ray that the executor has not started."""
    folder = tempfile.mkdtemp(prefix="lf-there-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    connect(Wanted(None, 2, None, {}, None, None))  # which is kept from test to test
    yield
    disconnect()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)

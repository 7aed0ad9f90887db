"""The contract of the state store that is checked."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from localflow.testing import StateStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from localflow.interfaces import StateStore
    from localflow.testing.checked.subject import Subject


class TestStateStore(StateStoreContract):
    """What every state store must do, and what this one promises."""

    @pytest.fixture
    def make_store(self, localflow_subject: Subject, tmp_path: Path) -> Iterator[Callable[[], StateStore]]:
        """Open the store of this test, and leave nothing in it."""
        make = localflow_subject.store_maker(tmp_path)
        yield make
        with closing(make()) as store:
            localflow_subject.empty(store)

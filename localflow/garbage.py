"""Python's cyclic garbage collector while a flow run is at work.

Every 700 new containers it looks at the young ones, and now and then at all there are. A task run makes about fifteen,
hardly any of which is ever part of a cycle, and a flow of many tasks holds millions: a fifth of a task's time would go
into these looks. So for the time of a flow run they are made less often. Garbage of the user's tasks is found all the
same, a few milliseconds later.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many more containers than before there are when the young ones are looked at.
YOUNG_OBJECTS = 20_000


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Have the collector look less often for the block, unless it does already, or is off."""
    before = gc.get_threshold()
    if not 0 < before[0] < YOUNG_OBJECTS:
        yield
        return
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        if gc.get_threshold() == (YOUNG_OBJECTS, *before[1:]):  # or somebody has set it since, who shall have it so
            gc.set_threshold(*before)

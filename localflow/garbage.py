"""Python's cyclic garbage collector while a flow run is at work.

Every 700 new containers it looks at the young ones, and now and then at all there are. A flow of many tasks holds
millions, hardly any of which is ever part of a cycle, and these looks would take a fifth of the engine's time. So they
are made less often while all tasks run in other processes. Where tasks run in this one, their garbage is here too, and
a few objects of it may hold a lot of memory: there the collector looks as often as ever.
"""

from __future__ import annotations

import gc

#: How many more containers than before there are when the young ones are looked at.
YOUNG_OBJECTS = 20_000


class RareCollection:
    """Has the collector look less often, unless it does already, or is off."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        """The thresholds to be set again."""

    def begin(self) -> None:
        """Have it look less often from now on."""
        before = gc.get_threshold()
        if self._before is None and 0 < before[0] < YOUNG_OBJECTS:
            self._before = before
            gc.set_threshold(YOUNG_OBJECTS, *before[1:])

    def end(self) -> None:
        """Have it look as often as before, unless somebody has said since how often it shall."""
        before, self._before = self._before, None
        if before is not None and gc.get_threshold() == (YOUNG_OBJECTS, *before[1:]):
            gc.set_threshold(*before)

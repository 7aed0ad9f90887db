"""Executors given as instances in code, which several flow runs may want at once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localflow.interfaces import Executor

_SPARE = "_localflow_spare"


def claim(executor: Executor) -> Executor:
    """Return the executor, or a copy of it while another flow run has it.

    The copy is taken before the instance gets ready or starts, when it is nothing but its options.
    """
    spare = copy.copy(executor)
    kept = vars(executor).setdefault(_SPARE, spare)
    return executor if kept is spare else copy.copy(kept)


def release(executor: Executor) -> None:
    """Let an executor be used by the next flow run that wants it."""
    vars(executor).pop(_SPARE, None)

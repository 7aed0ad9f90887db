"""Who drives a flow run: a lock that an engine holds on a file beside the store, free again however the engine dies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from localflow.builtin.storage.directory import make_private_directory, refuse_foreign
from localflow.builtin.storage.failures import not_an_id, os_failure
from localflow.failpoints import reach
from localflow.locks import take_claim

if TYPE_CHECKING:
    from pathlib import Path

    from localflow.interfaces import Claim

#: What a flow run's id must look like to become the name of a file.
FLOW_RUN_ID = re.compile(r"[a-z0-9-]{1,64}")


class Claims:
    """The claims on the flow runs of one store; `directory`, made at the first of them, is for nothing else."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, flow_run_id: str) -> Claim | None:
        """Return a claim on a flow run, or None if another one is alive, whoever holds it. Raises StoreError."""
        if not FLOW_RUN_ID.fullmatch(flow_run_id):
            raise not_an_id(flow_run_id)
        try:
            make_private_directory(self._directory)
            refuse_foreign(self._directory, self._directory.lstat())
            claim = take_claim(self._directory / flow_run_id)
        except OSError as error:
            raise os_failure(self._directory, error) from error
        if claim is not None:
            reach("claimed")
        return claim

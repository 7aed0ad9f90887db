"""State stores that break one promise each: the harness must notice every one of them, or it is the harness that fails.

It is installed as a plugin where the torture runs.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localflow import hookimpl
from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.memory import MemoryStateStore
from localflow.builtin.storage import result_files
from localflow.failpoints import reach
from localflow.interfaces import StoreError
from localflow.locks import take_claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from localflow.hookspecs import RegisterStateStore
    from localflow.interfaces import Claim, Record


class InPlaceStore(MemoryStateStore):
    """Writes one file anew at each append, in its place: whoever dies in the middle of that loses everything."""

    survives = True

    def __init__(self, path: Path = Path(".localflow/in-place")) -> None:
        super().__init__()
        self._path = path
        self._all: list[Record] = []
        self._writing = threading.Lock()
        path.parent.mkdir(exist_ok=True, mode=0o700)
        if path.exists():
            try:
                self._all = pickle.loads(path.read_bytes())
            except Exception as error:
                raise StoreError(f"{path} cannot be read: {error}") from error
            super().append(self._all)

    def append(self, records: Sequence[Record]) -> None:
        """Keep the records, and write all there are."""
        with self._writing:
            super().append(records)
            self._all += records
            content = pickle.dumps(self._all)
            with open(self._path, "wb", opener=_private) as file:
                file.write(content[: len(content) // 2])
                file.flush()
                reach("mid-rewrite")
                file.write(content[len(content) // 2 :])

    def claim(self, flow_run_id: str) -> Claim | None:
        """Take hold of a flow run as it should be done."""
        (folder := self._path.parent / "engines").mkdir(exist_ok=True, mode=0o700)
        return take_claim(folder / flow_run_id)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class EarlyAnswerStore(JsonStateStore):
    """Returns from `append` before the records are written: what is shown then may be lost."""

    def __init__(self, path: Path = Path(".localflow/runs")) -> None:
        super().__init__(path)
        self._late: list[Sequence[Record]] = []
        self._is_late = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def append(self, records: Sequence[Record]) -> None:
        """Leave the records to a thread that is in no hurry."""
        with self._is_late:
            self._late.append(list(records))
            self._is_late.notify()

    def close(self) -> None:
        """Write the rest."""
        with self._is_late:
            self._closing = True
            self._is_late.notify()
        self._writer.join()
        super().close()

    def _write(self) -> None:
        while True:
            with self._is_late:
                self._is_late.wait_for(lambda: self._late or self._closing)
                batches, self._late = self._late, []
                if not batches:
                    return
            time.sleep(0.05)
            for batch in batches:
                super().append(batch)


class ResultAfterRecordStore(JsonStateStore):
    """Writes the files of large results after the lines that name them."""

    def __init__(self, path: Path = Path(".localflow/runs")) -> None:
        super().__init__(path)
        self._promised: list[tuple[Path, bytes]] = []
        self._write_private_file = result_files.write_private_file
        result_files.write_private_file = self._promise  # type: ignore[assignment]

    def append(self, records: Sequence[Record]) -> None:
        """Write the line, then the files."""
        super().append(records)
        promised, self._promised = self._promised, []
        for path, content in promised:
            reach("before-result")
            self._write_private_file(path, content, sync=False)

    def close(self) -> None:
        """Leave no trace in the module."""
        super().close()
        result_files.write_private_file = self._write_private_file

    def _promise(self, path: Path, content: bytes, *, sync: bool) -> None:
        self._promised.append((path, content))


class LockFileStore(JsonStateStore):
    """Takes the existence of a file for a claim: after `kill -9` it stays for ever."""

    def claim(self, flow_run_id: str) -> Claim | None:
        """Make the file; whoever finds it has lost."""
        (folder := Path(self.location) / "engines").mkdir(exist_ok=True, mode=0o700)
        try:
            os.close(os.open(folder / flow_run_id, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return None
        return _LockFile(folder / flow_run_id)


class _LockFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def release(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self._path.unlink()


STORES = {
    "in-place": InPlaceStore,
    "early-answer": EarlyAnswerStore,
    "result-after-record": ResultAfterRecordStore,
    "lock-file": LockFileStore,
}


@hookimpl
def localflow_register_state_stores(register: RegisterStateStore) -> None:
    """Register the broken stores."""
    for name, store in STORES.items():
        register(name, store)

"""Large values without files: what executors need that keep them elsewhere."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localflow.errors import UnpicklableError
from localflow.large_values import FILE, LARGE_BYTES, Draft, Folder, Reference, join_parts
from localflow.payloads import CONTENT, Payload, pack, pickle_parts, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def test_large_buffers_are_left_beside_the_pickle() -> None:
    """They are the memory of the value itself; small ones are in the pickle."""
    large, small = np.arange(LARGE_BYTES), np.arange(3)

    data, buffers = pickle_parts({"large": large, "small": small})

    assert len(data) < LARGE_BYTES
    assert [np.shares_memory(np.frombuffer(buffer, large.dtype), large) for buffer in buffers] == [True]
    loaded = pickle.loads(data, buffers=buffers)
    assert (loaded["large"] == large).all()
    assert (loaded["small"] == small).all()


def test_what_cannot_be_pickled_is_told() -> None:
    """Parts fail as whole pickles do."""
    with pytest.raises(UnpicklableError):
        pickle_parts(number for number in range(3))


@pytest.mark.parametrize("counts", [(), (1,), (LARGE_BYTES, 7, LARGE_BYTES + 1)], ids=str)
def test_joined_parts_are_what_a_file_would_hold(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """They are a payload of the format of contents, byte for byte the file of the same value."""
    arrays = [np.arange(count, dtype=np.uint8) for count in counts]
    data, buffers = pickle_parts([arrays, b"x" * LARGE_BYTES])

    joined = join_parts(data, buffers)

    draft = Draft(Folder(tmp_path / "values"))
    draft.write(data)
    written = draft.finish(buffers)
    assert isinstance(written, Reference)
    assert joined == (tmp_path / "values" / f"{written.file}.part").read_bytes()
    loaded, _ = unpack(Payload(CONTENT, joined))
    assert all((one == other).all() for one, other in zip(loaded, arrays, strict=True))


def test_a_folder_may_write_elsewhere(tmp_path: Path) -> None:
    """What a value is written into is the folder's affair."""

    class Elsewhere(Draft):
        def write(self, data: bytes) -> int:
            pieces.append(bytes(data))
            return len(data)

        def finish(self, buffers: Sequence[memoryview]) -> Reference | bytes:
            return Reference("elsewhere", sum(buffer.nbytes for buffer in buffers), 0)

    class Place(Folder):
        def draft(self) -> Draft:
            return Elsewhere(self)

    pieces: list[bytes] = []

    payload = pack(np.zeros(LARGE_BYTES), Place(tmp_path))

    assert payload.format == FILE
    assert Reference.of(payload.data) == Reference("elsewhere", 8 * LARGE_BYTES, 0)
    assert pieces
    assert [*tmp_path.iterdir()] == []

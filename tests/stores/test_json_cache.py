"""Results by cache key in the JSON store: files that only hint at them, never followed to a wrong one."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.interfaces import CacheEntry, FlowRun, Payload, StateChange
from localflow.testing.store_records import make_completed, make_flow_run, make_task_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = Payload("pickle", bytes(range(256)) * 400)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the store is."""
    return tmp_path / "runs"


@pytest.fixture
def store(path: Path) -> Iterator[JsonStateStore]:
    """Open the store."""
    with closing(JsonStateStore(path)) as store:
        yield store


@pytest.fixture
def flow_run(store: JsonStateStore) -> FlowRun:
    """Record a flow run with a task run."""
    flow_run = make_flow_run()
    store.append([flow_run, make_task_run(flow_run)])
    return flow_run


def cached(flow_run: FlowRun, key: str = "key", sequence: int = 1, result: Payload | None = None) -> StateChange:
    """Return the change of the task run to COMPLETED, with a result to be found under a key."""
    result = result or Payload("json", b'"value"')
    return make_completed(make_task_run(flow_run), sequence, result=result, cache=CacheEntry(key))


def the_hint(path: Path) -> Path:
    """Return the one file in the cache."""
    (file,) = (path / "cache").iterdir()
    return file


def found(path: Path, key: str = "key") -> bytes | None:
    """Return what a store that is opened anew finds."""
    with closing(JsonStateStore(path)) as store:
        result = store.find_cached(key, 0.0)
        return result and result.result.data


def test_each_key_has_one_file(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A file is named by a digest of its key, whatever the key, and tells where the newest result stands."""
    for sequence, key in enumerate(["../../key", "../../key", "a/b", "\x00", "x" * 1000], 1):
        store.append([cached(flow_run, key, sequence)])

    files = list((path / "cache").iterdir())
    hints: list[Any] = [json.loads(file.read_text())["records"] for file in files]
    assert {(hint["key"], hint["sequence"]) for (hint,) in hints} == {
        ("../../key", 2),
        ("a/b", 3),
        ("\x00", 4),
        ("x" * 1000, 5),
    }
    assert all(len(file.stem) == 64 for file in files)


def test_writer_that_dies_before_the_hint_leaves_a_miss(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A result without its hint is not found by key, and by its run as ever."""
    store.append([cached(flow_run)])
    the_hint(path).unlink()

    assert found(path) is None
    assert store.load_result(flow_run.id, 1) == Payload("json", b'"value"')


def test_broken_hint_is_a_miss(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A hint cut or changed anywhere leads nowhere, and the next result replaces it."""
    store.append([cached(flow_run)])
    file = the_hint(path)
    content = file.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 7)
        for broken in (damaged, content[:place]):
            file.write_bytes(broken)
            assert store.find_cached("key", 0.0) is None

    store.append([cached(flow_run, sequence=2)])
    assert found(path) == b'"value"'


def test_hint_to_another_key_is_a_miss(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A file in the place of another is not believed."""
    store.append([cached(flow_run, "one", result=Payload("json", b"1"))])
    content = the_hint(path).read_bytes()
    store.append([cached(flow_run, "two", 2, Payload("json", b"2"))])
    for file in (path / "cache").iterdir():
        file.write_bytes(content)

    assert found(path, "one") == b"1"
    assert found(path, "two") is None


def test_journal_has_the_last_word(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A hint to what the journal does not say of that key is a miss: after a power loss something else may be there."""
    journal = path / flow_run.id / "journal.jsonl"
    before = journal.read_bytes()
    store.append([cached(flow_run, "one")])
    assert found(path, "one") == b'"value"'

    others = [
        cached(flow_run, "two"),
        cached(flow_run, "one", 2),
        cached(flow_run, "one")._replace(cache=None),
        cached(flow_run, "one")._replace(result=None),
    ]
    for other in others:
        journal.write_bytes(before)
        hints = {file: file.read_bytes() for file in (path / "cache").iterdir()}
        with closing(JsonStateStore(path)) as writer:
            writer.append([other])
        for file, content in hints.items():
            file.write_bytes(content)

        assert found(path, "one") is None


def test_lost_journal_is_a_miss(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A result whose flow run was removed, or whose line is damaged, is a miss."""
    store.append([cached(flow_run)])
    journal = path / flow_run.id / "journal.jsonl"
    content = journal.read_bytes()

    journal.write_bytes(content.replace(b"value", b"valve"))
    assert found(path) is None
    journal.write_bytes(content[:-20])
    assert found(path) is None
    journal.unlink()
    assert found(path) is None


def test_lost_result_file_is_a_miss(store: JsonStateStore, path: Path, flow_run: FlowRun) -> None:
    """A large result whose file is not as it was written, or missing, is a miss."""
    store.append([cached(flow_run, result=LARGE)])
    assert found(path) == LARGE.data
    (file,) = (path / flow_run.id / "results").iterdir()

    file.write_bytes(LARGE.data[:-1])
    assert found(path) is None
    file.unlink()
    assert found(path) is None


def test_hint_that_cannot_be_written_is_told(
    store: JsonStateStore, path: Path, flow_run: FlowRun, caplog: pytest.LogCaptureFixture
) -> None:
    """The records are safe without it, so the append succeeds, and a warning says what will be computed again."""
    (path / "cache").write_text("in the way")

    with caplog.at_level(logging.WARNING):
        store.append([cached(flow_run)])

    assert "the result of 'load-1' cannot be reused" in caplog.text
    assert store.load_result(flow_run.id, 1) == Payload("json", b'"value"')
    assert store.find_cached("key", 0.0) is None


def test_link_in_place_of_the_cache_is_not_followed(
    store: JsonStateStore, path: Path, flow_run: FlowRun, tmp_path: Path
) -> None:
    """Nothing is written behind a link that was planted."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (path / "cache").symlink_to(tmp_path / "elsewhere")

    store.append([cached(flow_run)])

    assert list((tmp_path / "elsewhere").iterdir()) == []

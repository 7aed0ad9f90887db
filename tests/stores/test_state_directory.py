"""State is made for its owner alone, and refused where somebody else may write it."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from localflow.builtin.json_files import JsonStateStore
from localflow.builtin.sqlite import SqliteStateStore
from localflow.errors import StoreError
from localflow.interfaces import Payload
from localflow.testing.store_records import make_completed, make_flow_run, make_running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localflow.interfaces import StateStore

    OpenStore = Callable[[], StateStore]
    StoreType = Callable[[Path], StateStore]

LARGE = Payload("pickle", b"x" * 100_000)


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the process's umask: generous, usual, and one that takes rights away from ourselves."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_everything_made_is_private(open_store: OpenStore, path: Path, umask: int) -> None:
    """Every directory has mode 0700 and every file 0600, whatever the umask."""
    flow_run = make_flow_run()

    store = open_store()
    store.append([flow_run, make_completed(flow_run, 1, result=LARGE)])
    claim = store.claim(flow_run.id)
    assert claim is not None

    for place in [path.parent, *path.parent.rglob("*")]:
        mode = stat.S_IMODE(place.lstat().st_mode)
        assert oct(mode) == oct(0o700 if place.is_dir() else 0o600), place
    claim.release()


@pytest.mark.parametrize("id", ["", "..", "../x", "a/b", "A", "a" * 65, "a\n", "\x00"])
def test_claim_of_what_is_no_id_is_refused(open_store: OpenStore, path: Path, id: str) -> None:
    """What is no id of a flow run never becomes the name of a file."""
    store = open_store()

    with pytest.raises(StoreError, match="no flow run's id"):
        store.claim(id)
    assert [*path.parent.rglob("engines/*")] == []


def test_claims_where_others_may_write_are_refused(open_store: OpenStore, path: Path) -> None:
    """The folder of the claims is the user's alone, or nobody gets one."""
    store = open_store()
    claim = store.claim("run")
    assert claim is not None
    claim.release()
    (engines,) = path.parent.rglob("engines")
    engines.chmod(0o770)

    with pytest.raises(StoreError, match=f"{engines} .*chmod go-w"):
        store.claim("run")


def test_link_in_place_of_a_claim_is_not_followed(open_store: OpenStore, path: Path, tmp_path: Path) -> None:
    """A planted link is refused, and what it points to is not made."""
    store = open_store()
    claim = store.claim("run")
    assert claim is not None
    claim.release()
    (engines,) = path.parent.rglob("engines")
    (engines / "run").symlink_to(tmp_path / "target")

    with pytest.raises(StoreError, match="cannot be used"):
        store.claim("run")
    assert not (tmp_path / "target").exists()


def test_each_level_made_is_private(store_type: StoreType, tmp_path: Path) -> None:
    """Each level that had to be made is private, not only the lowest; one that was there stays as it is."""
    (tmp_path / "there").mkdir(mode=0o755)

    store_type(tmp_path / "there" / "one" / "two" / "store").close()

    modes = [stat.S_IMODE((tmp_path / "there" / level).stat().st_mode) for level in (".", "one", "one/two")]
    assert modes == [0o755, 0o700, 0o700]


def test_git_is_told_to_look_away(open_store: OpenStore, path: Path) -> None:
    """The topmost directory that was made holds a .gitignore for everything in it."""
    open_store()

    assert (path.parent / ".gitignore").read_text() == "*\n"
    assert len(list(path.parent.rglob(".gitignore"))) == 1


def test_directory_of_others_is_not_hidden_from_git(open_store: OpenStore, path: Path) -> None:
    """A directory that was there before gets no .gitignore: it may be the user's project."""
    path.parent.mkdir(mode=0o700)

    open_store()

    assert not (path.parent / ".gitignore").exists()


@pytest.mark.parametrize("bits", [0o020, 0o002, 0o022], ids=oct)
def test_directory_that_others_may_write_is_refused(open_store: OpenStore, path: Path, bits: int) -> None:
    """The error names the directory, its mode and the command that helps."""
    open_store().close()
    directory = path.parent if path.suffix else path
    directory.chmod(0o700 | bits)

    with pytest.raises(StoreError, match=f"{directory} .*mode 07{bits:02o}.*chmod go-w {directory}$"):
        open_store()


def test_shared_directory_is_refused(open_store: OpenStore, path: Path) -> None:
    """For a directory like /tmp the advice is another path, not another mode."""
    open_store().close()
    directory = path.parent if path.suffix else path
    directory.chmod(0o1777)

    with pytest.raises(StoreError, match=r"mode 1777.*directory of your own"):
        open_store()


def test_directory_of_somebody_else_is_refused(open_store: OpenStore, path: Path) -> None:
    """A directory that belongs to another user is refused, and the error says whose it is."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    open_store().close()
    directory = path.parent if path.suffix else path
    os.chown(directory, 65534, 65534)

    with pytest.raises(StoreError, match="belongs to user 65534"):
        open_store()


def test_file_that_others_may_write_is_refused(open_store: OpenStore, path: Path) -> None:
    """The file with the records must be the user's alone, too."""
    flow_run = make_flow_run()
    store = open_store()
    store.append([flow_run])
    store.close()
    file = path if path.is_file() else path / flow_run.id / "journal.jsonl"
    file.chmod(0o620)

    with pytest.raises(StoreError, match=f"{file} .*mode 0620.*chmod go-w"):
        open_store().append([make_running(flow_run)])


def test_link_in_place_of_the_store_is_not_followed(open_store: OpenStore, path: Path, tmp_path: Path) -> None:
    """A planted link is refused, and what it points to is neither made nor touched."""
    path.parent.mkdir(mode=0o700)
    target = tmp_path / "target"
    if path.suffix:
        path.symlink_to(target)
    else:
        path.mkdir(mode=0o700)
        (path / "store.json").symlink_to(target)

    with pytest.raises(StoreError):
        open_store()
    assert not target.exists()


def test_link_in_place_of_a_run_is_not_followed(open_store: OpenStore, path: Path, tmp_path: Path, kind: str) -> None:
    """A planted link in the place of a flow run's directory is refused, and nothing is written behind it."""
    if kind != "json":
        pytest.skip("only the JSON store has a directory for each flow run")
    flow_run = make_flow_run()
    store = open_store()
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (path / flow_run.id).symlink_to(target)

    with pytest.raises(StoreError, match="symbolic link"):
        store.append([flow_run])
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/null/state/store", "/proc/no-such-place/store"])
def test_place_that_cannot_be_made_is_an_error(store_type: StoreType, place: str) -> None:
    """The error for a path that leads nowhere names the path and the cause."""
    with pytest.raises(StoreError, match=f"{Path(place).parts[1]}.*(Not a directory|No such file|not permitted)"):
        store_type(Path(place))


def test_relative_path_is_made_absolute(store_type: StoreType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store stays where it was opened when the working directory changes."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = store_type(Path("state/store"))
    monkeypatch.chdir(elsewhere)

    store.append([make_flow_run()])
    store.close()

    assert store.location == str(tmp_path / "state" / "store")
    assert list(elsewhere.iterdir()) == []


def test_power_safe_store_keeps_the_same(kind: str, path: Path) -> None:
    """With durability `full` everything is recorded as without, and any store reads it."""
    make = SqliteStateStore if kind == "sqlite" else JsonStateStore
    flow_run = make_flow_run()
    with closing(make(path, durability="full")) as store:
        store.append([flow_run, make_completed(flow_run, 1, result=LARGE)])
        store.append([make_running(flow_run, 2)])

    with closing(make(path)) as store:
        assert len(list(store.read(flow_run.id))) == 3
        assert store.load_result(flow_run.id, 0) == LARGE


def test_store_that_is_removed_is_missed(open_store: OpenStore, path: Path) -> None:
    """When the files go while the store is open, the next append fails instead of writing into the void."""
    flow_run = make_flow_run()
    store = open_store()
    store.append([flow_run])
    shutil.rmtree(path.parent)

    with pytest.raises(StoreError, match="removed"):
        store.append([make_running(flow_run)])
    with pytest.raises(StoreError):
        list(store.read(flow_run.id))
    assert not path.exists()

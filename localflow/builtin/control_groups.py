"""The control groups this process is in: on Linux, in version 2 or 1, they hold the limits of its container."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from localflow.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The file that lists the groups of this process, one `id:controllers:path` per line.
PROCESS_GROUPS = Path("/proc/self/cgroup")
#: Where the file systems of control groups are mounted.
CONTROL_GROUPS = Path("/sys/fs/cgroup")


class Group(NamedTuple):
    """A control group, as far as one controller is concerned."""

    folder: Path
    is_version_2: bool


def groups(controller: str, process_groups: Path, control_groups: Path) -> Iterator[Group]:
    """Yield the groups that a controller, such as `"cpu"`, has this process in: its own, then those above it.

    The folder of a group need not be there. In a container the path may be that of the host; the root counts then,
    which is yielded last.
    """
    try:
        lines = process_groups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, _, membership = line.partition(":")
        controllers, _, path = membership.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = control_groups / controller if controllers else control_groups
        own = root / path.lstrip("/")
        for folder in [own, *own.parents]:
            yield Group(folder, is_version_2=not controllers)
            if folder == root:
                break

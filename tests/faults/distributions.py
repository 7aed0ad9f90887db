"""Distributions with plugins, installed as pip would do it: files and metadata in a folder that Python looks in."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, source: str) -> None:
        """Install version 1.2 of a distribution `localflow-NAME` with a plugin `NAME`, a module of this source."""
        module = re.sub(r"\W", "_", f"localflow_{name}")
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir(parents=True)
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: localflow-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[localflow]\n{name} = {module}\n")


@pytest.fixture
def site(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder in which the programs of the test find what is installed."""
    folder = own_folder / "site"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
    return Site(folder)

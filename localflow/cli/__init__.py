"""The command line: each verb parses, calls what is below, and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script `localflow`."""
    from localflow.cli.app import run_app

    return run_app(arguments)

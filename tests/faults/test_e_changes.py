"""E7: code or arguments have changed between a crash and the resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Place

FLOW = """
@task
def fetch(n):
    note("fetch", n)
    return n

@task
def clean(value):
    note("clean", value)
    return value

@task
def store(value):
    note("store", value)
    if not os.path.exists("go"):
        os.kill(os.getpid(), signal.SIGKILL)
    return value

@flow
def main():
    untouched = fetch(7)
    return store(clean(fetch(1)))
"""


@pytest.mark.parametrize(
    ("old", "new", "runs", "why"),
    [
        ("note(\"clean\", value)", "note(\"clean\", value, 2)", ["clean 1 2", "store 1"], "its code has changed"),
        ("clean(fetch(1))", "clean(fetch(2))", ["fetch 2", "clean 2", "store 2"], "arguments have changed since"),
        ("", "", ["store 1"], ""),
    ],
)  # fmt: skip
def test_fault_E7_what_has_changed_runs_again_with_its_dependents(
    place: Place, store: str, old: str, new: str, runs: list[str], why: str
) -> None:
    """What has not changed is answered, and the output says why the rest runs."""
    name = place.write(FLOW)
    place.localflow("run", name)
    before = len(place.notes)
    place.write(FLOW.replace(old, new))
    (place.folder / "go").touch()

    done = place.localflow("resume", "@last-failed")

    assert done.returncode == 0, done.stderr
    assert place.notes[before:] == runs
    assert why in done.stderr


def test_fault_E7_strict_refuses_to_resume_what_has_changed(place: Place) -> None:
    """Nothing has run, and without `--strict` it goes on."""
    name = place.write(FLOW)
    place.localflow("run", name)
    before = place.notes
    place.write(FLOW.replace('note("clean", value)', 'note("clean", value, 2)'))
    (place.folder / "go").touch()

    refused = place.localflow("resume", "@last", "--strict")

    assert refused.returncode == 2
    assert "code has changed since clean-0 completed" in refused.stderr
    assert place.notes == before
    assert place.localflow("resume", "@last").returncode == 0

"""Mistakes in localflow.toml and its variables: all refused before anything runs, with their place and the fix.

A mistake is tried by `localflow run` in a process that tries many of them, one after the other; a flow that ran would
leave a note.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.faults.distributions import site as site

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.faults.conftest import Place
    from tests.faults.distributions import Site

FLOW = """
note("loaded")

@task
def work():
    note("worked")

@flow
def main():
    work()
"""

DRIVER = '''
"""Run the verb for each case of cases.json; print what came of it."""
import contextlib, io, json, os, pathlib, tempfile
from localflow.cli.app import run_app

outcomes = []
for case in json.load(open("cases.json")):
    folder = pathlib.Path(tempfile.mkdtemp(dir="."))
    if case["content"] is not None:
        (folder / case["name"]).write_bytes(bytes.fromhex(case["content"]))
    os.environ.update(case["environment"])
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_app(case["arguments"])
    os.chdir("..")
    for name in case["environment"]:
        del os.environ[name]
    outcomes.append([code, out.getvalue(), err.getvalue(), sorted(each.name for each in folder.iterdir())])
print(json.dumps(outcomes))
'''


class Outcome(NamedTuple):
    """What came of a case."""

    code: int
    stdout: str
    stderr: str
    files: Sequence[str]
    """What is in its folder afterwards."""

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.stderr.splitlines()


def outcomes(place: Place, cases: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Run a verb, `run` by default, for each case in a folder of its own."""
    flow = str(place.folder / place.write(FLOW))
    plain = {"content": None, "name": "localflow.toml", "environment": {}, "arguments": ["run", flow]}
    (place.folder / "cases.json").write_text(json.dumps([{**plain, **case} for case in cases]))
    (place.folder / "driver.py").write_text(DRIVER)
    done = place.run("driver.py")
    assert done.returncode == 0, done.stderr
    return [Outcome(*each) for each in json.loads(done.stdout)]


def refused(place: Place, cases: Mapping[str, str | bytes], **common: object) -> dict[str, list[str]]:
    """Return the lines that refuse each localflow.toml; nothing may have been executed or made."""
    contents = [content.encode() if isinstance(content, str) else content for content in cases.values()]
    found = outcomes(place, [{"content": content.hex(), **common} for content in contents])
    assert place.notes == []
    for content, outcome in zip(cases, found, strict=True):
        assert (outcome.code, outcome.stdout) == (2, ""), (content, outcome)
        assert len(outcome.files) == 1, (content, outcome)
        assert "Traceback" not in outcome.stderr, (content, outcome)
        assert all(line.isprintable() for line in outcome.lines), (content, outcome)
    return {name: outcome.lines for name, outcome in zip(cases, found, strict=True)}


# -- H1 --------------------------------------------------------------------------------------------------------------

#: TOML that is none, and the line of the mistake.
SYNTAX = {
    "executor = ": 1,
    "executor = process": 1,
    "executor 'x'": 1,
    "= 'x'": 1,
    "executor = 'x": 1,
    '\nexecutor = "x': 2,
    'executor = "\\q"': 1,
    "executor = 'x' store = 'y'": 1,
    "executor = 'x'\nexecutor = 'y'": 2,
    "\n\n[executors": 3,
    "[executors]]": 1,
    "[executors.]": 1,
    "[]": 1,
    "[executors.a]\n[executors.a]": 2,
    "[executors.a]\nworkers = 1\nworkers = 2": 3,
    "[limits]\ndb = 1.": 2,
    "[limits]\ndb = 01": 2,
    "[limits]\ndb = 1__0": 2,
    "[limits]\ndb = [1, 2": 2,
    "[limits]\ndb = {a = 1": 2,
    "a.b = 1\n[a.b]": 2,
    "executor = 'x'\r[stores]": 1,
    "executor = '\x00'": 1,
}


def test_fault_H1_broken_toml_is_refused_with_its_place(place: Place) -> None:
    """File, line and column of each, in one line."""
    found = refused(place, {content: content for content in SYNTAX})

    for content, lines in found.items():
        assert len(lines) == 1, (content, lines)
        assert re.match(rf"localflow\.toml:{SYNTAX[content]}:\d+: \S", lines[0]), (content, lines)


# -- H2 --------------------------------------------------------------------------------------------------------------

TYPOS = {
    "executer = 'thread'": "localflow.toml:1: unknown key 'executer'; did you mean 'executor'?",
    "\nstores = 'json'": "localflow.toml:2: stores must be a table, got \"json\" (string); did you mean 'store'?",
    "[executor]\nworkers = 1": "localflow.toml:1: executor must be a name in quotes, got a table; "
    "options go in a table [executors.NAME]",
    "[executers.thread]": "localflow.toml:1: unknown table [executers]; did you mean 'executors'?",
    "[executors.process]\nworker = 8": "localflow.toml:2: [executors.process] unknown option 'worker'; "
    "did you mean 'workers'?",
    "[executors.thread]\nWorkers = 8": "localflow.toml:2: [executors.thread] unknown option 'Workers'; "
    "did you mean 'workers'?",
    "[stores.sqlite]\npaht = 'x'": "localflow.toml:2: [stores.sqlite] unknown option 'paht'; did you mean 'path'?",
    "[notifiers.log]\non = ['Fialed']": "localflow.toml:2: [notifiers.log] on names an unknown state 'Fialed'; "
    "did you mean 'Failed'?",
    "[notifiers.webhook]\nurl = 'https://x.org'\nheader = {}": "localflow.toml:3: [notifiers.webhook] unknown option "
    "'header'; did you mean 'headers'?",
}


def test_fault_H2_typos_are_errors_with_the_nearest_name(place: Place) -> None:
    """An unknown key, table, option or state is never passed by."""
    found = refused(place, {content: content for content in TYPOS})

    assert found == {content: [message] for content, message in TYPOS.items()}


def test_fault_H2_all_mistakes_are_told_at_once(place: Place) -> None:
    """In the order of their lines, so that one look mends the file."""
    text = "store = 1\nexecuter = 'x'\n[executors.thread]\nworker = 1\n[limits]\ndb = 0\n"

    [lines] = refused(place, {"all": text}).values()

    assert [line.split(":")[1] for line in lines] == ["1", "2", "4", "6"]


# -- H3 --------------------------------------------------------------------------------------------------------------

VALUES = {
    "string": ("'4'", '"4" (string)'),
    "zero": ("0", "0 (integer)"),
    "negative": ("-1", "-1 (integer)"),
    "huge": ("99999999999999999999", "an integer of 67 bits"),
    "float": ("1.5", "1.5 (float)"),
    "inf": ("inf", "inf (float)"),
    "too large a float": ("1e400", "inf (float)"),
    "nan": ("nan", "nan (float)"),
    "bool": ("true", "true (boolean)"),
    "array": ("[1]", "an array"),
    "table": ("{a = 1}", "a table"),
    "date": ("2024-01-01", "2024-01-01 (date)"),
    "time": ("12:30:00", "12:30:00 (time)"),
}

KEYS = {
    "[executors.process]\nworkers": ("workers must be an integer >= 1", ()),
    "[executors.thread]\nworkers": ("workers must be an integer >= 1", ()),
    "[executors.process]\nenv": ("env must be a table of strings", ("table",)),
    "[stores.sqlite]\npath": ("path must be a path", ("string",)),
    "[notifiers.log]\nmin_duration": ("min_duration must be a number >= 0", ("zero", "float")),
    "[notifiers.log]\nflows": ("flows must be an array of strings", ("array",)),
    "[limits]\ndatabase": ("database must be an integer >= 1", ()),
    "\nexecutor": ("executor must be a name in quotes", ("string",)),
}


def test_fault_H3_wrong_types_and_ranges_are_refused(place: Place) -> None:
    """Each kind of value for each kind of option: what was expected, and what stands there instead."""
    cases, expected = {}, {}
    for (key, (wanted, fitting)), (kind, (text, shown)) in itertools.product(KEYS.items(), VALUES.items()):
        if kind not in fitting:
            cases[f"{key} = {text}"] = f"{key} = {text}\n"
            expected[f"{key} = {text}"] = (f"{wanted}, got {shown}", key)

    found = refused(place, cases)

    for content, lines in found.items():
        message, key = expected[content]
        table = "" if key.startswith("\n") else f"{key.split(chr(10))[0]} "
        assert lines[0].startswith(f"localflow.toml:2: {table}{message}"), (content, lines)
        assert len(lines) == 1


# -- H4 --------------------------------------------------------------------------------------------------------------


def test_fault_H4_unknown_plugins_are_answered_with_those_installed(place: Place, site: Site) -> None:
    """By the role that is asked for, the nearest name first, those of other distributions too."""
    hook = "@hookimpl\ndef localflow_register_executors(register):\n    register('dask', dict)\n"
    site.install("dask", f"from localflow import hookimpl\n{hook}")
    installed = "installed: dask, futures, process, sequential, thread"

    found = refused(
        place,
        {
            "default": "\nexecutor = 'proces'\n",
            "type": "[executors.big]\ntype = 'dusk'\n",
            "table": "[executors.big]\nworkers = 1\n",
            "store": "store = 'postgres'\n",
            "notifier": "[notifiers.ops]\ntype = 'slack'\n",
        },
    )

    assert found == {
        "default": [f"localflow.toml:2: unknown executor 'proces'; did you mean 'process'?; {installed}"],
        "type": [f"localflow.toml:2: [executors.big] unknown executor 'dusk'; did you mean 'dask'?; {installed}"],
        "table": [
            f"localflow.toml:1: [executors.big] unknown executor 'big'; {installed}; "
            "a table with a name of your own needs a 'type'"
        ],
        "store": ["localflow.toml:1: unknown state store 'postgres'; installed: json, memory, sqlite"],
        "notifier": ["localflow.toml:2: [notifiers.ops] unknown notifier 'slack'; installed: command, log, webhook"],
    }


# -- H5 --------------------------------------------------------------------------------------------------------------

VARIABLES = {
    ("LOCALFLOW_EXECUTORS__PROCESS__WORKERS", "many"): "[executors.process] workers must be an integer >= 1, "
    'got "many" (string)',
    ("LOCALFLOW_EXECUTORS__PROCESS__WORKERS", "0"): "[executors.process] workers must be an integer >= 1, "
    "got 0 (integer)",
    ("LOCALFLOW_EXECUTORS__PROCESS__WORKER", "2"): "[executors.process] unknown option 'worker'; "
    "did you mean 'workers'?",
    ("LOCALFLOW_EXECUTORS__PROCESS", "2"): "names no option; write LOCALFLOW_EXECUTORS__NAME__OPTION",
    ("LOCALFLOW_EXECUTOR", "proces"): "unknown executor 'proces'; did you mean 'process'?; "
    "installed: futures, process, sequential, thread",
    ("LOCALFLOW_EXECUTER", "thread"): "unknown variable; did you mean 'LOCALFLOW_EXECUTOR'?",
    ("LOCALFLOW_LIMITS__DB", "none"): '[limits] db must be an integer >= 1, got "none" (string)',
    ("LOCALFLOW_COLOUR", "\x1b[31m"): "unknown variable; known: LOCALFLOW_EXECUTOR, ",
}


def test_fault_H5_wrong_variables_are_refused_by_name(place: Place) -> None:
    """What is wrong in the environment is never taken for the file's, and never passed by."""
    cases = [{"environment": {name: text}} for name, text in VARIABLES]

    found = outcomes(place, cases)

    assert place.notes == []
    for ((name, _), message), outcome in zip(VARIABLES.items(), found, strict=True):
        assert (outcome.code, outcome.stdout, outcome.files) == (2, "", []), outcome
        assert len(outcome.lines) == 1
        assert outcome.lines[0].startswith(f"{name}: {message}"), outcome.lines
        assert outcome.lines[0].isprintable()


def test_fault_H5_a_flag_beats_a_variable_beats_the_file(place: Place) -> None:
    """And `config show --origin` says of each value where it comes from."""
    toml = b"[executors.thread]\nworkers = 2\n[executors.process]\nworkers = 3\n".hex()
    variables = {"LOCALFLOW_EXECUTORS__THREAD__WORKERS": "4", "LOCALFLOW_EXECUTOR": "thread"}
    show = ["config", "show", "--origin", "--json"]
    flow = str(place.folder / "flows.py")

    [shown, ran] = outcomes(
        place,
        [
            {"content": toml, "environment": variables, "arguments": show},
            {"content": toml, "environment": variables, "arguments": ["run", flow, "--executor", "sequential"]},
        ],
    )

    values = json.loads(shown.stdout)
    assert values["executor"] == {"value": "thread", "origin": "LOCALFLOW_EXECUTOR"}
    assert values["executors.thread.workers"] == {"value": 4, "origin": "LOCALFLOW_EXECUTORS__THREAD__WORKERS"}
    assert values["executors.process.workers"] == {"value": 3, "origin": "localflow.toml:4"}
    assert values["store"] == {"value": "sqlite", "origin": "default"}
    assert ran.code == 0
    assert "on executor 'sequential'" in ran.stderr


# -- H6 --------------------------------------------------------------------------------------------------------------


def test_fault_H6_odd_files_are_read_or_refused(place: Place) -> None:
    """Other encodings and absurd nesting are refused as mistakes; a mark in front and Windows line ends are fine."""
    deep = 100_000
    found = refused(
        place,
        {
            "Latin-1": b"\nexecutor = 'f\xfcr'\n",
            "UTF-16": "executor = 'thread'\n".encode("utf-16"),
            "bytes": bytes(range(256)),
            "nested arrays": f"x = {'[' * deep}{']' * deep}",
            "nested tables": f"x = {'{a = ' * deep}1{'}' * deep}",
            "dotted keys": f"{'a.' * deep}a = 1",
            "digits": f"[limits]\nx = {'9' * 10_000}",
            "mark, then a mistake": b"\xef\xbb\xbfexecutor = 'no'\r\n\r\nstore = 'none'\r\n",
        },
    )
    good = "executor = 'thread'\r\n[executors.thread]\r\nworkers = 2\r\n".encode("utf-8-sig")
    [read] = outcomes(place, [{"content": good.hex(), "arguments": ["config", "show"]}])

    assert found["Latin-1"] == ["localflow.toml:2: is not UTF-8 text; save the file as UTF-8"]
    assert found["UTF-16"] == ["localflow.toml:1: is not UTF-8 text; save the file as UTF-8"]
    for name in ("nested arrays", "nested tables", "dotted keys"):
        assert "nested too deeply" in found[name][0], found[name]
    assert found["digits"] == ["localflow.toml:2: Invalid value: an integer of more than 64 bits"]
    assert [line.split(":")[1] for line in found["mark, then a mistake"]] == ["1", "3"]
    assert 'executor = "thread"' in read.stdout


@pytest.mark.parametrize("kind", ["folder", "1 GB", "pipe", "link to nowhere", "link in a circle"])
def test_fault_H6_what_is_no_settings_file_is_refused_at_once(place: Place, kind: str) -> None:
    """Nothing large is read into memory, nothing is waited for."""
    path = place.folder / "localflow.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "1 GB":
        with path.open("wb") as file:
            file.truncate(1 << 30)  # a hole: it takes no space
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "link to nowhere" else path.name)

    done = place.localflow("run", place.write(FLOW), timeout=20)

    message = {
        "folder": "is a directory; a TOML file is expected there",
        "1 GB": "is larger than 1 MiB; is it the right file?",
        "pipe": "is not a regular file; a TOML file is expected there",
        "link to nowhere": "cannot be read: a link to nowhere",
        "link in a circle": "cannot be read: Too many levels of symbolic links",
    }[kind]
    assert (done.returncode, done.stdout, place.notes) == (2, "", [])
    assert done.stderr == f"localflow.toml: {message}\n"

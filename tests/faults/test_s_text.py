"""What users, programs and settings say: shown without harm to a terminal, and without their secrets."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults.distributions import site as site
from tests.faults.test_h_configuration import refused
from tests.faults.test_s_store import VERBS
from tests.notifiers.conftest import serve as serve
from tests.notifiers.test_webhook import make_certificate
from tests.notifiers.test_webhook import no_proxies as no_proxies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Place
    from tests.faults.distributions import Site
    from tests.notifiers.conftest import Receiver

# -- S7 --------------------------------------------------------------------------------------------------------------

EVIL = "\nCOMPLETED fake\x1b]0;x\x07\x9b31m\u202e<img src=x onerror=alert(1)>\x7f\r\u2028\u0085`\"'&end"

HOSTILE = f"""
import logging

EVIL = {EVIL!r}

class Evil(Exception):
    def __repr__(self): return EVIL

@task(name="t" + EVIL, task_run_name="r" + EVIL, tags=["g" + EVIL], retries=1)
def work(x):
    get_run_logger().warning("log" + EVIL)
    logging.getLogger("library").warning("lib" + EVIL)
    raise Evil("boom" + EVIL)

@task
def odd(): return Failed(message="odd" + EVIL, name="n" + EVIL)

@task
def after(x): pass

def hook(*_): raise Evil("hook" + EVIL)

@flow(name="f" + EVIL, flow_run_name="fr" + EVIL, on_failure=[hook], description="d" + EVIL)
def main(p: str = "v" + EVIL):
    w = work({{EVIL: Evil(EVIL)}})
    odd()
    after(w)
"""

READING = [
    *("runs", "runs --json", "show @last", "show @last --json", "show @last --full-traceback"),
    *("logs @last", "logs @last --json", "graph @last", "graph @last --as mermaid", "graph @last --as dot"),
    *("graph @last --json", "clean --older-than 1d --dry-run", "doctor", "plugins", "config show --origin"),
]


def assert_harmless(text: str) -> None:
    """Check that nothing in a text acts on a terminal, and no line of it was made up."""
    acting = {character for character in text if not character.isprintable() and character != "\n"}
    assert acting == set()
    made_up = [line for line in text.split("\n") if line.startswith(("COMPLETED", "end"))]  # not indented, that is
    assert made_up == []


@pytest.mark.parametrize("executor", ["sequential", "process"])
def test_fault_S7_hostile_texts_reach_no_terminal(place: Place, site: Site, executor: str) -> None:
    """Names, messages, logs, tracebacks, options and plugins: escaped in all that is shown, one record a line."""
    site.install("loud", f"from localflow import hookimpl\nraise ValueError({EVIL!r})\n")
    command = [sys.executable, "-c", "import sys; open('told', 'ab').write(sys.stdin.buffer.read())"]
    (place.folder / "localflow.toml").write_text(
        f'[notifiers.ops]\ntype = "command"\ncommand = {json.dumps(command)}\n'
        f"env = {{X = {json.dumps(EVIL)}}}\n[limits]\n{json.dumps(EVIL)} = 2\n".replace("\x7f", "\\u007f")
    )
    (place.folder / "verbs.py").write_text(VERBS)

    ran = place.localflow("run", place.write(HOSTILE), "--executor", executor)
    read = place.run("verbs.py", *READING)

    assert ran.returncode == 1
    codes = [line for line in read.stdout.splitlines() if line.startswith("-> ")]
    expected = {verb: "-> 1" if verb == "doctor" else "-> 0" for verb in READING}  # the plugin is broken
    assert dict(zip(READING, codes, strict=True)) == expected, read.stderr
    for text in (ran.stdout, ran.stderr, read.stdout, read.stderr):
        assert_harmless(text)
    for shown in ("boom", "log", "lib", "hook"):
        assert f"{shown}\n    COMPLETED" in ran.stderr or f"{shown}\\nCOMPLETED" in ran.stderr, shown
    assert "<img" not in read.stdout.partition("== graph @last --as mermaid")[2].partition("-> 0")[0]
    events = [json.loads(line) for line in (place.folder / "told").read_text().splitlines()]
    assert len(events) == len({event["id"] for event in events}) > 8
    assert (place.folder / "told").read_text().isascii()
    assert any(event["run_name"] == "r" + EVIL for event in events)


def test_fault_S7_a_script_warns_without_harm(place: Place) -> None:
    """What localflow says of names in a program that has no logging of its own is escaped as well."""
    program = f"""
EVIL = {EVIL!r}

@task(name="t" + EVIL, timeout_seconds=60, cache_policy=INPUTS)
def work(x): return 1

@flow(name="f" + EVIL)
def main():
    return work(open("flows.py"))

main()
"""

    done = place.run(place.write(program))

    assert_harmless(done.stderr)
    assert "task 't\\nCOMPLETED fake" in done.stderr
    assert "has a timeout" in done.stderr


# -- S10 -------------------------------------------------------------------------------------------------------------

SECRETIVE = """
import os

class Login:
    def __repr__(self): return "Login(user='me', password='canary-repr')"

@task
def use(token, options, url, login, plain):
    return len(token)

@task
def refuse(token, options, url, login, *, api_key):
    raise ValueError("refused")

@flow
def main(api_token: str, database: dict, count: int = 1):
    given = ("canary-token", {"password": "canary-option"}, "https://me:canary-url@x.org/?q=canary-query", Login())
    assert os.environ["SERVICE"] == "canary-environment"
    return [use(*given, "canary-plain"), refuse(*given, api_key="canary-key")]
"""

CONFIGURED = """
[notifiers.ops]
type = "webhook"
url = "http://me:canary-user@127.0.0.1:9/canary-path?key=canary-parameter"
headers = { Authorization = "Bearer canary-header", X-Api-Key = "canary-x" }
timeout = 0.5
on = ["Failed"]
[notifiers.more]
type = "webhook"
url = "env:HOOK"
timeout = 0.5
on = ["Failed"]
[notifiers.run]
type = "command"
command = ["false", "canary-argument"]
env = { SERVICE_TOKEN = "canary-variable" }
on = ["Failed"]
"""


def canaries(text: str) -> set[str]:
    """Return the words of a text that are secrets."""
    return {word for word in text.replace("\x00", " ").replace("-path", "-path ").split() if "canary" in word}


def test_fault_S10_secrets_are_not_shown(place: Place) -> None:
    """Those of settings, of the environment, of parameters and arguments that are named like one, and of URLs.

    The path of a webhook and the arguments of a command cannot be told from others: `config show` shows them to the
    owner of the file; no failure of a notifier does.
    """
    environment = {"HOOK": "http://127.0.0.1:9/canary-hook", "SERVICE": "canary-environment"}
    (place.folder / "localflow.toml").write_text(CONFIGURED)
    (place.folder / "verbs.py").write_text(VERBS)
    reading = [*READING, "config show --json", "show @last/refuse-0", "show @last/refuse-0 --json"]
    given = ["-p", "api_token=canary-parameter", "-p", 'database={"password": "canary-database"}']

    ran = place.localflow("run", place.write(SECRETIVE), *given, **environment)
    unfit = place.localflow("run", "flows.py", "-p", "api_token=canary", "-p", "database=1", **environment)
    read = place.run("verbs.py", *reading, **environment)

    assert (ran.returncode, unfit.returncode) == (1, 2)
    assert canaries(ran.stdout + ran.stderr) == set()
    assert canaries(unfit.stdout + unfit.stderr) == set()
    shown = canaries(read.stdout + read.stderr)
    assert all("canary-path" in word or "canary-argument" in word for word in shown), shown
    assert ran.stderr.count("failed: ") == 3
    assert "***" in read.stdout


def test_fault_S10_what_is_recorded(place: Place, store: str) -> None:
    """Parameters, for `resume` needs them; no environment, no arguments of tasks but, masked, those of failures."""
    environment = {"HOOK": "http://127.0.0.1:9/canary-hook", "SERVICE": "canary-environment"}
    given = ["-p", "api_token=canary-parameter", "-p", 'database={"password": "canary-database"}']
    (place.folder / "localflow.toml").write_text(CONFIGURED)

    place.localflow("run", place.write(SECRETIVE), *given, **environment)

    files = [path for path in (place.folder / ".localflow").rglob("*") if path.is_file()]
    recorded = b"".join(path.read_bytes() for path in files)
    names = {*re.findall("canary-([a-z]+)", SECRETIVE + CONFIGURED)} - {"parameter"}
    assert {"token", "option", "plain", "environment", "header", "variable"} <= names
    assert {name for name in names if f"canary-{name}".encode() in recorded} == set()
    assert b"canary-parameter" in recorded
    assert b"canary-database" in recorded


# -- S11 and S12 -----------------------------------------------------------------------------------------------------


def test_fault_S11_settings_are_data(place: Place) -> None:
    """Nothing in localflow.toml is interpolated, imported or given to a shell; it names what is installed."""
    (place.folder / "evil.py").write_text("open('imported', 'w').close()\ndef factory(): ...\n")
    texts = [
        'executor = "evil:factory"',
        '[executors.x]\ntype = "evil:factory"',
        '[stores.x]\ntype = "evil"\npath = "$(touch imported)"',
        '[notifiers.x]\ntype = "evil.factory"',
        'executor = "$(touch imported)"',
        'store = "`touch imported`"',
        'plugins = ["evil"]',
    ]
    refused(place, {text: text for text in texts})
    (place.folder / "localflow.toml").write_text('[stores.sqlite]\npath = "$HOME/${USER}/$(touch imported)/x.db"\n')

    done = place.localflow("run", place.write("@flow\ndef main(): ...\n"))

    assert done.returncode == 0, done.stderr
    assert (place.folder / "$HOME" / "${USER}").is_dir()
    assert not [*place.folder.rglob("imported")]


def test_fault_S12_webhooks_go_where_they_should_and_tell_little(
    place: Place, serve: Callable[..., Receiver], no_proxies: None
) -> None:
    """No redirect is followed, no false certificate taken, no argument, parameter or result told."""
    elsewhere, fine = serve(200), serve(200)
    moved = [serve((status, f"{elsewhere.url}/x")) for status in (301, 307)]
    false = serve(200, certificate=make_certificate(place.folder))
    urls = [fine.url, false.url, *(each.url for each in moved)]
    (place.folder / "localflow.toml").write_text(
        "".join(
            f'[notifiers.n{number}]\ntype = "webhook"\nurl = "{url}"\non = ["Completed"]\n'
            for number, url in enumerate(urls)
        )
    )
    program = place.write(
        "@task\ndef work(x): return x + 'canary'\n@flow\ndef main(p='canary'): return work('canary').result()\n"
    )

    done = place.localflow("run", program)

    assert done.returncode == 0, done.stderr
    assert (elsewhere.requests, false.requests) == ([], [])
    assert all(len(each.requests) == len(fine.requests) == 2 for each in moved)
    assert all(b"canary" not in request.body for request in fine.requests)
    assert f"notifications: {3 * 2} failed" in done.stderr

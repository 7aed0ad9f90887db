"""Webhooks whose receivers fail or are slow: tried again within their time, counted, and no matter for the run."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.notifiers.conftest import serve as serve
from tests.notifiers.test_webhook import free_port as free_port
from tests.notifiers.test_webhook import make_certificate
from tests.notifiers.test_webhook import no_proxies as no_proxies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.conftest import Finished, Place
    from tests.notifiers.conftest import Receiver

FLOW = """
@task
def work():
    note("worked")

@flow
def main():
    work()
"""

EVENTS = 2
"""What there is to tell of that flow: the ends of a task run and of the flow run."""


def run(place: Place, timeout: float = 3.0, **urls: str) -> Finished:
    """Run the flow with a webhook for each of the names."""
    tables = (
        f'[notifiers.{name}]\ntype = "webhook"\nurl = "{url}/canary?key=canary"\ntimeout = {timeout}\n'
        'on = ["Completed"]\n'
        for name, url in urls.items()
    )
    (place.folder / "localflow.toml").write_text("".join(tables))
    return place.localflow("run", place.write(FLOW))


def tries(receiver: Receiver) -> list[int]:
    """Return how often each event has arrived."""
    return sorted(Counter(request.headers["Idempotency-Key"] for request in receiver.requests).values())


def is_fine(place: Place, done: Finished, failed: int) -> None:
    """Check that the run ended as it would without notifiers, and that the summary counts what failed."""
    assert done.returncode == 0, done.stderr
    assert place.notes == ["worked"]
    assert done.stdout == "State(name='Completed', type=StateType.COMPLETED, message='All states completed.')\n"
    assert f"warning: notifications: {failed} failed\n" in done.stderr
    assert "canary" not in done.stderr
    assert "Traceback" not in done.stderr


def test_fault_G5_receivers_that_fail(
    place: Place, serve: Callable[..., Receiver], free_port: int, no_proxies: None
) -> None:
    """Nobody listens, no such host, errors, hang-ups, a false certificate: three tries at most, others hear all."""
    broken, rude, recovering, fine = serve(500), serve("hang up"), serve(503, 200), serve(200)
    false = serve(200, certificate=make_certificate(place.folder))

    done = run(
        place,
        refused=f"http://127.0.0.1:{free_port}",
        unknown="http://nowhere.invalid",
        broken=broken.url,
        rude=rude.url,
        recovering=recovering.url,
        fine=fine.url,
        false=false.url,
    )

    is_fine(place, done, failed=5 * EVENTS)
    assert tries(broken) == tries(rude) == [3] * EVENTS
    assert tries(recovering) == [1, 2]
    assert tries(fine) == [1] * EVENTS
    assert false.requests == []
    for name, reason in {
        "refused": "Connection refused",
        "unknown": "POST to http://nowhere.invalid: ",
        "broken": "HTTP 500 Internal Server Error",
        "rude": "closed connection without response",
        "false": "certificate verify failed",
    }.items():
        [line] = [line for line in done.stderr.splitlines() if f"notifier '{name}' failed" in line]
        assert reason in line


def test_fault_G6_receivers_that_are_slow(place: Place, serve: Callable[..., Receiver], no_proxies: None) -> None:
    """No answer, or one that drips in byte by byte: given up at the timeout, all of them at the same time."""
    silent, dripping, fine = serve("hang"), serve("drip"), serve(200)
    begun = time.monotonic()

    done = run(place, timeout=0.5, silent=silent.url, dripping=dripping.url, fine=fine.url)

    assert time.monotonic() - begun < 10
    is_fine(place, done, failed=2 * EVENTS)
    assert tries(fine) == [1] * EVENTS
    for name in ("silent", "dripping"):
        [line] = [line for line in done.stderr.splitlines() if f"notifier '{name}' failed" in line]
        assert "no answer within 0.5 seconds" in line

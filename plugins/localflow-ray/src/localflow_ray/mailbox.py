"""An actor on the cluster to which workers write while they are at work, and from which the engine reads.

The outcome of a call needs no mailbox; only what somebody must know before there is one goes this way: that a call has
begun, and where, and what it has said so far.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NamedTuple, TypeAlias

import ray

NAMESPACE = "localflow"

#: What a letter is: from a worker that has begun a call, from one that goes on with it, or an echo for the engine.
Letter: TypeAlias = tuple[Literal["begun", "said", "echo"], int, tuple[Any, ...]]


class Begun(NamedTuple):
    """Where a call is at work, in a letter `begun`."""

    node: str
    """The id of the node, as Ray has it."""
    machine: str
    """Its `machine_mark`."""
    pid: int
    started_at: float

    @property
    def worker(self) -> str:
        """The name of the worker, for readers."""
        return f"{self.machine.partition(' ')[0]} pid {self.pid}"


class Mailbox:
    """Keeps letters until the engine takes them."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._some = asyncio.Event()

    async def put(self, letter: Letter) -> None:
        """Take a letter in."""
        self._letters.append(letter)
        self._some.set()

    async def take(self) -> list[Letter]:
        """Give out all letters there are, as soon as there is one."""
        await self._some.wait()
        self._some.clear()
        letters, self._letters = self._letters, []
        return letters


def open_mailbox(name: str) -> Any:
    """Start a mailbox. Ray does not restart it: what can be restarted it kills first when memory is short."""
    actor = ray.remote(Mailbox)
    return actor.options(name=name, namespace=NAMESPACE, num_cpus=0, max_restarts=0, max_task_retries=0).remote()


def wait_for_mailbox(mailbox: Any) -> None:
    """Wait until a mailbox takes letters."""
    ray.get(mailbox.put.remote(("echo", 0, ())))


def find_mailbox(name: str) -> Any:
    """Return the mailbox of an engine, in a worker; raises ValueError if it is gone."""
    return ray.get_actor(name, namespace=NAMESPACE)

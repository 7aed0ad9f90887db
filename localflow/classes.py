"""Which class is meant by one that travelled as its definition, because its script cannot be imported.

Where nobody knows such a class, a *copy* of it is made. Yet `isinstance` must hold wherever a value meets code that
speaks of the class, so a copy is the last resort:

- A class has an identity, and its copies share it. By that it is found in the process that has defined it, and where
  there is a copy already.
- A value may be older than the process: a result from the store. Then the class of this name is meant, be it in the
  script as it is now, or, in a worker, among the classes that came with functions and arguments from the engine.

What a process has defined itself is never changed; a copy takes over what a later definition of the same class says.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

#: The names that the module of a script may have: as a program, and as a file that the command line has loaded.
SCRIPTS = ("__main__", "__localflow_main__")

_identities: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_known: WeakValueDictionary[str, type] = WeakValueDictionary()
_copies: WeakSet[type] = WeakSet()
#: Those copies that came with values only: for others of the same name there may be something better by now.
_strays: WeakSet[type] = WeakSet()
_from_engine: WeakValueDictionary[tuple[str, str], type] = WeakValueDictionary()
_lock = threading.RLock()


def reduced(kind: type, parts: tuple[Any, ...], defines: bool) -> tuple[Any, ...]:
    """Return how pickle is to write a class.

    Args:
        kind: the class.
        parts: how its definition is written: what makes it of which arguments, its state, and what sets that.
        defines: values that come later are of this class if theirs has the same name; see `meant`.
    """
    make, arguments, state, _, _, fill = parts
    identity = _identity(kind)
    reference = (identity, kind.__module__, kind.__qualname__, defines, make, arguments)
    return meant, reference, (identity, fill, state), None, None, filled


def meant(
    identity: str, module: str, name: str, defines: bool, make: Callable[..., type], arguments: tuple[Any, ...]
) -> type:
    """Return the class that is meant, or a copy yet to be filled if there is none."""
    found = _known.get(identity)
    if not defines and (found is None or found in _strays):
        found = _of_script(module, name) or _from_engine.get(_key(module, name)) or found
    if found is None:
        found = make(*arguments)
        with suppress(Exception):  # a metaclass may forbid it
            found.__qualname__ = name
        with _lock:
            _identities[found] = identity
            _known[identity] = found
            _copies.add(found)
            _strays.add(found)
    if defines and found in _copies:
        _strays.discard(found)
        _from_engine[_key(module, name)] = found
    return found


def filled(kind: type, content: tuple[str, Callable[[type, Any], object], Any]) -> None:
    """Give a copy the attributes of its definition; leave any other class as it is."""
    identity, fill, state = content
    if kind in _copies and _identities.get(kind) == identity:
        fill(kind, state)


def _identity(kind: type) -> str:
    with _lock:
        identity = _identities.get(kind)
        if identity is None:
            identity = _identities[kind] = os.urandom(16).hex()
            _known[identity] = kind
        return identity


def _of_script(module: str, name: str) -> type | None:
    """Return the class of this name that the script has now; its module may have gone by another name then."""
    for script in dict.fromkeys((module, *SCRIPTS)) if module in SCRIPTS else (module,):
        found: Any = sys.modules.get(script)
        for part in name.split("."):
            found = getattr(found, "__dict__", {}).get(part)
        if isinstance(found, type) and (found.__module__, found.__qualname__) == (script, name):
            return found
    return None


def _key(module: str, name: str) -> tuple[str, str]:
    return SCRIPTS[0] if module in SCRIPTS else module, name

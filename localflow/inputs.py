"""A fingerprint of what a task or flow was called with, by which `resume` tells one call from another.

It is made at every call, so it is quick: a microsecond or two for plain values. What cannot be changed in place and is
passed again and again is looked at once, everything else at each call. A fingerprint that ends with `~` is vague:
something in the call counts by its type alone, so that another call may have the same one. A future counts as the run
it belongs to, not as the data it will have.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from localflow.digests import blake2b
from localflow.input_values import LONG, QUICK, Encoder, TooMuchError, digest, type_name
from localflow.typed import NamedTuple

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Mapping

#: The fingerprint of a call without arguments.
NO_INPUTS = "0"
#: What a vague fingerprint ends with.
VAGUE = "~"

_DIGEST_BYTES = 8
_LARGE = 200  # parts of a value from which on it is kept in mind
_KEPT = 4
_MOST_KEPT = 4 << 20  # bytes, about; what is larger is not kept alive


class _Known(NamedTuple):
    value: object
    """Kept, for an id is used again once its object is gone."""
    encoded: bytes
    is_vague: bool


class KnownInputs(dict[int, _Known]):
    """Values that have been looked at, by id: those that go to each run of a map."""


class InputPrints:
    """Makes the fingerprints of the calls of one flow run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fixed = KnownInputs()
        self._arrays: dict[int, tuple[weakref.ref[Any], bytes]] = {}

    def of(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        wait_for: object = None,
        known: KnownInputs | None = None,
    ) -> str:
        """Return the fingerprint of a call; it ends with `~` if it is vague.

        Args:
            args: the positional arguments.
            kwargs: the other ones.
            wait_for: what the call waits for.
            known: values among all these that have been looked at; they count as they were then.
        """
        if not args and not kwargs and wait_for is None:
            return NO_INPUTS
        encoder = None
        parts = []
        values: Iterable[Any] = args
        if kwargs or wait_for is not None:
            names = sorted(kwargs)
            parts.append(f"{len(args)}={':'.join(names)};".encode("utf-8", "surrogatepass"))
            values = [*args, *[kwargs[name] for name in names], wait_for]
        for value in values:
            kind = type(value)
            quick = QUICK.get(kind)
            if quick is not None and (kind is not str or len(value) < LONG):
                parts.append(quick(value))
                continue
            if encoder is None:
                encoder = Encoder(self._arrays)
            parts.append(self._encoded(value, encoder, known))
        fingerprint = blake2b(b"".join(parts), digest_size=_DIGEST_BYTES).hexdigest()
        return fingerprint + VAGUE if encoder is not None and encoder.is_vague else fingerprint

    def known(self, values: Iterable[object]) -> KnownInputs:
        """Look at values that go to many calls, and return what is to be passed to `of` for each of these."""
        found = KnownInputs()
        for value in values:
            if type(value) not in QUICK or (type(value) is str and len(value) >= LONG):
                encoder = Encoder(self._arrays)
                found[id(value)] = _Known(value, self._encoded(value, encoder, None), encoder.is_vague)
        return found

    def _encoded(self, value: Any, encoder: Encoder, known: KnownInputs | None) -> bytes:
        found = known.get(id(value)) if known else None
        if found is None:
            found = self._fixed.get(id(value))
        if found is not None:
            encoder.is_vague |= found.is_vague
            return found.encoded
        was_vague, encoder.is_vague, encoder.is_changeable = encoder.is_vague, False, False
        parts, size = encoder.parts, encoder.byte_count
        try:
            encoded = encoder.encode(value)
        except Exception as error:  # it has too many parts, or is of a class that does not let itself be looked at
            length = len(value) if type(value) in (list, tuple, dict, set, frozenset) else 0
            encoder.restart()
            return b"!%b%d;%b" % (type_name(type(value)), length, b"+" if isinstance(error, TooMuchError) else b"")
        size = len(value) if type(value) is str else encoder.byte_count - size
        if not encoder.is_changeable and (encoder.parts - parts >= _LARGE or size >= LONG):
            encoded = b"#" + digest(encoded)
            if _size(value, _MOST_KEPT) <= _MOST_KEPT:
                self._keep(value, _Known(value, encoded, encoder.is_vague))
        encoder.is_vague |= was_vague
        return encoded

    def _keep(self, value: object, known: _Known) -> None:
        with self._lock:
            if len(self._fixed) >= _KEPT:
                del self._fixed[next(iter(self._fixed))]
            self._fixed[id(value)] = known


def _size(value: Any, most: int) -> int:
    """Return how many bytes a value that cannot be changed takes, not counted further than `most`."""
    size = sys.getsizeof(value)
    if type(value) in (tuple, frozenset):
        for each in value:
            if size > most:
                break
            size += _size(each, most - size)
    return size

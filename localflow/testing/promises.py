"""Which capability each test of a contract belongs to: a plugin need not pass those of what it does not promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from localflow.capabilities import find_capability, role_of

if TYPE_CHECKING:
    from collections.abc import Callable

_ATTRIBUTE = "localflow_capability"
_T = TypeVar("_T", bound="Callable[..., Any] | type")


def belongs_to(capability: str) -> Callable[[_T], _T]:
    """Say of a test, or of all tests of a class that say nothing themselves, which capability it tests."""

    def mark(tested: _T) -> _T:
        if isinstance(tested, type):
            for name, member in vars(tested).items():
                if name.startswith("test_") and not hasattr(member, _ATTRIBUTE):
                    setattr(member, _ATTRIBUTE, capability)
        else:
            setattr(tested, _ATTRIBUTE, capability)
        return tested

    return mark


def capability_of(test: object) -> str:
    """Return the name of the capability that a test belongs to; empty for a plugin's own tests."""
    return getattr(test, _ATTRIBUTE, "")


def skip_unless_promised(subject: object, test: object) -> None:
    """Skip a test whose capability the executor, state store or notifier does not promise."""
    name = capability_of(test)
    if name:
        capability = find_capability(role_of(subject), name)
        if not capability.is_promised(subject):
            pytest.skip(f"{type(subject).__name__} does not promise {name}: {capability.promise}")

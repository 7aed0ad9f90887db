"""The parameters of a flow: what callers and the command line give, fitted to the annotations of its function."""

from __future__ import annotations

import inspect
import reprlib
from typing import TYPE_CHECKING, Any

from localflow.annotations import annotations_of, describe, fit, fit_value
from localflow.errors import ParameterError, UsageError, suggestion
from localflow.masking import MASK, is_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SHOWN_CHARACTERS = 80


def fit_arguments(described: str, function: Callable[..., object], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call, bound by name, as the annotations ask for them.

    A value of the right type stays the object it is; what has another one is read as the command line would read it. An
    annotation that cannot be evaluated or checked lets everything pass, and so does a parameter's own default.

    Args:
        described: whose parameters they are, as `flow 'load'`.
        function: the function that is called.
        parameters: what `inspect.Signature.bind` gives, defaults applied.

    Raises:
        ParameterError: lists every value that does not fit.
    """
    fitted = dict(parameters)
    if not getattr(function, "__annotations__", True):
        return fitted
    annotations = annotations_of(function)
    problems: list[str] = []

    def checked(name: str, value: Any, annotation: Any) -> Any:
        try:
            return fit_value(value, annotation)
        except RecursionError:  # too deeply nested to be looked at
            return value
        except Exception:
            expected = describe(annotation, getattr(function, "__module__", ""))
            problems.append(f"parameter {name!r}: expected {expected}, got {_shown(name, value)}")
            return value

    for name, parameter in inspect.signature(function).parameters.items():
        if name not in annotations or name not in fitted or fitted[name] is parameter.default:
            continue
        annotation, value = annotations[name], fitted[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            fitted[name] = tuple(checked(f"{name}[{at}]", item, annotation) for at, item in enumerate(value))
        elif parameter.kind is parameter.VAR_KEYWORD:
            fitted[name] = {key: checked(key, item, annotation) for key, item in value.items()}
        else:
            fitted[name] = checked(name, value, annotation)
    if problems:
        raise ParameterError(described, problems)
    return fitted


def fit_parameters(flow: str, function: Callable[..., object], texts: Mapping[str, str]) -> dict[str, object]:
    """Return the values that `texts` mean for the parameters of `function`.

    Raises:
        UsageError: lists every unknown, missing and unfitting parameter.
    """
    parameters = inspect.signature(function).parameters
    annotations = annotations_of(function)
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, text in texts.items():
        if name not in named and not takes_any_name:
            takes = f"it takes {', '.join(named)}" if named else "it takes none"
            problems.append(f"flow {flow!r} has no parameter {name!r}{suggestion(name, named) or f'; {takes}'}")
            continue
        annotation = annotations.get(name, Any)
        try:
            values[name] = fit(text, annotation)
        except ValueError:
            expected = describe(annotation, function.__module__)
            problems.append(f"parameter {name!r}: expected {expected}, got {_shown(name, text)}")
    problems += [
        f"flow {flow!r} takes {name!r} by position only, so it cannot be run from the command line"
        for name, p in named.items()
        if p.kind is p.POSITIONAL_ONLY
    ]
    missing = [name for name, p in named.items() if p.default is p.empty and name not in texts]
    if missing:
        problems.append(
            f"flow {flow!r} needs {'a value' if len(missing) == 1 else 'values'} for {', '.join(missing)}: "
            + " ".join(f"-p {name}=VALUE" for name in missing)
        )
    if problems:
        raise UsageError("\n".join(problems))
    return values


def _shown(name: str, value: object) -> str:
    if is_secret(name):
        return MASK
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}...")
    return reprlib.repr(value)  # bounded, and safe from a repr that raises

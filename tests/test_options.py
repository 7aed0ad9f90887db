"""Options of a table against the signatures of factories."""

from __future__ import annotations

import datetime
import functools
import runpy
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional, Union

import pytest

from localflow.config import Origin, Table, Value
from localflow.interfaces import AtLeast, Secret
from localflow.options import MisfitError, bind, fitted, read_options

if TYPE_CHECKING:
    from nowhere import Unknown

ROOT = Path("/project")
WORKERS = Annotated[int, AtLeast(1)] | None
SECONDS = Annotated[float, AtLeast(0.5)]
MODES = Literal["process", "full"]

INF, NAN = float("inf"), float("nan")
MOMENT = datetime.datetime(2024, 1, 2)


def problems_of(factory: Callable[..., object], **options: object) -> list[str]:
    """Return what is wrong with the table `[executors.x]` that holds these options, key by key from line 2."""
    return [str(problem) for problem in bind(table(**options), read_options(factory), ROOT, {}, ("type",)).problems]


def arguments_of(factory: Callable[..., object], environ: Mapping[str, str] | None = None, **options: object) -> Any:
    """Return the keyword arguments that the options become, nothing being wrong with them."""
    bound = bind(table(**options), read_options(factory), ROOT, environ or {}, ("type",))

    assert not bound.problems
    return bound.arguments


def table(**options: object) -> Table:
    """Return a table that stands in a file."""
    origins = (Origin("file", "localflow.toml", line) for line in range(2, 100))
    values = {key: Value(value, origin) for (key, value), origin in zip(options.items(), origins, strict=False)}
    return Table("executors", "x", Origin("file", "localflow.toml", 1), values)


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (str, ["", "a", "4"]),
        (int, [0, -1, 2**63 - 1, -(2**63)]),
        (float, [0.0, -1.5, 1e300]),
        (bool, [True, False]),
        (WORKERS, [1, 8]),
        (SECONDS, [0.5, 2.0]),
        (MODES, ["process", "full"]),
        (Literal[1, True, "x"], [1, True, "x"]),
        (list[int], [[], [1, 2]]),
        (list, [[], [1, "x"]]),
        (Sequence[str], [["a"]]),
        (Iterable[str], [["a"]]),
        (dict[str, int], [{}, {"a": 1}]),
        (dict[str, list[dict[str, bool]]], [{"a": [{"b": True}]}]),
        (Mapping[str, Any], [{"a": [1, "x"]}]),
        (dict, [{"a": 1}]),
        (str | int, ["a", 1]),
        (Optional[Union[int, str]], ["a", 1]),  # noqa: UP007, UP045
        (list[str] | str, ["a", ["a"]]),
        (Annotated[int | None, AtLeast(1)], [1]),
        (str | Callable[[], None], ["module:function"]),
    ],
)
def test_values_that_fit(annotation: Any, values: list[object]) -> None:
    """What an annotation allows arrives unchanged."""
    for value in values:
        arrived = fitted(value, annotation, "x")

        assert arrived == value
        assert type(arrived) is type(value)


@pytest.mark.parametrize(
    ("annotation", "expected", "values"),
    [
        (str, "a string", [4, 4.5, True, MOMENT, [], {}, None]),
        (int, "an integer", ["4", 4.0, True, False, INF, NAN, 2**63, -(2**63) - 1, 10**400, [4], {}, MOMENT]),
        (float, "a number", ["4", True, INF, -INF, NAN, 2**63, 10**400, [], {}]),
        (bool, "true or false", ["true", 1, 0, 1.0, [], {}]),
        (WORKERS, "an integer >= 1", ["4", 0, -1, True, 1.5, INF, 2**64, []]),
        (Annotated[int | None, AtLeast(1)], "an integer >= 1", [0, "x"]),
        (SECONDS, "a number >= 0.5", [0.4, 0, -1, "1", INF, NAN, False]),
        (Path, "a path", [4, True, "", "a\0b", [], {}]),
        (MODES, '"process" or "full"', ["", "Full", 1, True, []]),
        (Literal[1], "1", [True, 1.0, "1", 2]),
        (list[int], "an array of integers", [4, "x", {}]),
        (list[int | str], "an array of integers or strings", [4]),
        (list[list[int]], "an array", [4]),
        (tuple[str, ...], "an array of strings", ["a"]),
        (Sequence[str], "an array of strings", ["a", {}]),
        (dict[str, str], "a table of strings", ["a", [], 1]),
        (str | int, "a string or an integer", [1.5, True, [], {}]),
        (list[str] | str, "an array of strings or a string", [4, {}]),
        (str | Callable[[], None] | None, "a string", [4, {}]),
    ],
)
def test_values_that_do_not_fit(annotation: Any, expected: str, values: list[object]) -> None:
    """What an annotation does not allow is refused with what it allows, in one line."""
    for value in values:
        with pytest.raises(MisfitError, match=r"^x must be ") as raised:
            fitted(value, annotation, "x")

        assert str(raised.value).startswith(f"x must be {expected}, got ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("4", WORKERS, 'x must be an integer >= 1, got "4" (string)'),
        (True, WORKERS, "x must be an integer >= 1, got true (boolean)"),
        (10**19, int, "x must be an integer, got an integer of 64 bits"),
        (INF, float, "x must be a number, got inf (float)"),
        ([1, "2"], list[int], 'x[1] must be an integer, got "2" (string)'),
        ({"a": {"b c": 1}}, dict[str, dict[str, str]], "x.a.b c must be a string, got 1 (integer)"),
        ([0], list[Annotated[int, AtLeast(1)]], "x[0] must be an integer >= 1, got 0 (integer)"),
        ([1], list[str] | str, "x[0] must be a string, got 1 (integer)"),
        ("ful", MODES, 'x must be "process" or "full", got "ful" (string); did you mean \'full\'?'),
        ({"api_key": 3}, dict[str, str], "x.api_key must be a string, got *** (integer)"),
        ({"tokens": ["a"]}, dict[str, list[int]], "x.tokens[0] must be an integer, got *** (string)"),
    ],
)
def test_wording(value: object, annotation: Any, message: str) -> None:
    """A misfit names the innermost place, what is allowed there, and what was found."""
    with pytest.raises(MisfitError) as raised:
        fitted(value, annotation, "x")

    assert str(raised.value) == message


@pytest.mark.parametrize(
    "annotation", [Any, object, Decimal, int | Decimal, NewType("Port", int), dict[int, str], set[str], tuple[int, str]]
)
def test_other_annotations_are_left_unchecked(annotation: Any) -> None:
    """What TOML has no notion of is the factory's own business."""
    for value in (1, "x", INF, [1, "x"], {"a": 1}):
        assert fitted(value, annotation, "x") is value


def test_whole_number_arrives_as_float() -> None:
    """`delay = 2` is a float where a float is wanted."""
    assert type(fitted(2, SECONDS, "x")) is float


def test_array_arrives_as_tuple_where_one_is_wanted() -> None:
    """TOML has one kind of array only."""
    assert fitted([1, 2], tuple[int, ...], "x") == (1, 2)


def test_paths_begin_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path belongs to the project, ~ is the home, an absolute path stays."""
    monkeypatch.setenv("HOME", "/home/me")

    def factory(
        a: Path, b: Path | None, c: Path, d: list[Path], e: Path = Path("e/f"), f: Path | None = None
    ) -> None: ...

    arguments = arguments_of(factory, a="x/y", b="~/z", c="/abs", d=["p", "../q"])

    assert arguments == {
        "a": ROOT / "x/y",
        "b": Path("/home/me/z"),
        "c": Path("/abs"),
        "d": [ROOT / "p", ROOT / "../q"],
        "e": ROOT / "e/f",
    }


def test_home_of_a_stranger_is_refused() -> None:
    """A home that does not exist is a mistake, not a folder named ~."""

    def factory(path: Path) -> None: ...

    assert problems_of(factory, path="~nobody-such/x") == [
        "localflow.toml:2: [executors.x] path must be a path in the home of a user that exists, "
        'got "~nobody-such/x" (string)'
    ]


def test_all_problems_are_found_at_their_lines() -> None:
    """Unknown, missing and wrong options are all reported, each at its own line or that of the table."""

    def factory(workers: WORKERS = None, *, url: str, mode: MODES = "full") -> None: ...

    assert problems_of(factory, type="x", worker=1, mode=3, workers=0) == [
        "localflow.toml:3: [executors.x] unknown option 'worker'; did you mean 'workers'?",
        'localflow.toml:4: [executors.x] mode must be "process" or "full", got 3 (integer)',
        "localflow.toml:5: [executors.x] workers must be an integer >= 1, got 0 (integer)",
        "localflow.toml:1: [executors.x] missing required option 'url'",
    ]


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("worker", "workers"),
        ("Workers", "workers"),
        ("wrokers", "workers"),
        ("num_workers", "workers"),
        ("max-tasks-per-worker", "max_tasks_per_worker"),
        ("max_tasks", "max_tasks_per_worker"),
        ("initialiser", "initializer"),
        ("typ", "type"),
    ],
)
def test_typos_are_answered_with_what_was_meant(typo: str, meant: str) -> None:
    """An unknown option comes with the nearest known one."""

    def factory(workers: int = 1, max_tasks_per_worker: int = 1, initializer: str = "") -> None: ...

    assert problems_of(factory, **{typo: 1}) == [
        f"localflow.toml:2: [executors.x] unknown option '{typo}'; did you mean '{meant}'?"
    ]


def test_option_like_no_other_is_answered_with_all_there_are() -> None:
    """With nothing near, the known options are listed."""

    def factory(workers: int = 1, env: str = "") -> None: ...

    assert problems_of(factory, zzz=1) == ["localflow.toml:2: [executors.x] unknown option 'zzz'; it has workers, env"]
    assert problems_of(lambda: None, zzz=1) == ["localflow.toml:2: [executors.x] unknown option 'zzz'; it has none"]


def test_strange_names_stay_on_one_line() -> None:
    """A key with control characters does no harm to the terminal."""
    assert problems_of(lambda: None, **{"a\nb\x1b": 1}) == [
        "localflow.toml:2: [executors.x] unknown option 'a\\nb\\x1b'; it has none"
    ]


def test_factory_with_open_keywords_takes_anything() -> None:
    """`**kwargs` accept every option; those with a name of their own are still checked."""

    def factory(workers: int = 1, **others: object) -> None: ...

    assert arguments_of(factory, workers=2, anything=INF) == {"workers": 2, "anything": INF}
    assert problems_of(factory, workers="x") == [
        'localflow.toml:2: [executors.x] workers must be an integer, got "x" (string)'
    ]


def test_factory_without_a_signature_takes_anything() -> None:
    """What has no signature to read is not checked."""
    assert arguments_of(type, anything=1) == {"anything": 1}


def test_parameters_without_annotation_are_not_checked() -> None:
    """An option that says nothing takes everything."""
    assert arguments_of(lambda a, b=1: None, a=INF, b={}) == {"a": INF, "b": {}}


class Plain:
    def __init__(self, workers: int = 1) -> None: ...


class Inherited(Plain):
    pass


@dataclass
class Data:
    workers: int = 1


def build(prefix: str, workers: int = 1) -> None:
    """Take a prefix and workers."""


@functools.wraps(build)
def wrapped(*args: object, **kwargs: object) -> None:
    """Look like `build`."""


class Instance:
    def __call__(self, workers: int = 1) -> None:
        """Take workers."""

    @classmethod
    def make(cls, workers: int = 1) -> None:
        """Take workers."""


@pytest.mark.parametrize("factory", [Plain, Inherited, Data, functools.partial(build, "x"), Instance(), Instance.make])
def test_signature_of_any_kind_of_factory(factory: Callable[..., object]) -> None:
    """Classes, dataclasses, functions, partials, methods and callable objects are all read."""
    assert problems_of(factory, workers="x") == [
        'localflow.toml:2: [executors.x] workers must be an integer, got "x" (string)'
    ]


def test_signature_behind_a_decorator() -> None:
    """A decorated function is read as what it wraps."""
    assert problems_of(wrapped, workers=1) == ["localflow.toml:1: [executors.x] missing required option 'prefix'"]


def test_names_imported_for_type_checkers_only() -> None:
    """Annotations that cannot be evaluated as they stand are understood where they mean what all options mean."""
    source = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from pathlib import Path
            from typing import Annotated
            from localflow.interfaces import AtLeast, Secret
            from nowhere import Unknown

        def factory(path: Path, unknown: Unknown | None, workers: Annotated[int, AtLeast(1)] = 1): ...
    """
    Path("factories.py").write_text(textwrap.dedent(source))
    factory = runpy.run_path("factories.py")["factory"]

    assert arguments_of(factory, path="x", unknown=INF) == {"path": ROOT / "x", "unknown": INF}
    assert problems_of(factory, path=1, unknown=1, workers=0) == [
        "localflow.toml:2: [executors.x] path must be a path, got 1 (integer)",
        "localflow.toml:4: [executors.x] workers must be an integer >= 1, got 0 (integer)",
    ]


def test_annotation_that_raises_leaves_the_names_checked() -> None:
    """A signature that cannot be evaluated is still good for the names of the options."""

    def factory(workers: Unknown[0] = 1) -> None: ...

    assert arguments_of(factory, workers="x") == {"workers": "x"}
    assert len(problems_of(factory, worker="x")) == 1


# -- values from the environment --


def test_env_values_are_put_in_place() -> None:
    """`env:NAME` becomes the variable's text, at any depth."""

    def factory(url: str, headers: dict[str, str], args: list[str]) -> None: ...

    arguments = arguments_of(
        factory,
        {"HOOK": "https://x", "AUTH": "hush"},
        url="env:HOOK",
        headers={"A": "env:AUTH"},
        args=["a", "env:AUTH"],
    )

    assert arguments == {"url": "https://x", "headers": {"A": "hush"}, "args": ["a", "hush"]}


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "4", 4),
        (str, "4", "4"),
        (bool, "true", True),
        (float, "4", 4.0),
        (list[int], "[1, 2]", [1, 2]),
        (Any, "4", "4"),
    ],
)
def test_env_values_are_read_as_the_option_wants(annotation: Any, text: str, value: object) -> None:
    """A variable is text; where the option wants something else, it is read as that."""

    def factory(x: object) -> None: ...

    factory.__annotations__["x"] = annotation

    assert arguments_of(factory, {"X": text}, x="env:X") == {"x": value}


def test_env_value_that_is_missing() -> None:
    """A variable that is not set, or set to nothing, is named; the option does not count as missing too."""

    def factory(url: str, other: str = "") -> None: ...

    bound = bind(table(url="env:HOOK", other="env:"), read_options(factory), ROOT, {"HOOK": ""})

    assert [str(problem) for problem in bound.problems] == [
        "localflow.toml:2: [executors.x] url: environment variable HOOK is not set",
        "localflow.toml:3: [executors.x] other: 'env:' names no environment variable; write env:NAME",
    ]


def test_env_value_is_never_shown() -> None:
    """A variable with a wrong value is not printed."""

    def factory(workers: int) -> None: ...

    bound = bind(table(workers="env:N"), read_options(factory), ROOT, {"N": "hush"})

    assert [str(problem) for problem in bound.problems] == [
        "localflow.toml:2: [executors.x] workers must be an integer, got *** (string)"
    ]


def test_secrets_are_told() -> None:
    """What came from the environment or stands under a secret key is known as a secret."""

    def factory(**options: object) -> None: ...

    bound = bind(
        table(a="env:A", token="t", open="o", more={"api_key": "k"}), read_options(factory), ROOT, {"A": "hush"}
    )

    assert list(bound.secrets) == ["hush", "t", "k"]


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[list[str], Secret()],
        Annotated[list[str], Secret()] | None,
        Annotated[list[str] | None, AtLeast(1), Secret()],
        Annotated[Annotated[list[str], Secret()], AtLeast(1)],
    ],
)
def test_option_marked_as_a_secret_is_one(annotation: Any) -> None:
    """Its value is known as a secret, and one of the wrong type is masked, whatever the option is called."""

    def factory(addresses: Any, open: Any = None) -> None: ...

    factory.__annotations__["addresses"] = annotation
    options = read_options(factory)

    bound = bind(table(addresses=["hush"], open="o"), options, ROOT, {})
    (problem,) = problems_of(factory, addresses="hush")

    assert (bound.arguments["addresses"], list(bound.secrets)) == (["hush"], [["hush"]])
    assert problem.endswith("addresses must be an array of strings, got *** (string)")
    assert {name: option.is_secret for name, option in options.known.items()} == {"addresses": True, "open": False}

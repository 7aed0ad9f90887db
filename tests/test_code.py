"""The fingerprint of code: another one when what a function does has changed, and only then."""

from __future__ import annotations

import functools
import importlib
import linecache
import sys
from typing import TYPE_CHECKING, Any

import pytest

from localflow.code import code_of, is_changed

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from localflow import flow, task
import time
import helpers_of_mine
from helpers_of_mine import scaled
import json

RATE = 3
TABLE = {"a": 1}
STARTED = time.time()


class Money:
    unit = "EUR"

    def __init__(self, amount):
        self.amount = amount

    @property
    def doubled(self):
        return self.amount * 2


def inner(x):
    return x + 1


def circle(n):
    return other(n)


def other(n):
    return circle(n)


@task(retries=1)
def work(x, y=5):
    "Work."
    money = Money(inner(x) * RATE + TABLE["a"])
    ordered = sorted(x, key=lambda item: item + 1)
    return json.dumps([money.doubled, scaled(y), helpers_of_mine.twice(y), STARTED, ordered])


@task
def calls_a_task(x):
    return work(x)


@flow
def main():
    return calls_a_task(work(1))
"""

HELPERS = """
def scaled(x):
    return x * 10


def twice(x):
    return 2 * x
"""


@pytest.fixture
def load(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what loads the module anew, with a text in it replaced by another."""
    monkeypatch.syspath_prepend(str(own_folder))
    count = iter(range(1000))

    def load(old: str = "", new: str = "", helpers: tuple[str, str] = ("", "")) -> Any:
        assert old in MODULE
        name = f"module_of_mine_{next(count)}"
        (own_folder / "helpers_of_mine.py").write_text(HELPERS.replace(*helpers) if helpers[0] else HELPERS)
        file = own_folder / f"{name}.py"
        file.write_text(MODULE.replace(old, new) if old else MODULE)
        space: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
        sys.modules.pop("helpers_of_mine", None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        exec(compile(file.read_text(), str(file), "exec"), space)
        return space

    yield load
    sys.modules.pop("helpers_of_mine", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inner(x) * RATE", "inner(x) + RATE"), ("return x + 1\n", "return x + 2\n"), ("y=5", "y=6"),
        ("RATE = 3", "RATE = 4"),
        ('"a": 1}', '"a": 2}'), ("self.amount * 2", "self.amount * 3"), ('unit = "EUR"', 'unit = "USD"'),
        ("item + 1", "item - 1"),
    ],
)  # fmt: skip
def test_a_change_of_what_it_does_is_noticed(load: Any, old: str, new: str) -> None:
    """In its body, its defaults, what it calls, constants and classes that it uses."""
    assert is_changed(code_of(load(old, new)["work"]), code_of(load()["work"]))


@pytest.mark.parametrize("helpers", [("x * 10", "x * 11"), ("2 * x", "3 * x")])
def test_a_change_in_another_module_of_the_user_is_noticed(load: Any, helpers: tuple[str, str]) -> None:
    """Imported by name, or as a module."""
    assert is_changed(code_of(load(helpers=helpers)["work"]), code_of(load()["work"]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def inner(x):", "# a comment\n\n\ndef inner(x):"), ('"Work."', '"Work, and work."'),
        ("retries=1", "retries=3"),
        ("def circle(n):", "def unused():\n    return 1\n\n\ndef circle(n):"), ("", ""),
    ],
)  # fmt: skip
def test_what_changes_nothing_of_it_is_not_noticed(load: Any, old: str, new: str) -> None:
    """Comments, docstrings, options, other functions, values that are computed at every start."""
    assert code_of(load(old, new)["work"]) == code_of(load()["work"])


def test_a_task_that_a_task_calls_is_part_of_it_but_not_of_a_flow(load: Any) -> None:
    """In a task it is a plain function, in a flow a run of its own."""
    before, after = load(), load("y=5", "y=6")

    assert is_changed(code_of(after["calls_a_task"]), code_of(before["calls_a_task"]))
    assert not is_changed(after["main"].code, before["main"].code)


def test_functions_that_call_each_other_have_a_fingerprint(load: Any) -> None:
    """Circles end."""
    assert code_of(load()["circle"]) == code_of(load()["circle"])


def test_what_has_no_python_code_counts_as_unchanged() -> None:
    """So does code of another version of Python."""
    assert code_of(len) == ""
    assert not is_changed("", code_of(functools.partial(is_changed)))
    assert not is_changed("3.11:abc", "3.12:def")
    assert is_changed("3.11:abc", "3.11:def")


@pytest.fixture
def fresh(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what loads a module from its text anew, beside a module of constants, as another process would."""
    monkeypatch.syspath_prepend(str(own_folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def fresh(text: str, conf: str = "RATE = 1\n") -> Any:
        (own_folder / "conf_of_mine.py").write_text(f"import time\n{conf}\nSTARTED = time.time()\n")
        (own_folder / "work_of_mine.py").write_text(text)
        forget()
        return importlib.import_module("work_of_mine")

    def forget() -> None:
        for name in ("conf_of_mine", "work_of_mine"):
            sys.modules.pop(name, None)
        linecache.clearcache()
        importlib.invalidate_caches()

    yield fresh
    forget()


DECORATOR = """
import functools, time
def times(n, by=1):
    began = time.time()
    calls = 0
    scale = 10
    def decorate(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            nonlocal calls
            calls += 1
            return n * fn(*args) * scale, began
        return wrapper
    return decorate
"""


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("import functools\n@functools.cache\ndef h(x): return x+1\ndef t(x): return h(x)", "x+1", "x+2"),
        ("import functools\nclass K:\n    @functools.lru_cache(9)\n    def h(self): return 1\ndef t(x): return K().h()",
         "return 1", "return 2"),
        (f"{DECORATOR}@times(2)\ndef t(x): return x", "@times(2)", "@times(3)"),
        (f"{DECORATOR}@times([2], by=[1])\ndef t(x): return x", "by=[1]", "by=[3]"),
        (f"{DECORATOR}@times(2)\ndef t(x): return x", "n * fn", "n + fn"),
        (f"{DECORATOR}@times(2)\ndef t(x): return x", "return x", "return x+1"),
        (f"{DECORATOR}def t(x): return x\nt = times(2)(t)", "times(2)", "times(3)"),
        (f"{DECORATOR}def t(x): return x\nt = times(2)(t)", "scale = 10", "scale = 11"),
        (f"{DECORATOR}@times(2)\ndef h(x): return x\ndef t(x): return h(x)", "@times(2)", "@times(3)"),
        ("class D:\n    def __init__(self, f): self.f = f\n    def __call__(self, *a): return self.f(*a)\n"
         "@D\ndef h(x): return x+1\ndef t(x): return h(x)", "x+1", "x+2"),
        ("class D:\n    def __init__(self, f): self.f = f\n    def __call__(self, *a): return self.f(*a)\n"
         "@D\ndef h(x): return x+1\ndef t(x): return h(x)", "f(*a)", "f(1)"),
        ("import contextlib\n@contextlib.contextmanager\ndef h(): yield 1\ndef t(x):\n    with h() as y: return y",
         "yield 1", "yield 2"),
        ("import functools\ndef h(a, b): return a*b\nd = functools.partial(h, 2)\ndef t(x): return d(x)",
         "(h, 2)", "(h, 3)"),
        ("import functools\ndef h(a, b): return a*b\nt = functools.partial(h, 2)", "(h, 2)", "(h, 3)"),
        ("class K:\n    f = staticmethod(lambda x: x+1)\nk = K()\ndef t(x): return k.f(x)", "x+1", "x+2"),
        ("class K:\n    def __init__(self, n): self.n = n\nk = K(1)\ndef t(x): return k.n", "K(1)", "K(2)"),
        ("class A:\n    def f(self): return 1\nclass K(A): pass\ndef t(x): return K().f()", "return 1", "return 2"),
        ("class M(type):\n    def f(cls): return 1\nclass K(metaclass=M): pass\ndef t(x): return K.f()",
         "return 1", "return 2"),
        ("FNS = {'a': lambda x: x+1}\ndef t(x): return FNS['a'](x)", "x+1", "x+2"),
        ("def a(): return 1\ndef b(): return 2\ndef t(x): return a() - b()",
         "a(): return 1\ndef b(): return 2", "a(): return 2\ndef b(): return 1"),
        ("def h(x): return x+1\nFNS = [(h, 1)]\ndef t(x): return FNS[0][0](x)", "x+1", "x+2"),
        ("FNS = {}\ndef put(f): FNS[f.__name__] = f\n@put\ndef h(x): return x+1\ndef t(x): return FNS['h'](x)",
         "x+1", "x+2"),
        ("class A:\n    T = [1]\n    def f(self): return self.T\ndef t(x): return A().f()", "[1]", "[2]"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    y: int = 1\ndef t(x): return A().y",
         "= 1", "= 2"),
        ("from dataclasses import dataclass\n@dataclass(order=True)\nclass A:\n    y: int\ndef t(x): return A(x)",
         "order=True", "order=False"),
        ("from collections import namedtuple\nA = namedtuple('A', 'y z')\ndef t(x): return A(1, 2)", "y z", "z y"),
        ("import functools\nclass A:\n    @functools.cached_property\n    def y(self): return 1\ndef t(x): return A()",
         "return 1", "return 2"),
        ("def t(x, y=[1]): return x", "[1]", "[2]"),
        ("def t(x, *, y={'a': 1}): return x", "1}", "2}"),
        ("def h(): return 1\ndef t(x, y=h): return y()", "return 1", "return 2"),
        ("def make(n):\n    def t(x): return x*n\n    return t\nt = make(2)", "make(2)", "make(3)"),
        ("BASE = 2\nALL = [BASE * 3]\ndef t(x): return ALL", "BASE = 2", "BASE = 3"),
        ("try:\n    RATE = 1\nexcept OSError:\n    RATE = 0\ndef t(x): return RATE", "RATE = 1", "RATE = 2"),
    ],
)  # fmt: skip
def test_a_change_around_what_it_does_is_noticed(fresh: Any, text: str, old: str, new: str) -> None:
    """In wrappers, partials, objects, bases, containers, members and defaults; loaded anew it is the same."""
    assert text.count(old) == 1
    before = code_of(fresh(text).t)

    assert is_changed(code_of(fresh(text.replace(old, new)).t), before)
    assert code_of(fresh(f"# moved\n\n{text}").t) == before


@pytest.mark.parametrize(
    "text",
    [
        "from conf_of_mine import RATE\ndef t(x): return x*RATE",
        "from conf_of_mine import RATE as R, STARTED\ndef t(x): return x*R, STARTED",
        "from conf_of_mine import *\ndef t(x): return x*RATE, STARTED",
        "import conf_of_mine\ndef t(x): return x*conf_of_mine.RATE, conf_of_mine.STARTED",
        "import conf_of_mine as c\nTWICE = c.RATE * 2\ndef t(x): return x*TWICE",
        "import conf_of_mine as c\ndef t(x, y=c.RATE): return x*y",
    ],
)
def test_a_change_of_a_constant_in_another_module_is_noticed(fresh: Any, text: str) -> None:
    """However it is imported; what is computed there as it is loaded does not count, nor what is not used."""
    before = code_of(fresh(text).t)

    assert is_changed(code_of(fresh(text, "RATE = 2\n").t), before)
    assert code_of(fresh(text, "# much\n\nOTHER = 5\nRATE = 1\n").t) == before


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("import time\ndef t(x, y=time.time()): return y", ""),
        ("import os, time\nclass K:\n    at = time.time()\n    pid = os.getpid()\ndef t(x): return K.at", "K.pid += 1"),
        (f"{DECORATOR}@times(time.time())\ndef t(x): return x", "t(1)"),
        (f"{DECORATOR}def t(x): return x\nt = times(2)(t)", "t(1)"),
        ("import time\ndef make():\n    at = time.time()\n    def t(x): return at\n    return t\nt = make()", ""),
        ("def make(n):\n    def t(x):\n        nonlocal n\n        n += 1\n    return t\nt = make(1)", "t(1)"),
        ("class K: pass\nk = None\ndef t(x):\n    global k\n    k = k or K()", "t(1)"),
        ("class K: pass\nk = None\ndef t(x):\n    global k\n    k = k or (lambda: 1)", "t(1)"),
        ("seen = []\ndef t(x, memo={}):\n    seen.append(x)\n    memo[x] = 1", "t(1)"),
        ("class K:\n    kept = None\n    def f(self):\n        K.kept = 1\ndef t(x): return K().f()", "t(1)"),
        ("import functools\n@functools.cache\ndef h(x): return x\ndef t(x): return h(x)", "t(1)"),
        ("import functools\n@functools.singledispatch\ndef h(x): return x\ndef t(x): return h(x)", "t(1)"),
        ("def t(x):\n    global k\n    k = 1", "t(1)"),
        ("def h(): pass\ndef t(x):\n    global a\n    a = h", "t(1)"),
        ("all = {}\ndef h(): pass\ndef a(): pass\ndef t(x):\n    all[x] = h\n    all[2] = a", "t(1)"),
        ("made = {}\ndef t(x): made[x] = lambda: 1", "t(1)"),
        ("def a(): pass\ndef b(): pass\nboth = {a, b}\ndef t(x): return both", "both.add(lambda: 1)"),
        (
            "import threading\nlock = threading.Lock()\nfile = open(__file__)\nfile.close()\ndef t(x): lock, file",
            "",
        ),
    ],
)
def test_what_is_computed_or_changes_while_it_runs_does_not_count(fresh: Any, text: str, use: str) -> None:
    """Another time or process, and values that were put in by earlier calls, are no change of the code."""
    before = code_of(fresh(text).t)

    module = fresh(text)
    exec(use, vars(module))
    assert code_of(module.t) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def t(x):", 'def t(x):\n    "A docstring that was not there."'),
        ("@lf.task(retries=1)", "@lf.task(retries=2)"), ("@lf.task(retries=1)", "@lf.task"),
        ("@task(tags=['a'])", "@task(tags=['b'])"), ("(x) -> int", "(\n    x,\n) -> float"),
    ],
)  # fmt: skip
def test_docstrings_and_options_do_not_count(fresh: Any, old: str, new: str) -> None:
    """Also where there are other decorators, whose arguments do."""
    text = (
        f"import localflow as lf\nfrom localflow import task\n{DECORATOR}@lf.task(retries=1)\n@times(2)\n"
        "def t(x):\n    print(h(x))\n@task(tags=['a'])\n@times(3)\ndef h(x) -> int: return x\n"
    )
    assert old in text
    assert code_of(fresh(text.replace(old, new)).t) == code_of(fresh(text).t)

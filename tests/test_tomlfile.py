from __future__ import annotations

import os
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow.errors import ConfigError
from localflow.tomlfile import MAX_BYTES, key_lines, parse_value, read_toml

FILE = Path("localflow.toml")

DOCUMENT = '''\
top = 1
"quoted key" = 2
'literal.key' = 3
dotted . "a b" . c = 4   # = 5
text = """
not_a_key = 1
[not.a.table]
\\""" still = "text"
"""
literal = \'\'\'
nor = 'this'
\'\'\'
after = """"x"""" # four quotes at each end

[ table . "of \\u00e9" ]
key = "# no comment [no.table]"
array = [
  "a = 1", # a comment ] with brackets
  [1, 2], { inner = 1,
  other = { deep = 2 } },
]
inline = { a = 1, "b.c" = "}", d = { e = [ { f = 1 } ] } }
four = { a = """x"""", b = "y" }
last = 1979-05-27 07:32:00.5
[[things]]
name = 1
[[things]]
name = 2
[things.sub]
x = 1.5
[table]
[empty]
'''


def error_of(content: str | bytes) -> str:
    """Return the one line that is wrong with a localflow.toml of this content."""
    FILE.write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(ConfigError) as raised:
        read_toml(FILE.absolute())

    assert len(raised.value.problems) == 1
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("top",), 1),
        (("quoted key",), 2),
        (("literal.key",), 3),
        (("dotted",), 4),
        (("dotted", "a b", "c"), 4),
        (("text",), 5),
        (("literal",), 10),
        (("after",), 13),
        (("table", "of é"), 15),
        (("table", "of é", "key"), 16),
        (("table", "of é", "array"), 17),
        (("table", "of é", "array", "inner"), 19),
        (("table", "of é", "array", "other", "deep"), 20),
        (("table", "of é", "inline", "b.c"), 22),
        (("table", "of é", "inline", "d", "e", "f"), 22),
        (("table", "of é", "four", "b"), 23),
        (("table", "of é", "last"), 24),
        (("things",), 25),
        (("things", "name"), 26),
        (("things", "sub", "x"), 30),
        (("table",), 31),
        (("empty",), 32),
    ],
)
def test_line_of_a_key(key: tuple[str, ...], line: int) -> None:
    """Every key and header is found where it stands, whatever surrounds it."""
    tomli.loads(DOCUMENT)

    lines = key_lines(DOCUMENT)

    assert lines[key] == line


def test_nothing_else_has_a_line() -> None:
    """What only looks like a key or a header, in a string or a comment, is none."""
    lines = key_lines(DOCUMENT)

    assert not {key for key in lines if {"not_a_key", "not", "still", "nor", "a = 1", "no"} & set(key)}


VALUES = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        "2024-02-29 10:00:00",
        '"a # b = [c]"',
        "'\\'",
        '"\\\\"',
        '"\\""',
        '""',
        "''",
        '"""\n[x]\ny = 1\n"""',
        '""""two"" quotes"""""',
        "'''\n'z' = [\n'''",
        '"""a\\\n   b"""',
        "[]",
        "[ [], [ 1,\n 2 ],\n # ] = {\n ]",
        "{}",
        '{ p = 1, "q r".s = "}" }',
        '[ { u = [ "]" ] }, { u = 2 } ]',
    ]
)
KEYS = st.one_of(st.text("ab_-1", min_size=1, max_size=3), st.text("é. \"'#=[]\\", max_size=3))


STATEMENTS = st.tuples(
    st.booleans(),
    st.lists(KEYS, min_size=1, max_size=3),
    VALUES,
    st.sampled_from(["", " # [c] = 1", "\n", "\n\n  "]),
)


@settings(deadline=None)
@given(st.lists(STATEMENTS), st.sampled_from(["\n", "\r\n"]))
def test_lines_of_generated_documents(statements: list[tuple[bool, list[str], str, str]], newline: str) -> None:
    """Whatever valid document is put together, each of its keys is found on its line."""
    document, table, expected = "", [], {}
    for number, (is_header, parts, value, space) in enumerate(statements):
        key = [f"k{number}", *parts]  # never the same twice
        dotted = ".".join(quoted(part) for part in key)
        table = key if is_header else table
        expected[tuple(key if is_header else [*table, *key])] = document.count("\n") + 1
        document += (f"[{dotted}]" if is_header else f"{dotted} = {value}") + space + "\n"
    tomli.loads(document)

    found = key_lines(document.replace("\n", newline))

    assert {key: found.get(key) for key in expected} == expected


def quoted(part: str) -> str:
    """Return a part of a key as TOML takes it."""
    return part if part.isalnum() and part.isascii() else '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_line_of_a_key_that_is_not_there_is_that_of_its_table() -> None:
    """A key without a line of its own is shown at the table around it."""
    FILE.write_text("\n[a.b]\nc = 1\n")

    file = read_toml(FILE)

    assert file is not None
    assert file.line("a", "b", "missing") == 2
    assert file.line("nothing") == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("a = 1\n\nb = ?", "3:5: Invalid value"),
        ("a = \n", "1:5: Invalid value"),
        ("a =", "1:4: Invalid value"),
        ("a", "1:2: Expected '=' after a key in a key/value pair"),
        ("= 1", "1:1: Invalid statement"),
        ("[a", "1:3: Expected ']' at the end of a table declaration"),
        ("[]", "1:2: Invalid initial character for a key part"),
        ("[a]\nb = 1\n[a]\n", "3:3: "),
        ("a = 1\na = 2\n", "2:6: Cannot overwrite a value"),
        ("a = 1\n[a.b]\n", "2:5: "),
        ("a = [1, 2\n", ""),
        ('a = "x\n', "1:7: Illegal character '\\n'"),
        ('a = """x\n', "2:1: "),
        ("a = 'x", ""),
        ('a = "\\q"', "1:"),
        ('a = "\x00"', "1:"),
        ('a = "\\ud800"', "1:"),
        ("a = 2024-13-01", "1:"),
        ("a = 01", "1:"),
        ("a = 1 2", "1:7: "),
        ("a = tru", "1:5: Invalid value"),
        ("a = 1\rb = 2", "1:6: "),
        ("a = {b = 1", "1:"),
        ("\r\n\r\na = ?\r\n", "3:5: Invalid value"),
        ("\ufeff\na = ?", "2:5: Invalid value"),
        ("\ufeffa = ?", "1:5: Invalid value"),
    ],
)
def test_syntax_errors_name_line_and_column(content: str, place: str) -> None:
    """Broken TOML is one line with file, line, column and what the parser says."""
    message = error_of(content)

    assert message.startswith(f"localflow.toml:{place}")
    assert message.split(":")[1].isdigit()
    assert message.split(":")[2].isdigit()
    assert "(at " not in message


def test_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    """Files from any editor are read."""
    FILE.write_bytes(b'\xef\xbb\xbfa = 1\r\nb = """x\r\ny"""\r\n')

    file = read_toml(FILE)

    assert file is not None
    assert file.values == {"a": 1, "b": "x\ny"}
    assert file.line("b") == 2


@pytest.mark.parametrize("data", [b"a = 1\nb = '\xff'\n", "a = 1\n# ü\n".encode("latin-1"), b"\n\xc3"])
def test_other_encodings_are_refused(data: bytes) -> None:
    """A file that is not UTF-8 is one line that says so, with the line of the first bad byte."""
    assert error_of(data) == "localflow.toml:2: is not UTF-8 text; save the file as UTF-8"


def test_utf_16_is_refused() -> None:
    """What Notepad calls Unicode is refused, too."""
    assert error_of("a = 1".encode("utf-16")) == "localflow.toml:1: is not UTF-8 text; save the file as UTF-8"


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 100_000 + "]" * 100_000,
        "a = " + "[" * 100_000,
        "a = " + "{b=" * 50_000 + "1" + "}" * 50_000,
        ".".join(["a"] * 50_000) + " = 1",
    ],
)
def test_absurd_nesting_is_refused(content: str) -> None:
    """Nesting without end is an error like any other."""
    assert error_of(content) == "localflow.toml: values are nested too deeply"


def test_number_of_thousands_of_digits_is_refused() -> None:
    """A number that Python itself refuses to read is an error with its line."""
    message = error_of("a = 1\nb = " + "9" * 10_000)

    assert message == "localflow.toml:2: Invalid value: an integer of more than 64 bits"


def test_huge_file_is_refused() -> None:
    """Nothing above 1 MiB is read."""
    assert error_of("#" * (MAX_BYTES + 1)) == "localflow.toml: is larger than 1 MiB; is it the right file?"


def test_largest_file_is_read() -> None:
    """A file of exactly the limit is fine."""
    FILE.write_text("#" * MAX_BYTES)

    assert read_toml(FILE) is not None


def test_directory_in_its_place_is_refused() -> None:
    """A directory named localflow.toml is pointed out."""
    FILE.mkdir()

    with pytest.raises(ConfigError, match=r"^localflow.toml: is a directory; a TOML file is expected there$"):
        read_toml(FILE.absolute())


def test_pipe_in_its_place_is_refused_at_once() -> None:
    """A named pipe is not waited for."""
    os.mkfifo(FILE)

    with pytest.raises(ConfigError, match=r"^localflow.toml: is not a regular file; a TOML file is expected there$"):
        read_toml(FILE.absolute())


def test_link_to_nowhere_is_refused() -> None:
    """A broken link is not taken for no file."""
    FILE.symlink_to("elsewhere.toml")

    with pytest.raises(ConfigError, match=r"^localflow.toml: cannot be read: a link to nowhere$"):
        read_toml(FILE.absolute())


def test_link_in_a_circle_is_refused() -> None:
    """A link to itself is one line too."""
    FILE.symlink_to(FILE)

    with pytest.raises(ConfigError, match=r"^localflow.toml: cannot be read: "):
        read_toml(FILE.absolute())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_is_refused() -> None:
    """A file without the permission to read it is one line that says so."""
    FILE.write_text("a = 1")
    FILE.chmod(0)

    with pytest.raises(ConfigError, match=r"^localflow.toml: cannot be read: Permission denied$"):
        read_toml(FILE.absolute())


def test_file_that_is_not_there_is_none() -> None:
    """No file is no error."""
    assert read_toml(FILE) is None


def test_file_that_mentions_nothing_of_ours_is_not_parsed() -> None:
    """Somebody else's broken file does not concern us."""
    FILE.write_text("broken = ")

    assert read_toml(FILE, mentioning=b"localflow") is None


def test_path_outside_the_working_directory_is_shown_whole() -> None:
    """A path is shown relative to the working directory only where it is below it."""
    FILE.write_text("broken = ")
    here = Path.cwd()
    Path("below").mkdir()
    os.chdir("below")

    with pytest.raises(ConfigError) as raised:
        read_toml(here / FILE)

    assert str(raised.value) == f"{here / FILE}:1:10: Invalid value"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("-4.5", -4.5),
        ("true", True),
        ('"4"', "4"),
        ("'4'", "4"),
        ("many", "many"),
        ("", ""),
        ("True", "True"),
        ("null", "null"),
        ("[1, 2]", [1, 2]),
        ('{a = "b"}', {"a": "b"}),
        ('{"a": [true]}', {"a": [True]}),
        ("4\nother = 5", "4\nother = 5"),
        ("a = 4", "a = 4"),
        ("https://example.org/#x", "https://example.org/#x"),
        ("[" * 5000, "[" * 5000),
        ("[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_parse_value(text: str, value: object) -> None:
    """A value in a variable is TOML or JSON where it reads so, else text."""
    parsed = parse_value(text)

    assert parsed == value
    assert type(parsed) is type(value)


@settings(deadline=None)
@given(st.text())
def test_parse_value_never_raises(text: str) -> None:
    """Any text is some value."""
    parse_value(text)

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from localflow.masking import dotted, found, literal, masked, quoted, secrets, without


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "password",
        "secret",
        "key",
        "api_key",
        "apiKey",
        "API-TOKEN",
        "db.password",
        "keys",
        "clientSecret",
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "aws_credentials",
        "DB_PASSWD",
        "passphrase",
    ],
)
def test_values_of_secret_keys_are_masked(key: str) -> None:
    """A key named, or ending in, token, password, secret, key and the like hides whatever it holds."""
    assert masked("hush", key) == "***"
    assert masked(12345, key) == "***"
    assert masked({"a": ["hush"]}, key) == "***"
    assert found("hush", key) == "*** (string)"


@pytest.mark.parametrize("key", ["", "path", "keyboard", "tokenizer", "user", "on", "author"])
def test_values_of_other_keys_are_shown(key: str) -> None:
    """Only the end of a key counts."""
    assert masked("open", key) == "open"


def test_secret_keys_inside_tables_are_masked() -> None:
    """Tables inside options are looked into."""
    assert masked({"api_key": "hush", "list": [{"token": 1, "a": 2}]}) == {
        "api_key": "***",
        "list": [{"token": "***", "a": 2}],
    }


def test_secret_that_is_not_set_is_shown_as_such() -> None:
    """Nothing is no secret."""
    assert masked(None, "token") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@host.example/path?token=1&b=2", "https://***@host.example/path?***"),
        ("https://host.example/path", "https://host.example/path"),
        ("https://token@host.example", "https://***@host.example"),
        ("postgresql://me:p@ss/w?rd@host/db", "postgresql://***@host/db"),
        ("https://host/#access_token=1", "https://host/?***"),
        ("see https://a:b@c/d?e and http://f/?g", "see https://***@c/d?*** and http://f/?***"),
        ("no url: a@b?c", "no url: a@b?c"),
    ],
)
def test_urls_lose_userinfo_and_query(url: str, shown: str) -> None:
    """What may be a secret in a URL is masked wherever the URL stands."""
    assert masked(url) == shown
    assert masked([url, {"x": url}]) == [shown, {"x": shown}]
    assert without([], url) == shown


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["x" * 2_000_000, "a1" * 1_000_000, "x" * 1_000_000 + " https://me:hush@host"])
def test_long_texts_are_looked_through_in_no_time(text: str) -> None:
    """A large text, such as data in base64, takes no longer for each of its letters than a small one."""
    shown = masked({"data": text})

    assert shown == {"data": text.replace("me:hush", "***")}


def test_values_from_the_environment_are_masked() -> None:
    """`env:NAME` stands for a secret."""
    assert masked("env:HOOK") == "***"
    assert masked(["env:HOOK", "open"]) == ["***", "open"]


def test_masked_values_are_plain_data() -> None:
    """Whatever TOML holds, and what factories have as defaults, can be shown as JSON."""
    value = {
        "path": Path("a"),
        "at": datetime.datetime(2024, 1, 2),
        "day": datetime.date(2024, 1, 2),
        "f": print,
        "t": (1,),
    }

    shown = masked(value)

    assert json.loads(json.dumps(shown)) == shown
    assert shown["path"] == "a"
    assert shown["day"] == "2024-01-02"


def test_secrets_in_the_words_of_others_are_masked() -> None:
    """What a plugin says of its options does not repeat them."""
    told = "cannot reach https://me:hush@host with hush-hush"

    assert without(["hush", ["hush-hush"]], told) == "cannot reach https://***@host with ***"


def test_secrets_of_a_table() -> None:
    """Secrets are found at any depth, by the keys they stand under."""
    assert secrets({"a": {"token": "x", "b": "y"}, "password": ["z"]}) == ["x", ["z"]]
    assert secrets("x", "secret") == ["x"]
    assert secrets("x", "open") == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("4", '"4" (string)'),
        (4, "4 (integer)"),
        (2**63, "an integer of 64 bits"),
        (-(2**63), "-9223372036854775808 (integer)"),
        (4.0, "4.0 (float)"),
        (float("inf"), "inf (float)"),
        (True, "true (boolean)"),
        (datetime.datetime(2024, 1, 2), "2024-01-02 00:00:00 (date-time)"),
        (datetime.date(2024, 1, 2), "2024-01-02 (date)"),
        (datetime.time(1, 2), "01:02:00 (time)"),
        ([1], "an array"),
        ({}, "a table"),
        (None, "nothing"),
        ("x" * 100, f'"{"x" * 80}..." (string)'),
        ('a"b\n\x1b[31m\u202e', '"a\\"b\\n\\x1b[31m\\u202e" (string)'),
        ("https://a:b@c", '"https://***@c" (string)'),
    ],
)
def test_found(value: object, words: str) -> None:
    """What stands in the place of something else is shown with its TOML type, on one line."""
    assert found(value) == words


@pytest.mark.parametrize(
    "value", [1, -1.5, True, "a", 'a "b" \\ c', [1, ["x"]], {"a": 1, "b c": {"d": "e"}}, "tab\there", "umlaut ä"]
)
def test_literals_are_toml(value: object) -> None:
    """What is shown can be pasted into localflow.toml."""
    assert tomli.loads(f"x = {literal(value)}")["x"] == value


def test_dotted_keys_are_quoted_where_they_must_be() -> None:
    """A key is shown as TOML writes it."""
    assert dotted("executors", "big", "a b", "") == 'executors.big."a b".""'


@settings(deadline=None)
@given(st.text())
def test_quoted_text_is_one_printable_line(text: str) -> None:
    """No text breaks the line it is shown on."""
    assert quoted(text).isprintable()


@pytest.mark.parametrize("told", ["invalid address 'user:hunter2@host:1'", "no entry for hunter2"])
def test_what_is_secret_in_a_url_is_masked_without_the_url(told: str) -> None:
    """A library may tell a part of the address that it was given."""
    assert "hunter2" not in without(["tls://user:hunter2@host:1"], told)

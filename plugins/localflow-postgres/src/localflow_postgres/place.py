"""Where the database is: what it takes to connect to it, and the same in words without any secret."""

from __future__ import annotations

import math
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

#: Not to be shown, in whatever message they turn up.
_SECRETS = ("password", "sslpassword", "passfile", "sslkey")

# Who is connected learns within half a minute that the other machine is gone; what a URL says instead wins.
_DEFAULTS: dict[str, str | int] = {
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "client_encoding": "UTF8",
    "fallback_application_name": "localflow",
}


class Place:
    """A schema of a database on a server."""

    def __init__(self, url: str, schema: str, connect_timeout: float) -> None:
        """Take the URL apart.

        Raises:
            ValueError: it is none, or the schema cannot be one; what it says is without the URL.
        """
        try:
            given = {key: value for key, value in conninfo_to_dict(url).items() if value is not None}
            is_odd = _has_escaped_badly(given)
        except psycopg.Error:
            is_odd = True
        if is_odd:
            raise ValueError(
                "url is no PostgreSQL URL; write postgresql://user:password@host:5432/database, "
                "or 'host=... dbname=... user=...', with % and what else is special in a URL as %25 and so on"
            ) from None
        if not schema or "\x00" in schema or len(schema.encode()) > 63 or schema.startswith("pg_"):
            raise ValueError("schema must be a name of at most 63 bytes that does not begin with pg_")
        self.schema = schema
        self.parameters = _DEFAULTS | {"connect_timeout": max(2, math.ceil(connect_timeout))} | given
        self._secrets = [str(given[key]) for key in _SECRETS if given.get(key)]
        self.location = _location(given, schema)

    @property
    def named(self) -> str:
        """The store as messages begin."""
        return f"state store {self.location}"

    def without_secrets(self, text: str) -> str:
        """Return what somebody has said with every secret replaced."""
        for secret in self._secrets:
            for form in {secret, quote(secret, safe=""), quote(secret)}:
                text = text.replace(form, "***")
        return text

    def has_secret(self, text: str) -> bool:
        """Return whether a secret is in a text."""
        return self.without_secrets(text) != text


def _has_escaped_badly(given: dict[str, str | int]) -> bool:
    """Return whether a part of the password may stand where it would be shown, for want of a %."""
    ports = str(given.get("port", "")).split(",")
    shown = (str(given.get(key, "")) for key in ("host", "hostaddr", "dbname"))
    return any(port and not port.isdecimal() for port in ports) or any("@" in part for part in shown)


def _location(given: dict[str, str | int], schema: str) -> str:
    known = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val is not None
    }
    known.update({key: str(value) for key, value in given.items()})
    user, host = known.get("user", ""), known.get("host") or known.get("hostaddr", "")
    at = f"{quote(user)}@" if user else ""
    hosts, ports = host.split(","), known.get("port", "").split(",")
    if len(ports) < len(hosts):
        ports = ports * len(hosts)
    server = ",".join(
        (quote(name, safe="") if name.startswith("/") else name) + (f":{port}" if port else "")
        for name, port in zip(hosts, ports, strict=False)
    )
    return f"postgresql://{at}{server}/{quote(known.get('dbname') or user)} schema {schema}"

"""What reaches the terminal: data on stdout, everything else on stderr, texts of users escaped, colours if wanted."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

import click

from localflow.errors import LocalflowError
from localflow.printable import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STATE_COLOURS = {
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "magenta",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "RUNNING": "blue",
    "PENDING": "cyan",
    "SCHEDULED": "cyan",
}
_LEAST_WIDTH = 40
_FOLDED_ROWS = 2_000  # folding takes half a millisecond a row


class OutputError(LocalflowError):
    """Standard output does not take what is printed."""

    exit_code = 4


class Cell(NamedTuple):
    """A text of a table in a colour."""

    text: str
    colour: str = ""


# -- streams ---------------------------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Have escaped what a stream's encoding cannot hold, and what a terminal would act on in warnings of loggers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_WarningFormatter())


class _WarningFormatter(logging.Formatter):
    """For records that no handler of the flow's file takes: texts escaped, all lines but the first indented."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(printable_lines(super().format(record)))


def print_data(text: str) -> None:
    """Print on stdout a text that is safe already; raises BrokenPipeError or OutputError."""
    try:
        click.echo(text, file=sys.stdout, color=_colour(sys.stdout))
    except (OSError, ValueError) as error:  # a ValueError if the flow has closed it
        _refuse(error)


def print_lines(text: str, indent: str = "") -> None:
    """Print the lines of a user's text on stdout, each escaped."""
    print_data("\n".join(f"{indent}{printable(line)}" for line in text.rstrip("\n").split("\n")))


def print_json(value: object, indent: int | None = 2) -> None:
    """Print a value as JSON in ASCII: whole in every locale, and nothing in it acts on a terminal."""
    print_data(_json(value, indent))


def print_json_with(value: object, name: str, items: Iterable[object]) -> None:
    """Print a dict as JSON with one more entry, a list that may be long: see `print_json_list`."""
    _print_items(_json(value, 2).removesuffix("\n}") + f',\n  "{name}": [', "    ", items, "\n  ]\n}")


def print_json_list(items: Iterable[object]) -> None:
    """Print a list as JSON that may be long: its items are made as they are printed, each on a line."""
    _print_items("[", "  ", items, "\n]")


def _print_items(start: str, indent: str, items: Iterable[object], end: str) -> None:
    for item in items:
        print_data(start)
        start = f"{indent}{_json(item, None)},"
    print_data(start.removesuffix(",") + end)


def _json(value: object, indent: int | None) -> str:
    return json.dumps(_readable(value), indent=indent, allow_nan=False).replace("\x7f", "\\u007f")


def _readable(value: object) -> object:
    """Show half of a surrogate pair as its escape: it is no character, and many readers of JSON refuse all with it."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, (list, tuple)) else value


def say(text: str) -> None:
    """Print on stderr a text that is safe already; a stderr that nobody reads is no reason to fail."""
    with suppress(OSError, ValueError):
        click.echo(text, file=sys.stderr, color=_colour(sys.stderr))


def say_line(text: str) -> None:
    """Print a text on stderr, on one line whatever it holds."""
    say(printable(text))


def say_lines(text: str, indent: str = "") -> None:
    """Print the lines of a user's text on stderr, each escaped."""
    for line in text.rstrip("\n").split("\n"):
        say(f"{indent}{printable(line)}")


def say_error(text: str) -> None:
    """Print an error on stderr, further lines of it indented."""
    first, _, rest = text.partition("\n")
    say(f"{click.style('error:', fg='red', bold=True)} {printable(first)}")
    if rest:
        say_lines(rest, indent="  ")


def say_warning(text: str) -> None:
    """Print a warning on stderr."""
    say(f"{click.style('warning:', fg='yellow', bold=True)} {printable(text)}")


def print_last_data(text: str) -> None:
    """Print on stdout what a user's text is part of; a reader that has left changes nothing about the exit code."""
    with suppress(BrokenPipeError):
        print_data(printable(text))


def flush() -> None:
    """Hand on what is buffered for stdout; raises BrokenPipeError or OutputError."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            _refuse(error)


def _refuse(error: OSError | ValueError) -> NoReturn:
    abandon_stdout()
    if isinstance(error, BrokenPipeError):
        raise error
    reason = getattr(error, "strerror", None) or error
    raise OutputError(f"cannot write to standard output: {reason}") from error


def abandon_stdout() -> None:
    """Send what is still to come to nowhere, so that the interpreter's last flush does not complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - not a path of ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _colour(stream: TextIO | None) -> bool:
    """Return whether to use colours on a stream: a terminal whose user has not refused them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream is not None and stream.isatty()


# -- tables ----------------------------------------------------------------------------------------------------------


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str | Cell]], right: Sequence[str] = ()) -> None:
    """Print a table: folded to the width of a terminal, and as wide as it needs elsewhere; nothing is cut.

    Args:
        headings: one for each column.
        rows: the cells, escaped here.
        right: headings of columns whose texts are aligned to the right.
    """
    cells = [[_printable_cell(cell) for cell in row] for row in rows]
    fold = is_terminal() and len(cells) <= _FOLDED_ROWS
    print_data((_folded_table if fold else _plain_table)(headings, cells, right))


def _printable_cell(cell: str | Cell) -> Cell:
    text, colour = cell if isinstance(cell, Cell) else (cell, "")
    return Cell(printable(text), colour)


def _plain_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str]) -> str:
    columns = zip(headings, *([cell.text for cell in row] for row in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    aligned = [str.rjust if heading in right else str.ljust for heading in headings]
    lines = [headings, *([cell.text for cell in row] for row in rows)]
    return "\n".join(
        "  ".join(align(text, width) for align, text, width in zip(aligned, line, widths, strict=True)).rstrip()
        for line in lines
    )


def _folded_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.colour) for cell in row))
    colour = _colour(sys.stdout)
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=colour, no_color=not colour, color_system="standard" if colour else None,
        width=max(shutil.get_terminal_size().columns, _LEAST_WIDTH), legacy_windows=False,
    )  # fmt: skip
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))


def print_fields(fields: Iterable[tuple[str, str | Cell]]) -> None:
    """Print a heading and a value on each line, unless the value is empty."""
    cells = [(heading, value if isinstance(value, Cell) else Cell(value)) for heading, value in fields]
    width = max(len(heading) for heading, _ in cells) + 2
    for heading, cell in cells:
        if cell.text:
            label = click.style(printable(heading).ljust(width), bold=True)
            print_data(f"{label}{click.style(printable(cell.text), fg=cell.colour or None)}")


def state_cell(type: str, text: str) -> Cell:
    """Return a text in the colour of a state's type."""
    return Cell(text, _STATE_COLOURS[type])


def is_terminal() -> bool:
    """Return whether stdout is a terminal: only there texts are cut or folded."""
    return sys.stdout is not None and sys.stdout.isatty()


# -- values ----------------------------------------------------------------------------------------------------------


def local_time(timestamp: float | None, *, with_milliseconds: bool = False) -> str:
    """Return an instant as the clock on the wall shows it."""
    if timestamp is None:
        return ""
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
    return f"{text}.{int(timestamp % 1 * 1000):03}" if with_milliseconds else text


def duration(started_at: float | None, ended_at: float | None) -> str:
    """Return the time between two instants in the units a reader would choose."""
    if started_at is None or ended_at is None:
        return ""
    seconds = ended_at - started_at
    if seconds < 0:
        return "clock changed"
    if seconds < 0.001:
        return f"{seconds * 1_000_000:.0f}us"
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"


def size(count: int | None) -> str:
    """Return a number of bytes in the unit a reader would choose."""
    if count is None:
        return ""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Return the names in one line, at most `limit` of them."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more:,} more" if more > 0 else "")


def compact_json(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)

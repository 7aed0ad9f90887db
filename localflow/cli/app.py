"""The verbs, loaded when they are used, and the exit codes.

0 completed; 1 the flow failed or crashed; 2 usage, configuration or plugin; 3 store; 4 an error of localflow itself;
130 cancelled; 128 + n ended by signal n.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from localflow.cli import output
from localflow.cli.groups import VerbGroup
from localflow.cli.output import OutputError
from localflow.errors import ConfigError, LocalflowError
from localflow.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERNAL_ERROR = 4
INTERRUPTED = 130

_VERBS = ("run", "resume", "runs", "show", "logs", "graph", "cancel", "clean", "store", "plugins", "config", "doctor")


class LazyGroup(VerbGroup):
    """A group whose verbs are modules beside this one, each with a command of its own name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order a newcomer meets them."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command, or None for no such verb."""
        if cmd_name not in _VERBS:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(f"localflow.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="localflow", message="%(prog)s %(version)s")
def app() -> None:
    """Run Python flows across the cores of this machine, and see what became of them."""


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; whatever goes wrong is told on stderr."""
    output.prepare_streams()
    code = _exit_code(sys.argv[1:] if arguments is None else arguments)
    try:
        output.flush()
    except BrokenPipeError:
        pass
    except OutputError as error:
        code = code or _tell(error)
    return code


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        return _invoke(list(arguments))
    except BrokenPipeError:  # the reader has seen enough, as in `localflow runs | head`
        output.abandon_stdout()
        return 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again while Python winds up, it leaves no traceback
        output.say("interrupted")
        return INTERRUPTED
    except SystemExit as end:  # a signal stopped the flow
        return end.code if isinstance(end.code, int) else INTERNAL_ERROR
    except Exception as error:
        return _tell(error)


def _invoke(arguments: list[str]) -> int:
    try:
        with app.make_context("localflow", arguments) as context:
            code = app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _tell(error: Exception) -> int:
    """Say what went wrong and return the exit code for it."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            output.say_lines(problem)
        return error.exit_code
    if isinstance(error, LocalflowError):
        output.say_error(str(error))
        return error.exit_code
    if isinstance(error, click.ClickException):
        output.say_error(error.format_message().replace("\n\t", " "))  # as click lists what there is to choose from
        context = getattr(error, "ctx", None)
        if context is not None:
            output.say(f"try: {context.command_path} --help")
        return error.exit_code
    import traceback

    output.say_lines("".join(traceback.format_exception(error)))
    output.say_error("this is a mistake in localflow, not in your flow; please report it with the lines above")
    return INTERNAL_ERROR

"""Groups of verbs: they show their help when no verb is given, and say which one a misspelt verb might mean."""

from __future__ import annotations

import click

from localflow.cli import output
from localflow.errors import UsageError, suggestion


class VerbGroup(click.Group):
    """A group of verbs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the arguments; none at all is a question, unless the group itself has an answer."""
        if not args and not self.invoke_without_command:
            output.say(ctx.get_help())
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one might be meant."""
        verbs = self.list_commands(ctx)
        if args[0] not in verbs:
            hint = suggestion(args[0], verbs) or f"; try: {ctx.command_path} --help"
            raise UsageError(f"unknown command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

"""A group of commands that are imported when they are called."""

from __future__ import annotations

import importlib
from typing import ClassVar

import click

from inv_design.cli import errors

Table = dict[str, tuple[str, str]]
"""Command name -> (module:function inside this package, the first line of its help)."""


class LazyGroup(click.Group):
    """A group whose commands are in a table, so that listing them imports none; subclasses name the table."""

    table: ClassVar[Table] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the command names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command by name, imported now."""
        if cmd_name not in self.table:
            return None
        module, _, function = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"inv_design.cli.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that ``args`` name; a misspelt one is answered with the nearest name."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{errors.nearest(args[0], list(self.table))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.table.items()])

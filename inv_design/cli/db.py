"""`inv-design db`: set up, index, check, migrate, share and move the database of a campaign."""

from __future__ import annotations

import importlib

import click

from inv_design.cli import errors

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("db_init:init", "Create the collections' indexes, start the launchpad's counters, stamp the schema."),
    "indexes": ("db_indexes:indexes", "Compare the indexes with those that the queries need, and create what lacks."),
    "check": ("db_check:check", "Read every record, and compare it with what it should be."),
    "migrate": ("db_migrate:migrate", "Bring the database to the schema of this version."),
    "users": ("db_users:users", "Print, or apply, the roles of readers, workers and curators."),
    "move": ("db_move:move", "Copy everything to another database, and verify it there."),
}
"""Sub-command -> (module:function inside this package, the first line of its help)."""


class LazyCommands(click.Group):
    """A group whose sub-commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the sub-commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a sub-command by name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"inv_design.cli.{module}"), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the sub-command that ``args`` name; a misspelt one is answered with the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{errors.nearest(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of sub-commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyCommands)
def db() -> None:
    """Set up, index, check, migrate, share and move the database."""

"""`inv-design db`: set up, index, check, migrate, share and move the database of a campaign."""

from __future__ import annotations

import click

from inv_design.cli.lazy import LazyGroup, Table

COMMANDS: Table = {
    "init": ("db_init:init", "Create the collections' indexes, start the launchpad's counters, stamp the schema."),
    "indexes": ("db_indexes:indexes", "Compare the indexes with those that the queries need, and create what lacks."),
    "check": ("db_check:check", "Read every record, and compare it with what it should be."),
    "migrate": ("db_migrate:migrate", "Bring the database to the schema of this version."),
    "users": ("db_users:users", "Print, or apply, the roles of readers, workers and curators."),
    "move": ("db_move:move", "Copy everything to another database, and verify it there."),
    "archive-workflows": (
        "db_archive_workflows:archive_workflows",
        "Take finished workflows of closed rounds from the launchpad.",
    ),
}


class DatabaseCommands(LazyGroup):
    """The sub-commands of `db`."""

    table = COMMANDS


@click.group(cls=DatabaseCommands)
def db() -> None:
    """Set up, index, check, migrate, share and move the database."""

"""`inv-design db migrate`: bring a database to the schema of this version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from stores.connection import Connection


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what each step would change.")
@click.option("--to", "version", type=int, metavar="N", help="Stop at this schema version.  [default: the newest]")
@click.option("--force", is_flag=True, help="Go ahead although others seem to write.")
@database_options
@json_option
@click.pass_obj
def migrate(settings: Settings, dry_run: bool, version: int | None, force: bool) -> None:
    """Bring the database to the schema of this version.

    Make a backup first, and stop the workers. A migration that was interrupted goes on with the same command.
    """
    from inv_design.cli.database import open_database
    from stores import schema

    with schema.unchecked(), open_database(settings, read_only=dry_run) as connection:
        record = planned(connection, version)
        record["dry_run"] = dry_run
        if not settings.as_json:
            show(record)
        unfinished = "migrating" in (schema.stamp_of(connection) or {})
        if not dry_run and (record["schema_version"] < record["to"] or unfinished):
            record["history"] = carry_out(connection, version, force=force)
            record["schema_version"] = schema.version_of(connection)
    if settings.as_json:
        render.json_document(record)
    elif not dry_run and record["steps"]:
        render.say(f"{record['database']} has schema {record['schema_version']}")


def planned(connection: Connection, version: int | None) -> dict[str, Any]:
    """Return what a migration would do: versions, steps with counts, and what stands in its way."""
    from stores import schema
    from stores.migrations import plan
    from stores.migrations.runner import blockers, target_version

    current = schema.version_of(connection)
    end = target_version(current, version)
    steps = [
        {"version": item.version, "step": item.step.name, "changes": item.count, "text": item.step.text}
        for item in plan(connection, current, end)
    ]
    return {
        "database": connection.uri_redacted,
        "schema_version": current,
        "to": end,
        "steps": steps,
        "blockers": blockers(connection) if steps else [],
        "history": [],
    }


def carry_out(connection: Connection, version: int | None, *, force: bool) -> list[dict[str, Any]]:
    """Migrate, build the derived records anew, and return what the history got."""
    from builders.run import build_campaign
    from stores.migrations.runner import migrate as run_migration
    from stores.schema import SCHEMA_VERSION, version_of

    with render.progress("Migrate") as bar:
        history = run_migration(connection, version, force=force, progress=bar)
    if version_of(connection) == SCHEMA_VERSION:  # builders write the present form only
        for name in sorted(connection.db["campaigns"].distinct("name")):
            build_campaign(name, connection)
    return history


def show(record: dict[str, Any]) -> None:
    """Print a plan."""
    if not record["steps"]:
        render.say(f"{record['database']} has schema {record['schema_version']}; there is nothing to migrate")
        return
    render.say(f"{record['database']} has schema {record['schema_version']}; the way to {record['to']}:")
    columns = ("version", "step", "changes", "text")
    render.table([[item[column] for column in columns] for item in record["steps"]], columns, right=("changes",))
    for line in record["blockers"]:
        render.say(f"in the way: {line}")
    render.say("a backup first: mongodump, or a copy of the embedded file")

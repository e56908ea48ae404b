"""`db move`: the database to another server, without loss."""

from __future__ import annotations

import re
from typing import Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

SECRET = re.compile(r"(?i)password|secret|token|properties|key")
"""Names of URI options that stay out of files."""


@click.command()
@click.option("--to", "target", metavar="URI", required=True, help="Where to: mongodb://HOST/NAME, a new database.")
@click.option("--force", is_flag=True, help="Go ahead although others seem to write.")
@json_option
@database_options
@click.pass_obj
def move(settings: Settings, *, target: str, force: bool) -> None:
    """Copy everything to another database, and verify it there.

    Stop the workers first. All records, the launchpad, artifacts and indexes, verified collection by collection.
    Interrupt it at any moment and call it again: it goes on. The old database stays as it is, marked as moved. The
    password of the new one comes from $INV_DESIGN_DATABASE_PASSWORD.
    """
    from inv_design.cli.database import open_database
    from stores import move as stores_move
    from stores.connection import connect

    root = settings.config.resolve().parent
    with (
        stores_move.moving(),
        open_database(settings) as source,
        connect(target, root=root, alias="move") as destination,
        render.progress("Move") as bar,
    ):
        report = stores_move.move(source, destination, force=force, progress=bar)
    report["database"] = database_line(target)
    if settings.as_json:
        render.json_document(report)
    else:
        _show(report)


def database_line(target: str) -> str:
    """Return the line for campaign.yaml: the URI without a password, and without the options that may hold secrets."""
    uri, _, options = re.sub(r"(://[^/:@]*):.*@", r"\1@", target, flags=re.DOTALL).partition("?")
    kept = [option for option in options.split("&") if option and not SECRET.search(option.partition("=")[0])]
    return f"database: {uri}{'?' if kept else ''}{'&'.join(kept)}"


def _show(report: dict[str, Any]) -> None:
    columns = ("name", "documents", "copied", "indexes")
    render.table([[entry[k] for k in columns] for entry in report["collections"]], columns, right=columns[1:])
    if report["already"]:
        render.say(f"{report['source']} was moved to {report['target']} before; nothing was done")
    else:
        render.say(
            f"moved {report['source']} to {report['target']}: {report['documents']} documents, "
            f"{report['copied']} of them written now, all verified"
        )
    render.say(f"set this line in campaign.yaml: {report['database']}")

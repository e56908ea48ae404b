"""`inv-design db indexes`: the indexes there are beside those that the queries need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from stores.connection import Connection


@click.command()
@click.option("--dry-run", is_flag=True, help="Only compare; create nothing.")
@database_options
@json_option
@click.pass_obj
def indexes(settings: Settings, dry_run: bool) -> None:
    """Compare the indexes with those that the queries need, and create what lacks.

    An index that no query needs is listed as `extra` and left alone: it may be yours.
    """
    from inv_design.cli.database import open_database

    with open_database(settings, read_only=dry_run) as connection:
        before = {(row["collection"], row["fields"]) for row in compare(connection) if row["state"] == "missing"}
        if not dry_run:
            connection.ensure_indexes()
        rows = compare(connection)
    for row in rows:
        if row["state"] == "ok" and (row["collection"], row["fields"]) in before:
            row["state"] = "created"
    if settings.as_json:
        render.json_document(rows)
        return
    columns = ("collection", "fields", "unique", "state")
    render.table([[row[column] for column in columns] for row in rows], columns)


def compare(connection: Connection) -> list[dict[str, Any]]:
    """Return one record per index that is needed or there: ``collection, fields, unique, state``.

    ``state`` is ``ok``, ``missing``, ``different`` (there, but not unique as it must be, or the reverse) or ``extra``.
    """
    from stores.queries import indexes as needed_indexes

    rows = []
    for collection, models in needed_indexes().items():
        there = _indexes_of(connection, collection)
        for model in models:
            fields = ",".join(name for name, _ in model["fields"])
            unique = there.pop(fields, None)
            state = "missing" if unique is None else "ok" if unique == model["unique"] else "different"
            rows.append({"collection": collection, "fields": fields, "unique": model["unique"], "state": state})
        rows += [
            {"collection": collection, "fields": fields, "unique": unique, "state": "extra"}
            for fields, unique in there.items()
        ]
    return rows


def _indexes_of(connection: Connection, collection: str) -> dict[str, bool]:
    """Return fields, joined by commas -> unique, for the indexes of a collection but that of ``_id``."""
    if collection not in connection.db.list_collection_names():
        return {}
    found = connection.db[collection].index_information()
    return {
        ",".join(name for name, _ in index["key"]): bool(index.get("unique"))
        for name, index in found.items()
        if name != "_id_"
    }

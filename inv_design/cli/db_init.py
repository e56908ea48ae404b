"""`inv-design db init`: make a database ready before the first campaign."""

from __future__ import annotations

import click

from inv_design.cli.options import Settings, database_options, json_option
from inv_design.cli.render import json_document, say


@click.command()
@database_options
@json_option
@click.pass_obj
def init(settings: Settings) -> None:
    """Create the collections' indexes, start the launchpad's counters, stamp the schema.

    Every command that writes does the same on its first call; this one lets a curator do it before workers come, who
    may not create indexes. Calling it again changes nothing.
    """
    from inv_design.cli.database import open_database

    with open_database(settings) as connection:
        connection.ensure_indexes()
        connection.launchpad()
        record = {"database": connection.uri_redacted, "name": connection.db.name}
    if settings.as_json:
        json_document(record)
    else:
        say(f"{record['database']} is ready")

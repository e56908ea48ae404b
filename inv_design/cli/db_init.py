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
    from stores.schema import version_of

    with open_database(settings) as connection:  # which creates the indexes of the records and stamps the schema
        for files in ("artifacts", "fw_gridfs"):  # else GridFS would with the first file, which a worker may not
            connection.db[f"{files}.files"].create_index([("filename", 1), ("uploadDate", 1)])
            connection.db[f"{files}.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
        connection.launchpad()
        record = {
            "database": connection.uri_redacted,
            "name": connection.db.name,
            "schema_version": version_of(connection),
        }
    if settings.as_json:
        json_document(record)
    else:
        say(f"{record['database']} is ready, schema {record['schema_version']}")

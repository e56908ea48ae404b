"""`build`: bring the derived collections up to date, or make them anew."""

from __future__ import annotations

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import Settings, campaign_options, json_option


@click.command()
@click.option("--from-scratch", is_flag=True, help="Build what is up to date too: mends what somebody edited.")
@json_option
@campaign_options
@click.pass_obj
def build(settings: Settings, *, from_scratch: bool) -> None:
    """Build the derived records of a campaign: candidates at a glance, queue, numbers of the rounds.

    `run` and the workers do it when they need it; only what changed is built.
    """
    from builders.run import campaign_builders
    from inv_design.cli.database import campaign_name, open_database

    connection = open_database(settings)
    name = campaign_name(settings)
    rows = []
    for builder in campaign_builders(name, from_scratch=from_scratch):
        with render.progress(f"Build {builder.target_key()[0]}") as bar:
            builder.build(connection, progress=bar)
        rows.append({"collection": builder.target_key()[0], **vars(builder.counts)})
    if settings.as_json:
        render.json_document(rows)
    else:
        columns = ["collection", "read", "processed", "written", "failed"]
        render.table([[row[c] for c in columns] for row in rows], columns, right=columns[1:])
    if failed := sum(row["failed"] for row in rows):
        raise CommandFailed(f"{failed} items failed; their documents have the error, and they are tried again")

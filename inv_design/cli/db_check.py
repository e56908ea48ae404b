"""`inv-design db check`: whether all records still are what they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import Settings, database_options, json_option

SHOWN = 20


@click.command()
@click.option("--quick", is_flag=True, help="Only the fields and their types: no ids of content, no references.")
@database_options
@json_option
@click.pass_obj
def check(settings: Settings, *, quick: bool) -> None:
    """Read every record, and compare it with what it should be.

    The fields with their declaration, the id with the content, and what the record refers to with what is there.
    The program never rewrites a record; one with a problem was changed by something else. Exit code 1 if there is one.
    """
    from inv_design.cli.database import open_database
    from stores.integrity import problems

    with open_database(settings, read_only=True) as connection, render.progress("Check") as bar:
        found = list(problems(connection, shapes_only=quick, progress=bar))
    if settings.as_json:
        render.json_document([asdict(problem) for problem in found])
    else:
        shown = found if settings.verbose else found[:SHOWN]
        for problem in shown:
            click.echo(str(problem))
        if len(found) > len(shown):
            counts = ", ".join(f"{name} {n}" for name, n in Counter(p.collection for p in found).items())
            click.echo(f"and {len(found) - len(shown)} more ({counts}); -v lists all")
    if found:
        raise CommandFailed(f"{len(found)} records are not what they say")
    if not settings.as_json:
        click.echo("all records are what they say")

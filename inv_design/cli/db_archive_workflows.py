"""`inv-design db archive-workflows`: finished workflows leave the launchpad, who ran what stays."""

from __future__ import annotations

from datetime import timedelta

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, campaign_options, json_option

DAYS = 30.0


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    default=DAYS,
    show_default=True,
    help="Only what has not changed for so many days.",
)
@click.option("--calculations", is_flag=True, help="Those of `launch relax|elastic|eos`, which are of no campaign.")
@click.option("--dry-run", is_flag=True, help="Only count; change nothing.")
@campaign_options
@json_option
@click.pass_obj
def archive_workflows(settings: Settings, older_than: float, calculations: bool, dry_run: bool) -> None:
    """Take finished workflows of closed rounds from the launchpad.

    Of each firework stays who ran it, when, and how it ended, under its id. What waits or runs is never touched.
    """
    from fireworks_specs import archive
    from inv_design.cli.database import campaign_name, open_database

    if calculations and settings.campaign:
        raise click.UsageError("--calculations are of no campaign; leave --campaign out")
    with open_database(settings, read_only=dry_run) as connection, render.progress("Archive") as bar:
        report = archive.archive_workflows(
            connection,
            None if calculations else campaign_name(settings),
            older_than=timedelta(days=older_than),
            dry_run=dry_run,
            progress=bar,
        )
    if settings.as_json:
        render.json_document(report.record())
        return
    would = "would leave" if dry_run else "left"
    closed = "" if calculations else f"; closed rounds: {', '.join(map(str, report.rounds)) or 'none'}"
    recent = ""
    if report.recent:
        recent = f", and {report.recent} that changed within {older_than:g} days (--older-than 0 takes them, too)"
    render.say(
        f"{report.workflows} workflows ({report.fireworks} fireworks, {report.launches} launches) {would} the "
        f"launchpad{closed}; kept there: {report.kept}{recent}"
    )

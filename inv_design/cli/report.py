"""`report`: one self-contained HTML page about a campaign."""

from __future__ import annotations

from pathlib import Path

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, campaign_options

PARTS = 6
"""What ``collect`` names as it reads, and the figures."""


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True,
    help="The file to write.",
)  # fmt: skip
@campaign_options
@click.pass_obj
def report(settings: Settings, output: Path) -> None:
    """Write one self-contained HTML page about a campaign.

    Funnel, distributions, target error, best candidates, parity, latent map, elements and provenance; it loads nothing
    from anywhere and can be mailed or printed.
    """
    from inv_design.cli.database import campaign_name, open_database
    from inv_design.cli.report_data import collect
    from inv_design.report.page import render as render_page

    connection = open_database(settings, read_only=True)
    name = campaign_name(settings)
    with render.progress("Report, part", total=PARTS) as bar, render.quiet():
        data = collect(connection, name, progress=bar.advance)
        bar.advance("figures")
        page = render_page(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    render.say(f"wrote {output} ({len(page) / 1e6:.1f} MB)")

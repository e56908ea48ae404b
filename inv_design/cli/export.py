"""`export`: a campaign as one file, for others or for later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from stores.connection import Connection

SUFFIXES = {"archive": ".zip", "optimade": ".jsonl"}


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file.  [default: the campaign's name with .zip or .jsonl]",
)
@click.option("--all", "everything", is_flag=True, help="All campaigns and records of the database.")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(sorted(SUFFIXES)),
    default="archive",
    show_default=True,
    help="An archive for `import`, or the candidates as OPTIMADE JSON lines.",
)
@click.option("--without-models", is_flag=True, help="Leave the models' weights out; their records stay in.")
@json_option
@campaign_options
@click.pass_obj
def export(settings: Settings, *, output: Path | None, everything: bool, form: str, without_models: bool) -> None:
    """Write a campaign into one file, for others or for later.

    An archive holds everything that the campaign's records refer to, with checksums; `inv-design import` reads it. The
    file appears under its name when it is complete.
    """
    from inv_design.cli.database import campaign_name, open_database

    if everything and settings.campaign:
        raise click.UsageError("--all and --campaign contradict each other; give one of them")
    if without_models and form == "optimade":
        raise click.UsageError("--without-models belongs to --format archive; OPTIMADE has no models")
    with open_database(settings, read_only=True) as connection:
        campaigns = None if everything else [campaign_name(settings)]
        name = "everything" if campaigns is None else campaigns[0]
        path = output or Path(f"{name}{SUFFIXES[form]}")
        with render.progress("Export") as bar:
            if form == "archive":
                result = _archive(connection, path, campaigns, models=not without_models, bar=bar)
            else:
                result = _optimade(connection, path, campaigns, bar=bar)
    if settings.as_json:
        render.json_document(result)


def _archive(
    connection: Connection, path: Path, campaigns: list[str] | None, *, models: bool, bar: render.Bar
) -> dict[str, Any]:
    from stores.exchange import export_archive

    result = export_archive(connection, path, campaigns=campaigns, models=models, progress=bar)
    counts = ", ".join(f"{n} {name}" for name, n in result["counts"].items() if n)
    render.say(f"wrote {path} ({result['bytes'] / 1e6:.1f} MB): {counts}, {result['artifacts']} artifacts")
    if result["left_out"]:
        render.say(f"without the weights of {len(result['left_out'])} models")
    for collection, keys in result["missing"].items():
        render.say(f"warning: {len(keys)} {collection} that are referred to are not in this database: {keys[0]} ...")
    return result


def _optimade(connection: Connection, path: Path, campaigns: list[str] | None, *, bar: render.Bar) -> dict[str, Any]:
    from stores.optimade import export_optimade

    result = export_optimade(connection, path, campaigns=campaigns, progress=bar)
    render.say(f"wrote {path}: {result['structures']} structures; serve it with optimade-python-tools")
    return result

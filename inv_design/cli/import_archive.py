"""`import`: archives of campaigns into the database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed, one_line
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from stores.connection import Connection

CONFLICTS_SHOWN = 10


@click.command("import")
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--dry-run", is_flag=True, help="Check the archives and count what is new; write nothing.")
@json_option
@database_options
@click.pass_obj
def import_archive(settings: Settings, *, files: tuple[Path, ...], dry_run: bool) -> None:
    """Read archives of campaigns into the database.

    `inv-design export` writes them. Everything is checked first; a damaged archive is refused with the place of
    the damage, and nothing is written. Records that are there already stay as they are. One that has the same id and
    other content is a conflict: it is shown with both contents, the database's is kept, and the exit code is 1. An
    import that was interrupted is completed by the same command.
    """
    from stores.exchange import import_archives

    connection = _open(settings, dry_run=dry_run)
    try:
        with render.progress("Import") as bar:
            result = import_archives(connection, files, dry_run=dry_run, progress=bar)
        if connection is not None and not dry_run:
            result["built"] = _build(connection, result["campaigns"])
    finally:
        if connection is not None:
            connection.close()
    if settings.as_json:
        render.json_document(result)
    else:
        _show(result)
    _show_conflicts(result["conflicts"])


def _open(settings: Settings, *, dry_run: bool) -> Connection | None:
    """Return the database; for a dry run a snapshot, or nothing where there is no database yet."""
    from inv_design.cli.database import open_database
    from inv_design.config import ConfigError

    if not dry_run:
        return open_database(settings)
    try:
        return open_database(settings, read_only=True)
    except ConfigError:
        return None
    except ConnectionError as error:
        if "there is no embedded database" not in str(error):
            raise
        return None


def _build(connection: Connection, campaigns: list[str]) -> dict[str, Any]:
    """Build the derived collections of the campaigns; a campaign that cannot be built is told, not a failure."""
    from builders.run import build_campaign

    built: dict[str, Any] = {}
    for name in campaigns:
        try:
            with render.progress(f"Build the summaries of {name}") as bar:
                built[name] = build_campaign(name, connection, progress=bar)
        except ValueError as error:
            built[name] = {"error": one_line(str(error))}
            render.say(f"warning: {name} is imported, but its summaries were not built: {one_line(str(error))}")
    return built


def _show(result: dict[str, Any]) -> None:
    rows = [
        (name, *(counts[k] for k in ("records", "new", "known", "conflicts")))
        for name, counts in result["collections"].items()
    ]
    artifacts = result["artifacts"]
    rows.append(("artifacts", artifacts["new"] + artifacts["known"], artifacts["new"], artifacts["known"], 0))
    columns = ("collection", "records", "new", "known", "conflicts")
    render.table(rows, columns, right=columns[1:])
    if artifacts["left_out"]:
        render.say(f"{artifacts['left_out']} models came without their weights")
    names = ", ".join(result["campaigns"]) or "no campaign"
    if result["dry_run"]:
        render.say(f"dry run: {names} would be imported; nothing was written")
    else:
        one = result["campaigns"][0] if result["campaigns"] else "NAME"
        render.say(f"imported {names}; next: inv-design status --campaign {one}")


def _show_conflicts(conflicts: list[dict[str, Any]]) -> None:
    """Say where records of the same id differ, and fail if there are any."""
    for conflict in conflicts[:CONFLICTS_SHOWN]:
        first = conflict["differences"][0]
        here, there = (_short(first[side]) for side in ("here", "there"))
        render.say(
            f"conflict: {conflict['collection']} {conflict['id']}: {first['field']} is {here} here, "
            f"{there} in {conflict['path']}"
        )
    if conflicts:
        raise CommandFailed(
            f"{len(conflicts)} records differ from those of the same id in the database, which were kept; "
            "--json lists them"
        )


def _short(value: Any) -> str:
    text = json.dumps(render.plain(value), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

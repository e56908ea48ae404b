"""`inv-design lpad`: FireWorks' own lpad on the campaign's database, the embedded one included."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render

if TYPE_CHECKING:
    from fireworks import LaunchPad

    from inv_design.cli.options import Settings
    from stores.connection import Connection


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.option("-C", "--config", "config", hidden=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def lpad(settings: Settings, config: str | None, arguments: tuple[str, ...]) -> int:
    """Call FireWorks' lpad with ARGUMENTS on the launchpad of this campaign.

    The campaign file is ./campaign.yaml, or the one after a leading ``-C``. ``get_fws -i ID`` of a firework that has
    left the launchpad shows what is kept of it.
    """
    from pathlib import Path

    from fireworks.scripts import lpad_run

    from inv_design.cli.database import open_database

    if config:
        settings.config, settings.config_given = Path(config), True
    if not arguments or {"-h", "--help"} & set(arguments):
        _call(lpad_run.lpad, list(arguments) or ["--help"])
        return 0
    read_only = arguments[0] in {"get_fws", "get_wflows", "get_fw", "get_wf", "report", "version", "get_fw_dict"}
    with open_database(settings, read_only=read_only) as connection:
        launchpad = connection.launchpad()
        kept = _archived(connection, launchpad, arguments) if arguments[0] == "get_fws" else []
        if kept:
            render.json_document(kept[0] if len(kept) == 1 else kept)
            return 0
        original = lpad_run.get_lp
        lpad_run.get_lp = lambda _: launchpad  # lpad would read my_launchpad.yaml, which the embedded store has none of
        try:
            return _call(lpad_run.lpad, list(arguments))
        finally:
            lpad_run.get_lp = original


def _archived(connection: Connection, launchpad: LaunchPad, arguments: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what is kept of the fireworks that ``-i`` names, if none of them is on the launchpad."""
    from fireworks_specs.archive import archived_firework

    ids: list[int] = []
    for option, value in pairwise(arguments):
        if option in ("-i", "--fw_id"):
            ids += [int(part) for part in value.split(",") if part.strip().isdigit()]
    if not ids or launchpad.fireworks.find_one({"fw_id": {"$in": ids}}, {"fw_id": 1}) is not None:
        return []
    return [found for fw_id in ids if (found := archived_firework(connection, fw_id)) is not None]


def _call(function: object, arguments: list[str]) -> int:
    """Return the exit code of an argparse program."""
    try:
        code = function(arguments)  # type: ignore[operator]
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)

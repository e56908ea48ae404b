"""`inv-design lpad`: FireWorks' own lpad on the campaign's database, the embedded one included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from inv_design.cli.options import Settings


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.option("-C", "--config", "config", hidden=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def lpad(settings: Settings, config: str | None, arguments: tuple[str, ...]) -> int:
    """Call FireWorks' lpad with ARGUMENTS on the launchpad of this campaign.

    The campaign file is ./campaign.yaml, or the one after a leading ``-C``.
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
        original = lpad_run.get_lp
        lpad_run.get_lp = lambda _: launchpad  # lpad would read my_launchpad.yaml, which the embedded store has none of
        try:
            return _call(lpad_run.lpad, list(arguments))
        finally:
            lpad_run.get_lp = original


def _call(function: object, arguments: list[str]) -> int:
    """Return the exit code of an argparse program."""
    try:
        code = function(arguments)  # type: ignore[operator]
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)

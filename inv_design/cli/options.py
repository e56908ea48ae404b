"""Options that commands share, and the settings they add up to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from inv_design.config import CampaignConfig

F = TypeVar("F", bound="Callable[..., Any]")

DATABASE_VARIABLE = "INV_DESIGN_DATABASE"


@dataclass
class Settings:
    """What the shared options say; every command receives it with ``@click.pass_obj``.

    Attributes
    ----------
    config
        The campaign file, as given or ``campaign.yaml``.
    config_given
        Whether ``--config`` was on the command line (a missing default file is then no reason to fail).
    database
        The value of ``--database``, if given.
    campaign
        The value of ``--campaign``, if given.
    as_json, verbose, debug
        ``--json``, the number of ``-v``, ``--debug``.
    """

    config: Path = Path("campaign.yaml")
    config_given: bool = False
    database: str | None = None
    campaign: str | None = None
    as_json: bool = False
    verbose: int = 0
    debug: bool = False

    def load_config(self) -> CampaignConfig:
        """Return the validated campaign file.

        Raises
        ------
        ConfigError
            If it is missing or wrong; the message names the key and the cure.
        """
        from inv_design.config import load_config

        return load_config(self.config)

    def has_config(self) -> bool:
        """Return whether a campaign file was given or lies in the current directory."""
        return self.config_given or self.config.is_file()

    def database_uri(self) -> str:
        """Return the database: ``--database``, else $INV_DESIGN_DATABASE, else the campaign file's."""
        given = self.database or os.environ.get(DATABASE_VARIABLE)
        if not given and not self.has_config():
            from inv_design.config import ConfigError

            raise ConfigError(
                f"{self.config} does not exist, so no database is known; `inv-design init DIR` writes one, and "
                f"--database embedded (or ${DATABASE_VARIABLE}) works without"
            )
        return given if given else self.load_config().database


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that puts an option's value into the settings, wherever on the command line it stands."""

    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        settings = ctx.ensure_object(Settings)
        if value is None or value is False or value == 0:
            return
        setattr(settings, name, value)
        if name == "config":
            settings.config_given = True

    return callback


def common_options(command: F) -> F:
    """Add ``-v`` and ``--debug``."""
    command = click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_remember("verbose"), help="Say more."
    )(command)
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_remember("debug"),
        help="Show the trace of an error (or set INV_DESIGN_DEBUG=1).",
    )(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=_remember("as_json"), help="Write JSON to standard output."
    )(command)


def database_options(command: F) -> F:
    """Add ``-c/--config`` and ``--database``, and the common options."""
    command = common_options(command)
    command = click.option(
        "--database",
        metavar="URI",
        expose_value=False,
        callback=_remember("database"),
        help=f"Database instead of ${DATABASE_VARIABLE} and the campaign file's.",
    )(command)
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        expose_value=False,
        callback=_remember("config"),
        help="Campaign file.  [default: campaign.yaml]",
    )(command)


def campaign_options(command: F) -> F:
    """Add ``-c/--config``, ``--database`` and ``--campaign``, and the common options."""
    return click.option(
        "--campaign",
        metavar="NAME",
        expose_value=False,
        callback=_remember("campaign"),
        help="Campaign, where the database holds several.  [default: the campaign file's]",
    )(database_options(command))

"""From the options to an open database and the campaign in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inv_design.cli.options import Settings
    from stores.connection import Connection


def open_database(settings: Settings, *, read_only: bool = False) -> Connection:
    """Connect to the database that the options name; an embedded one lies beside the campaign file.

    A database that was moved can be read, with a note; only the move itself may write to it again.

    Raises
    ------
    ConfigError
        If the database is to come from a campaign file that is missing or wrong.
    ConnectionError
        If it does not answer, there is nothing to read yet, or it was moved and is to be written.
    """
    from stores.connection import connect

    connection = connect(
        settings.database_uri(),
        root=settings.config.resolve().parent,
        password=_password(settings),
        read_only=read_only,
    )
    _mind_the_move(connection)
    return connection


def _mind_the_move(connection: Connection) -> None:
    """Say where a database that was moved is now; raise ConnectionError if it is about to be written."""
    from inv_design.cli import render
    from stores.move import admit, closed, moved_to

    if not connection.read_only:
        try:
            admit(connection)
        except ConnectionError:
            connection.close()
            raise
    elif (found := closed(connection)) is not None:
        render.say(f"note: {found[0]}; this is what it {'held then' if moved_to(connection) else 'holds so far'}")


def campaign_name(settings: Settings) -> str:
    """Return the campaign that the options mean: ``--campaign``, the campaign file's, or the only one there is.

    Raises
    ------
    ConfigError, LookupError
        If there is none, or several and no choice was made.
    """
    from stores.documents import Campaign

    known = sorted(Campaign.objects.distinct("name"))
    if settings.campaign:
        if settings.campaign not in known:
            from inv_design.cli.errors import nearest

            hint = nearest(settings.campaign, known) if known else "; it holds no campaign yet"
            raise LookupError(f"the database holds no campaign {settings.campaign!r}{hint}")
        return settings.campaign
    if settings.has_config():
        name = settings.load_config().name
        if name not in known:
            raise LookupError(f"campaign {name!r} is not in the database yet; `inv-design run` or `launch` starts it")
        return name
    if len(known) == 1:
        return str(known[0])
    if not known:
        raise LookupError("the database holds no campaign yet; `inv-design init DIR` and `inv-design run` start one")
    raise LookupError(f"the database holds several campaigns ({', '.join(known)}); choose one with --campaign")


def campaign_config(name: str) -> dict[str, Any]:
    """Return the configuration that a campaign was started with, as stored."""
    from stores.documents import Campaign

    document = Campaign.objects(name=name).first()
    return dict(document.to_mongo()["config"]) if document is not None else {}


def _password(settings: Settings) -> str | None:
    """Return the password of the file that the campaign file names, if there is one."""
    if not settings.has_config():
        return None
    given = settings.load_config().password_file
    if given is None:
        return None
    path = settings.config.resolve().parent / Path(given).expanduser()
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConnectionError(f"password_file {path} cannot be read ({error.strerror}); correct the path") from None

"""One URI for everything: mongoengine, maggma, FireWorks' launchpad and GridFS on the same database."""

from __future__ import annotations

import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gridfs
    from fireworks import LaunchPad
    from pymongo import MongoClient

    from stores.maggma import CampaignStore

LOG = logging.getLogger(__name__)

DATABASE_VARIABLE = "INV_DESIGN_DATABASE"
PASSWORD_VARIABLE = "INV_DESIGN_DATABASE_PASSWORD"
DEFAULT_NAME = "inv_design"
EMBEDDED_FILE = "inv_design.sqlite"
TIMEOUT_MS = 5000

_connections: dict[str, Connection] = {}


def connect(
    database: str | None = None,
    *,
    root: Path | None = None,
    password: str | None = None,
    alias: str = "default",
    read_only: bool = False,
) -> Connection:
    """Connect this process to a campaign's database and return the connection.

    Parameters
    ----------
    database
        ``"embedded"`` (the file ``inv_design.sqlite`` in ``root``), ``"embedded:PATH"``, or a ``mongodb://`` or
        ``mongodb+srv://`` URI. ``None`` takes the environment's ``INV_DESIGN_DATABASE``, else ``"embedded"``.
    root
        Folder that relative paths start from; the working directory by default.
    password
        For a URI that has a user and no password; ``INV_DESIGN_DATABASE_PASSWORD`` by default.
    alias
        mongoengine's name of the connection. The documents use ``"default"``.
    read_only
        Open an embedded database as a snapshot beside the process that writes it, and write nothing to a server.

    Raises
    ------
    ValueError
        If ``database`` is none of these.
    ConnectionError
        If the database does not answer, refuses the user, is held by another process, or is to be written although it
        was moved elsewhere, or is the target of a move that is not complete.
    """
    database = database or os.environ.get(DATABASE_VARIABLE) or "embedded"
    if database == "embedded" or database.startswith("embedded:"):
        path = _embedded_path(database, root)
        existing = _connections.get(alias)
        if existing is not None and existing.is_on(path, read_only=read_only):
            return existing
        _close_alias(alias)
        return _register(_open_embedded(path, read_only=read_only), alias)
    if not re.match(r"mongodb(\+srv)?://", database):
        raise ValueError(
            f"{redact(database)!r} is no database; use 'embedded', 'embedded:PATH' or 'mongodb://HOST/NAME'"
        )
    existing = _connections.get(alias)
    if existing is not None and existing.given == (database, password, read_only):
        return existing
    _close_alias(alias)
    connection = _open_mongodb(database, password, read_only=read_only)
    connection.given = (database, password, read_only)
    return _register(connection, alias)


def current() -> Connection:
    """Return the connection of this process.

    Raises
    ------
    ConnectionError
        If :func:`connect` was not called.
    """
    try:
        return _connections["default"]
    except KeyError:
        raise ConnectionError("this process has no database yet; call stores.connection.connect() first") from None


def connect_from_launchpad(launchpad: LaunchPad) -> Connection:
    """Return a connection to the database that a launchpad is on: for a worker that has only ``my_launchpad.yaml``.

    The launchpad's own client is used, so that credentials are neither repeated nor stored.

    Raises
    ------
    ConnectionError
        If the database was moved, also while this worker was connected.
    """
    from stores import journal, move

    existing = _connections.get("default")
    if existing is not None and existing.client is launchpad.connection and existing.db.name == launchpad.db.name:
        if move.admit(existing):
            journal.deliver_waiting(existing)  # what the last firework could not
        existing.wait_with(launchpad)
        return existing
    from stores.embedded import EmbeddedClient

    _close_alias("default")
    if isinstance(launchpad.connection, EmbeddedClient):
        uri, kind = f"embedded:{launchpad.connection.path}", "embedded"
    else:
        host = launchpad.host if launchpad.uri_mode else f"mongodb://{launchpad.host}:{launchpad.port}/"
        uri, kind = redact(host), "mongodb"
    connection = Connection(launchpad.connection, launchpad.db.name, uri_redacted=uri, kind=kind, owns_client=False)
    connection.wait_with(launchpad)
    return _register(connection, "default")


class Connection:
    """A database that is connected to this process; made by :func:`connect`.

    Attributes
    ----------
    client, db
        A pymongo client and database, or their embedded counterparts. The database waits for a server that is away
        (:mod:`stores.outage`); the client does not.
    kind
        ``"embedded"`` or ``"mongodb"``.
    uri_redacted
        Where it is, fit for messages and logs: no credentials, no options.
    read_only
        Whether writes are refused.
    """

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        uri_redacted: str,
        kind: str,
        uri: str | None = None,
        read_only: bool = False,
        owns_client: bool = True,
    ) -> None:
        self.client = client
        self.db: Any = client[name] if kind == "embedded" else _patient(client, name, read_only=read_only)
        self.kind = kind
        self.uri_redacted = uri_redacted
        self.read_only = read_only
        self.alias = "default"
        self.database_id: str | None = None  # what the database itself says; see stores.schema
        self.given: tuple[str, str | None, bool] | None = None  # what a server connection was asked for with
        self._uri = uri
        self._owns_client = owns_client

    def __repr__(self) -> str:
        return f"Connection({self.uri_redacted!r})"

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def launchpad(self, **options: Any) -> LaunchPad:
        """Return FireWorks' LaunchPad on the same database and the same client; ``options`` go to its constructor."""
        import fireworks.core.launchpad as fireworks_launchpad
        from fireworks import LaunchPad

        _dispatch_fireworks_clients(fireworks_launchpad)
        options = {"strm_lvl": "WARNING", "user_indices": [], "wf_user_indices": ["metadata.campaign"], **options}
        launchpad = LaunchPad(host=self._uri or self.uri_redacted, uri_mode=True, name=self.db.name, **options)
        self.wait_with(launchpad)
        if not self.read_only:  # what `lpad reset` does first, without emptying anything
            counters = {"next_fw_id": 1, "next_launch_id": 1}
            launchpad.fw_id_assigner.update_one({"_id": -1}, {"$setOnInsert": counters}, upsert=True)
        return launchpad

    def wait_with(self, launchpad: LaunchPad) -> None:
        """Make a launchpad on this database wait, as :attr:`db` does, for a server that is away."""
        if self.kind != "embedded":
            from stores.outage import patient_launchpad

            patient_launchpad(launchpad, self.db)

    def now(self) -> datetime:
        """Return the time in UTC on the server's clock, so that the clocks of workers need not agree.

        The embedded database has one writing process, and its clock.
        """
        if self.kind == "embedded":
            return datetime.now(UTC).replace(tzinfo=None)
        from stores.outage import patiently

        found: datetime = patiently(lambda _: self.client.admin.command("isMaster"), self.client)["localTime"]
        return found.replace(tzinfo=None)

    def maggma_store(self, collection: str, key: str = "candidate_id", **options: Any) -> CampaignStore:
        """Return a connected maggma store on a collection."""
        from stores.maggma import CampaignStore

        store = CampaignStore(collection, key=key, **options)
        store.bind(self)
        return store

    def gridfs(self, collection: str = "artifacts") -> gridfs.GridFS:
        """Return the GridFS of large objects."""
        import gridfs

        return gridfs.GridFS(self.db, collection)

    def ensure_indexes(self) -> None:
        """Create the indexes of every collection that lacks them."""
        from stores.queries import ensure_indexes

        ensure_indexes(self)

    def refresh(self) -> None:
        """Move a read-only embedded snapshot to the present; a server always shows it."""
        if self.kind == "embedded":
            self.client.refresh()

    def is_on(self, path: Path, *, read_only: bool) -> bool:
        """Return whether this is an open embedded connection on a file."""
        return (
            self.kind == "embedded"
            and not self.client.closed
            and self.client.path == path
            and (self.read_only == read_only)
        )

    def close(self) -> None:
        """Disconnect mongoengine and close the client; closing twice is fine."""
        if _connections.get(self.alias) is self:
            del _connections[self.alias]
            _disconnect_mongoengine(self.alias)
        if self._owns_client:
            self.client.close()


def redact(uri: str) -> str:
    """Return a URI without credentials and without options (which may hold tokens), fit for messages."""
    without_user = re.sub(r"://.*@", "://***@", uri, flags=re.DOTALL)
    return without_user.split("?", 1)[0]


def scrub(text: str) -> str:
    """Return text with the credentials of every URI in it replaced."""
    return re.sub(r"(\w[\w+.-]*://)[^\s'\"]*@", r"\1***@", text)


def _embedded_path(database: str, root: Path | None) -> Path:
    given = database.partition(":")[2]
    return (Path(root or Path.cwd()) / Path(given or EMBEDDED_FILE).expanduser()).resolve()


def _open_embedded(path: Path, *, read_only: bool) -> Connection:
    from mongomock_ng.gridfs import enable_gridfs_integration

    from stores.embedded import EmbeddedClient

    _enable_once(enable_gridfs_integration)
    shared = next((c for c in _connections.values() if c.is_on(path, read_only=read_only)), None)
    client = shared.client if shared else EmbeddedClient(path, read_only=read_only)
    uri = f"embedded:{path}"
    owns = shared is None
    return Connection(
        client, DEFAULT_NAME, uri_redacted=uri, kind="embedded", uri=uri, read_only=read_only, owns_client=owns
    )


def _open_mongodb(uri: str, password: str | None, *, read_only: bool) -> Connection:
    from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError
    from pymongo.uri_parser import parse_uri

    options: dict[str, Any] = {"serverSelectionTimeoutMS": TIMEOUT_MS, "uuidRepresentation": "standard"}
    shown = redact(uri)
    try:
        parsed = parse_uri(uri)
        if parsed["username"] and not parsed["password"]:
            secret = password or os.environ.get(PASSWORD_VARIABLE)
            if secret:
                uri = _with_password(uri, secret)
            elif "authmechanism" not in {option.lower() for option in parsed["options"]}:
                raise ConnectionError(f"{shown} names a user without a password; set {PASSWORD_VARIABLE}")
        client: MongoClient[dict[str, Any]] = _client_class(read_only=read_only)(uri, **options)
        client.admin.command("ping")
        name = parsed["database"] or DEFAULT_NAME
        if parsed["username"]:
            client[name].command("count", "campaigns")  # authentication is tested by the first real command
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise ConnectionError(
            f"{shown} is no usable MongoDB URI ({_told(error, uri)}); correct it (a password is percent-encoded)"
        ) from None
    except OperationFailure as error:
        raise ConnectionError(
            f"{shown} refused the user ({_told(error, uri)}); check the user, its role and {PASSWORD_VARIABLE}"
        ) from None
    except PyMongoError as error:
        raise ConnectionError(
            f"{shown} does not answer within {TIMEOUT_MS / 1000:.0f} s ({_told(error, uri)}); "
            "start the server, correct the URI, or use 'embedded'"
        ) from None
    return Connection(client, name, uri_redacted=shown, kind="mongodb", uri=uri, read_only=read_only)


def _told(error: BaseException, uri: str) -> str:
    """Return what an error says, or only its type where that repeats a part of the password.

    pymongo quotes what it cannot parse, and of a password with an unescaped ``/`` or ``@`` that is the rest.
    """
    text = first_line(error)
    password = uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    pieces = [piece for piece in re.split(r"[^\w.-]+", password) if len(piece) > 1]
    return type(error).__name__ if any(piece in text for piece in pieces) else text


def _client_class(*, read_only: bool) -> type[MongoClient[dict[str, Any]]]:
    if read_only:
        from stores.read_only import ReadOnlyClient

        return ReadOnlyClient
    import pymongo

    return pymongo.MongoClient


def _with_password(uri: str, password: str) -> str:
    """Return the URI with the password in it, for the clients that FireWorks makes from it."""
    from urllib.parse import quote_plus

    scheme, rest = uri.split("://", 1)
    user, host = rest.split("@", 1)
    return f"{scheme}://{user.rstrip(':')}:{quote_plus(password)}@{host}"


def _patient(client: Any, name: str, *, read_only: bool) -> Any:
    """Return a server's database that waits while the server is away; who writes reads what was written last."""
    from pymongo import ReadPreference

    from stores.outage import PatientDatabase

    return PatientDatabase(client, name, read_preference=None if read_only else ReadPreference.PRIMARY)


def first_line(error: BaseException) -> str:
    """Return what an error says, without pymongo's dump of its topology."""
    text = str(error) or type(error).__name__
    return scrub(re.split(r"\n| \(configured timeouts|, Timeout:|, full error:", text, maxsplit=1)[0])


def _register(connection: Connection, alias: str) -> Connection:
    """Make a connection the one of its alias, in mongoengine too, see to the indexes, and deliver the journal."""
    import mongoengine

    from stores import journal, schema

    may_write = schema.ready(connection)
    connection.alias = alias
    _disconnect_mongoengine(alias)
    mongoengine.connect(
        connection.db.name,
        alias=alias,
        mongo_client_class=lambda **_: connection.client,
        uuidRepresentation="standard",
    )
    mongoengine.connection._dbs[alias] = connection.db  # else it takes one from the client, which does not wait
    _connections[alias] = connection
    if may_write:
        connection.ensure_indexes()
        journal.deliver_waiting(connection)
    return connection


def _close_alias(alias: str) -> None:
    existing = _connections.get(alias)
    if existing is not None:
        existing.close()


def _disconnect_mongoengine(alias: str) -> None:
    """Take an alias from mongoengine; closing the client stays with its owner."""
    import mongoengine
    from mongoengine import connection as registry

    if alias in registry._connections:
        registry._connections[alias] = _Unclosable()
    mongoengine.disconnect(alias)


class _Unclosable:
    def close(self) -> None:
        """Do nothing: mongoengine closes what it disconnects from, the client has another owner."""


def _dispatch_fireworks_clients(module: Any) -> None:
    """Make FireWorks' launchpads take the client of this process when they are on the same database.

    FireWorks binds ``MongoClient`` at import; the name in its module is the one to replace.
    """
    original = module.MongoClient
    if getattr(original, "dispatches", False):
        return

    def client_for(host: Any = None, *args: Any, **options: Any) -> Any:
        for connection in _connections.values():
            if host is not None and host in (connection._uri, connection.uri_redacted):
                return connection.client
        if isinstance(host, str) and host.startswith("embedded:"):
            return connect(host).client
        return original(host, *args, **options)

    client_for.dispatches = True  # type: ignore[attr-defined]
    module.MongoClient = client_for


_enabled: set[str] = set()


def _enable_once(patch: Any) -> None:
    """Run a patch of a library once per process."""
    if patch.__name__ not in _enabled:
        _enabled.add(patch.__name__)
        patch()

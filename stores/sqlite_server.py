"""The SQLite file behind the embedded database: its lock, its connection, its transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mongomock_ng.store import DatabaseStore, ServerStore
from pymongo.errors import InvalidOperation

from stores.file_lock import FileLock
from stores.sqlite_collection import SQLiteCollection
from stores.sqlite_upgrade import upgrade_from_1

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    P = ParamSpec("P")
    T = TypeVar("T")

APPLICATION_ID = 0x1D5E  # marks the SQLite file as ours
SCHEMA_VERSION = 2
_ABOUT_RIGHTS = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")


class SQLiteServer(ServerStore):
    """The file: its lock, its connection, its transactions, its databases."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        super().__init__()
        self.path = path
        self.read_only = read_only
        self.lock = threading.RLock()
        self.cached_bytes = 0
        self._pid = os.getpid()
        self._writing = False
        self._unsure = False
        self._closed = False
        self._lock_file = None if read_only else FileLock(path)
        try:
            self.sqlite = self._open_file()
            self._forget()
        except BaseException:
            if self._lock_file is not None:
                self._lock_file.release()
            raise

    def _open_file(self) -> sqlite3.Connection:
        self._immutable = False
        if self.read_only:
            if not self.path.is_file():
                raise ConnectionError(
                    f"there is no embedded database at {self.path}; run `inv-design init` or check the path"
                )
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connected("mode=ro" if self.read_only else "mode=rwc")
        except sqlite3.DatabaseError as error:
            if not getattr(error, "sqlite_errorname", "").startswith(_ABOUT_RIGHTS):
                raise ConnectionError(f"{self.path} is no embedded database ({error}); choose another path") from error
            if not self.read_only:
                raise ConnectionError(
                    f"{self.path} cannot be written ({error}); check the rights on it and its folder, or open it "
                    "read-only"
                ) from error
            wal = self.path.with_name(f"{self.path.name}-wal")
            if os.access(self.path, os.R_OK) and wal.exists() and wal.stat().st_size:
                raise ConnectionError(
                    f"{self.path} cannot be read without the right to write in its folder ({error}), as it was not "
                    f"closed; let its owner open it once, or copy it and {wal.name} to a folder of yours"
                ) from error
        try:
            # Closed, and we may not write the files that readers and a writer share: read it as it lies there.
            connection = self._connected("mode=ro&immutable=1")
        except sqlite3.DatabaseError as error:
            raise ConnectionError(f"{self.path} cannot be opened ({error}); check the path and its rights") from error
        self._immutable = True
        return connection

    def _connected(self, options: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?{options}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=1024,
        )
        try:
            connection.execute("PRAGMA busy_timeout=10000")
            self._check_or_create(connection)
            if self.read_only:
                connection.execute("BEGIN")  # one read transaction: the snapshot
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_or_create(self, connection: sqlite3.Connection) -> None:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty and not self.read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")  # all of it or nothing, should the process be killed here
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute(
                "CREATE TABLE collections "
                "(number INTEGER PRIMARY KEY, database TEXT, name TEXT, UNIQUE(database, name))"
            )
            connection.execute(
                "CREATE TABLE indexes (number INTEGER, name TEXT, config BLOB, slot INTEGER, "
                "multikey INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(number, name))"
            )
            connection.execute("COMMIT")
        elif (application_id, version) == (APPLICATION_ID, 1):
            if self.read_only:
                raise ConnectionError(
                    f"{self.path} was made by an older version; `inv-design db migrate` brings it up to date"
                )
            upgrade_from_1(connection)
        elif not empty and (application_id, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise ConnectionError(
                f"{self.path} is no embedded database of version {SCHEMA_VERSION} "
                f"(application {application_id:#x}, version {version}); choose another path"
            )
        if not self.read_only:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=16000")
            connection.execute("PRAGMA cache_size=-131072")

    def _names(self) -> dict[tuple[str, str], int]:
        """Return (database, collection) -> number in the file."""
        if not self.sqlite.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return {}  # a snapshot of a file that its writer has not set up yet
        rows = self.sqlite.execute("SELECT database, name, number FROM collections").fetchall()
        return {(database, name): number for database, name, number in rows}

    def __getitem__(self, name: str) -> SQLiteDatabase:
        if name not in self._databases:
            self._databases[name] = SQLiteDatabase(self, name)
        return self._databases[name]

    def reading(self) -> AbstractContextManager[Any]:
        """Return the lock of the server, to be held while reading."""
        self._check_usable()
        return self.lock

    def write(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an operation as one SQLite transaction, acknowledged when this returns; operations may nest.

        What an operation did before it failed (an ordered ``insert_many`` at its first duplicate) stays, as in
        MongoDB. When SQLite itself fails or the operation is interrupted, everything of it is undone.

        This is no context manager: Python may raise ``KeyboardInterrupt`` on the way into its ``__exit__``, where
        nothing could end the transaction any more.

        Raises
        ------
        ConnectionError
            If SQLite did not take the write.
        PermissionError
            If the file is open read-only.
        """
        with self.lock:
            self._check_usable()
            if self.read_only:
                raise PermissionError(f"{self.path} is open read-only; connect without read_only to write")
            if self._writing:
                return operation(*args, **kwargs)
            try:
                self._writing = True
                self.sqlite.execute("BEGIN IMMEDIATE")
                try:
                    result = operation(*args, **kwargs)
                except sqlite3.Error:
                    raise
                except Exception:
                    self.sqlite.execute("COMMIT")
                    raise
                self.sqlite.execute("COMMIT")
            except sqlite3.Error as error:
                self._undo()
                raise ConnectionError(
                    f"{self.path} did not take a write ({error}); free space or check the disk"
                ) from error
            except BaseException as error:
                if not isinstance(error, Exception) or self.sqlite.in_transaction:
                    self._undo()
                raise
            finally:
                self._writing = False
            return result

    def _undo(self) -> None:
        self._unsure = True  # until all of this is done, should it be interrupted
        with contextlib.suppress(sqlite3.Error):
            self.sqlite.execute("ROLLBACK")
        self._forget()
        self._unsure = False

    def _forget(self) -> None:
        """Drop what is held in memory and know the collections in the file; documents are read when asked for."""
        self.cached_bytes = 0
        numbers = self._names()
        known = {(database.name, name) for database in self._databases.values() for name in database.names()}
        for database, name in known | set(numbers):
            self[database][name].reload(numbers.get((database, name)))

    def refresh(self) -> None:
        """Move a read-only snapshot to the present."""
        if self.read_only:
            with self.lock:
                self._check_usable()
                if self._immutable:  # SQLite takes it that such a file never changes
                    before, self.sqlite = self.sqlite, self._open_file()
                    before.close()
                else:
                    if self.sqlite.in_transaction:  # not if this was interrupted before
                        self.sqlite.execute("COMMIT")
                    self.sqlite.execute("BEGIN")
                self._forget()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self.lock:
            self._closed = True
            self._databases.clear()
            if os.getpid() == self._pid:  # a forked child must not touch the parent's file
                self.sqlite.close()
            if self._lock_file is not None:
                self._lock_file.release()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{self.path} belongs to process {self._pid}; this is its fork {os.getpid()}, which must not use it"
            )
        if self._closed:
            raise InvalidOperation(f"{self.path} was closed; connect again")
        if self._is_left_over():
            with self.lock:
                if self._is_left_over():
                    self._undo()

    def _is_left_over(self) -> bool:
        """Return whether an operation was interrupted again while it was being undone."""
        begun = self.sqlite.in_transaction and not self.read_only
        return (begun or self._unsure) and not self._writing


class SQLiteDatabase(DatabaseStore):
    """The collections of one database."""

    def __init__(self, server: SQLiteServer, name: str) -> None:
        super().__init__()
        self.server = server
        self.name = name

    def __getitem__(self, name: str) -> SQLiteCollection:
        with self.server.lock:
            if name not in self._collections:
                self._collections[name] = SQLiteCollection(self.server, self.name, name)
            return self._collections[name]

    def names(self) -> list[str]:
        """Return the names of the collections that were asked for or are in the file."""
        return list(self._collections)

    def list_created_collection_names(self) -> list[str]:
        """Return the names of the collections that have documents or indexes or were created."""
        with self.server.reading():
            return [name for name, collection in self._collections.items() if collection.is_created]

    def rename(self, name: str, new_name: str) -> None:
        """Give a collection another name."""
        source = self[name]
        self[new_name].drop()
        source.rename(new_name)
        self._collections[new_name] = self._collections.pop(name)

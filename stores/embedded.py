"""The embedded database: MongoDB's language by mongomock-ng, durability and hash indexes by one SQLite file.

Every write is in the file's write-ahead log before it is acknowledged, so a killed process loses nothing that it was
told was written (``synchronous=NORMAL``: a power failure may lose the last moments, it never corrupts). One process
writes, held off by a lock file; others may open a read-only snapshot beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import bson
import mongomock_ng
from mongomock_ng import aggregate, filtering, helpers
from mongomock_ng.collection import Collection, Cursor
from mongomock_ng.command_cursor import CommandCursor
from mongomock_ng.database import Database
from mongomock_ng.store import CollectionStore, DatabaseStore, ServerStore
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure
from pymongo.operations import IndexModel

APPLICATION_ID = 0x1D5E  # marks the SQLite file as ours
SCHEMA_VERSION = 1
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # MongoDB's limit, kept so that nothing works here that fails there
CACHE_BYTES = 64 * 1024 * 1024  # BSON of the collections that are kept decoded in memory, all together
MAX_INDEX_KEYS = 50_000  # beyond this many $in combinations a scan is cheaper

_REGEX = (re.Pattern, bson.Regex)


class EmbeddedClient(mongomock_ng.MongoClient):
    """A pymongo-like client on one SQLite file.

    Parameters
    ----------
    path
        The file; created with its parent folder if absent (not when read-only).
    read_only
        Open a snapshot that takes no lock and refuses writes.

    Raises
    ------
    ConnectionError
        If another process holds the file, or it is absent (read-only), or no database of ours.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = Path(path).resolve()
        self.server = SQLiteServer(self.path, read_only=read_only)
        super().__init__(_store=self.server)

    def get_database(self, name: str | None = None, **_options: Any) -> EmbeddedDatabase:
        """Return the database ``name``; codec and concern options do not apply here."""
        self._check_closed()
        if name is None:
            raise mongomock_ng.ConfigurationError("No default database name defined or provided.")
        if name not in self._database_accesses:
            self._database_accesses[name] = EmbeddedDatabase(self, name, _store=self.server[name])
        return self._database_accesses[name]

    def close(self) -> None:
        """Close the file and release its lock."""
        self._database_accesses.clear()
        self.server.close()
        self._closed = True

    def refresh(self) -> None:
        """Move a read-only snapshot to the present; without effect on the writer, who always sees it."""
        self.server.refresh()

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._closed

    def __repr__(self) -> str:
        return f"EmbeddedClient({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class EmbeddedDatabase(Database):
    """A database of the embedded store."""

    def get_collection(self, name: str, **options: Any) -> EmbeddedCollection:
        """Return the collection ``name``."""
        if name not in self._collection_accesses:
            self._ensure_valid_collection_name(name)
            self._collection_accesses[name] = EmbeddedCollection(self, name=name, _db_store=self._store)
        return self._collection_accesses[name].with_options(codec_options=options.get("codec_options"))

    def with_options(self, **_options: Any) -> EmbeddedDatabase:
        """Return this database; concerns and preferences do not apply here."""
        return self

    def drop_collection(self, name_or_collection: str | Collection, session: Any = None) -> None:
        """Drop a collection with its indexes."""
        name = name_or_collection if isinstance(name_or_collection, str) else name_or_collection.name
        self._store[name].drop()

    def rename_collection(self, name: str, new_name: str, dropTarget: bool = False) -> Any:
        """Give a collection another name."""
        with self._store.server.writing():
            return super().rename_collection(name, new_name, dropTarget=dropTarget)


class EmbeddedCollection(Collection):
    """A collection whose writes are atomic between threads and whose equality look-ups use hash indexes."""

    @property
    def _server(self) -> SQLiteServer:
        return self._store.server

    # -- writing ------------------------------------------------------------------------------------------------------

    def _insert(self, data: Any, session: Any = None, ordered: bool = True, validate: bool = True) -> Any:
        with self._server.writing():
            if not isinstance(data, Mapping):
                return super()._insert(data, session, ordered=ordered, validate=validate)
            if not all(isinstance(key, str) for key in data):
                raise ValueError("Document keys must be strings")
            if "_id" not in data:
                data["_id"] = bson.ObjectId()  # like pymongo, in the caller's document
            self._store.insert(data)
            return data["_id"]

    def _ensure_uniques(self, new_data: Mapping[str, Any]) -> None:
        self._store.check_unique(new_data)

    def _update(self, *args: Any, **kwargs: Any) -> Any:
        with self._server.writing():
            return super()._update(*args, **kwargs)

    def _find_and_modify(self, *args: Any, **kwargs: Any) -> Any:
        with self._server.writing():
            return super()._find_and_modify(*args, **kwargs)

    def _delete(self, *args: Any, **kwargs: Any) -> Any:
        with self._server.writing():
            return super()._delete(*args, **kwargs)

    def bulk_write(self, *args: Any, **kwargs: Any) -> Any:
        """Execute write operations in one SQLite transaction."""
        with self._server.writing():
            return super().bulk_write(*args, **kwargs)

    # -- indexes ------------------------------------------------------------------------------------------------------

    def create_index(self, keys: Any, cache_for: int = 300, session: Any = None, **options: Any) -> str:
        """Create a hash index over the fields and each of their leading parts; an existing equal one is kept."""
        fields = helpers.create_index_list(keys)
        config: dict[str, Any] = {"key": fields}
        for option in ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression"):
            if options.get(option) not in (None, False):
                config[option] = options[option]
        name = options.get("name") or helpers.gen_index_name(fields)
        self._store.create_index(name, config)
        return name

    def create_indexes(self, indexes: Iterable[IndexModel], session: Any = None) -> list[str]:
        """Create several indexes."""
        with self._server.writing():
            return [
                self.create_index(list(index.document["key"].items()), **{**index.document, "key": None})
                for index in indexes
            ]

    def drop_indexes(self, session: Any = None) -> None:
        """Drop all indexes."""
        with self._server.writing():
            for name in list(self._store.indexes):
                self._store.drop_index(name)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _iter_documents(self, filter: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield private copies of the matching documents: mongomock's updates work in place on what they get."""
        with self._server.reading():
            return iter([bson.decode(blob) for _, blob in self._store.matching(filter)])

    def find(self, filter: Mapping[str, Any] | None = None, projection: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor; it reads when first asked, all at once."""
        cursor = super().find(filter, projection, *args, **kwargs)
        cursor.__class__ = EmbeddedCursor
        return cursor

    def find_one(self, filter: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the first matching document or ``None``."""
        if filter is not None and not isinstance(filter, Mapping):
            filter = {"_id": filter}
        for document in self.find(filter, *args, **{**kwargs, "limit": 1}):
            return document
        return None

    def count_documents(self, filter: Mapping[str, Any], **kwargs: Any) -> int:
        """Count the matching documents."""
        if not filter and not kwargs:
            return len(self._store)
        unknown = set(kwargs) - {"limit", "skip", "maxTimeMS", "hint", "session", "comment"}
        if unknown:
            raise OperationFailure(f"unrecognized field {sorted(unknown)[0]!r}")
        with self._server.reading():
            spec = helpers.patch_datetime_awareness_in_document(filter)
            count = max(sum(1 for _ in self._store.matching(spec)) - (kwargs.get("skip") or 0), 0)
        return min(count, kwargs["limit"]) if kwargs.get("limit") else count

    def aggregate(self, pipeline: list[dict[str, Any]], session: Any = None, **_options: Any) -> Any:
        """Run an aggregation; a leading ``$match`` uses the indexes."""
        pipeline = list(pipeline)
        match: Mapping[str, Any] = {}
        if pipeline and "$match" in pipeline[0]:
            match = helpers.patch_datetime_awareness_in_document(pipeline[0]["$match"])
            pipeline = pipeline[1:]
        with self._server.lock:
            documents = list(self._iter_documents(match))
            if not pipeline:
                return CommandCursor(documents)
            return aggregate.process_pipeline(documents, self.database, pipeline, session)

    def with_options(self, codec_options: Any = None, **_options: Any) -> EmbeddedCollection:
        """Return this collection, with other codec options if they differ."""
        if codec_options is None or codec_options == self._codec_options:
            return self
        return EmbeddedCollection(self.database, self.name, _db_store=self._db_store, codec_options=codec_options)


class EmbeddedCursor(Cursor):
    """A cursor that copies only the documents in its window."""

    def _compute_results(self, with_limit_and_skip: bool = False) -> list[Any]:
        window = (self._skip, self._limit) if with_limit_and_skip else (0, None)
        if self._results is not None and self._factory_last_generated_results == (self._factory, window):
            return self._results
        collection = self.collection
        with collection._server.reading():
            found = _sorted(collection._store.matching(self._spec), self._sort)
            start, count = window
            found = itertools.islice(found, start, None if count is None else start + abs(count))
            if self._projection:
                results = [
                    collection._copy_only_fields(document, _copy(self._projection), dict, filter=self._spec)
                    for document, _ in found
                ]
                results = [document for document in results if document is not None]
            else:
                results = [bson.decode(blob) for _, blob in found]
        if collection.codec_options.tz_aware:
            results = [helpers.make_datetime_timezone_aware_in_document(document) for document in results]
        self._results = results
        self._factory_last_generated_results = (self._factory, window)
        return results

    def clone(self) -> EmbeddedCursor:
        """Return an unread cursor of the same query."""
        cursor = super().clone()
        cursor.__class__ = EmbeddedCursor
        return cursor

    def max_time_ms(self, max_time_ms: int | None) -> EmbeddedCursor:
        """Accept a time limit; there is no server to enforce it."""
        return self


def _copy(projection: Any) -> Any:
    return dict(projection) if isinstance(projection, Mapping) else list(projection)


def _sorted(found: Iterator[tuple[dict, bytes]], sort: Any) -> Iterator[tuple[dict, bytes]]:
    """Sort (document, blob) pairs by a pymongo sort specification, last key first (the sort is stable)."""
    if not sort:
        return found
    keys = [
        (item, 1) if isinstance(item, str) else tuple(item)
        for item in (sort.items() if isinstance(sort, Mapping) else sort)
    ]
    pairs = list(found)
    for key, direction in reversed(keys):
        if key == "$natural":
            if direction < 0:
                pairs.reverse()
            continue
        pairs.sort(key=lambda pair: filtering.resolve_sort_key(key, pair[0]), reverse=direction < 0)
    return iter(pairs)


class SQLiteServer(ServerStore):
    """The file: its lock, its connection, its transactions, its databases."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        super().__init__()
        self.path = path
        self.read_only = read_only
        self.lock = threading.RLock()
        self.cached_bytes = 0
        self._pid = os.getpid()
        self._depth = 0
        self._lock_file = None if read_only else _FileLock(path)
        try:
            self.sqlite = self._open_file()
            self._load_names()
        except BaseException:
            if self._lock_file is not None:
                self._lock_file.release()
            raise

    def _open_file(self) -> sqlite3.Connection:
        if self.read_only:
            if not self.path.is_file():
                raise ConnectionError(
                    f"there is no embedded database at {self.path}; run `inv-design init` or check the path"
                )
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, cached_statements=1024
            )
        try:
            connection.execute("PRAGMA busy_timeout=10000")
            self._check_or_create(connection)
            if self.read_only:
                connection.execute("BEGIN")  # one read transaction: the snapshot
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ConnectionError(f"{self.path} is no embedded database ({error}); choose another path") from error
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
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute(
                "CREATE TABLE collections (number INTEGER PRIMARY KEY, database TEXT, name TEXT, UNIQUE(database, name))"
            )
            connection.execute(
                "CREATE TABLE indexes (number INTEGER, name TEXT, config BLOB, PRIMARY KEY(number, name))"
            )
        elif not empty and (application_id, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise ConnectionError(
                f"{self.path} is no embedded database of version {SCHEMA_VERSION} "
                f"(application {application_id:#x}, version {version}); choose another path"
            )
        if not self.read_only:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=4000")
            connection.execute("PRAGMA cache_size=-65536")

    def _load_names(self) -> None:
        """Make the stores of the collections in the file; documents are read when they are asked for."""
        has_tables = self.sqlite.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not has_tables:
            return
        for number, database, name in self.sqlite.execute("SELECT number, database, name FROM collections").fetchall():
            self[database].adopt(name, number)

    def __getitem__(self, name: str) -> SQLiteDatabase:
        if name not in self._databases:
            self._databases[name] = SQLiteDatabase(self, name)
        return self._databases[name]

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the server while reading."""
        with self.lock:
            self._check_usable()
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the server for one acknowledged operation, one SQLite transaction; operations may nest.

        What an operation did before it failed (an ordered ``insert_many`` at its first duplicate) stays, as in
        MongoDB. When SQLite itself fails or the operation is interrupted, everything of it is undone.
        """
        with self.lock:
            self._check_usable()
            if self.read_only:
                raise PermissionError(f"{self.path} is open read-only; connect without read_only to write")
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self.sqlite.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
            except Exception as error:
                if isinstance(error, sqlite3.Error):
                    self._undo()
                    raise OSError(
                        f"{self.path} did not take a write ({error}); free space or check the disk"
                    ) from error
                self._commit()
                raise
            except BaseException:
                self._undo()
                raise
            else:
                self._commit()
            finally:
                self._depth = 0

    def _commit(self) -> None:
        try:
            self.sqlite.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            raise OSError(f"{self.path} did not take a write ({error}); free space or check the disk") from error

    def _undo(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.sqlite.execute("ROLLBACK")
        self._forget()

    def _forget(self) -> None:
        """Drop everything that is held in memory; the file is the truth."""
        self.cached_bytes = 0
        numbers: dict[tuple[str, str], int] = {}
        with contextlib.suppress(sqlite3.OperationalError):  # no tables yet
            numbers = {
                (database, name): number
                for number, database, name in self.sqlite.execute("SELECT number, database, name FROM collections")
            }
        for database in self._databases.values():
            for name in {*database._collections, *(n for d, n in numbers if d == database.name)}:
                database[name].reload(numbers.get((database.name, name)))

    def refresh(self) -> None:
        """Move a read-only snapshot to the present."""
        if self.read_only:
            with self.lock:
                self._check_usable()
                self.sqlite.execute("COMMIT")
                self.sqlite.execute("BEGIN")
                for name in self.sqlite.execute("SELECT DISTINCT database FROM collections").fetchall():
                    self[name[0]]
                self._forget()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self.lock:
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


class _FileLock:
    """An advisory lock on ``<path>.lock`` that dies with its process and says who holds it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._descriptor)
            raise ConnectionError(
                f"{path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                "wait until it ends, or open it read-only"
            ) from error
        text = json.dumps(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%FT%TZ", time.gmtime())}
        )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
        os.register_at_fork(after_in_child=self._close)

    def _holder(self) -> dict[str, Any]:
        try:
            return json.loads(os.pread(self._descriptor, 4096, 0))
        except ValueError:  # taken this very moment
            return {}

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Release the lock; the file stays, as removing it would race with the next holder."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
        self._close()


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

    def adopt(self, name: str, number: int) -> None:
        """Know a collection that is in the file."""
        self[name].reload(number)

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


class SQLiteCollection(CollectionStore):
    """The documents and index entries of one collection: two tables, ``documents_N`` and ``entries_N``.

    Small collections are held decoded in memory beside the file (all of a collection or nothing of it); of large ones
    only what a look-up needs is read. An index entry is the 128-bit hash of the indexed fields' values; candidates
    found by it are always verified with the filter itself.
    """

    _tables: ClassVar[tuple[str, ...]] = (
        "CREATE TABLE documents_{n} (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, doc BLOB NOT NULL)",
        "CREATE TABLE entries_{n} (key BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(key, seq)) WITHOUT ROWID",
    )

    def __init__(self, server: SQLiteServer, database: str, name: str) -> None:
        super().__init__(name)
        self.server = server
        self._database_name = database
        self.reload(None)

    def reload(self, number: int | None) -> None:
        """Forget what is in memory; ``number`` is the collection's number in the file, ``None`` if it is not there."""
        self._number = number
        self._cache: dict[int, tuple[dict[str, Any], bytes]] | None = {} if number is None else None
        self._cache_tried = number is None
        self._cache_size = 0
        self.indexes = {}
        self._ttl_indexes = {}
        if number is not None:
            rows = self.server.sqlite.execute("SELECT name, config FROM indexes WHERE number=?", (number,))
            for index_name, config in rows.fetchall():
                self._know_index(index_name, _decode_config(config))
        self._plan_paths()

    # -- the collection -----------------------------------------------------------------------------------------------

    @property
    def is_created(self) -> bool:
        """Whether the collection exists in the file."""
        return self._number is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is no document."""
        return len(self) == 0

    def create(self, **options: Any) -> None:
        """Create the collection; validators are the application's work here."""
        if options:
            raise NotImplementedError(f"the embedded store has no collection options, got {sorted(options)}")
        with self.server.writing():
            self._ensure_tables()

    def _ensure_tables(self) -> int:
        if self._number is None:
            sqlite = self.server.sqlite
            cursor = sqlite.execute(
                "INSERT INTO collections (database, name) VALUES (?, ?)", (self._database_name, self.name)
            )
            self._number = int(cursor.lastrowid or 0)
            for statement in self._tables:
                sqlite.execute(statement.format(n=self._number))
        return self._number

    def drop(self) -> None:
        """Remove documents, indexes and the collection itself."""
        if self._number is None:
            return
        with self.server.writing():
            sqlite = self.server.sqlite
            sqlite.execute(f"DROP TABLE documents_{self._number}")
            sqlite.execute(f"DROP TABLE entries_{self._number}")
            sqlite.execute("DELETE FROM indexes WHERE number=?", (self._number,))
            sqlite.execute("DELETE FROM collections WHERE number=?", (self._number,))
            self._uncache()
            self.reload(None)

    def rename(self, new_name: str) -> None:
        """Give the collection another name in the file."""
        self.server.sqlite.execute("UPDATE collections SET name=? WHERE number=?", (new_name, self._number))
        self.name = new_name

    def begin_transaction(self) -> None:
        """Refuse: nothing in this project may need transactions to be correct."""
        raise NotImplementedError("the embedded store has no transactions; write documents one by one")

    # -- documents ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self.server.reading():
            if self._number is None:
                return 0
            if self._cache is not None:
                return len(self._cache)
            return int(self.server.sqlite.execute(f"SELECT count(*) FROM documents_{self._number}").fetchone()[0])

    def __contains__(self, key: Any) -> bool:
        with self.server.reading():
            return self._seq(key) is not None

    def __getitem__(self, key: Any) -> dict[str, Any]:
        with self.server.reading():
            seq = self._seq(key)
            if seq is None:
                raise KeyError(key)
            return self._read(seq)[0]

    @property
    def documents(self) -> Iterator[dict[str, Any]]:
        """Every document, in the order of insertion."""
        for document, _ in self.matching({}):
            yield document

    def insert(self, data: Mapping[str, Any]) -> None:
        """Insert a new document.

        Raises
        ------
        DuplicateKeyError
            If its ``_id`` or a unique index is taken.
        """
        blob = _encode(data)
        document = bson.decode(blob)
        identity = _id_key(document["_id"])
        number = self._ensure_tables()
        if self._seq_of(identity) is not None:
            raise _duplicate(self.name, ["_id"], document)
        entries, unique = self._entries(document)
        self._check_unique(unique, document, own=None)
        cursor = self.server.sqlite.execute(f"INSERT INTO documents_{number} (id, doc) VALUES (?, ?)", (identity, blob))
        seq = int(cursor.lastrowid or 0)
        if entries:
            self.server.sqlite.executemany(
                f"INSERT INTO entries_{number} (key, seq) VALUES (?, ?)", [(key, seq) for key in entries]
            )
        self._remember(seq, document, blob)

    def __setitem__(self, key: Any, value: Mapping[str, Any]) -> None:
        """Replace the document with the same ``_id`` (or insert it)."""
        with self.server.writing():
            seq = self._seq(value["_id"])
            if seq is None:
                self.insert(value)
                return
            blob = _encode(value)
            old, old_blob = self._read(seq)
            if blob == old_blob:
                return
            document = bson.decode(blob)
            entries, unique = self._entries(document)
            self._check_unique(unique, document, own=seq)
            before, _ = self._entries(old)
            sqlite = self.server.sqlite
            sqlite.execute(f"UPDATE documents_{self._number} SET doc=? WHERE seq=?", (blob, seq))
            gone, new = before - entries, entries - before
            if gone:
                sqlite.executemany(
                    f"DELETE FROM entries_{self._number} WHERE key=? AND seq=?", [(k, seq) for k in gone]
                )
            if new:
                sqlite.executemany(f"INSERT INTO entries_{self._number} VALUES (?, ?)", [(k, seq) for k in new])
            self._remember(seq, document, blob)

    def __delitem__(self, key: Any) -> None:
        with self.server.writing():
            seq = self._seq(key)
            if seq is None:
                raise KeyError(key)
            entries, _ = self._entries(self._read(seq)[0])
            sqlite = self.server.sqlite
            sqlite.execute(f"DELETE FROM documents_{self._number} WHERE seq=?", (seq,))
            sqlite.executemany(f"DELETE FROM entries_{self._number} WHERE key=? AND seq=?", [(k, seq) for k in entries])
            if self._cache is not None:
                _, blob = self._cache.pop(seq)
                self._count_bytes(-len(blob))

    def _seq(self, key: Any) -> int | None:
        return self._seq_of(_id_key(key))

    def _seq_of(self, identity: bytes) -> int | None:
        if self._number is None:
            return None
        row = self.server.sqlite.execute(f"SELECT seq FROM documents_{self._number} WHERE id=?", (identity,)).fetchone()
        return None if row is None else int(row[0])

    def _read(self, seq: int) -> tuple[dict[str, Any], bytes]:
        if self._cache is not None:
            return self._cache[seq]
        row = self.server.sqlite.execute(f"SELECT doc FROM documents_{self._number} WHERE seq=?", (seq,)).fetchone()
        return bson.decode(row[0]), row[0]

    # -- memory -------------------------------------------------------------------------------------------------------

    def _remember(self, seq: int, document: dict[str, Any], blob: bytes) -> None:
        if self._cache is None:
            return
        old = self._cache.get(seq)
        self._count_bytes(len(blob) - (len(old[1]) if old else 0))
        self._cache[seq] = (document, blob)
        if self.server.cached_bytes > CACHE_BYTES or self.name.endswith(".chunks"):
            self._uncache()
            self._cache_tried = True

    def _uncache(self) -> None:
        self._count_bytes(-self._cache_size)
        self._cache = None

    def _count_bytes(self, change: int) -> None:
        self._cache_size += change
        self.server.cached_bytes += change

    def _all(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield every (document, blob) in the order of insertion; fills the memory if the collection is small."""
        if self._cache is not None:
            return iter(list(self._cache.values()))
        if self._number is None:
            return iter(())
        sqlite = self.server.sqlite
        if not self._cache_tried:
            self._cache_tried = True
            size = sqlite.execute(f"SELECT total(length(doc)) FROM documents_{self._number}").fetchone()[0]
            if self.server.cached_bytes + size <= CACHE_BYTES and not self.name.endswith(".chunks"):
                rows = sqlite.execute(f"SELECT seq, doc FROM documents_{self._number} ORDER BY seq").fetchall()
                self._cache = {seq: (bson.decode(blob), blob) for seq, blob in rows}
                self._count_bytes(int(size))
                return iter(list(self._cache.values()))
        rows = sqlite.execute(f"SELECT doc FROM documents_{self._number} ORDER BY seq").fetchall()
        return ((bson.decode(blob), blob) for (blob,) in rows)

    # -- indexes ------------------------------------------------------------------------------------------------------

    def create_index(self, index_name: str, index_dict: dict[str, Any]) -> None:
        """Create an index and enter what is there.

        Raises
        ------
        OperationFailure
            If the name is taken by a different index.
        DuplicateKeyError
            If it is unique and two documents have the same key; then nothing is changed.
        """
        existing = self.indexes.get(index_name)
        if existing is not None:
            if existing != index_dict:
                raise OperationFailure(f"Index with name: {index_name} already exists with different options")
            return
        if self.server.read_only:
            return  # a snapshot is read as it is
        with self.server.writing():
            before = set(self._paths)
            self._know_index(index_name, index_dict)
            self._plan_paths()
            try:
                self._enter_documents(set(self._paths) - before, index_name)
            except DuplicateKeyError:
                del self.indexes[index_name]
                self._plan_paths()
                raise
            number = self._ensure_tables()
            self.server.sqlite.execute(
                "INSERT INTO indexes VALUES (?, ?, ?)", (number, index_name, bson.encode(index_dict))
            )

    def drop_index(self, index_name: str) -> None:
        """Drop an index; ``KeyError`` if there is none of that name."""
        with self.server.writing():
            before = set(self._paths)
            del self.indexes[index_name]
            self._ttl_indexes.pop(index_name, None)
            self._plan_paths()
            sqlite = self.server.sqlite
            sqlite.execute("DELETE FROM indexes WHERE number=? AND name=?", (self._number, index_name))
            gone = before - set(self._paths)
            if gone:
                rows = sqlite.execute(f"SELECT seq, doc FROM documents_{self._number}").fetchall()
                sqlite.executemany(
                    f"DELETE FROM entries_{self._number} WHERE key=? AND seq=?",
                    [(key, seq) for seq, blob in rows for fields in gone for key in _keys(bson.decode(blob), fields)],
                )

    def _know_index(self, name: str, config: dict[str, Any]) -> None:
        self.indexes[name] = config
        if config.get("expireAfterSeconds") is not None:
            self._ttl_indexes[name] = config

    def _plan_paths(self) -> None:
        """Derive the field tuples that have entries: every index's fields and each of their leading parts."""
        self._paths: dict[tuple[str, ...], None] = {}
        self._unique: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        for config in self.indexes.values():
            fields = tuple(field for field, _ in config["key"])
            for length in range(1, len(fields) + 1):
                if fields[:length] != ("_id",):
                    self._paths[fields[:length]] = None
            if config.get("unique"):
                self._unique.append((fields, config))

    def _entries(self, document: dict[str, Any]) -> tuple[set[bytes], list[tuple[tuple[str, ...], set[bytes]]]]:
        """Return (all entries of a document, its entries per unique index that covers it)."""
        by_path = {fields: _keys(document, fields) for fields in self._paths}
        unique = [
            (fields, by_path.get(fields) or _keys(document, fields))
            for fields, config in self._unique
            if _covers(config, document)
        ]
        return set().union(*by_path.values()), unique

    def check_unique(self, document: Mapping[str, Any]) -> None:
        """Raise DuplicateKeyError if another document has the same key in a unique index."""
        stored = bson.decode(_encode(document))
        self._check_unique(self._entries(stored)[1], stored, own=self._seq(stored["_id"]))

    def _check_unique(
        self, unique: list[tuple[tuple[str, ...], set[bytes]]], document: dict[str, Any], *, own: int | None
    ) -> None:
        for fields, keys in unique:
            config = next(config for candidate, config in self._unique if candidate == fields)
            for key in keys:
                rows = self.server.sqlite.execute(f"SELECT seq FROM entries_{self._number} WHERE key=?", (key,))
                for (seq,) in rows.fetchall():
                    if seq != own and _covers(config, self._read(seq)[0]):
                        raise _duplicate(self.name, list(fields), document)

    def _enter_documents(self, paths: set[tuple[str, ...]], index_name: str) -> None:
        """Write the entries of new paths for every document; a new unique index is checked first."""
        if self._number is None:
            return
        sqlite = self.server.sqlite
        rows = sqlite.execute(f"SELECT seq, doc FROM documents_{self._number}").fetchall()
        config = self.indexes[index_name]
        fields = tuple(field for field, _ in config["key"])
        taken: set[bytes] = set()
        entries: list[tuple[bytes, int]] = []
        for seq, blob in rows:
            document = bson.decode(blob)
            if config.get("unique") and _covers(config, document):
                keys = _keys(document, fields)
                if keys & taken:
                    raise _duplicate(self.name, list(fields), document)
                taken |= keys
            entries += [(key, seq) for path in paths for key in _keys(document, path)]
        sqlite.executemany(f"INSERT OR IGNORE INTO entries_{self._number} VALUES (?, ?)", entries)

    # -- finding ------------------------------------------------------------------------------------------------------

    def matching(self, spec: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield (document, blob) of the matching documents in the order of insertion, by an index if one serves.

        The documents are the store's own: whoever changes one works on a copy.
        """
        self._remove_expired_documents()
        if self._number is None:
            filtering.filter_applies(spec, {})  # still refuse a malformed filter
            return
        seqs = self._plan(spec)
        pairs = self._all() if seqs is None else (self._read(seq) for seq in seqs)
        if not spec:
            yield from pairs
            return
        for pair in pairs:
            if filtering.filter_applies(spec, pair[0]):
                yield pair

    def _plan(self, spec: Mapping[str, Any]) -> list[int] | None:
        """Return the candidates' sequence numbers by the most selective index, or ``None`` to scan."""
        equal = _equalities(spec)
        if "_id" in equal:
            found = (self._seq(value) for value in equal["_id"])
            return sorted({seq for seq in found if seq is not None})
        best: list[bytes] | None = None
        best_count = 0
        for fields in self._paths:
            if not all(field in equal for field in fields):
                continue
            combinations = 1
            for field in fields:
                combinations *= len(equal[field])
            if combinations > MAX_INDEX_KEYS:
                continue
            keys = [_entry(fields, values) for values in itertools.product(*(equal[field] for field in fields))]
            count = self._estimate(keys)
            if best is None or count < best_count:
                best, best_count = keys, count
            if count == 0:
                break
        if best is None:
            return None
        sqlite = self.server.sqlite
        statement = f"SELECT seq FROM entries_{self._number} WHERE key=?"
        return sorted({seq for key in set(best) for (seq,) in sqlite.execute(statement, (key,))})

    def _estimate(self, keys: list[bytes]) -> int:
        """Return about how many documents the keys lead to, up to 200 counted for each of the first eight."""
        statement = f"SELECT count(*) FROM (SELECT 1 FROM entries_{self._number} WHERE key=? LIMIT 200)"
        counted = [self.server.sqlite.execute(statement, (key,)).fetchone()[0] for key in keys[:8]]
        return sum(counted) * max(1, len(keys) // 8) + (len(keys) > 8)

    def _expire_documents(self, index: Mapping[str, Any]) -> None:
        """Delete what a TTL index says is old."""
        if self.server.read_only or len(index["key"]) > 1:
            return
        field = index["key"][0][0]
        now = mongomock_ng.utcnow()
        expired = [
            document["_id"]
            for document, _ in self._all()
            if self._value_meets_expiry(helpers.get_value_by_dot(document, field), index["expireAfterSeconds"], now)
        ]
        for identity in expired:
            del self[identity]


# -- keys ---------------------------------------------------------------------------------------------------------------


def _encode(document: Mapping[str, Any]) -> bytes:
    blob = bson.encode(document)
    if len(blob) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge(f"document of {len(blob)} bytes is larger than MongoDB's {MAX_DOCUMENT_BYTES}")
    return blob


def _decode_config(blob: bytes) -> dict[str, Any]:
    config = bson.decode(blob)
    config["key"] = [tuple(item) for item in config["key"]]
    return config


def _id_key(value: Any) -> bytes:
    """Return the canonical bytes of an ``_id``."""
    return bson.encode({"": _normal(value)})


def _entry(fields: tuple[str, ...], values: Iterable[Any]) -> bytes:
    """Return the index entry of field values: 128 bits of the BLAKE2b hash of their canonical BSON."""
    text = bson.encode({"fields": ",".join(fields), "values": [_normal(value) for value in values]})
    return hashlib.blake2b(text, digest_size=16).digest()


def _normal(value: Any) -> Any:
    """Return a form in which values that MongoDB holds equal are the same bytes: 1 and 1.0, missing and null."""
    if value is None or value is filtering.NOTHING:
        return None
    if isinstance(value, (str, bool, bytes, bson.ObjectId)):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) <= 2**53 else value
    if isinstance(value, float):
        if value != value:
            return "NaN"
        return value + 0.0  # -0.0 is 0.0
    if isinstance(value, Mapping):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normal(item) for item in value]
    return value


def _keys(document: Mapping[str, Any], fields: tuple[str, ...]) -> set[bytes]:
    """Return the entries of a document for a field tuple: one, or one per array element."""
    choices = [_values(document, field) for field in fields]
    if all(len(choice) == 1 for choice in choices):
        return {_entry(fields, [choice[0] for choice in choices])}
    return {_entry(fields, values) for values in itertools.product(*choices)}


def _values(document: Mapping[str, Any], field: str) -> list[Any]:
    """Return every value by which an equality filter could meet a field: itself, and an array's elements."""
    found = [document.get(field)] if "." not in field else filtering.iter_key_candidates(field, document)
    values: list[Any] = []
    for value in found:
        values.append(value)
        if isinstance(value, list):
            values.extend(value)
    return values or [None]


def _covers(config: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Return whether an index has this document (sparse and partial indexes leave some out)."""
    expression = config.get("partialFilterExpression")
    if expression is not None and not filtering.filter_applies(expression, document):
        return False
    if config.get("sparse"):
        return any(value is not None for field, _ in config["key"] for value in _values(document, field))
    return True


def _equalities(spec: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return field -> possible values, for the fields that a filter pins down by equality or ``$in``."""
    equal: dict[str, list[Any]] = {}
    for field, condition in spec.items():
        if field == "$and":
            for part in condition:
                equal.update(_equalities(part))
            continue
        if field.startswith("$"):
            continue
        if isinstance(condition, Mapping):
            if "$eq" in condition:
                values = [condition["$eq"]]
            elif isinstance(condition.get("$in"), (list, tuple, set)):
                values = list(condition["$in"])
            else:
                continue
        else:
            values = [condition]
        if not any(isinstance(value, (Mapping, *_REGEX)) for value in values):
            equal[field] = values
    return equal


def _duplicate(collection: str, fields: list[str], document: Mapping[str, Any]) -> DuplicateKeyError:
    values = {field: helpers.get_value_by_dot(document, field) for field in fields}
    values = {field: None if value is filtering.NOTHING else value for field, value in values.items()}
    return DuplicateKeyError(
        f"E11000 duplicate key error collection: {collection} dup key: {values}",
        11000,
        {"keyPattern": dict.fromkeys(fields, 1), "keyValue": values, "errmsg": "E11000 duplicate key error"},
    )

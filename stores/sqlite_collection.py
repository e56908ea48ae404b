"""A collection in the SQLite file: its documents, its index entries, and what of it is held in memory."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import bson
from mongomock_ng import filtering, helpers
from mongomock_ng.store import CollectionStore
from pymongo.errors import DuplicateKeyError, OperationFailure

from stores.index_keys import (
    covers,
    decode_config,
    duplicate_key,
    encode_document,
    entries_of,
    entry,
    equalities,
    id_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stores.sqlite_server import SQLiteServer

CACHE_BYTES = 64 * 1024 * 1024  # BSON of the collections that are kept decoded in memory, all together
MAX_INDEX_KEYS = 50_000  # beyond this many $in combinations a scan is cheaper


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
                self._know_index(index_name, decode_config(config))
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
        blob = encode_document(data)
        document = bson.decode(blob)
        identity = id_key(document["_id"])
        number = self._ensure_tables()
        if self._seq_of(identity) is not None:
            raise duplicate_key(self.name, ["_id"], document)
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
            blob = encode_document(value)
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
        return self._seq_of(id_key(key))

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
                    [
                        (key, seq)
                        for seq, blob in rows
                        for fields in gone
                        for key in entries_of(bson.decode(blob), fields)
                    ],
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
        by_path = {fields: entries_of(document, fields) for fields in self._paths}
        unique = [
            (fields, by_path.get(fields) or entries_of(document, fields))
            for fields, config in self._unique
            if covers(config, document)
        ]
        return set().union(*by_path.values()), unique

    def check_unique(self, document: Mapping[str, Any]) -> None:
        """Raise DuplicateKeyError if another document has the same key in a unique index."""
        stored = bson.decode(encode_document(document))
        self._check_unique(self._entries(stored)[1], stored, own=self._seq(stored["_id"]))

    def _check_unique(
        self, unique: list[tuple[tuple[str, ...], set[bytes]]], document: dict[str, Any], *, own: int | None
    ) -> None:
        for fields, keys in unique:
            config = next(config for candidate, config in self._unique if candidate == fields)
            for key in keys:
                rows = self.server.sqlite.execute(f"SELECT seq FROM entries_{self._number} WHERE key=?", (key,))
                for (seq,) in rows.fetchall():
                    if seq != own and covers(config, self._read(seq)[0]):
                        raise duplicate_key(self.name, list(fields), document)

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
            if config.get("unique") and covers(config, document):
                keys = entries_of(document, fields)
                if keys & taken:
                    raise duplicate_key(self.name, list(fields), document)
                taken |= keys
            entries += [(key, seq) for path in paths for key in entries_of(document, path)]
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
        equal = equalities(spec)
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
            keys = [entry(fields, values) for values in itertools.product(*(equal[field] for field in fields))]
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
        now = helpers.utcnow()
        expired = [
            document["_id"]
            for document, _ in self._all()
            if self._value_meets_expiry(helpers.get_value_by_dot(document, field), index["expireAfterSeconds"], now)
        ]
        for identity in expired:
            del self[identity]

"""A collection in the SQLite file: its documents, its index entries, and what of it is held in memory."""

from __future__ import annotations

import datetime
import heapq
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import bson
from mongomock_ng import filtering, helpers
from mongomock_ng.store import CollectionStore
from pymongo.errors import DuplicateKeyError, OperationFailure

from stores.index_keys import after, duplicate_key, encode, encode_document, inverted, sort_key
from stores.sqlite_index import Index, decode_config, id_index
from stores.sqlite_planner import Conditions, Plan, cheapest, plan_of, type_strict, worth_comparing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stores.sqlite_planner import Range
    from stores.sqlite_server import SQLiteServer

    Pair = tuple[dict[str, Any], bytes]
    Sort = Sequence[tuple[str, int]]

CACHE_BYTES = 16 * 1024 * 1024  # BSON of the collections that are kept decoded in memory, all together
FEW = 50  # an index that leads to so few documents needs no comparison with others
COUNTED = 10_000  # entries that are counted to compare indexes; more are as good as this
COUNTED_RANGES = 8


class SQLiteCollection(CollectionStore):
    """The documents and index entries of one collection: two tables, ``documents_N`` and ``entries_N``.

    Small collections are held decoded in memory beside the file (all of a collection or nothing of it); of large ones
    only what a look-up needs is read. An index entry is the bytes of the indexed fields' values in BSON's order (see
    :mod:`stores.index_keys`) behind the two bytes of its index; ``_id`` is kept in the same form.
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
        self._id_index = id_index()
        self._ordered: dict[str, Index] = {}
        if number is not None:
            rows = self.server.sqlite.execute(
                "SELECT name, config, slot, multikey FROM indexes WHERE number=?", (number,)
            )
            for index_name, config, slot, multikey in rows.fetchall():
                self._know_index(Index(index_name, decode_config(config), slot, multikey=bool(multikey)))

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
        self.server.write(self._ensure_tables)

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
        self.server.write(self._drop)

    def _drop(self) -> None:
        if self._number is None:
            return
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
        identity = encode(document["_id"])
        number = self._ensure_tables()
        try:
            entries = self._new_entries(document, own=None)
        except DuplicateKeyError:
            if self._seq_of(identity) is not None:
                raise duplicate_key(self.name, ["_id"], document) from None
            raise
        cursor = self.server.sqlite.execute(
            f"INSERT INTO documents_{number} (id, doc) VALUES (?, ?) ON CONFLICT DO NOTHING", (identity, blob)
        )
        if not cursor.rowcount:
            raise duplicate_key(self.name, ["_id"], document)
        seq = int(cursor.lastrowid or 0)
        self._enter((key, seq) for key in entries)
        self._remember(seq, document, blob)

    def __setitem__(self, key: Any, value: Mapping[str, Any]) -> None:
        """Replace the document with the same ``_id`` (or insert it)."""
        self.server.write(self._replace, value)

    def _replace(self, value: Mapping[str, Any]) -> None:
        seq = self._seq(value["_id"])
        if seq is None:
            self.insert(value)
            return
        blob = encode_document(value)
        old, old_blob = self._read(seq)
        if blob == old_blob:
            return
        document = bson.decode(blob)
        entries = self._new_entries(document, own=seq)
        before = self._entries(old)
        self.server.sqlite.execute(f"UPDATE documents_{self._number} SET doc=? WHERE seq=?", (blob, seq))
        self._leave((key, seq) for key in before - entries)
        self._enter((key, seq) for key in entries - before)
        self._remember(seq, document, blob)

    def __delitem__(self, key: Any) -> None:
        self.server.write(self._delete, key)

    def _delete(self, key: Any) -> None:
        seq = self._seq(key)
        if seq is None:
            raise KeyError(key)
        entries = self._entries(self._read(seq)[0])
        self.server.sqlite.execute(f"DELETE FROM documents_{self._number} WHERE seq=?", (seq,))
        self._leave((key, seq) for key in entries)
        if self._cache is not None:
            _, blob = self._cache.pop(seq)
            self._count_bytes(-len(blob))

    def _seq(self, key: Any) -> int | None:
        return self._seq_of(encode(key))

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

    def _all(self) -> Iterator[Pair]:
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
        if self._has_index(index_name, index_dict) or self.server.read_only:  # a snapshot is read as it is
            return
        self.server.write(self._create_index, index_name, index_dict)

    def _has_index(self, index_name: str, index_dict: Mapping[str, Any]) -> bool:
        existing = self.indexes.get(index_name)
        if existing is not None and existing != index_dict:
            raise OperationFailure(f"Index with name: {index_name} already exists with different options")
        return existing is not None

    def _create_index(self, index_name: str, index_dict: dict[str, Any]) -> None:
        if self._has_index(index_name, index_dict):  # another thread was faster
            return
        number = self._ensure_tables()
        slot = 1 + max((index.number or 0 for index in self._ordered.values()), default=0)
        index = Index(index_name, index_dict, slot)
        entries = self._all_entries(index)
        self.server.sqlite.execute(
            "INSERT INTO indexes (number, name, config, slot, multikey) VALUES (?, ?, ?, ?, ?)",
            (number, index_name, bson.encode(index_dict), slot, index.multikey),
        )
        self._enter(sorted(entries))
        self._know_index(index)

    def drop_index(self, index_name: str) -> None:
        """Drop an index; ``KeyError`` if there is none of that name."""
        self.server.write(self._drop_index, index_name)

    def _drop_index(self, index_name: str) -> None:
        index = self._ordered.pop(index_name)
        del self.indexes[index_name]
        self._ttl_indexes.pop(index_name, None)
        sqlite = self.server.sqlite
        sqlite.execute("DELETE FROM indexes WHERE number=? AND name=?", (self._number, index_name))
        bounds = (index.slot, after(index.slot))
        sqlite.execute(f"DELETE FROM entries_{self._number} WHERE key>=? AND key<?", bounds)

    def drop_indexes(self) -> None:
        """Drop all indexes, but that on ``_id``."""
        for name in list(self.indexes):
            self.drop_index(name)

    def _know_index(self, index: Index) -> None:
        self._ordered[index.name] = index
        self.indexes[index.name] = dict(index.config)
        if index.config.get("expireAfterSeconds") is not None:
            self._ttl_indexes[index.name] = self.indexes[index.name]

    def _all_entries(self, index: Index) -> list[tuple[bytes, int]]:
        """Return the (entry, document) pairs of a new index; a unique one is checked."""
        entries: list[tuple[bytes, int]] = []
        taken: set[bytes] = set()
        for seq, blob in self.server.sqlite.execute(f"SELECT seq, doc FROM documents_{self._number}"):
            document = bson.decode(blob)
            keys, multikey = index.entries(document)
            index.multikey = index.multikey or multikey
            if index.unique:
                if keys & taken:
                    raise duplicate_key(self.name, [field for field, _ in index.fields], document)
                taken |= keys
            entries += [(key, seq) for key in keys]
        return entries

    def _entries(self, document: dict[str, Any]) -> set[bytes]:
        """Return the entries of a document that is there in all indexes."""
        known: dict[str, list[bytes]] = {}
        return set().union(*(index.entries(document, known)[0] for index in self._ordered.values()))

    def _new_entries(self, document: dict[str, Any], *, own: int | None) -> set[bytes]:
        """Return the entries to be of a document; DuplicateKeyError if a unique one is another document's."""
        found: set[bytes] = set()
        known: dict[str, list[bytes]] = {}
        for index in self._ordered.values():
            keys, multikey = index.entries(document, known)
            if multikey and not index.multikey:
                self._mark_multikey(index)
            if index.unique:
                statement = f"SELECT seq FROM entries_{self._number} WHERE key=?"
                for key in keys:
                    row = self.server.sqlite.execute(statement, (key,)).fetchone()
                    if row is not None and row[0] != own:
                        raise duplicate_key(self.name, [field for field, _ in index.fields], document)
            found |= keys
        return found

    def _mark_multikey(self, index: Index) -> None:
        index.multikey = True
        self.server.sqlite.execute(
            "UPDATE indexes SET multikey=1 WHERE number=? AND name=?", (self._number, index.name)
        )

    def _enter(self, entries: Iterable[tuple[bytes, int]]) -> None:
        self.server.sqlite.executemany(f"INSERT INTO entries_{self._number} (key, seq) VALUES (?, ?)", entries)

    def _leave(self, entries: Iterable[tuple[bytes, int]]) -> None:
        self.server.sqlite.executemany(f"DELETE FROM entries_{self._number} WHERE key=? AND seq=?", entries)

    # -- finding ------------------------------------------------------------------------------------------------------

    def matching(
        self, spec: Mapping[str, Any], sort: Sort = (), *, skip: int = 0, limit: int | None = None
    ) -> Iterator[Pair]:
        """Yield (document, blob) of the matching documents, sorted or in the order of insertion.

        The documents are the store's own: whoever changes one works on a copy.
        """
        self._remove_expired_documents()
        yield from self._matching(spec, sort, skip, limit)

    def _matching(self, spec: Mapping[str, Any], sort: Sort, skip: int, limit: int | None) -> Iterator[Pair]:
        stop = None if limit is None else skip + limit
        if self._number is None:
            filtering.filter_applies(spec, {})  # still refuse a malformed filter
            return
        plan = self.plan(spec, sort, stop)
        if plan is not None and plan.exact and plan.sorted_keys == len(sort):
            yield from map(self._read, itertools.islice(self._seqs(plan, stop), skip, stop))
            return
        pairs = self._all() if plan is None else map(self._read, self._seqs(plan))
        if spec and not (plan is not None and plan.exact):
            strict = type_strict(spec)
            pairs = (pair for pair in pairs if filtering.filter_applies(strict, pair[0]))
        yield from itertools.islice(_sorted(pairs, sort, plan.sorted_keys if plan else 0, stop), skip, stop)

    def count(self, spec: Mapping[str, Any]) -> int:
        """Count the matching documents; where an index has all that the filter asks, none is read."""
        self._remove_expired_documents()
        plan = None if self._number is None else self.plan(spec)
        if plan is None or not plan.exact:
            return sum(1 for _ in self._matching(spec, (), 0, None))
        if len(plan.ranges) != 1 or plan.index.multikey:
            return sum(1 for _ in self._seqs(plan))
        where, bounds = self._where(plan.index, plan.ranges[0])
        return int(self.server.sqlite.execute(f"SELECT count(*) FROM {where}", bounds).fetchone()[0])

    def plan(self, spec: Mapping[str, Any], sort: Sort = (), wanted: int | None = None) -> Plan | None:
        """Return how the documents will be found: by an index, or ``None`` to read them all."""
        if self._number is None or not (spec or sort):
            return None
        conditions = Conditions(spec)
        indexes = (self._id_index, *self._ordered.values())
        served = (plan_of(index, conditions, sort) for index in indexes)
        plans = worth_comparing(plan for plan in served if plan is not None)
        if len(plans) < 2:
            return plans[0] if plans else None
        counted: list[tuple[Plan, int]] = []
        for plan in plans:
            count = self._estimate(plan)
            if count <= FEW:
                return plan
            counted.append((plan, count))
        return cheapest(counted, sort, wanted)

    def _where(self, index: Index, stretch: Range) -> tuple[str, tuple[bytes, ...]]:
        """Return the table and condition of a range of entries, and what is bound in it."""
        table, column = (f"documents_{self._number}", "id") if index is self._id_index else (
            f"entries_{self._number}", "key"
        )  # fmt: skip
        low, high = stretch
        if high is None:
            return f"{table} WHERE {column}=?", (low,)
        return f"{table} WHERE {column}>=? AND {column}<?", (low, high)

    def _estimate(self, plan: Plan) -> int:
        """Return about how many entries a plan reads, counted up to a limit in the first few of its ranges."""
        counted = 0
        for stretch in plan.ranges[:COUNTED_RANGES]:
            where, bounds = self._where(plan.index, stretch)
            counted += self.server.sqlite.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM {where} LIMIT {COUNTED})", bounds
            ).fetchone()[0]
        skipped = max(0, len(plan.ranges) - COUNTED_RANGES)
        return counted + counted * skipped // COUNTED_RANGES + (skipped > 0)

    def _seqs(self, plan: Plan, stop: int | None = None) -> Iterable[int]:
        """Return the plan's documents: in its order if it sorts, else by insertion; at least ``stop`` of them."""
        if plan.sorted_keys:
            return self._ordered_seqs(plan)
        sqlite = self.server.sqlite
        if len(plan.ranges) == 1 and not plan.index.multikey:
            where, bounds = self._where(plan.index, plan.ranges[0])
            limit = -1 if stop is None else stop
            return [seq for (seq,) in sqlite.execute(f"SELECT seq FROM {where} ORDER BY seq LIMIT {limit}", bounds)]
        found: set[int] = set()
        for stretch in plan.ranges:
            where, bounds = self._where(plan.index, stretch)
            found.update(seq for (seq,) in sqlite.execute(f"SELECT seq FROM {where}", bounds))
        return sorted(found)

    def _ordered_seqs(self, plan: Plan) -> Iterator[int]:
        """Yield the plan's documents in the order of their entries, merging its ranges."""
        column = "id" if plan.index is self._id_index else "key"
        down = "DESC" if plan.backward else "ASC"

        def rows(stretch: Range, cut: int) -> Iterator[tuple[bytes, int]]:
            where, bounds = self._where(plan.index, stretch)
            statement = f"SELECT {column}, seq FROM {where} ORDER BY {column} {down}, seq {down}"
            return ((key[cut:], seq) for key, seq in self.server.sqlite.execute(statement, bounds))

        streams = [rows(stretch, cut) for stretch, cut in zip(plan.ranges, plan.cuts, strict=True)]
        merged = streams[0] if len(streams) == 1 else heapq.merge(*streams, reverse=plan.backward)
        return (seq for _, seq in merged)

    def _expire_documents(self, index: Mapping[str, Any]) -> None:
        """Delete what a TTL index says is old."""
        if self.server.read_only or len(index["key"]) > 1:
            return
        field = index["key"][0][0]
        try:
            oldest = helpers.utcnow() - datetime.timedelta(seconds=int(index["expireAfterSeconds"]))
        except ValueError:
            return
        spec = helpers.patch_datetime_awareness_in_document({field: {"$lte": oldest}})
        for identity in [document["_id"] for document, _ in self._matching(spec, (), 0, None)]:
            del self[identity]


def _sorted(pairs: Iterable[Pair], sort: Sort, done: int, wanted: int | None) -> Iterable[Pair]:
    """Sort pairs that come in the order of the first ``done`` sort keys; the first ``wanted`` are enough."""
    if done == len(sort):
        return pairs
    if sort[0][0] == "$natural":
        return list(pairs)[::-1] if sort[0][1] < 0 else pairs

    def key(pair: Pair, keys: Sort) -> list[bytes]:
        found = [(sort_key(pair[0], field, direction), direction) for field, direction in keys]
        return [inverted(part) if direction < 0 else part for part, direction in found]

    rest = sort[done:]
    if done:
        groups = itertools.groupby(pairs, lambda pair: key(pair, sort[:done]))
        return itertools.chain.from_iterable(sorted(group, key=lambda pair: key(pair, rest)) for _, group in groups)
    if wanted is not None:
        return heapq.nsmallest(wanted, pairs, key=lambda pair: key(pair, rest))
    return sorted(pairs, key=lambda pair: key(pair, rest))

"""The embedded database: MongoDB's language by mongomock-ng, durability and ordered indexes by one SQLite file.

Every write is in the file's write-ahead log before it is acknowledged, so a killed process loses nothing that it was
told was written (``synchronous=NORMAL``: a power failure may lose the last moments, it never corrupts). One process
writes, held off by a lock file; others may open a read-only snapshot beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
from mongomock_ng import aggregate, helpers
from mongomock_ng.collection import Collection, Cursor
from mongomock_ng.command_cursor import CommandCursor
from mongomock_ng.database import Database
from mongomock_ng.mongo_client import MongoClient
from pymongo.errors import ConfigurationError, OperationFailure, WriteError

from stores import projection
from stores.sqlite_planner import explained, sort_pairs, type_strict
from stores.sqlite_server import SQLiteServer

if TYPE_CHECKING:
    from pymongo.operations import IndexModel


TYPE_MISMATCH = 14  # MongoDB's number of this error


class EmbeddedClient(MongoClient):
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

    def get_database(  # type: ignore[override]
        self, name: str | None = None, **_options: Any
    ) -> EmbeddedDatabase:
        """Return the database ``name``; codec and concern options do not apply here."""
        self._check_closed()
        if name is None:
            raise ConfigurationError("No default database name defined or provided.")
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

    def get_collection(  # type: ignore[override]
        self, name: str, **options: Any
    ) -> EmbeddedCollection:
        """Return the collection ``name``."""
        if name not in self._collection_accesses:
            self._ensure_valid_collection_name(name)
            self._collection_accesses[name] = EmbeddedCollection(self, name=name, _db_store=self._store)
        return self._collection_accesses[name].with_options(codec_options=options.get("codec_options"))

    def with_options(self, **_options: Any) -> EmbeddedDatabase:  # type: ignore[override]
        """Return this database; concerns and preferences do not apply here."""
        return self

    def drop_collection(self, name_or_collection: str | Collection, session: Any = None) -> None:  # noqa: ARG002
        """Drop a collection with its indexes."""
        name = name_or_collection if isinstance(name_or_collection, str) else name_or_collection.name
        self._store[name].drop()

    def rename_collection(self, name: str, new_name: str, dropTarget: bool = False) -> Any:
        """Give a collection another name."""
        server: SQLiteServer = self.client.server
        return server.write(super().rename_collection, name, new_name, dropTarget=dropTarget)


class EmbeddedCollection(Collection):
    """A collection whose writes are atomic between threads and whose look-ups, ranges and sorts use indexes."""

    @property
    def _server(self) -> SQLiteServer:
        return self._store.server

    # -- writing ------------------------------------------------------------------------------------------------------

    def _insert(self, data: Any, session: Any = None, ordered: bool = True, validate: bool = True) -> Any:
        if not isinstance(data, Mapping):
            return self._server.write(super()._insert, data, session, ordered=ordered, validate=validate)
        if not all(isinstance(key, str) for key in data):
            raise ValueError("Document keys must be strings")
        if "_id" not in data:
            data["_id"] = bson.ObjectId()  # type: ignore[index]  # like pymongo, in the caller's document
        self._server.write(self._store.insert, data)
        return data["_id"]

    def _ensure_uniques(self, new_data: Mapping[str, Any]) -> None:
        """Leave it to the store, which checks while it writes."""

    def _update(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.write(super()._update, *args, **kwargs)

    def _update_documents(self, *args: Any, **kwargs: Any) -> Any:
        """Update; what mongomock trips over is the update's fault, as an ``$inc`` of a text.

        Raises
        ------
        WriteError
            If an operator cannot be applied to what a document has.
        """
        try:
            return super()._update_documents(*args, **kwargs)
        except bson.errors.BSONError:
            raise
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
            raise WriteError(f"the update does not suit the fields it finds ({found})", TYPE_MISMATCH) from error

    def _find_and_modify(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.write(super()._find_and_modify, *args, **kwargs)

    def _delete(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.write(super()._delete, *args, **kwargs)

    def bulk_write(self, *args: Any, **kwargs: Any) -> Any:
        """Execute write operations in one SQLite transaction."""
        return self._server.write(super().bulk_write, *args, **kwargs)

    # -- indexes ------------------------------------------------------------------------------------------------------

    def create_index(self, keys: Any, cache_for: int = 300, session: Any = None, **options: Any) -> str:  # noqa: ARG002
        """Create an ordered index over the fields, of use for each of their leading parts; an equal one is kept."""
        fields: list[Any] = helpers.create_index_list(keys)
        config: dict[str, Any] = {"key": fields}
        for option in ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression"):
            if options.get(option) not in (None, False):
                config[option] = options[option]
        name = options.get("name") or helpers.gen_index_name(fields)
        self._store.create_index(name, config)
        return name

    def create_indexes(self, indexes: Iterable[IndexModel], session: Any = None) -> list[str]:  # noqa: ARG002
        """Create several indexes."""
        return self._server.write(
            lambda: [
                self.create_index(list(index.document["key"].items()), **{**index.document, "key": None})
                for index in indexes
            ]
        )

    def drop_indexes(self, session: Any = None) -> None:  # noqa: ARG002
        """Drop all indexes."""
        self._server.write(self._store.drop_indexes)

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

    def count_documents(self, filter: Mapping[str, Any], **kwargs: Any) -> int:  # type: ignore[override]
        """Count the matching documents."""
        if not filter and not kwargs:
            return len(self._store)
        unknown = set(kwargs) - {"limit", "skip", "maxTimeMS", "hint", "session", "comment"}
        if unknown:
            raise OperationFailure(f"unrecognized field {sorted(unknown)[0]!r}")
        with self._server.reading():
            spec = helpers.patch_datetime_awareness_in_document(filter)
            count = max(self._store.count(spec) - (kwargs.get("skip") or 0), 0)
        return min(count, kwargs["limit"]) if kwargs.get("limit") else count

    def aggregate(self, pipeline: list[dict[str, Any]], session: Any = None, **_options: Any) -> Any:
        """Run an aggregation; a leading ``$match``, ``$sort``, ``$skip``, ``$limit`` use the indexes."""
        stages = list(pipeline)
        leading: dict[str, Any] = {}
        for operator in ("$match", "$sort", "$skip", "$limit"):
            if stages and list(stages[0]) == [operator]:
                leading[operator] = stages.pop(0)[operator]
        match = helpers.patch_datetime_awareness_in_document(leading.get("$match", {}))
        with self._server.reading():
            found = self._store.matching(
                match,
                sort_pairs(leading.get("$sort")),
                skip=leading.get("$skip", 0),
                limit=leading.get("$limit"),
            )
            documents = [bson.decode(blob) for _, blob in found]
            if not stages:
                return CommandCursor(documents)
            stages = [{"$match": type_strict(s["$match"])} if list(s) == ["$match"] else s for s in stages]
            return aggregate.process_pipeline(documents, self.database, stages, session)

    def with_options(  # type: ignore[override]
        self, codec_options: Any = None, **_options: Any
    ) -> EmbeddedCollection:
        """Return this collection, with other codec options if they differ."""
        if codec_options is None or codec_options == self._codec_options:
            return self
        return EmbeddedCollection(self.database, self.name, _db_store=self._db_store, codec_options=codec_options)


class EmbeddedCursor(Cursor):
    """A cursor that copies only the documents in its window."""

    def _compute_results(self, with_limit_and_skip: bool = False) -> list[Any]:
        window = (self._skip or 0, self._limit) if with_limit_and_skip else (0, None)
        if self._results is not None and self._factory_last_generated_results == (self._factory, window):
            return self._results
        collection = self.collection
        with collection._server.reading():
            skip, limit = window
            found = collection._store.matching(
                self._spec, sort_pairs(self._sort), skip=skip, limit=None if limit is None else abs(limit)
            )
            parsed = projection.parse(self._projection)
            if parsed is not None:
                results = [_projected(document, blob, parsed) for document, blob in found]
            elif self._projection:
                projection.refuse_nested_operators(self._projection)
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

    def explain(self) -> dict[str, Any]:
        """Return how the query is answered, in the words of MongoDB: IXSCAN with ``indexName``, or COLLSCAN."""
        collection = self.collection
        sort = sort_pairs(self._sort)
        with collection._server.reading():
            wanted = None if self._limit is None else (self._skip or 0) + abs(self._limit)
            plan = collection._store.plan(self._spec, sort, wanted)
        return {
            "queryPlanner": {
                "namespace": collection.full_name,
                "parsedQuery": dict(self._spec),
                "winningPlan": explained(plan, self._spec, sort),
                "rejectedPlans": [],
            },
            "ok": 1.0,
        }

    def max_time_ms(self, max_time_ms: int | None) -> EmbeddedCursor:  # noqa: ARG002
        """Accept a time limit; there is no server to enforce it."""
        return self


def _copy(given: Any) -> Any:
    return dict(given) if isinstance(given, Mapping) else list(given)


def _projected(document: Mapping[str, Any], blob: bytes, parsed: tuple[bool, bool, projection.Tree]) -> dict[str, Any]:
    """Return a private copy of a document's part: what is kept is copied, what is left comes from the bytes."""
    if parsed[0]:
        return bson.decode(bson.encode(projection.project(document, *parsed)))
    return projection.project(bson.decode(blob), *parsed)

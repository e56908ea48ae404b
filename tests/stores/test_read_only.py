"""Whoever opens a server's database to read cannot change it, by whatever way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stores.connection import Connection, connect

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.wire

WRITES: dict[str, Callable[[Any], Any]] = {
    "insert": lambda db: db.command("insert", "other", documents=[{"a": 1}]),
    "update": lambda db: db.command(
        {"update": "steps", "updates": [{"q": {}, "u": {"$set": {"a": 1}}, "multi": True}]}
    ),
    "delete": lambda db: db.command("delete", "steps", deletes=[{"q": {}, "limit": 0}]),
    "findAndModify": lambda db: db.command("findAndModify", "steps", query={}, remove=True),
    "findandmodify": lambda db: db.command("findandmodify", "steps", query={}, remove=True),
    "drop": lambda db: db.command("drop", "steps"),
    "dropDatabase": lambda db: db.command("dropDatabase"),
    "create": lambda db: db.command("create", "other"),
    "createUser": lambda db: db.command("createUser", "x", pwd="x", roles=[]),
    "mapReduce": lambda db: db.command("mapReduce", "steps", map="m", reduce="r", out="other"),
    "of the client": lambda db: db.client[db.name].command("dropDatabase"),
    "of the admin": lambda db: db.client.admin.command("renameCollection", f"{db.name}.steps", to=f"{db.name}.other"),
    "cursor": lambda db: db.cursor_command({"aggregate": "steps", "pipeline": [{"$out": "other"}], "cursor": {}}),
    "$out": lambda db: db["steps"].aggregate([{"$match": {}}, {"$out": "other"}]),
    "$merge": lambda db: db["steps"].aggregate([{"$match": {}}, {"$merge": {"into": "other"}}]),
    "$out of the client": lambda db: db.client[db.name]["steps"].aggregate([{"$out": "other"}]),
    "$out by name": lambda db: db.command("aggregate", "steps", pipeline=[{"$out": "other"}], cursor={}),
}


@pytest.mark.parametrize("name", WRITES)
def test_no_command_writes(wire_connection: Connection, name: str) -> None:
    assert wire_connection.given is not None
    wire_connection.db["steps"].insert_one({"key": "a", "provenance": {}})
    before = sorted(wire_connection.db.list_collection_names())
    with connect(wire_connection.given[0], alias="reading", read_only=True) as reading:
        with pytest.raises(PermissionError, match="read-only"):
            WRITES[name](reading.db)
        assert reading.db["steps"].count_documents({}) == 1
    assert sorted(wire_connection.db.list_collection_names()) == before


def test_what_reads_is_answered(wire_connection: Connection) -> None:
    assert wire_connection.given is not None
    wire_connection.db["steps"].insert_many([{"key": str(i), "provenance": {}} for i in range(300)])
    with connect(wire_connection.given[0], alias="reading", read_only=True) as reading:
        steps = reading.db["steps"]
        assert reading.client.admin.command("ping")["ok"]
        assert reading.db.command("count", "steps")["n"] == 300
        assert len(list(steps.find({}, batch_size=100))) == 300
        assert len(list(steps.aggregate([{"$match": {}}], batchSize=100))) == 300
        assert len(steps.distinct("key")) == 300
        assert steps.estimated_document_count() == steps.count_documents({}) == 300
        assert "key_1" in steps.index_information()
        assert "steps" in reading.db.list_collection_names()
        assert reading.client.server_info()["version"]

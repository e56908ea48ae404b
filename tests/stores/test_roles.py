"""The roles: what they grant, how that is written for MongoDB, and a client that only reads."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stores import roles
from stores.connection import connect

if TYPE_CHECKING:
    from stores.connection import Connection

RECORDS = ("structures", "campaigns", "candidates", "predictions", "calculations", "models", "training_sets")


# -- what they grant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_nobody_but_a_curator_changes_records(name: str) -> None:
    for role, actions in {"reader": {"find"}, "worker": {"find", "insert"}}.items():
        assert {
            a for a in ("find", "insert", "update", "remove", "dropCollection") if roles.allows(role, a, name)
        } == actions
    assert all(
        roles.allows("curator", action, name) for action in ("update", "remove", "dropCollection", "createIndex")
    )


def test_each_role_may_what_the_one_before_may() -> None:
    for lesser, greater in zip(roles.ROLES, roles.ROLES[1:], strict=False):
        for privilege in roles.privileges(lesser):
            for action in privilege.actions:
                assert roles.allows(greater, action, privilege.collection), (greater, action, privilege.collection)


def test_every_collection_has_its_privileges(connection: Connection) -> None:
    from stores.queries import indexes

    known = {privilege.collection for privilege in roles.privileges("worker")}
    assert set(indexes()) <= known
    assert set(connection.db.list_collection_names()) <= known


@pytest.mark.parametrize(
    ("action", "collection", "role"),
    [
        ("find", "models", "reader"),
        ("insert", "models", "worker"),
        ("update", "models", "curator"),
        ("update", "candidate_summaries", "worker"),
        ("insert", "fireworks", "worker"),
        ("remove", "fireworks", "curator"),
        ("insert", "artifacts.chunks", "worker"),
        ("remove", "artifacts.chunks", "curator"),
        ("update", "schema", "curator"),
        ("createIndex", "models", "curator"),
    ],
)
def test_the_least_role(action: str, collection: str, role: str) -> None:
    assert roles.needed_role(action, collection) == role


def test_no_role_reaches_outside_its_database() -> None:
    for role in roles.ROLES:
        document = roles.role_document(role, "lab")
        assert {p["resource"]["db"] for p in document["privileges"]} == {"lab"}
        assert document["roles"] == []
        actions = {action for p in document["privileges"] for action in p["actions"]}
        assert not actions & {
            "anyAction",
            "createUser",
            "createRole",
            "grantRole",
            "dropDatabase",
            "shutdown",
            "inprog",
        }
        assert json.loads(json.dumps(document)) == document


def test_unknown_roles_and_odd_names() -> None:
    with pytest.raises(ValueError, match=r"no role 'boss'.*reader, worker, curator"):
        roles.privileges("boss")
    with pytest.raises(ValueError, match="no name of a user"):
        roles.user_document("ada; db.dropDatabase()", "reader", "lab")


# -- commands on the wire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"find": "models"}, ("find", "models", ("find",))),
        ({"getMore": 7, "collection": "models"}, ("getMore", "models", ("find",))),
        ({"update": "models", "updates": [{"q": {}, "u": {}}]}, ("update", "models", ("update",))),
        ({"update": "m", "updates": [{"q": {}, "u": {}, "upsert": True}]}, ("update", "m", ("update", "insert"))),
        ({"findAndModify": "m", "remove": True}, ("findAndModify", "m", ("find", "remove"))),
        ({"findAndModify": "m", "upsert": True}, ("findAndModify", "m", ("find", "update", "insert"))),
        ({"aggregate": "m", "pipeline": [{"$out": "x"}]}, ("aggregate", "m", ("find", "insert", "remove"))),
        ({"explain": {"find": "models"}}, ("find", "models", ("find",))),
        ({"ping": 1}, ("ping", "", ())),
        ({"listCollections": 1}, ("listCollections", "", ("listCollections",))),
    ],
)
def test_what_a_command_needs(command: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert roles.actions_of(command) == expected


def test_an_unknown_command_is_said() -> None:
    with pytest.raises(ValueError, match="'shutdown'"):
        roles.actions_of({"shutdown": 1})


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "role"),
    [('insert: "structures"', "worker"), ('update: "models"', "curator"), ('createIndexes: "models"', "curator")],
)
def test_a_refusal_names_the_role_and_nothing_else(command: str, role: str) -> None:
    from pymongo.errors import OperationFailure

    from inv_design.cli.errors import FAILED, describe, exit_code

    text = f'not authorized on lab to execute command {{ {command}, documents: [ {{ hush: "secret" }} ] }}'
    error = OperationFailure(text, 13, {"errmsg": text, "code": 13})
    assert f"needs the role {role} ({roles.NAMES[role]})" in describe(error)
    assert "secret" not in describe(error)
    assert "\n" not in describe(error)
    assert exit_code(error) == FAILED


def test_other_errors_are_no_refusals() -> None:
    from pymongo.errors import OperationFailure

    assert roles.refusal(ValueError("x")) is None
    assert roles.refusal(OperationFailure("x", 11000, {})) is None
    assert "role worker" in str(roles.refusal(OperationFailure("odd words", 13, {"errmsg": "odd words"})))


# -- applying ---------------------------------------------------------------------------------------------------------


class Server:
    """A database that keeps the commands it is given, and knows some roles and users."""

    def __init__(self, known: tuple[str, ...] = (), privileges: list[dict[str, Any]] | None = None) -> None:
        self.name, self.known, self.calls = "lab", known, []  # type: ignore[var-annotated]
        self.granted = privileges

    def command(self, name: str, value: Any = 1, **options: Any) -> dict[str, Any]:
        if name == "connectionStatus":
            return {"authInfo": {"authenticatedUsers": [{"user": "x"}], "authenticatedUserPrivileges": self.granted}}
        if name in ("rolesInfo", "usersInfo"):
            return {name.removesuffix("Info"): [{}] if value in self.known else []}
        self.calls.append((name, value, options))
        return {"ok": 1.0}


def server_connection(server: Server) -> Any:
    return SimpleNamespace(kind="mongodb", db=server, uri_redacted="mongodb://h/lab")


def test_roles_and_users_are_created_on_a_server() -> None:
    server = Server(known=("invDesignReader", "bob"))
    done = roles.apply(server_connection(server), {"ada": "reader", "bob": "worker"}, {"ada": "pass"})
    assert [(name, value) for name, value, _ in server.calls] == [
        ("updateRole", "invDesignReader"),
        ("createRole", "invDesignWorker"),
        ("createRole", "invDesignCurator"),
        ("createUser", "ada"),
        ("grantRolesToUser", "bob"),
    ]
    assert server.calls[3][2] == {"pwd": "pass", "roles": [{"role": "invDesignReader", "db": "lab"}]}
    assert "pwd" not in server.calls[4][2]
    assert "pass" not in json.dumps(done)


def test_a_file_and_a_stand_in_have_no_users(connection: Connection) -> None:
    with pytest.raises(RuntimeError, match="has no users"):
        roles.apply(connection, {}, {})


def test_what_a_user_lacks() -> None:
    def granted(role: str) -> list[dict[str, Any]]:
        return roles.role_document(role, "lab")["privileges"]

    assert roles.lacking(server_connection(Server(privileges=granted("curator"))), "curator") == []
    assert roles.lacking(server_connection(Server(privileges=granted("worker"))), "reader") == []
    lacks = roles.lacking(server_connection(Server(privileges=granted("worker"))), "curator")
    assert "dropCollection on the database" in lacks
    root = [{"resource": {"anyResource": True}, "actions": [*list(roles.EVERYTHING), "listCollections", "dbStats"]}]
    assert roles.lacking(server_connection(Server(privileges=root)), "curator") == []


def test_a_server_without_users_lacks_nothing(connection: Connection) -> None:
    assert roles.lacking(connection, "curator") == []


# -- a client that only reads -----------------------------------------------------------------------------------------


WRITES = {
    "insert_one": ({},),
    "insert_many": ([{}],),
    "update_one": ({}, {"$set": {"a": 1}}),
    "update_many": ({}, {"$set": {"a": 1}}),
    "replace_one": ({}, {"a": 1}),
    "delete_one": ({},),
    "delete_many": ({},),
    "find_one_and_update": ({}, {"$set": {"a": 1}}),
    "find_one_and_replace": ({}, {"a": 1}),
    "find_one_and_delete": ({},),
    "create_index": ("a",),
    "drop_index": ("a_1",),
    "drop_indexes": (),
    "drop": (),
    "rename": ("other",),
}


@pytest.mark.wire
@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_connection_writes_nothing(wire_connection: Connection, name: str) -> None:
    wire_connection.db["steps"].insert_one({"key": "a", "provenance": {}})
    with connect(wire_connection.given[0], alias="reading", read_only=True) as reading:
        with pytest.raises(PermissionError, match="read-only"):
            getattr(reading.db["steps"], name)(*WRITES[name])
        assert reading.db["steps"].count_documents({"key": "a"}) == 1
        assert reading.db["steps"].find_one({"key": "a"})
        assert list(reading.db["steps"].aggregate([{"$match": {}}]))


@pytest.mark.wire
def test_a_read_only_connection_writes_nothing_by_other_ways(wire_connection: Connection) -> None:
    from pymongo import InsertOne

    with connect(wire_connection.given[0], alias="reading", read_only=True) as reading:
        ways = (
            lambda: reading.db["steps"].bulk_write([InsertOne({})]),
            lambda: reading.db["steps"].with_options().insert_one({}),
            lambda: reading.client[reading.db.name].steps.insert_one({}),
            lambda: reading.gridfs().put(b"x"),
            lambda: reading.client.drop_database(reading.db.name),
            lambda: reading.db.create_collection("x"),
            lambda: reading.launchpad().fireworks.insert_one({}),
        )
        for way in ways:
            with pytest.raises(PermissionError, match="read-only"):
                way()
        assert reading.launchpad().fireworks.count_documents({}) == 0
    assert "x" not in wire_connection.db.list_collection_names()

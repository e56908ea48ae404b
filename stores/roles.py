"""Who may do what on a shared MongoDB: three roles, each with the least that its commands need.

==========  ===========================================================================================================
reader      reads every record; changes nothing
worker      runs campaigns: inserts records, keeps derived records and the launchpad; rewrites and deletes no record
curator     looks after the database: everything in it, but no users
==========  ===========================================================================================================

Who may write to a launchpad may run code on the workers that take its fireworks: that is what FireWorks is for. Give
the worker role to whom you would give an account on the cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stores.connection import Connection

ROLES = ("reader", "worker", "curator")
NAMES = {"reader": "invDesignReader", "worker": "invDesignWorker", "curator": "invDesignCurator"}
"""Role -> its name in MongoDB."""

LAUNCHPAD = ("fireworks", "workflows", "launches", "fw_id_assigner", "offline_runs")
BUILDERS = ("build_states",)
"""What builders keep beside the derived records."""
ARCHIVED = "archived_fireworks"
"""What a curator took from the launchpad."""
OUTPUTS = ("outputs",)
"""jobflow's JobStore; its large objects are files."""
FILES = (
    "artifacts.files", "artifacts.chunks", "fw_gridfs.files", "fw_gridfs.chunks", "outputs_blobs.files",
    "outputs_blobs.chunks",
)  # fmt: skip

READ = ("find", "listIndexes")
INSERT = (*READ, "insert")
KEEP = (*INSERT, "update", "remove")
EVERYTHING = (*KEEP, "createCollection", "createIndex", "dropIndex", "dropCollection", "collMod", "collStats")

COMMAND_ACTIONS: dict[str, tuple[str, ...]] = {
    "find": ("find",),
    "getMore": ("find",),
    "aggregate": ("find",),
    "count": ("find",),
    "distinct": ("find",),
    "insert": ("insert",),
    "update": ("update",),
    "delete": ("remove",),
    "findAndModify": ("find", "update"),
    "createIndexes": ("createIndex",),
    "listIndexes": ("listIndexes",),
    "dropIndexes": ("dropIndex",),
    "create": ("createCollection",),
    "drop": ("dropCollection",),
    "collMod": ("collMod",),
    "collStats": ("collStats",),
    "listCollections": ("listCollections",),
    "dropDatabase": ("dropDatabase",),
}
"""Command on the wire -> the actions that a role must have for it, as MongoDB checks them."""

FREE = frozenset({
    "hello", "isMaster", "ismaster", "ping", "buildInfo", "buildinfo", "endSessions", "killCursors", "saslStart",
    "saslContinue", "connectionStatus", "logout",
})  # fmt: skip
"""Commands that every user may call (killCursors: on cursors of one's own)."""


@dataclass(frozen=True)
class Privilege:
    """Actions on a collection of the campaign's database; on the database itself where the collection is empty."""

    collection: str
    actions: tuple[str, ...]


def privileges(role: str) -> tuple[Privilege, ...]:
    """Return what a role may do.

    Raises
    ------
    ValueError
        If there is no such role.
    """
    if role not in ROLES:
        raise ValueError(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
    if role == "curator":  # "" is every collection: what groups keep beside the campaigns is theirs to look after too
        return (Privilege("", (*EVERYTHING, "listCollections", "dbStats")),)
    groups = [
        (_authoritative(), INSERT if role == "worker" else READ),
        (("steps",), (*INSERT, "remove") if role == "worker" else READ),  # a claim that came to nothing is given back
        (_derived(), KEEP if role == "worker" else READ),
        (BUILDERS, ("find", "insert", "update") if role == "worker" else ()),
        (_operational(), KEEP if role == "worker" else READ),
        # jobflow writes by replacing what has the same key
        (OUTPUTS, (*INSERT, "update") if role == "worker" else READ),
        ((ARCHIVED,), READ),
        (LAUNCHPAD, (*INSERT, "update") if role == "worker" else READ),
        (FILES, INSERT if role == "worker" else ("find",)),  # GridFS looks for its indexes before the first file
        (("schema", "moves"), ("find",)),
    ]
    return (
        *(Privilege(collection, actions) for collections, actions in groups if actions for collection in collections),
        Privilege("", ("listCollections",)),
    )


def allows(role: str, action: str, collection: str) -> bool:
    """Return whether a role may do something on a collection."""
    granted = privileges(role)
    if role == "curator":
        return action in granted[0].actions
    name = "" if action == "listCollections" else collection
    return any(p.collection == name and action in p.actions for p in granted)


def needed_role(action: str, collection: str) -> str:
    """Return the least role that may do something on a collection."""
    return next((role for role in ROLES if allows(role, action, collection)), "curator")


def actions_of(command: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Return (name of a command, its collection, the actions that it needs), as MongoDB checks them.

    Raises
    ------
    ValueError
        If the command is not known here.
    """
    name = next(iter(command))
    if name in FREE:
        return name, "", ()
    if name == "explain":
        return actions_of(command[name])
    if name not in COMMAND_ACTIONS:
        raise ValueError(f"no role is known to need the command {name!r}")
    target = command["collection"] if name == "getMore" else command[name]
    actions = list(COMMAND_ACTIONS[name])
    if name == "findAndModify" and command.get("remove"):
        actions = ["find", "remove"]
    updates: Sequence[Mapping[str, Any]] = command.get("updates") or [command]
    if name in ("update", "findAndModify") and any(update.get("upsert") for update in updates):
        actions.append("insert")
    stages: Iterable[Mapping[str, Any]] = command.get("pipeline") or ()
    if name == "aggregate" and any({"$out", "$merge"} & set(stage) for stage in stages):
        actions += ["insert", "remove"]
    return name, target if isinstance(target, str) else "", tuple(actions)


# -- for a server -----------------------------------------------------------------------------------------------------


def role_document(role: str, database: str) -> dict[str, Any]:
    """Return the argument of MongoDB's ``createRole``."""
    granted = [
        {"resource": {"db": database, "collection": p.collection}, "actions": list(p.actions)} for p in privileges(role)
    ]
    return {"role": NAMES[role], "privileges": granted, "roles": []}


def user_document(user: str, role: str, database: str) -> dict[str, Any]:
    """Return the argument of MongoDB's ``createUser``, without the password.

    Raises
    ------
    ValueError
        If there is no such role, or the name is no name of a user.
    """
    if not re.fullmatch(r"[\w.@-]+", user):
        raise ValueError(f"{user!r} is no name of a user; use letters, digits, and . _ - @")
    if role not in ROLES:
        raise ValueError(f"there is no role {role!r} for {user!r}; the roles are {', '.join(ROLES)}")
    return {"user": user, "roles": [{"role": NAMES[role], "db": database}]}


def apply(connection: Connection, users: Mapping[str, str], passwords: Mapping[str, str]) -> list[dict[str, str]]:
    """Create the roles, or bring them up to date, and create the users; return what was done, without passwords.

    Parameters
    ----------
    users
        Name -> role. A user who is there already is given the role and keeps the password.
    passwords
        Name -> password of new users.

    Raises
    ------
    RuntimeError
        If the database has no users, or the connection's user may not create any.
    KeyError
        If a new user has no password.
    """
    from pymongo.errors import OperationFailure

    if connection.kind == "embedded":
        raise RuntimeError(f"{connection.uri_redacted} is a file and has no users; its permissions say who may read it")
    done = []
    try:
        for role in ROLES:
            document = role_document(role, connection.db.name)
            name = document.pop("role")
            known = connection.db.command("rolesInfo", name).get("roles")
            connection.db.command("updateRole" if known else "createRole", name, **document)
            done.append({"role": role, "name": name, "done": "updated" if known else "created"})
        for user, role in users.items():
            document = user_document(user, role, connection.db.name)
            name = document.pop("user")
            if connection.db.command("usersInfo", name).get("users"):
                connection.db.command("grantRolesToUser", name, **document)
                done.append({"user": user, "role": role, "done": "granted"})
            else:
                connection.db.command("createUser", name, pwd=passwords[user], **document)
                done.append({"user": user, "role": role, "done": "created"})
    except OperationFailure as error:
        if error.code == 59 or "no such c" in str(error).lower():  # CommandNotFound
            raise RuntimeError(
                f"{connection.uri_redacted} has no users and roles (it is no MongoDB); "
                "leave --apply out to see the commands"
            ) from None
        if error.code in (13, 18):
            raise RuntimeError(
                f"this user may not create roles on {connection.uri_redacted}; "
                "connect as an administrator (role userAdmin of this database)"
            ) from None
        raise RuntimeError(
            f"{connection.uri_redacted} refused: {(error.details or {}).get('codeName', error.code)}"
        ) from None
    return done


def lacking(connection: Connection, role: str) -> list[str]:
    """Return what a role may do and the connection's user may not, as ``"insert into models"``; nothing if unknown.

    Only a server with authentication knows; on any other everybody may do everything.
    """
    from pymongo.errors import OperationFailure

    if connection.kind == "embedded":
        return []
    try:
        info = connection.db.command("connectionStatus", showPrivileges=True).get("authInfo", {})
    except OperationFailure:
        return []
    if not info.get("authenticatedUsers"):
        return []
    granted: set[tuple[str, str]] = set()
    for item in info.get("authenticatedUserPrivileges", ()):
        resource = item.get("resource", {})
        if resource.get("anyResource") or resource.get("db") in ("", connection.db.name):
            granted |= {(resource.get("collection") or "", action) for action in item.get("actions", ())}
    return [
        f"{action} on {p.collection or 'the database'}"
        for p in privileges(role)
        for action in p.actions
        if (p.collection, action) not in granted and ("", action) not in granted
    ]


def refusal(error: BaseException) -> str | None:
    """Return one line for a server's refusal of a command (code 13): which role it needs; ``None`` for other errors."""
    if getattr(error, "code", None) != 13 or not hasattr(error, "details"):
        return None
    text = str((error.details or {}).get("errmsg", ""))  # it quotes the command: only its first key is told on
    match = re.search(r"not authorized on (\S+) to execute command \{ (\w+): \"([^\"]*)\"", text)
    if match is None:
        return (
            "the database refused: this user's role is not enough; ask for the role worker (see `inv-design db users`)"
        )
    database, command, collection = match.groups()
    actions = COMMAND_ACTIONS.get(command, ("update",))
    role = max((needed_role(action, collection) for action in actions), key=ROLES.index)
    return (
        f"this user may not {command} on {database}.{collection}: that needs the role {role} ({NAMES[role]}); "
        "ask who looks after the database (`inv-design db users`)"
    )


def _authoritative() -> tuple[str, ...]:
    from stores.documents import AUTHORITATIVE

    return tuple(document._meta["collection"] for document in AUTHORITATIVE if document._meta["collection"] != "steps")


def _derived() -> tuple[str, ...]:
    from stores.documents import DERIVED

    return tuple(document._meta["collection"] for document in DERIVED)


def _operational() -> tuple[str, ...]:
    from stores import documents

    names = [document._meta["collection"] for document in documents.OPERATIONAL]
    return tuple(name for name in names if name not in (*OUTPUTS, ARCHIVED))

"""A client that reads only: on a server, too, a command that only shows something cannot change anything by mistake."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from pymongo import MongoClient
from pymongo.server_selectors import writable_server_selector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

READS = frozenset(
    {
        "aggregate", "buildinfo", "collstats", "connectionstatus", "count", "currentop", "datasize", "dbhash",
        "dbstats", "distinct", "endsessions", "explain", "find", "getcmdlineopts", "getlog", "getmore",
        "getparameter", "hello", "hostinfo", "ismaster", "killcursors", "listcollections", "listcommands",
        "listdatabases", "listindexes", "ping", "refreshsessions", "replsetgetstatus", "rolesinfo", "serverstatus",
        "startsession", "top", "usersinfo", "whatsmyuri",
    }
)  # fmt: skip
"""The server's commands that change nothing, in lower case: what is not known is not sent."""
WRITING_STAGES = frozenset({"$out", "$merge"})


class ReadOnlyClient(MongoClient[dict[str, Any]]):
    """A client whose writes raise PermissionError before anything is sent.

    pymongo selects a writable server for every write, whatever database, collection or bulk it comes from: that is the
    one place where all of them pass. A command that is given by its name, and an aggregation, go where reads go: they
    are looked at when they are sent. It guards against mistakes; against anybody else the server's roles do.
    """

    def _select_server(self, server_selector: Any, *arguments: Any, **options: Any) -> Any:
        if server_selector is writable_server_selector:
            _refuse(arguments[1] if len(arguments) > 1 else options.get("operation", "write"))
        return super()._select_server(server_selector, *arguments, **options)

    @contextmanager
    def _checkout(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        with super()._checkout(*arguments, **options) as socket:
            if "command" not in vars(socket):  # a connection of this client's own pool, used time and again
                socket.command = _reading(socket.command)  # type: ignore[method-assign]
            yield socket


def _reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a connection's ``command`` that refuses what writes."""

    def read(database: str, spec: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        name = next(iter(spec))
        if name.lower() not in READS:
            _refuse(name)
        for stage in spec.get("pipeline") or []:
            if writing := WRITING_STAGES.intersection(stage):
                _refuse(min(writing))
        return command(database, spec, *arguments, **options)

    return read


def _refuse(operation: Any) -> NoReturn:
    name = getattr(operation, "value", operation)
    raise PermissionError(f"this connection is read-only and does not {name}; open one without read_only to write")

"""A client that reads only: on a server, too, a command that only shows something cannot change anything by mistake."""

from __future__ import annotations

from typing import Any, NoReturn

from pymongo import MongoClient
from pymongo.server_selectors import writable_server_selector


class ReadOnlyClient(MongoClient[dict[str, Any]]):
    """A client whose writes raise PermissionError before anything is sent.

    pymongo selects a writable server for every write, whatever database, collection or bulk it comes from: that is the
    one place where all of them pass. It guards against mistakes; against anybody else the server's roles do.
    """

    def _select_server(self, server_selector: Any, *arguments: Any, **options: Any) -> Any:
        if server_selector is writable_server_selector:
            _refuse(arguments[1] if len(arguments) > 1 else options.get("operation", "write"))
        return super()._select_server(server_selector, *arguments, **options)


def _refuse(operation: Any) -> NoReturn:
    name = getattr(operation, "value", operation)
    raise PermissionError(f"this connection is read-only and does not {name}; open one without read_only to write")

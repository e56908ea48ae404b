"""An index of a collection: which documents are in it, under which entries."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Any

import bson
from mongomock_ng import filtering

from stores.index_keys import ARRAY, entry, inverted, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping

ID_NAME = "_id_"


class Index:
    """An ordered index; its entries are the rows of ``entries_N`` whose key begins with its slot.

    Attributes
    ----------
    fields
        (field, direction) pairs; a direction other than 1 and -1 (``"hashed"``) counts as 1.
    slot
        The first bytes of its entries; empty for the index on ``_id``, which is a column of the documents' table.
    multikey
        Whether a document ever had an array in one of the fields, so that it may have several entries. Such an index
        finds documents, it does not sort them.
    """

    def __init__(self, name: str, config: Mapping[str, Any], slot: int | None, *, multikey: bool = False) -> None:
        self.name = name
        self.config = config
        self.number = slot
        self.slot = b"" if slot is None else struct.pack(">H", slot)
        self.fields = [(field, -1 if direction == -1 else 1) for field, direction in config["key"]]
        self.unique = bool(config.get("unique"))
        self.sparse = bool(config.get("sparse"))
        self.partial: Mapping[str, Any] | None = config.get("partialFilterExpression")
        self.multikey = multikey

    def covers(self, document: Mapping[str, Any]) -> bool:
        """Return whether the index has this document: sparse and partial ones leave some out."""
        if self.partial is not None and not filtering.filter_applies(self.partial, document):
            return False
        if self.sparse:
            return any(
                value is not None and value is not filtering.NOTHING
                for field, _ in self.fields
                for value in values_of(document, field)
            )
        return True

    def entries(
        self, document: Mapping[str, Any], known: dict[str, list[bytes]] | None = None
    ) -> tuple[set[bytes], bool]:
        """Return a document's entries, and whether there is an array among the values.

        There is one entry, or one per array element. ``known`` keeps what the document's fields are encoded to, for
        its other indexes.
        """
        if (self.partial is not None or self.sparse) and not self.covers(document):
            return set(), False
        known = {} if known is None else known
        choices: list[list[bytes]] = []
        multikey = False
        for field, direction in self.fields:
            parts = known.get(field)
            if parts is None:
                parts = known[field] = [entry(value) for value in values_of(document, field)]
            multikey = multikey or len(parts) > 1 or parts[0][:1] == ARRAY
            choices.append([inverted(part) for part in parts] if direction < 0 else parts)
        if not multikey:
            return {self.slot + b"".join([parts[0] for parts in choices])}, False
        return {self.slot + b"".join(parts) for parts in itertools.product(*choices)}, True


def id_index() -> Index:
    """Return the index on ``_id`` that every collection has."""
    return Index(ID_NAME, {"key": [("_id", 1)], "unique": True}, None)


def decode_config(blob: bytes) -> dict[str, Any]:
    """Return an index's configuration as mongomock has it."""
    config = bson.decode(blob)
    config["key"] = [tuple(item) for item in config["key"]]
    return config

"""Bring a file of an earlier version to the present one, all of it or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bson

from stores.index_keys import encode
from stores.sqlite_index import Index, decode_config

if TYPE_CHECKING:
    import sqlite3


def upgrade_from_1(sqlite: sqlite3.Connection) -> None:
    """Replace the hashes of version 1 by the ordered entries of version 2."""
    sqlite.execute("BEGIN IMMEDIATE")
    try:
        sqlite.execute("ALTER TABLE indexes ADD COLUMN slot INTEGER")
        sqlite.execute("ALTER TABLE indexes ADD COLUMN multikey INTEGER NOT NULL DEFAULT 0")
        for (number,) in sqlite.execute("SELECT number FROM collections").fetchall():
            _upgrade_collection(sqlite, number)
        sqlite.execute("PRAGMA user_version=2")
        sqlite.execute("COMMIT")
    except BaseException:
        sqlite.execute("ROLLBACK")
        raise


def _upgrade_collection(sqlite: sqlite3.Connection, number: int) -> None:
    rows = sqlite.execute("SELECT name, config FROM indexes WHERE number=? ORDER BY rowid", (number,)).fetchall()
    indexes = [Index(name, decode_config(config), slot) for slot, (name, config) in enumerate(rows, start=1)]
    sqlite.execute(f"DELETE FROM entries_{number}")
    last = -1
    while batch := sqlite.execute(
        f"SELECT seq, doc FROM documents_{number} WHERE seq>? ORDER BY seq LIMIT 1000", (last,)
    ).fetchall():
        last = batch[-1][0]
        for seq, blob in batch:
            document = bson.decode(blob)
            known: dict[str, list[bytes]] = {}
            sqlite.execute(f"UPDATE documents_{number} SET id=? WHERE seq=?", (encode(document["_id"]), seq))
            for index in indexes:
                keys, multikey = index.entries(document, known)
                index.multikey = index.multikey or multikey
                sqlite.executemany(f"INSERT INTO entries_{number} (key, seq) VALUES (?, ?)", [(k, seq) for k in keys])
    for index in indexes:
        sqlite.execute(
            "UPDATE indexes SET slot=?, multikey=? WHERE number=? AND name=?",
            (index.number, index.multikey, number, index.name),
        )

"""An archive of an older schema is brought to the present one on its way in."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stores import schema
from stores.archive import Archive
from stores.connection import connect
from stores.exchange import export_archive, import_archives

if TYPE_CHECKING:
    from stores.connection import Connection

DUMP = Path(__file__).parent / "data" / "schema_1.jsonl.gz"


@pytest.fixture(scope="module")
def old_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the archive of a database that the first version left, exported as it is."""
    from bson.json_util import CANONICAL_JSON_OPTIONS, loads

    folder = tmp_path_factory.mktemp("old")
    with schema.unchecked(), connect("embedded", root=folder) as first:
        with gzip.open(DUMP, "rt") as lines:
            for line in lines:
                entry = loads(line, json_options=CANONICAL_JSON_OPTIONS)
                if "document" in entry:
                    first.db[entry["collection"]].insert_one(entry["document"])
        export_archive(first, folder / "old.zip", campaigns=None)
    return folder / "old.zip"


def test_it_is_migrated_and_imported(old_archive: Path, embedded_connection: Connection, tmp_path: Path) -> None:
    with Archive(old_archive) as archive:
        assert archive.manifest["schema_version"] == 1 < schema.SCHEMA_VERSION
    result = import_archives(embedded_connection, [old_archive])
    assert result["conflicts"] == []
    counts = {name: entry["new"] for name, entry in result["collections"].items()}
    assert counts["candidates"] > 0
    assert counts["models"] > 0
    assert result["archives"][0]["path"] == str(old_archive)
    export_archive(embedded_connection, tmp_path / "new.zip", campaigns=None)
    with Archive(old_archive) as old, Archive(tmp_path / "new.zip") as new:
        assert new.manifest["schema_version"] == schema.SCHEMA_VERSION
        assert new.manifest["counts"] == old.manifest["counts"]
        # the files of the models are other ones; their ids, by which everything refers to them, are the same
        ids = [[model["model_id"] for _, model in archive.records("models")] for archive in (old, new)]
        assert ids[0] == ids[1]
        assert new.manifest["older_ids"]
        assert set(new.manifest["older_ids"]) <= set(ids[1])
        assert set(new.artifacts) != set(old.artifacts)
    again = import_archives(embedded_connection, [old_archive, tmp_path / "new.zip"])
    assert all(entry["new"] == 0 for entry in again["collections"].values())
    assert again["conflicts"] == []


def test_a_damaged_one_is_refused(old_archive: Path, embedded_connection: Connection, tmp_path: Path) -> None:
    blob = bytearray(old_archive.read_bytes())
    blob[len(blob) // 3] ^= 4
    path = tmp_path / "damaged.zip"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match="nothing was imported"):
        import_archives(embedded_connection, [path])
    assert embedded_connection.db["structures"].count_documents({}) == 0

"""The check of an archive before anything of it is written: every line, every id, every reference, every artifact."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from stores.archive import UNREADABLE
from stores.content import check_content, expect, hashed_model_id
from stores.references import FIELDS, key_of, references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stores.archive import Archive
    from stores.connection import Connection

ORDER = (
    "campaigns", "structures", "calculations", "training_sets", "models", "candidates", "predictions", "evaluations",
    "steps",
)  # fmt: skip
"""The collections, what is referred to mostly before what refers to it."""
PLACE_SETTINGS = ("rounds", "database", "password_file")  # they may differ between two places of one campaign
BATCH = 500

Report = dict[str, Any]


class ArchiveCheck:
    """The check of one archive; :meth:`run` raises ValueError at the first damage.

    Parameters
    ----------
    connection
        The database that it is for: a structure that is there as it is in the archive need not be hashed again.
    progress
        Called with (records and artifacts checked, all of them, what is being checked).
    """

    def __init__(
        self,
        archive: Archive,
        connection: Connection | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.archive = archive
        self.connection = connection
        self.keys: dict[str, set[str]] = {collection: set() for collection in ORDER}
        self.configs: dict[str, dict[str, Any]] = {}
        self._artifacts = set(archive.artifacts)
        self._left_out = set(archive.manifest.get("left_out") or ())
        self._older_ids = set(archive.manifest.get("older_ids") or ())
        self._used: set[str] = set()
        self._open: dict[tuple[str, str], str] = {}  # what is referred to and not met yet -> the place that says so
        self._progress = progress
        self._done = 0
        self._total = sum(archive.count(c) for c in ORDER) + len(self._artifacts)

    def run(self, *, content: bool = True) -> None:
        """Check everything; without ``content`` only that all is as it was written, not what the records say."""
        archive = self.archive
        for name in archive.members:
            collection = name.removesuffix(".jsonl")
            if name.endswith(".jsonl") and collection not in FIELDS:
                raise archive.damage(name, "is of an unknown collection; update inv_design")
        for _ in archive.verify_artifacts():
            self._advance("artifacts")
        for collection in ORDER:
            if archive.count(collection) and content:
                self._check_collection(collection)
            elif archive.count(collection):
                for _ in archive.records(collection):
                    self._advance(collection)
        self._check_open()
        unused = sorted(self._artifacts - self._used)
        if unused and content:
            raise archive.damage(f"artifacts/{unused[0]}", "belongs to no record")
        archive.verify_seal()

    def _check_collection(self, collection: str) -> None:
        keys, name = self.keys[collection], f"{collection}.jsonl"
        lines = self.archive.records(collection)
        while batch := list(islice(lines, BATCH)):
            same = self._known_structures(batch) if collection == "structures" else set()
            for number, record in batch:
                where = f"{name}, line {number}"
                try:
                    key = key_of(collection, record)
                    if key in keys:
                        raise ValueError(f"{key} is there twice")
                    whole = self._whole(record)
                    self._check_record(collection, record, whole, hashed=key in same)
                    for reference in references(collection, whole):
                        if reference[1] not in self.keys[reference[0]]:
                            self._open.setdefault(reference, where)
                except UNREADABLE as error:
                    if str(error).startswith(f"{self.archive.path}: "):
                        raise
                    what = error if isinstance(error, ValueError) else f"is no record of {collection} ({error!r})"
                    raise self.archive.damage(where, what) from None
                keys.add(key)
            self._advance(collection, len(batch))

    def _check_record(
        self, collection: str, record: Mapping[str, Any], whole: Mapping[str, Any], *, hashed: bool
    ) -> None:
        """Raise ValueError if a record is not what its document declares or has not the id of its content."""
        from stores import records

        if "_id" in record or "artifact" in record:
            raise ValueError("has an _id or artifact, which belong to a database")
        records._check(collection, record)
        if not hashed:
            check_content(collection, whole)
        if collection == "models":
            if record["model_id"] not in self._older_ids:
                expect(record, "model_id", hashed_model_id(record))
            self._use(str(record["sha256"]), record.get("size"))
        elif collection == "campaigns":
            self.configs[record["name"]] = comparable_config(record)
        elif collection == "steps":
            from stores.references import is_finished

            if not is_finished(record["key"]):
                raise ValueError(f"step {record['key']!r} is not a finished one")

    def _whole(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with its spilled parts, from the archive's artifacts."""
        if not record.get("spilled"):
            return record
        from stores.artifacts import unspill

        for part in record["spilled"]:
            self._use(part["sha256"], part["size"], needed=True)
        return unspill(record, blob_of=self.archive.artifact)

    def _use(self, sha256: str, size: int | None, *, needed: bool = False) -> None:
        """Note that a record has an artifact; ValueError if the archive should have it and does not."""
        if sha256 not in self._artifacts:
            if needed or sha256 not in self._left_out:
                raise ValueError(f"names the artifact {sha256}, which the archive does not have")
            return
        self._used.add(sha256)
        stored = self.archive.members[f"artifacts/{sha256}"]["size"]
        if size is not None and size != stored:
            raise ValueError(f"says its artifact has {size} bytes; it has {stored}")

    def _known_structures(self, batch: list[tuple[int, dict[str, Any]]]) -> set[str]:
        """Return the ids whose crystals the database has exactly so: their hashes were checked when they came there."""
        if self.connection is None:
            return set()
        new = {record.get("structure_id"): record.get("structure") for _, record in batch if not record.get("spilled")}
        criteria = {"structure_id": {"$in": [key for key in new if isinstance(key, str)]}}
        fields = {"_id": 0, "structure_id": 1, "structure": 1, "formula": 1, "nsites": 1, "elements": 1}
        found = self.connection.db["structures"].find(criteria, fields)
        return {s["structure_id"] for s in found if s["structure"] == new[s["structure_id"]]}

    def _check_open(self) -> None:
        missing = self.archive.manifest.get("missing") or {}
        for (collection, key), where in self._open.items():
            if key not in self.keys[collection] and key not in missing.get(collection, ()):
                raise self.archive.damage(where, f"refers to {key} of {collection}, which the archive does not have")

    def _advance(self, text: str, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total, f"check {text}")


def comparable_config(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """Return a campaign's settings with every default, without those that may differ from place to place.

    Raises
    ------
    ValueError
        If they are no valid configuration of this version.
    """
    from inv_design.config import CampaignConfig

    try:
        config = CampaignConfig.model_validate(campaign["config"]).model_dump(mode="json")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"campaign {campaign['name']!r} has settings that this version does not take: {reason}"
        ) from None
    if config["name"] != campaign["name"]:
        raise ValueError(f"campaign {campaign['name']!r} has the settings of {config['name']!r}")
    return {key: value for key, value in config.items() if key not in PLACE_SETTINGS}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the settings that differ, as ``key old -> new``; the order of targets counts, it is their rank."""
    for key in [*old, *(k for k in new if k not in old)]:
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and not (key == "targets" and list(one) != list(other)):
            yield from changed_settings(one, other, f"{prefix}{key}.")
        elif one != other or (isinstance(one, dict) and list(one) != list(other or ())):
            yield f"{prefix}{key} {json.dumps(one)} -> {json.dumps(other)}"

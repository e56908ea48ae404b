"""Campaign archives in and out: what travels, and how it meets what is there already."""

from __future__ import annotations

import math
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stores.archive import Archive, ArchiveWriter
from stores.archive_check import ORDER, ArchiveCheck, changed_settings, comparable_config
from stores.content import hashed_model_id
from stores.references import everything, key_of, of_campaigns, read, references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bson import ObjectId

    from stores.connection import Connection

    Progress = Callable[[int, int, str], None]

BATCH = 500
NOISE = 1e-4  # relative: two machines' rounding of the same computation is no disagreement
SHOWN = 20  # conflicts that are told in full
LOCAL_FIELDS = ("_id", "artifact", "provenance", "sources", "spilled")
OWN_FIELDS: dict[str, tuple[str, ...]] = {  # what may differ under one id besides, for the id has the content
    "structures": ("structure", "volume", "density", "nsites", "spacegroup", "fingerprint"),
    "campaigns": ("config", "targets", "state", "created_by"),
    "training_sets": ("campaign", "round", "members", "parent_training_set_id", "excluded"),
    "steps": ("payload",),
}
INSERTION = (*ORDER[1:], ORDER[0])  # a campaign comes last: once it is there, all of it is

Report = dict[str, Any]


# -- out -------------------------------------------------------------------------------------------------------------


def export_archive(
    connection: Connection,
    path: Path,
    *,
    campaigns: Sequence[str] | None,
    models: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Write campaigns, or with ``None`` everything, into an archive; return what it holds.

    A campaign takes along all that its records refer to: structures, predictions, calculations, models with their
    ancestors, training sets with their members and labels. Derived collections and the launchpad stay; builders make
    the former again.

    Parameters
    ----------
    models
        Whether the models' weights come along; their records do in any case.
    progress
        Called with (records and artifacts written, all of them, what is being written).

    Raises
    ------
    LookupError
        If there is no such campaign.
    ValueError
        If an artifact is damaged.
    """
    from stores.schema import version_of

    keys = everything(connection) if campaigns is None else of_campaigns(connection, campaigns)
    with ArchiveWriter(Path(path)) as writer:
        export = _Export(connection, keys, writer, models=models, progress=progress)
        export.run()
        manifest = {
            "schema_version": version_of(connection),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "campaigns": sorted(keys["campaigns"]),
            "counts": export.counts,
            "older_ids": sorted(export.older_ids),
            "missing": {name: sorted(found) for name, found in sorted(export.missing.items())},
            "left_out": sorted(export.left_out),
        }
        writer.finish(manifest)
    return {
        "path": str(path),
        "bytes": Path(path).stat().st_size,
        **{name: manifest[name] for name in ("campaigns", "counts", "missing", "left_out")},
        "artifacts": sum(name.startswith("artifacts/") for name in writer.members),
    }


class _Export:
    """One archive being written."""

    def __init__(
        self,
        connection: Connection,
        keys: Mapping[str, set[str]],
        writer: ArchiveWriter,
        *,
        models: bool,
        progress: Progress | None,
    ) -> None:
        self.connection, self.keys, self.writer = connection, keys, writer
        self.models, self.progress = models, progress
        self.artifacts: dict[str, bool] = {}  # SHA-256 -> whether it is weights, not a part of a record
        self.missing: dict[str, set[str]] = {}
        self.left_out: set[str] = set()
        self.older_ids: set[str] = (
            set()
        )  # models whose files a migration changed; the ids are those of the files before
        self.counts: dict[str, int] = {}
        self.done = 0

    def run(self) -> None:
        """Write the records, then the artifacts that they have."""
        for collection in ORDER:
            self.counts[collection] = self.writer.records(collection, self._records(collection))
        for sha256, weights in sorted(self.artifacts.items()):
            self._artifact(sha256, weights=weights)

    def _records(self, collection: str) -> Iterator[dict[str, Any]]:
        from stores.artifacts import unspill

        for record in read(self.connection, collection, self.keys[collection]):
            record.pop("_id", None)
            record.pop("artifact", None)  # the file's id in this database; its SHA-256 is known everywhere
            if collection == "models":
                self.artifacts[record["sha256"]] = True
                if record["model_id"] != hashed_model_id(record):
                    self.older_ids.add(record["model_id"])
            for part in record.get("spilled") or ():
                self.artifacts.setdefault(part["sha256"], False)
            whole = unspill(record, connection=self.connection) if record.get("spilled") else record
            for target, key in references(collection, whole):
                if key not in self.keys[target]:
                    self.missing.setdefault(target, set()).add(key)
            self._advance(collection)
            yield record

    def _artifact(self, sha256: str, *, weights: bool) -> None:
        from stores.artifacts import get

        if weights and not self.models:
            self.left_out.add(sha256)
        else:
            try:
                self.writer.artifact(sha256, get(sha256, connection=self.connection))
            except KeyError:
                if not weights:
                    raise
                self.left_out.add(sha256)  # this database has only the record either
        self._advance("artifacts")

    def _advance(self, text: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, sum(len(keys) for keys in self.keys.values()) + len(self.artifacts), text)


# -- in --------------------------------------------------------------------------------------------------------------


def import_archives(
    connection: Connection | None,
    paths: Sequence[Path],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check archives to the last byte, then insert what is new of them; return counts.

    Records that are there stay as they are: the same id is the same record. One with the same id and other content is
    a conflict, told with both. An import that was interrupted is completed by the same call.

    Parameters
    ----------
    connection
        The database; ``None`` only to check (``dry_run``).
    dry_run
        Check and count, write nothing.

    Returns
    -------
    dict
        ``archives`` (path, campaigns, created_at), ``campaigns``, ``collections`` (name -> records, new, known,
        conflicts), ``artifacts`` (new, known, left_out), ``conflicts`` (collection, id, path, differences),
        ``dry_run``.

    Raises
    ------
    ValueError
        If an archive is damaged (the message names the member and the line), of another schema version, or has a
        campaign that is there with other settings; nothing is written then.
    ConnectionError
        If the database stops answering; the same call completes the import.
    """
    if connection is None and not dry_run:
        raise ValueError("without a database archives can only be checked; set dry_run")
    with ExitStack() as stack:
        archives = [_present(stack, stack.enter_context(Archive(Path(path))), progress) for path in paths]
        configs: dict[str, dict[str, Any]] = {}
        for archive in archives:
            check = ArchiveCheck(archive, connection, progress)
            check.run()
            _compare_campaigns(archive, check.configs, connection, configs)
        arrival = Arrival(connection, dry_run=dry_run, progress=progress)
        try:
            for archive in archives:
                arrival.take(archive)
        except _lost() as error:
            raise ConnectionError(
                f"{connection.uri_redacted if connection else 'the database'} does not answer any more "
                f"({type(error).__name__}); run the same import again, it goes on from there"
            ) from error
    return {
        "archives": [
            {"path": str(a.path), "campaigns": a.manifest["campaigns"], "created_at": a.manifest["created_at"]}
            for a in archives
        ],
        "campaigns": sorted(configs),
        "collections": {name: counts for name, counts in arrival.counts.items() if counts["records"]},
        "artifacts": arrival.artifacts,
        "conflicts": arrival.conflicts,
        "dry_run": dry_run,
    }


def _present(stack: ExitStack, archive: Archive, progress: Progress | None) -> Archive:
    """Return an archive in the present schema: itself, or what an older one becomes.

    Raises
    ------
    ValueError
        If it is newer than this program.
    """
    from stores.schema import SCHEMA_VERSION

    found = archive.manifest.get("schema_version")
    if not isinstance(found, int) or not 0 < found <= SCHEMA_VERSION:
        raise ValueError(
            f"{archive.path} has schema version {found!r}, newer than this program's {SCHEMA_VERSION}: "
            "update inv_design"
        )
    if found == SCHEMA_VERSION:
        return archive
    from stores.archive_upgrade import upgraded

    return stack.enter_context(upgraded(archive, found, progress))


class Arrival:
    """Archives that come into a database; they must have been checked."""

    def __init__(
        self, connection: Connection | None, *, dry_run: bool = False, progress: Progress | None = None
    ) -> None:
        self.connection, self.dry_run, self.progress = connection, dry_run, progress
        self.counts = {c: {"records": 0, "new": 0, "known": 0, "conflicts": 0} for c in INSERTION}
        self.artifacts = {"new": 0, "known": 0, "left_out": 0}
        self.conflicts: list[Report] = []
        self._met: set[tuple[str, str]] = set()  # in a dry run: what an earlier archive would have brought
        self._done = 0

    def take(self, archive: Archive) -> None:
        """Insert what is new of an archive: artifacts, then records, those that others refer to first."""
        self._done = 0
        total = sum(archive.count(c) for c in INSERTION) + len(archive.artifacts)
        files: dict[str, ObjectId] = {}
        self.artifacts["left_out"] += len(archive.manifest.get("left_out") or ())
        kinds = {model["sha256"]: model["kind"] for _, model in _records(archive, "models")}
        for sha256 in archive.artifacts:
            files |= self._take_artifact(archive, sha256, kinds.get(sha256, "spilled"))
            self._advance(total, "artifacts")
        for collection in INSERTION:
            lines = _records(archive, collection)
            while batch := [record for _, record in islice(lines, BATCH)]:
                self._take_records(archive, collection, batch, files)
                self._advance(total, collection, len(batch))

    def _take_artifact(self, archive: Archive, sha256: str, kind: str) -> dict[str, ObjectId]:
        from stores.artifacts import find, put

        found = None if self.connection is None else find(sha256, connection=self.connection)
        met = ("artifacts", sha256) in self._met
        self.artifacts["known" if found is not None or met else "new"] += 1
        if self.dry_run or self.connection is None:
            self._met.add(("artifacts", sha256))
            return {}
        if found is None:
            found = put(archive.artifact(sha256), kind=kind, connection=self.connection)
        return {sha256: found}

    def _take_records(
        self, archive: Archive, collection: str, batch: list[dict[str, Any]], files: Mapping[str, ObjectId]
    ) -> None:
        from stores.records import _insert_batch

        counts = self.counts[collection]
        counts["records"] += len(batch)
        keys = [key_of(collection, record) for record in batch]
        there = {} if self.connection is None else {
            key_of(collection, record): record for record in read(self.connection, collection, keys)
        }  # fmt: skip
        new = []
        for key, record in zip(keys, batch, strict=True):
            if key in there:
                different = differences(collection, *self._comparable(archive, there[key], record))
                counts["conflicts" if different else "known"] += 1
                if different:
                    self._conflict(archive, collection, key, different)
            elif (collection, key) in self._met:
                counts["known"] += 1
            else:
                new.append(record)
        if self.dry_run or self.connection is None:
            self._met |= {(collection, key_of(collection, record)) for record in new}
            counts["new"] += len(new)
            return
        if collection == "models":
            new = [r | ({"artifact": files[r["sha256"]]} if r["sha256"] in files else {}) for r in new]
        inserted = sum(_insert_batch(self.connection, collection, new))
        counts["new"] += inserted
        counts["known"] += len(new) - inserted  # another import was faster

    def _comparable(
        self, archive: Archive, here: dict[str, Any], there: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return both records, with their spilled parts if these are not the same."""
        from stores.artifacts import unspill

        if _spilled(here) == _spilled(there):
            return here, there
        try:
            return unspill(here, connection=self.connection), unspill(there, blob_of=archive.artifact)
        except (KeyError, ValueError):  # what is damaged here cannot be compared
            return {**here, "parts": _spilled(here)}, {**there, "parts": _spilled(there)}

    def _conflict(self, archive: Archive, collection: str, key: str, different: list[Report]) -> None:
        place = {"collection": collection, "id": key, "path": str(archive.path)}
        self.conflicts.append(place | {"differences": different if len(self.conflicts) < SHOWN else different[:1]})

    def _advance(self, total: int, text: str, count: int = 1) -> None:
        self._done += count
        if self.progress is not None:
            self.progress(self._done, total, text)


def _records(archive: Archive, collection: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return archive.records(collection) if archive.count(collection) else iter(())


def _spilled(record: Mapping[str, Any]) -> list[str]:
    return sorted(str(part["sha256"]) for part in record.get("spilled") or ())


def differences(collection: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Report]:
    """Return where two records with the same id differ, ``{"field", "here", "there"}`` each.

    Who made them and when, and what belongs to one database, is left out; numbers are the same within ``NOISE``.
    """
    ignored = {*LOCAL_FIELDS, *OWN_FIELDS.get(collection, ())}
    return list(_differences({k: v for k, v in here.items() if k not in ignored},
                             {k: v for k, v in there.items() if k not in ignored}, ""))  # fmt: skip


def _differences(here: Any, there: Any, field: str) -> Iterator[Report]:
    if isinstance(here, dict) and isinstance(there, dict):
        for name in [*here, *(n for n in there if n not in here)]:
            yield from _differences(here.get(name), there.get(name), f"{field}.{name}".lstrip("."))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            yield from _differences(one, other, f"{field}.{number}")
    elif not _equal(here, there):
        yield {"field": field, "here": here, "there": there}


def _equal(here: Any, there: Any) -> bool:
    if isinstance(here, (int, float)) and isinstance(there, (int, float)):
        both_nan = math.isnan(here) and math.isnan(there)
        return both_nan or math.isclose(here, there, rel_tol=NOISE, abs_tol=1e-9)
    return bool(here == there)


def _compare_campaigns(
    archive: Archive,
    configs: Mapping[str, dict[str, Any]],
    connection: Connection | None,
    known: dict[str, dict[str, Any]],
) -> None:
    """Refuse a campaign whose name stands for another campaign in the database or in an earlier archive."""
    for name, config in configs.items():
        stored = None if connection is None else connection.db["campaigns"].find_one({"name": name})
        others = [(known.get(name), "an earlier archive"), (stored and comparable_config(stored), "the database")]
        for other, where in others:
            changed = [] if other is None else list(changed_settings(other, config))
            if changed:
                raise ValueError(
                    f"{archive.path}: campaign {name!r} has other settings than the one of that name in {where} "
                    f"({'; '.join(changed[:5])}): nothing was imported; import it into a database of its own, such as "
                    f"--database embedded:{name}-2.sqlite"
                )
        known[name] = config


def _lost() -> tuple[type[BaseException], ...]:
    from stores.records import _lost_connection

    return _lost_connection()

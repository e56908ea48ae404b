"""Putting records in: every function inserts what is absent, drops what is there, and never changes a document."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from stores.protocol import content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymatgen.core import Structure as PymatgenStructure

    from stores.connection import Connection
    from stores.documents import Model

LOG = logging.getLogger(__name__)
SYMPREC = 0.01  # Å, for the space group that is shown and that buckets duplicates
BATCH = 1000
GRAMS_PER_DALTON = 1.66053906660  # in 1e-24 g (CODATA 2018), so that dalton / Å^3 becomes g/cm^3

NO_RIGHTS, DUPLICATE = 13, 11000
OF_THE_RECORD = frozenset({2, 9, 14, 52, 54, 55, 56, 57, 121, 10334, 17280, 17419, 17420})
"""The server's codes for a value, a name or a size that it does not take."""

Inserted = tuple[str, bool]


# -- structures -----------------------------------------------------------------------------------------------------


def insert_structure(structure: PymatgenStructure, source: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Insert a crystal if it is new and return its ``structure_id``.

    Parameters
    ----------
    source
        ``{"kind": "reference" | "generated" | "relaxed" | "ingested", "id": ...}``: how it came here. A crystal that is
        known keeps its first source; what it is now is told by the candidate or calculation that refers to it.

    Raises
    ------
    ValueError
        If a site is partially occupied or the cell is degenerate.
    """
    return insert_structures([structure], [source], provenance)[0]


def insert_structures(
    structures: Sequence[PymatgenStructure], sources: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> list[str]:
    """Insert crystals that are new; return their ids in the order given. See :func:`insert_structure`."""
    from inv_design.structures.identity import structure_id
    from stores.connection import current

    ids = [structure_id(structure) for structure in structures]
    known = _known("structures", "structure_id", ids, current())
    new = {}
    for identity, structure, source in zip(ids, structures, sources, strict=True):
        if identity not in known and identity not in new:
            new[identity] = structure_record(structure, source, provenance, identity=identity)
    insert_documents("structures", list(new.values()))
    return ids


def structure_record(
    structure: PymatgenStructure,
    source: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    identity: str | None = None,
) -> dict[str, Any]:
    """Return the document of a crystal (nothing is written)."""
    from inv_design.structures.identity import structure_id

    formula = structure.composition.reduced_formula
    number, symbol = _spacegroup(structure)
    return {
        "structure_id": identity or structure_id(structure),
        "structure": structure.as_dict(),
        "formula": formula,
        "chemsys": structure.chemical_system,
        "elements": sorted({element.symbol for element in structure.composition.elements}),
        "nsites": len(structure),
        "volume": float(structure.volume),
        "density": sum(float(site.specie.atomic_mass) for site in structure) * GRAMS_PER_DALTON / structure.volume,
        "spacegroup": {"number": number, "symbol": symbol, "symprec": SYMPREC},
        "fingerprint": f"{formula}|{len(structure)}|{number}",
        "sources": [dict(source)],
        "provenance": dict(provenance),
    }


def _spacegroup(structure: PymatgenStructure) -> tuple[int, str]:
    """Return (number, international symbol) at ``SYMPREC``; P1 where the search finds nothing."""
    import spglib

    cell: Any = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    except spglib.SpglibError:  # atoms that overlap
        dataset = None
    return (1, "P1") if dataset is None else (int(dataset.number), str(dataset.international))


# -- candidates -----------------------------------------------------------------------------------------------------


def candidate_id(campaign: str, round: int, seed: int, index: int) -> str:
    """Return ``"c-"`` and a hash of the candidate's place: campaign, round, seed, index."""
    return content_id("c", [campaign, round, seed, index])


def insert_candidate(**fields: Any) -> Inserted:
    """Insert one candidate; see :func:`insert_candidates`."""
    return insert_candidates([fields])[0]


def insert_candidates(candidates: Iterable[Mapping[str, Any]]) -> list[Inserted]:
    """Insert candidates that are new; return (candidate_id, inserted) in the order given.

    Each has ``campaign, structure_id, round, seed, index, provenance`` and may have ``generator_model_id, condition,
    score``.
    """
    records = [
        {**c, "candidate_id": candidate_id(c["campaign"], c["round"], c["seed"], c["index"])} for c in candidates
    ]
    return insert_documents("candidates", records)


# -- predictions ----------------------------------------------------------------------------------------------------


def prediction_id(structure_id: str, property: str, protocol_id: str) -> str:
    """Return how a prediction is referred to in ``inputs`` and by ``lineage``."""
    return f"{structure_id}/{property}/{protocol_id}"


def insert_prediction(**fields: Any) -> Inserted:
    """Insert one prediction; see :func:`insert_predictions`."""
    return insert_predictions([fields])[0]


def insert_predictions(predictions: Iterable[Mapping[str, Any]]) -> list[Inserted]:
    """Insert predictions that are new; return (reference, inserted) in the order given.

    Each has ``structure_id, property, protocol_id, provenance`` and ``value, std, unit, model_id`` or ``error``. A
    value that is not finite becomes an error.
    """
    records = []
    for prediction in predictions:
        record = dict(prediction)
        value = record.get("value")
        if value is not None and not math.isfinite(float(value)):
            record |= {"value": None, "error": record.get("error") or f"the model returned {float(value)}"}
        records.append(record)
    return insert_documents("predictions", records)


# -- calculations ---------------------------------------------------------------------------------------------------


def calculation_id(structure_id: str, kind: str, protocol_id: str, attempt: int | None = None) -> str:
    """Return ``"k-"`` and a hash of what makes a calculation unique; the first attempt is not counted in it."""
    return content_id("k", [structure_id, kind, protocol_id, *([attempt] if (attempt or 1) > 1 else [])])


def insert_calculation(**fields: Any) -> Inserted:
    """Insert one calculation; see :func:`insert_calculations`."""
    return insert_calculations([fields])[0]


def insert_calculations(calculations: Iterable[Mapping[str, Any]]) -> list[Inserted]:
    """Insert calculations that are new; return (calculation_id, inserted) in the order given.

    Each has ``structure_id, kind, method, protocol_id, state, provenance`` and may have ``protocol, results, flags,
    error, reason, attempt, output_structure_id``. Results that are not finite become ``None`` and leave the flag
    ``non_finite:NAME``. An ``attempt`` of 1 is not written.
    """
    records = []
    for calculation in calculations:
        record = dict(calculation)
        attempt = record["attempt"] = record.get("attempt") if (record.get("attempt") or 1) > 1 else None
        key = (record["structure_id"], record["kind"], record["protocol_id"])
        record["calculation_id"] = calculation_id(*key, attempt)
        lost: list[str] = []
        record["results"] = plain(record.get("results") or {}, lost=lost)
        if lost:
            record["flags"] = [*(record.get("flags") or []), *(f"non_finite:{name}" for name in dict.fromkeys(lost))]
        records.append(record)
    return insert_documents("calculations", records)


# -- models and training sets -----------------------------------------------------------------------------------------


def model_id(sha256: str, training_set_id: str | None, campaign: str | None = None, round: int | None = None) -> str:
    """Return ``"m-"`` and a hash of the weights' SHA-256, the training set, and the place in a campaign."""
    return content_id("m", [sha256, training_set_id, campaign, round])


def insert_model(
    blob: bytes,
    *,
    kind: str,
    name: str,
    provenance: Mapping[str, Any],
    training_set_id: str | None = None,
    connection: Connection | None = None,
    **fields: Any,
) -> Model:
    """Put a model's weights in GridFS, insert its document if it is new, and return the document.

    ``fields`` may have ``property, parent_model_id, campaign, round, seed, hyperparameters, metrics``.
    """
    from pymongo.errors import PyMongoError

    from stores import artifacts, journal
    from stores.connection import current
    from stores.documents import Model

    digest = hashlib.sha256(blob).hexdigest()
    identity = model_id(digest, training_set_id, fields.get("campaign"), fields.get("round"))
    record = {
        **fields,
        "model_id": identity,
        "kind": kind,
        "name": name,
        "training_set_id": training_set_id,
        "sha256": digest,
        "size": len(blob),
        "provenance": dict(provenance),
    }
    _check("models", record)
    try:
        record["artifact"] = artifacts.put(blob, kind=kind, connection=connection)
    except (PyMongoError, ConnectionError) as error:
        path = journal.keep_blob(blob, digest, connection=connection)
        LOG.warning("the database does not take the weights of %s (%s); they are kept in %s", identity, error, path)
        _keep("models", [record], error, connection or current())
        return Model(**record)
    insert_documents("models", [record], connection=connection)
    return Model.objects(model_id=identity).first() or Model(**record)


def training_set_id(members: Sequence[Mapping[str, Any]]) -> str:
    """Return ``"t-"`` and a hash of the members with their labels and splits; their order makes no difference."""
    return content_id("t", sorted((plain(dict(member)) for member in members), key=lambda m: m["structure_id"]))


def insert_training_set(
    members: Sequence[Mapping[str, Any]],
    *,
    provenance: Mapping[str, Any],
    campaign: str | None = None,
    round: int | None = None,
    parent_training_set_id: str | None = None,
    excluded: Sequence[Mapping[str, Any]] = (),
    connection: Connection | None = None,
) -> Inserted:
    """Insert a training set if its content is new; return (training_set_id, inserted).

    See :class:`stores.documents.TrainingSet` for what a member is. Each ``excluded`` item has a ``reason``.
    """
    members = [plain(dict(member)) for member in members]
    methods = Counter(
        label.get("method", "unknown") for member in members for label in member.get("labels", {}).values()
    )
    record = {
        "training_set_id": training_set_id(members),
        "campaign": campaign,
        "round": round,
        "members": members,
        "size": len(members),
        "labels_by_method": dict(methods),
        "parent_training_set_id": parent_training_set_id,
        "excluded": [plain(dict(item)) for item in excluded],
        "provenance": dict(provenance),
    }
    return insert_documents("training_sets", [record], connection=connection)[0]


def insert_campaign(
    name: str,
    config: Mapping[str, Any],
    *,
    targets: Mapping[str, Any],
    provenance: Mapping[str, Any],
    state: str = "active",
) -> Inserted:
    """Insert a campaign if its name is new; return (name, inserted)."""
    record = {
        "name": name,
        "config": plain(dict(config)),
        "targets": plain(dict(targets)),
        "created_by": provenance.get("created_by"),
        "state": state,
        "provenance": dict(provenance),
    }
    return insert_documents("campaigns", [record])[0]


# -- the one way in -------------------------------------------------------------------------------------------------

_KEYS: dict[str, tuple[str, ...]] = {
    "structures": ("structure_id",),
    "campaigns": ("name",),
    "candidates": ("candidate_id",),
    "predictions": ("structure_id", "property", "protocol_id"),
    "calculations": ("calculation_id",),
    "models": ("model_id",),
    "training_sets": ("training_set_id",),
    "evaluations": ("evaluation_id",),
    "steps": ("key",),
}


def insert_documents(
    collection: str,
    records: Sequence[Mapping[str, Any]],
    *,
    connection: Connection | None = None,
    journal: bool = True,
) -> list[Inserted]:
    """Insert records that are absent into an authoritative collection; return (id, inserted) in the order given.

    Parts above the size limit go to GridFS. A server that is away is waited for (:mod:`stores.outage`); when it does
    not come back, the records go to the local journal (and count as inserted), unless ``journal`` is false; so do they
    when it refuses them, which is an error all the same. What waits in the journal is delivered with the next insert
    that succeeds.

    Raises
    ------
    ValueError
        If a record has a field that its document does not declare, or lacks one that it requires.
    ConnectionError
        If the server stays away and ``journal`` is false.
    OSError
        If the server refuses the records (no rights, no space); the message says where they are kept. If ``journal`` is
        false, pymongo's error.
    """
    from pymongo.errors import PyMongoError

    from stores import journal as local_journal
    from stores.connection import current

    connection = connection or current()
    prepared = [_prepare(collection, record) for record in records]
    ids = ["/".join(str(record[key]) for key in _KEYS[collection]) for record in prepared]
    inserted: list[bool] = []
    for start in range(0, len(prepared), BATCH):
        batch = prepared[start : start + BATCH]
        try:
            inserted += _insert_batch(connection, collection, batch)
        except _lost_connection() as error:
            if not journal:
                raise ConnectionError(f"{connection.uri_redacted} does not answer; the records stay here") from error
            rest = prepared[start:]
            _keep(collection, rest, error, connection)
            inserted += [True] * len(rest)
            break
        except PyMongoError as error:
            if journal:
                _keep(collection, prepared[start:], error, connection)
            raise
    else:
        if journal and prepared:
            local_journal.deliver_waiting(connection)
    return list(zip(ids, inserted, strict=True))


def _keep(collection: str, records: Sequence[Mapping[str, Any]], error: BaseException, connection: Connection) -> None:
    """Put records into the journal; if the server is there but refuses them, raise OSError that says where they are."""
    from stores import journal
    from stores.connection import first_line

    path = journal.keep(collection, records, connection=connection)
    kept = f"{len(records)} records for {collection} are kept in {path} until they can be delivered"
    if isinstance(error, _lost_connection()):
        LOG.warning("%s does not answer; %s", connection.uri_redacted, kept)
        return
    kind = PermissionError if getattr(error, "code", None) == NO_RIGHTS else OSError
    raise kind(f"{connection.uri_redacted} refuses to write ({first_line(error)}); {kept}") from error


def is_of_the_record(error: Exception) -> bool:
    """Return whether an error is due to the record, which will fail the next time too, not to the server."""
    from pymongo.errors import BulkWriteError, PyMongoError

    if isinstance(error, BulkWriteError):
        codes = {problem["code"] for problem in error.details["writeErrors"]} - {DUPLICATE}
        return bool(codes) and codes <= OF_THE_RECORD
    if isinstance(error, PyMongoError):
        return getattr(error, "code", None) in OF_THE_RECORD
    return not isinstance(error, OSError)


def _insert_batch(connection: Connection, collection: str, batch: Sequence[dict[str, Any]]) -> list[bool]:
    """Insert one batch, duplicates dropped; return which were inserted."""
    import bson
    from pymongo.errors import BulkWriteError

    from stores.artifacts import SPILL_BYTES, spill

    documents = [
        spill(record, connection=connection) if len(bson.encode(record)) > SPILL_BYTES else dict(record)
        for record in batch
    ]
    inserted = [True] * len(documents)
    if not documents:
        return inserted
    try:
        connection.db[collection].insert_many(documents, ordered=False)
    except BulkWriteError as error:
        for problem in error.details["writeErrors"]:
            if problem["code"] != DUPLICATE:
                raise
            inserted[problem["index"]] = False
        if error.details.get("writeConcernErrors"):  # it may not last
            raise
    return inserted


def _prepare(collection: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as plain data without empty fields, checked against its document."""
    values = {key: value for key, value in plain(dict(record)).items() if value is not None}
    _check(collection, values)
    return values


def _check(collection: str, record: Mapping[str, Any]) -> None:
    """Raise ValueError if a record is not what its document declares."""
    fields = _fields(collection)
    for name, value in record.items():
        if name == "_id":
            continue
        if name not in fields:
            raise ValueError(f"{collection} have no field {name!r}; they have {', '.join(sorted(fields))}")
        choices = fields[name].choices
        if choices and value not in choices:
            raise ValueError(f"{name} {value!r} of {collection} is none of {', '.join(map(str, choices))}")
        expected = _TYPES.get(type(fields[name]).__name__)
        if value is not None and expected and (not isinstance(value, expected) or isinstance(value, bool)):
            raise ValueError(
                f"{name} {value!r} of {collection} must be {expected[0].__name__}, not {type(value).__name__}"
            )
    for name, field in fields.items():
        if field.required and record.get(name) is None:
            raise ValueError(f"a record of {collection} lacks {name!r}; it has {', '.join(sorted(record))}")


_TYPES: dict[str, tuple[type, ...]] = {
    "StringField": (str,),
    "IntField": (int,),
    "FloatField": (float, int),
    "DictField": (dict,),
    "ListField": (list,),
}


def _fields(collection: str) -> dict[str, Any]:
    from stores.documents import AUTHORITATIVE

    for document in AUTHORITATIVE:
        if document._meta["collection"] == collection:
            return document._fields
    raise ValueError(f"{collection!r} is no authoritative collection; builders write the derived ones")


def _known(collection: str, field: str, values: Sequence[str], connection: Connection) -> set[str]:
    """Return which values a collection has; nothing when the database does not answer (the insert will tell)."""
    try:
        return {
            document[field]
            for start in range(0, len(values), BATCH)
            for document in connection.db[collection].find(
                {field: {"$in": list(values[start : start + BATCH])}}, {field: 1, "_id": 0}
            )
        }
    except _lost_connection():
        return set()


def _lost_connection() -> tuple[type[BaseException], ...]:
    """Return the errors that say that a database is gone, not that a record is wrong."""
    from stores.outage import LOST

    return (*LOST, ConnectionError)


def plain(value: Any, *, lost: list[str] | None = None, name: str = "") -> Any:
    """Return data as BSON has it: numpy as lists and numbers, tuples as lists, string keys, NaN and infinities as None.

    The dotted names of numbers that were not finite are appended to ``lost``.
    """
    if isinstance(value, dict):
        return {str(k): plain(v, lost=lost, name=f"{name}.{k}" if name else str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(item, lost=lost, name=name) for item in items]
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if lost is not None:
            lost.append(name)
        return None
    if hasattr(value, "tolist"):
        return plain(value.tolist(), lost=lost, name=name)
    return value

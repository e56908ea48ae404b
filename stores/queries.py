"""The named queries, each beside the index that serves it; and the indexes of all collections."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from stores.candidate_pages import candidates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from pymatgen.core import Structure as PymatgenStructure

    from stores.connection import Connection

__all__ = [
    "INDEXES", "QUESTIONS", "alike", "candidates", "candidates_of", "candidates_without_calculation",
    "candidates_without_prediction", "ensure_indexes", "funnel", "indexes", "labels", "latest_model", "queue",
    "reference_labels", "served_by", "structures_by_id", "structures_of_formula",
]  # fmt: skip

Query = TypeVar("Query", bound=Callable[..., Any])

INDEXES: dict[str, tuple[str, tuple[str, ...]]] = {}
"""Query -> (collection, the fields that its index starts with)."""

QUESTIONS: dict[str, dict[str, Any]] = {
    "all of a campaign": {},
    "a round": {"round": 1},
    "a stage": {"stage": "mlip"},
    "a status": {"status": "waiting"},
    "a stage and a status": {"stage": "dft", "status": "passed"},
    "the stiffest": {"sort": "-K"},
    "the softest": {"sort": "K"},
    "a range of K": {"where": "K=340..360", "sort": "-K"},
    "K above a bound": {"where": "K>300", "sort": "K"},
    "the stiffest that passed a stage": {"stage": "dft", "status": "passed", "sort": "-K"},
    "a range of K within a stage and a status": {"stage": "mlip", "status": "passed", "where": "K>=300", "sort": "K"},
    "the nearest to the target": {"sort": "target_error"},
    "near to the target": {"where": "target_error<0.05", "sort": "target_error"},
    "a chemical system": {"where": "chemsys=Re-W"},
    "a formula": {"where": "formula=ReW", "sort": "-K"},
    "elements": {"elements": "Re,W", "sort": "-K"},
    "at least one of some elements": {"any_of": "Re,Os", "sort": "-K"},
    "a protocol of the predictor": {"protocol": "predictor=p-0"},
    "a protocol of the potential": {"protocol": "mlip=p-0"},
    "a protocol of the labels": {"protocol": "dft=p-0"},
    "a structure": {"where": "structure_id=s-0"},
    "a candidate": {"where": "candidate_id=c-0"},
}
"""Questions about candidates that an index serves: what they are -> the arguments of :func:`candidates`.

The index finds the candidates of a filter, and gives their order too, except for elements, a formula, a structure and a
candidate: those are few, and sorted once found. A further condition on any field is checked on what the index finds.
"""

BATCH = 1000
RECORDS_COUNTED = 1000


def served_by(collection: str, *fields: str) -> Callable[[Query], Query]:
    """Say which index serves a query; a test checks that it exists and is used."""

    def declare(query: Query) -> Query:
        INDEXES[query.__name__] = (collection, fields)
        return query

    return declare


# -- what a stage has to do -----------------------------------------------------------------------------------------


@served_by("candidates", "campaign", "round")
def candidates_of(campaign: str, round: int | None = None) -> list[dict[str, Any]]:
    """Return a campaign's candidates in the order of round, seed and index."""
    criteria = {"campaign": campaign} if round is None else {"campaign": campaign, "round": round}
    found = _collection("candidates").find(criteria, {"_id": 0})
    return sorted(found, key=lambda candidate: (candidate["round"], candidate["seed"], candidate["index"]))


@served_by("predictions", "structure_id", "property", "protocol_id")
def candidates_without_prediction(
    campaign: str, property: str, protocol_id: str, *, round: int | None = None
) -> list[dict[str, Any]]:
    """Return the candidates whose structure has no prediction of a property under a protocol, not even a failed one."""
    return _lacking(candidates_of(campaign, round), "predictions", {"property": property, "protocol_id": protocol_id})


@served_by("calculations", "structure_id", "kind", "protocol_id")
def candidates_without_calculation(
    campaign: str, kind: str, protocol_id: str, *, round: int | None = None
) -> list[dict[str, Any]]:
    """Return the candidates whose structure has no calculation of a kind under a protocol, not even a failed one."""
    return _lacking(candidates_of(campaign, round), "calculations", {"kind": kind, "protocol_id": protocol_id})


@served_by("screening_queue", "campaign", "round", "stage")
def queue(campaign: str, round: int, stage: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Return what a stage has to do in a round, the highest priority first."""
    found = _collection("screening_queue").find({"campaign": campaign, "round": round, "stage": stage}, {"_id": 0})
    ranked = sorted(found, key=lambda item: (-(item.get("priority") or 0.0), item["candidate_id"]))
    return ranked[:limit]


# -- what is known --------------------------------------------------------------------------------------------------


@served_by("calculations", "kind", "method", "state")
def labels(property: str, *, kind: str, method: str) -> Iterator[dict[str, Any]]:
    """Yield a property's values by one kind of calculation, completed ones only.

    Each is ``{"structure_id", "value", "calculation_id", "method", "protocol_id"}``, the value in the property's unit.
    """
    criteria = {"kind": kind, "method": method, "state": "completed"}
    fields = {"_id": 0, "structure_id": 1, "calculation_id": 1, "protocol_id": 1, f"results.{property}": 1}
    for found in _collection("calculations").find(criteria, fields):
        value = found.pop("results", {}).get(property)
        if value is not None:
            yield {**found, "value": value, "method": method}


def reference_labels(property: str) -> Iterator[dict[str, Any]]:
    """Yield the reference values of a property; see :func:`labels`."""
    return labels(property, kind="reference", method="reference")


@served_by("structures", "structure_id")
def structures_by_id(ids: Iterable[str]) -> dict[str, PymatgenStructure]:
    """Return id -> pymatgen structure for the ids that are there."""
    from pymatgen.core import Structure

    wanted = list(dict.fromkeys(ids))
    return {
        found["structure_id"]: Structure.from_dict(found["structure"])
        for found in _fetch("structures", "structure_id", wanted, {"structure_id": 1, "structure": 1})
    }


@served_by("structures", "fingerprint")
def alike(fingerprints: Iterable[str]) -> dict[str, list[str]]:
    """Return fingerprint -> ids of the structures in its bucket, in which likeness is worth testing."""
    buckets: dict[str, list[str]] = {}
    wanted = list(dict.fromkeys(fingerprints))
    for found in _fetch("structures", "fingerprint", wanted, {"structure_id": 1, "fingerprint": 1}):
        buckets.setdefault(found["fingerprint"], []).append(found["structure_id"])
    return {fingerprint: sorted(ids) for fingerprint, ids in buckets.items()}


@served_by("models", "campaign", "kind", "round")
def latest_model(campaign: str, kind: str, *, round: int | None = None) -> dict[str, Any] | None:
    """Return the newest model of a kind in a campaign (up to a round), or ``None``."""
    found = _collection("models").find({"campaign": campaign, "kind": kind})
    known = [model for model in found if round is None or model.get("round", 0) <= round]
    order = lambda model: (model.get("round", 0), str(model["provenance"].get("created_at")))  # noqa: E731
    return max(known, key=order, default=None)


# -- where a campaign stands ----------------------------------------------------------------------------------------


@served_by("candidate_summaries", "campaign", "round")
def funnel(campaign: str, round: int | None = None) -> dict[tuple[int, str, str], int]:
    """Return (round, last stage entered, status) -> number of candidates."""
    criteria = {"campaign": campaign} if round is None else {"campaign": campaign, "round": round}
    group = {"_id": {"round": "$round", "stage": "$stage", "status": "$status"}, "n": {"$sum": 1}}
    rows = _collection("candidate_summaries").aggregate([{"$match": criteria}, {"$group": group}])
    keys = ("round", "stage", "status")
    return {(row["_id"].get(keys[0]), row["_id"].get(keys[1]), row["_id"].get(keys[2])): row["n"] for row in rows}


@served_by("candidates", "campaign", "structure_id")
def records_since(campaign: str, when: datetime) -> int | None:
    """Return how many candidates, predictions and calculations of a campaign came after a time (UTC).

    They are counted up to :data:`RECORDS_COUNTED`. ``None`` where the server would have to read them all. Times are
    those of the records' ``_id``, to the second, by the clocks of those who wrote them.
    """
    import bson
    from pymongo.errors import PyMongoError

    newer = {"_id": {"$gt": bson.ObjectId.from_datetime(when + timedelta(seconds=1))}}
    found: list[dict[str, Any]] = []
    for collection in ("candidates", "predictions", "calculations"):
        cursor = _collection(collection).find(newer, {"_id": 0, "structure_id": 1}).limit(RECORDS_COUNTED)
        try:
            if "COLLSCAN" in str(cursor.clone().explain()["queryPlanner"]["winningPlan"]):
                return None
        except (PyMongoError, KeyError):
            return None
        found += cursor
    ids = list(dict.fromkeys(record["structure_id"] for record in found))
    mine = set()
    for start in range(0, len(ids), BATCH):
        wanted = {"campaign": campaign, "structure_id": {"$in": ids[start : start + BATCH]}}
        mine |= {c["structure_id"] for c in _collection("candidates").find(wanted, {"_id": 0, "structure_id": 1})}
    return min(sum(record["structure_id"] in mine for record in found), RECORDS_COUNTED)


def uncounted_candidates(campaign: str) -> int:
    """Return how many candidates the rounds' metrics do not count yet.

    All campaigns' candidates are compared first, by a number that every server keeps; only if they differ are this
    campaign's counted.
    """
    metrics = list(_collection("campaign_metrics").find({}, {"_id": 0, "campaign": 1, "generated": 1}))
    counted = sum(m.get("generated") or 0 for m in metrics)
    if _collection("candidates").estimated_document_count() <= counted:
        return 0
    own = sum(m.get("generated") or 0 for m in metrics if m["campaign"] == campaign)
    return max(_collection("candidates").count_documents({"campaign": campaign}) - own, 0)


# -- indexes --------------------------------------------------------------------------------------------------------


def ensure_indexes(connection: Connection | None = None) -> dict[str, list[str]]:
    """Create the indexes of every collection that lacks them; return collection -> index names.

    A user who may only read is left alone.
    """
    from pymongo import IndexModel
    from pymongo.errors import OperationFailure

    from stores.connection import current

    database = (connection or current()).db
    made: dict[str, list[str]] = {}
    for collection, models in indexes().items():
        try:
            made[collection] = database[collection].create_indexes(
                [IndexModel(list(model["fields"]), unique=model["unique"]) for model in models]
            )
        except OperationFailure as error:
            if error.code != 13:  # Unauthorized
                raise
    return made


def indexes() -> dict[str, list[dict[str, Any]]]:
    """Return collection -> its indexes, ``{"fields": [(name, 1), ...], "unique": bool}`` each.

    Those of the records are the documents' own; the launchpad's are beside them.
    """
    from stores import launchpad_indexes
    from stores.documents import AUTHORITATIVE, DERIVED, OPERATIONAL

    documents: tuple[Any, ...] = (*AUTHORITATIVE, *DERIVED, *OPERATIONAL)
    own = {document._meta["collection"]: [_index(spec) for spec in document._meta["indexes"]] for document in documents}
    return own | launchpad_indexes.INDEXES


def _index(spec: Any) -> dict[str, Any]:
    """Return one of mongoengine's three ways to write an index in one form."""
    unique = False
    if isinstance(spec, dict):
        spec, unique = spec["fields"], bool(spec.get("unique"))
    fields = [spec] if isinstance(spec, str) else list(spec)
    return {"fields": [(field, 1) for field in fields], "unique": unique}


# -- helpers --------------------------------------------------------------------------------------------------------


def _collection(name: str) -> Any:
    from stores.connection import current

    return current().db[name]


def _fetch(collection: str, field: str, values: list[str], fields: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the documents whose field is one of the values, some of their fields, in batches."""
    for start in range(0, len(values), BATCH):
        criteria = {field: {"$in": values[start : start + BATCH]}}
        yield from _collection(collection).find(criteria, {"_id": 0, **fields})


def _lacking(candidates: list[dict[str, Any]], collection: str, criteria: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the candidates whose structure has no document in a collection that meets the criteria."""
    ids = list(dict.fromkeys(candidate["structure_id"] for candidate in candidates))
    done: set[str] = set()
    for start in range(0, len(ids), BATCH):
        query = {"structure_id": {"$in": ids[start : start + BATCH]}, **criteria}
        done |= {found["structure_id"] for found in _collection(collection).find(query, {"structure_id": 1, "_id": 0})}
    return [candidate for candidate in candidates if candidate["structure_id"] not in done]


# -- likeness -------------------------------------------------------------------------------------------------------


@served_by("structures", "formula")
def structures_of_formula(formula: str) -> dict[str, PymatgenStructure]:
    """Return id -> pymatgen structure of all crystals with a reduced formula: the bucket in which one can have a twin.

    A document that is no crystal is left out.
    """
    from inv_design.structures.files import structure_from_dict
    from stores.artifacts import unspill

    found = {}
    fields = {"_id": 0, "structure_id": 1, "structure": 1, "spilled": 1}
    for document in _collection("structures").find({"formula": formula}, fields):
        record = unspill(document) if document.get("spilled") else document
        try:
            found[record["structure_id"]] = structure_from_dict(record["structure"])
        except ValueError:
            continue
    return found

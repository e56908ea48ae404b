"""Candidates page by page: a total order in which nothing is doubled or lost, and Pareto fronts.

Candidates without a value at a field that is sorted by come last, whichever the direction; ties are in the order of
the candidate id. So a page is the same on every store and with or without an index.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from stores.conditions import (
    JUDGES,
    Fields,
    Keys,
    candidate_filter,
    condition,
    conditions,
    known_fields,
    merge,
    pareto_keys,
    sort_keys,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np

    from stores.conditions import Where

    Filter = dict[str, Any]
    Criteria = Sequence[tuple[str, Callable[[float], float]]]

COLLECTION = "candidate_summaries"
DEFAULT_ORDER: Keys = [("round", 1)]
ALWAYS = frozenset({"candidate_id", "campaign", "round", "structure_id", "stage", "status", "seed", "index"})
"""Fields that every summary has: nothing is missing where they are sorted by."""
STAGE_FIELDS: Fields = {"status": str, "value": float, "protocol_id": str, "error": str}
"""What every stage's record in a summary can have."""
SAMPLE = 300
"""Documents that are looked at for the names of nested fields."""
BATCH = 500
FEW_FRONTS = 5
STRONG = 30
"""Candidates that are compared with all others before the front is searched."""


def candidates(
    campaign: str | None = None,
    *,
    where: Where | Iterable[Where] = (),
    elements: str | Iterable[str] = (),
    any_of: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
    stage: str | None = None,
    status: str | None = None,
    round: int | Sequence[int] | None = None,
    protocol: str | Iterable[str] = (),
    sort: str | Iterable[str] = (),
    limit: int | None = None,
    skip: int = 0,
    after: str | None = None,
    pareto: str | Iterable[str] | None = None,
    fronts: int | None = None,
) -> list[dict[str, Any]]:
    """Return the candidate summaries that meet all conditions, as dictionaries.

    Parameters
    ----------
    campaign
        Its name; ``None`` asks all campaigns of the database (no index serves that).
    where
        Conditions: text as on the command line (``"K=340..360"``, ``"stages.mlip.value>=300"``), or
        ``(field, operator, value)``; see :func:`stores.conditions.condition`.
    elements, any_of, without
        All of these, at least one of these, none of these; ``"Re,W"`` or a list. The last two take groups
        (``metals``, ``non_metals``, ``actinides``, ``noble_gases``).
    stage, status
        The last stage entered, and what became of it there.
    round
        A round, or several.
    protocol
        The protocol that any stage's result was made by, or ``"mlip=p-3f2a..."`` for one stage's.
    sort
        ``"-K,round"`` or a list: field, ``-field`` for largest first. By round if not given; ties by candidate id.
        Candidates without a value come last.
    limit, skip, after
        At most so many; without the first so many; only those that follow this candidate id in the order, which costs
        the same for the last page as for the first.
    pareto, fronts
        ``"K,-density"``, or ``"objectives"`` for the campaign's: order by Pareto front and add ``pareto_rank`` (0 the
        best, ``None`` without all the values); only so many fronts.

    Raises
    ------
    ValueError
        If a condition is malformed, a field unknown, or a value does not fit.
    LookupError
        If ``after`` is no candidate.
    """
    asked, order = conditions(where), [sort] if isinstance(sort, str) else list(sort)
    fields = asked_fields(campaign, asked, order, pareto or ())
    wanted = candidate_filter(
        campaign=campaign, where=asked, elements=elements, any_of=any_of, without=without, stage=stage, status=status,
        round=round, protocol=protocol, fields=fields,
    )  # fmt: skip
    keys = sort_keys(order, fields) or DEFAULT_ORDER
    if pareto is None:
        return page(wanted, keys, limit=limit, skip=skip, after=after)
    if after is not None:
        raise ValueError("after goes with sort; use skip with pareto")
    criteria = pareto_criteria(pareto, fields, campaign)
    return pareto_page(wanted, keys, criteria, fronts=fronts, limit=limit, skip=skip)[0]


def count_candidates(wanted: Filter, *, limit: int | None = None) -> int:
    """Return how many summaries meet a filter; counting stops at ``limit``."""
    options = {} if limit is None else {"limit": limit}
    return int(_collection().count_documents(wanted, **options))


def asked_fields(
    campaign: str | None,
    where: Where | Iterable[Where] = (),
    sort: str | Iterable[str] = (),
    pareto: str | Iterable[str] = (),
) -> dict[str, type | None]:
    """Return the fields that a question can name; the documents are looked at only if it names one not declared."""
    fields = declared_fields()
    try:
        for item in conditions(where):
            condition(item, fields)
        sort_keys(sort, fields)
        if pareto and pareto != "objectives":
            pareto_keys(pareto, fields)
    except ValueError:
        return summary_fields(campaign)
    return fields


@cache
def declared_fields() -> dict[str, type | None]:
    """Return the fields that every candidate summary can have, with their types; nested ones are dotted."""
    import mongoengine

    from stores.documents import CandidateSummary

    kinds = {
        mongoengine.FloatField: float, mongoengine.IntField: int, mongoengine.BooleanField: bool,
        mongoengine.StringField: str, mongoengine.ListField: list, mongoengine.DictField: dict,
    }  # fmt: skip
    declared = {
        name: next((kind for field_type, kind in kinds.items() if isinstance(field, field_type)), None)
        for name, field in CandidateSummary._fields.items()
        if name not in ("id", "provenance")
    }
    stages = {f"stages.{stage}.{name}": kind for stage in JUDGES for name, kind in STAGE_FIELDS.items()}
    return {**declared, **stages, "spacegroup.number": int, "spacegroup.symbol": str}


def summary_fields(campaign: str | None) -> dict[str, type | None]:
    """Return the declared fields and the nested ones, dotted, that a sample of the campaign's summaries has."""
    place = {} if campaign is None else {"campaign": campaign}
    collection = _collection()
    sample = list(collection.find(place, {"_id": 0}).limit(SAMPLE))
    # the few that reached a late stage have fields that the first ones lack
    for late in ("mlip", "dft"):
        sample += list(collection.find({**place, "stage": late}, {"_id": 0}).limit(SAMPLE))
    return known_fields(declared_fields(), sample)


def page(
    wanted: Filter, keys: Keys, *, limit: int | None = None, skip: int = 0, after: str | None = None
) -> list[dict[str, Any]]:
    """Return the summaries that meet a filter, in the order of the keys: a part of them, or all.

    Raises
    ------
    LookupError
        If ``after`` is no candidate.
    """
    keys = total_order(keys)
    token = _token(after, keys) if after else None
    if not _order_of_the_store(keys) or _is_rare(wanted):
        return _ordered_here(wanted, keys, limit=limit, skip=skip, token=token)
    found: list[dict[str, Any]] = []
    left = skip
    for part, part_keys in parts(wanted, keys, token):
        if limit and len(found) >= limit:
            break
        cursor = _collection().find(part, {"_id": 0}).sort(part_keys).skip(left)
        got = list(cursor.limit(limit - len(found)) if limit else cursor)
        found += got
        left = 0 if got or not left else max(left - count_candidates(part), 0)
    return found


def total_order(keys: Keys) -> Keys:
    """Return the keys with the candidate id as the last one, in the direction of the last: an index runs both ways."""
    chosen: dict[str, int] = {}
    for field, direction in keys:
        chosen.setdefault(field, direction)
    chosen.setdefault("candidate_id", next(reversed(chosen.values()), 1))
    return list(chosen.items())


def parts(wanted: Filter, keys: Keys, token: dict[str, Any] | None = None) -> Iterator[tuple[Filter, Keys]]:
    """Yield the (filter, keys) whose results one after the other are the order: with a value first, without one last.

    Parameters
    ----------
    token
        The summary after which the page begins.
    """
    field, value = keys[0][0], None if token is None else _value_at(token, keys[0][0])
    if field in ALWAYS or _has_value(wanted.get(field)):
        yield merge([wanted, *_beyond(keys, token)]), keys
        return
    if token is None or value is not None:
        yield merge([wanted, {field: _present(field)}, *_beyond(keys, token)]), keys
    yield merge([wanted, {field: {"$eq": None}}, *(_beyond(keys[1:], token) if value is None else [])]), keys[1:]


def pareto_criteria(
    pareto: str | Iterable[str], fields: Fields, campaign: str | None
) -> list[tuple[str, Callable[[float], float]]]:
    """Return (field, its number -> what is to be small) of ``K,G,-density`` or of the campaign's objectives.

    Raises
    ------
    ValueError
        If a field is unknown or holds no numbers, or there is no campaign whose objectives could be meant.
    """
    if pareto != "objectives":
        return [(field, (lambda x: -x) if more else (lambda x: x)) for field, more in pareto_keys(pareto, fields)]
    from inv_design.config import CampaignConfig
    from stores.connection import current

    found = current().db["campaigns"].find_one({"name": campaign}, {"config": 1})
    if found is None:
        raise ValueError(f"objectives are those of a campaign, and there is no campaign {campaign!r}")
    return [(f"properties.{o.name}", o.badness) for o in CampaignConfig.model_validate(found["config"]).objectives]


def pareto_page(
    wanted: Filter,
    keys: Keys,
    criteria: Criteria,
    *,
    fronts: int | None = None,
    limit: int | None = None,
    skip: int = 0,
) -> tuple[list[dict[str, Any]], int]:
    """Return (the summaries that match, the first Pareto front first, each with ``pareto_rank``; how many there are).

    Parameters
    ----------
    keys
        Order within a front.
    criteria
        Field -> its number -> what is to be small.
    fronts
        Only so many of them; those without all the values are then left out.
    """
    found = _sorted(_projected(wanted, [*(field for field, _ in keys), *(field for field, _ in criteria)]), keys)
    points = []
    for document in found:
        values = [number_at(document, field) for field, _ in criteria]
        points.append([math.nan if v is None else bad(v) for v, (_, bad) in zip(values, criteria, strict=True)])
    ranks = dict(zip((d["candidate_id"] for d in found), _ranks(points, fronts), strict=True))
    order = sorted(ranks, key=lambda identity: math.inf if (rank := ranks[identity]) is None else rank)
    if fronts:
        order = [i for i in order if (rank := ranks[i]) is not None and rank < fronts]
    chosen = by_ids(order[skip : skip + limit if limit else None])
    return [{**document, "pareto_rank": ranks[document["candidate_id"]]} for document in chosen], len(order)


def _ranks(points: list[list[float]], fronts: int | None) -> list[int | None]:
    """Return each point's front, ``None`` where a value is missing; only the first fronts cost little to find."""
    import numpy as np

    from inv_design.metrics.pareto import pareto_front, pareto_ranks

    if fronts is None or fronts > FEW_FRONTS:
        return [rank if rank >= 0 else None for rank in pareto_ranks(points)]
    ranks: list[int | None] = [None] * len(points)
    left, values = np.arange(len(points)), np.asarray(points, float)
    for rank in range(fronts):
        front = left[pareto_front(values[left])] if len(left) <= STRONG else _first_front(values, left)
        for i in front:
            ranks[i] = rank
        left = np.setdiff1d(left, front, assume_unique=True)
    return ranks


def _first_front(values: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the Pareto front of the rows ``left``: what a few strong ones beat is passed over at once."""
    import numpy as np

    from inv_design.metrics.pareto import pareto_front

    known = left[np.isfinite(values[left]).all(axis=1)]
    places = np.argsort(np.argsort(values[known], axis=0), axis=0).sum(axis=1)
    beaten = np.zeros(len(known), bool)
    for strong in values[known[np.argsort(places)[:STRONG]]]:
        beaten |= (strong <= values[known]).all(axis=1) & (strong < values[known]).any(axis=1)
    rest = known[~beaten]
    return rest[pareto_front(values[rest])]


def by_ids(ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the summaries of candidate ids, in their order; those that are not there are left out."""
    found = {}
    for start in range(0, len(ids), BATCH):
        for document in _collection().find({"candidate_id": {"$in": list(ids[start : start + BATCH])}}, {"_id": 0}):
            found[document["candidate_id"]] = document
    return [found[identity] for identity in ids if identity in found]


def number_at(document: dict[str, Any], field: str) -> float | None:
    """Return the number at a dotted field of a document, ``None`` if there is none."""
    value = _value_at(document, field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


# -- which index ----------------------------------------------------------------------------------------------------


def explained(wanted: Filter, keys: Keys, *, limit: int = 50) -> list[tuple[str | None, bool]] | None:
    """Return for each part of a page (the index that serves it, ``None`` for none; whether it gives the order too).

    It is ``None`` where the server cannot say; ``limit`` 0 asks for all candidates instead of a page.
    """
    from pymongo.errors import PyMongoError

    keys = total_order(keys)
    here = not _order_of_the_store(keys) or _is_rare(wanted)
    asked = [(wanted, [])] if here else parts(wanted, keys)
    found: list[tuple[str | None, bool]] = []
    try:
        for part, part_keys in asked:
            cursor = _collection().find(part).limit(limit)
            plan = (cursor.sort(part_keys) if part_keys else cursor).explain()
            stages = list(_stages(plan["queryPlanner"]["winningPlan"]))
            names = [stage["indexName"] for stage in stages if stage.get("stage") == "IXSCAN"]
            sorts = bool(part_keys) and not any(stage.get("stage") == "SORT" for stage in stages)
            found.append((names[0] if names else None, sorts))
    except (PyMongoError, NotImplementedError, KeyError, AttributeError):
        return None
    return found


def _stages(plan: Any) -> Iterator[dict[str, Any]]:
    """Yield every stage of a plan in MongoDB's words."""
    if isinstance(plan, list):
        for part in plan:
            yield from _stages(part)
    elif isinstance(plan, dict):
        if "stage" in plan:
            yield plan
        for part in plan.values():
            yield from _stages(part)


# -- order ----------------------------------------------------------------------------------------------------------


def _order_of_the_store(keys: Keys) -> bool:
    """Return whether a store's own order is ours: it puts nothing before everything, so in later keys it must not."""
    return all(field in ALWAYS or direction < 0 for field, direction in keys[1:])


def _is_rare(wanted: Filter) -> bool:
    """Return whether a filter leaves so few that they are best found first: read in order, most would be passed over.

    That is so for several elements at once, of which an index knows each but not the combination.
    """
    elements = wanted.get("elements")
    return isinstance(elements, dict) and len(elements.get("$all", ())) > 1


def _ordered_here(
    wanted: Filter, keys: Keys, *, limit: int | None, skip: int, token: dict[str, Any] | None
) -> list[dict[str, Any]]:
    found = _projected(wanted, [field for field, _ in keys])
    if token is not None:
        found = [document for document in found if document["candidate_id"] != token["candidate_id"]]
        found.append(token)
    ids = [document["candidate_id"] for document in _sorted(found, keys)]
    start = skip + (ids.index(token["candidate_id"]) + 1 if token is not None else 0)
    return by_ids(ids[start : start + limit if limit else None])


def _projected(wanted: Filter, fields: Iterable[str]) -> list[dict[str, Any]]:
    shown = {"_id": 0, "candidate_id": 1} | dict.fromkeys(fields, 1)
    return list(_collection().find(wanted, shown))


def _sorted(documents: list[dict[str, Any]], keys: Keys) -> list[dict[str, Any]]:
    """Return documents in the order of the keys, the candidate id last."""
    found = list(documents)
    for field, direction in reversed(total_order(keys)):
        found.sort(key=lambda d: _rank(_value_at(d, field), direction), reverse=direction < 0)
    return found


def _rank(value: Any, direction: int) -> tuple[int, Any]:
    """Return what a value is ordered by: as MongoDB does, by type first, but nothing last in both directions."""
    if value is None:
        return (9 if direction > 0 else -1, 0)
    if isinstance(value, bool):
        return (3, value)
    if isinstance(value, int | float):
        return (0, 0) if math.isnan(value) else (1, value)
    return (2, value) if isinstance(value, str) else (4, str(value))


def _token(after: str, keys: Keys) -> dict[str, Any]:
    if not isinstance(after, str):
        raise ValueError(f"{after!r} is no candidate id to go on after")
    shown = {"_id": 0, "candidate_id": 1} | {field: 1 for field, _ in keys}
    found = _collection().find_one({"candidate_id": after}, shown)
    if found is None:
        raise LookupError(f"there is no candidate {after!r} to go on after; give the last id of the page before")
    return dict(found)


def _beyond(keys: Keys, token: dict[str, Any] | None) -> list[Filter]:
    """Return the clauses for what follows a summary in the order of the keys; the first key has a value in both."""
    if token is None:
        return []
    clauses: list[Filter] = []
    equal: Filter = {}
    for i, (field, direction) in enumerate(keys):
        value = _value_at(token, field)
        if value is not None:
            clauses.append({**equal, field: {"$gt" if direction > 0 else "$lt": value}})
            if i and field not in ALWAYS:
                clauses.append({**equal, field: None})
        equal[field] = value
    field, direction = keys[0]
    bound = {field: {"$gte" if direction > 0 else "$lte": _value_at(token, field)}}  # an index starts there
    return [bound, {"$or": clauses}]


def _present(field: str) -> dict[str, Any]:
    """Return the condition that a field has a value: for numbers (never NaN) a range, which every index can serve."""
    return {"$gte": -math.inf} if declared_fields().get(field) in (int, float) else {"$ne": None}


def _has_value(wanted: Any) -> bool:
    """Return whether a condition on a field is met only by candidates that have a value there."""
    if not isinstance(wanted, dict):
        return wanted is not None
    return any(o in wanted for o in ("$gt", "$gte", "$lt", "$lte")) or wanted.get("$eq") is not None


def _value_at(document: dict[str, Any], field: str) -> Any:
    value: Any = document
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _collection() -> Any:
    from stores.connection import current

    return current().db[COLLECTION]

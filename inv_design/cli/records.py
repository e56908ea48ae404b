"""One record by its id, or by the first characters of it."""

from __future__ import annotations

import re
from typing import Any

COLLECTIONS = {
    "c": ("candidates", "candidate_id"),
    "s": ("structures", "structure_id"),
    "k": ("calculations", "calculation_id"),
    "m": ("models", "model_id"),
    "t": ("training_sets", "training_set_id"),
    "e": ("evaluations", "evaluation_id"),
}
"""First letter of an id -> (collection, field)."""

BULKY = ("structure", "members", "protocol")
SHOWN = 5


def full_id(text: str) -> str:
    """Return the id that ``text`` is, or begins; ``c-`` may be left out.

    Raises
    ------
    LookupError
        If no record has it, or several have.
    """
    from stores.connection import current

    if text.count("/") == 2:  # a prediction: structure/property/protocol
        return text
    match = re.fullmatch(r"(?:([csktme])-)?([0-9a-f]+)", text)
    if match is None:
        raise LookupError(f"{text!r} is no id; ids look like c-3f2a... (candidate), s- (structure), m- (model), k-, t-")
    database = current().db
    found: list[str] = []
    for letter in match.group(1) or "cs":
        collection, field = COLLECTIONS[letter]
        start = f"{letter}-{match.group(2)}"
        # a range instead of a pattern: it uses the index, on every server
        cursor = database[collection].find({field: {"$gte": start, "$lt": start + "g"}}, {field: 1}).limit(SHOWN + 1)
        found += [document[field] for document in cursor]
    if text in found:
        return text
    if not found:
        raise LookupError(f"the database holds no record {text!r}; `inv-design query` lists the candidates")
    if len(found) > 1:
        more = ", ..." if len(found) > SHOWN else ""
        raise LookupError(f"{text!r} fits several records: {', '.join(found[:SHOWN])}{more}; give more of the id")
    return found[0]


def candidate_of(text: str) -> dict[str, Any]:
    """Return the summary of a candidate, given by its id, its generated or relaxed structure's, or the start of one.

    Raises
    ------
    LookupError
        If there is none, or several.
    """
    from stores.connection import current

    identity = full_id(text)
    database = current().db
    if identity.startswith("s-"):
        found = [
            d["candidate_id"] for d in database["candidates"].find({"structure_id": identity}, {"candidate_id": 1})
        ]
        verb = "was generated"
        if not found:
            found, verb = relaxed_to(identity), "was relaxed to"
        if not found:
            raise LookupError(
                f"{identity} is no candidate's structure; `inv-design lineage {identity}` shows what it is"
            )
        if len(found) > 1:
            raise LookupError(f"{identity} {verb} {len(found)} times: {', '.join(found[:SHOWN])}; choose one")
        identity = found[0]
    if not identity.startswith("c-"):
        raise LookupError(f"{identity} is no candidate; `inv-design lineage {identity}` shows what it is")
    summary = database["candidate_summaries"].find_one({"candidate_id": identity}, {"_id": 0})
    if summary is None:
        raise LookupError(f"{identity} has no summary yet; it is made when the round goes on")
    return dict(summary)


def relaxed_to(identity: str) -> list[str]:
    """Return the ids of the candidates that a stage relaxed to a structure, in order."""
    from stores.connection import current

    database = current().db
    found = database["calculations"].find({"output_structure_id": identity}, {"structure_id": 1})
    # of equal crystals only the one that was judged: the others are its duplicates
    summaries = database["candidate_summaries"].find(
        {"structure_id": {"$in": sorted({c["structure_id"] for c in found})}}, {"candidate_id": 1, "stages": 1}
    )
    return sorted(
        s["candidate_id"]
        for s in summaries
        if any((record or {}).get("output_structure_id") == identity for record in (s.get("stages") or {}).values())
    )

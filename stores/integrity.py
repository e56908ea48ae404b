"""Whether the records of a database still are what they say: shapes, ids of their content, references.

The program inserts and never rewrites, so that a record with a problem was changed by something else: another program,
a hand in a shell, a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stores import scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stores.connection import Connection

BATCH = 500
AUTHORITATIVE_CURE = "restore it from a backup or an archive, or delete it"
DERIVED_CURE = "run `inv-design build --from-scratch`"


@dataclass(frozen=True)
class Problem:
    """What is wrong with one record.

    Attributes
    ----------
    collection, key
        The record.
    text
        What is wrong, without the record's name.
    cure
        What to do.
    """

    collection: str
    key: str
    text: str
    cure: str

    def __str__(self) -> str:
        return f"{self.collection} {self.key}: {self.text}; {self.cure}"


def problems(
    connection: Connection,
    *,
    shapes_only: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[Problem]:
    """Yield what is wrong with the records of a database, one problem per record at most.

    Parameters
    ----------
    shapes_only
        Only compare the fields with their declarations, which is quick: no ids, no references.
    progress
        Called with (records checked, all records, the collection).
    """
    from stores.documents import AUTHORITATIVE, DERIVED

    classes: list[Any] = [*AUTHORITATIVE, *DERIVED]
    total = sum(connection.db[c._meta["collection"]].estimated_document_count() for c in classes)
    done = 0
    for document in classes:
        collection = document._meta["collection"]
        for batch in scan.batches(scan.documents(connection, collection), BATCH):
            dangling = {} if shapes_only else _dangling(connection, collection, batch)
            for record in batch:
                text = shape_problem(document, record)
                if text is None and not shapes_only and document in AUTHORITATIVE:
                    text = content_problem(connection, collection, record) or dangling.get(id(record))
                if text is not None:
                    cure = AUTHORITATIVE_CURE if document in AUTHORITATIVE else DERIVED_CURE
                    yield Problem(collection, name_of(collection, record), text, cure)
            done += len(batch)
            if progress is not None:
                progress(done, total, collection)


def shape_problem(document: Any, record: Mapping[str, Any]) -> str | None:
    """Return what about a record is not as its document class declares it, or ``None``."""
    from stores.records import _TYPES

    strict = bool(document._meta.get("strict", True)) and not document._dynamic
    for name, value in record.items():
        field = document._fields.get(name)
        if field is None:
            if strict and name != "_id":
                return f"has a field {name!r} that is not declared"
            continue
        if value is None:
            continue
        if field.choices and value not in field.choices:
            return f"{name} is {_short(value)}, none of {', '.join(map(str, field.choices))}"
        kind = type(field).__name__
        expected = bool if kind == "BooleanField" else _TYPES.get(kind)
        if expected and (not isinstance(value, expected) or (isinstance(value, bool) and kind != "BooleanField")):
            return f"{name} is {_short(value)}, not {FORMS[kind]}"
        inner = getattr(field, "field", None)
        wanted = _TYPES.get(type(inner).__name__) if inner is not None else None
        if wanted and isinstance(value, list):
            wrong = [item for item in value if not isinstance(item, wanted)]
            if wrong:
                return f"{name} has {_short(wrong[0])} among its items, not {FORMS[type(inner).__name__]}"
    required = (name for name, field in document._fields.items() if field.required)
    lacks = next((name for name in required if record.get(name) is None), None)
    return f"lacks {lacks!r}" if lacks is not None else None


FORMS = {
    "StringField": "text", "IntField": "an integer", "FloatField": "a number", "DictField": "a mapping",
    "ListField": "a list", "BooleanField": "true or false",
}  # fmt: skip


def content_problem(connection: Connection, collection: str, record: Mapping[str, Any]) -> str | None:
    """Return why a record is not the content that its id says, or ``None``; it has the shape that is declared."""
    from stores.artifacts import unspill
    from stores.content import check_content

    try:
        check_content(collection, unspill(record, connection=connection) if record.get("spilled") else record)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return " ".join(str(error).split()) if isinstance(error, ValueError) else f"is no record ({error!r})"
    return None


def name_of(collection: str, record: Mapping[str, Any]) -> str:
    """Return how to find a record: its key, or its ``_id`` where the key is damaged."""
    from stores.records import _KEYS

    keys = _KEYS.get(collection) or DERIVED_KEYS[collection]
    values = [record.get(key) for key in keys]
    if all(isinstance(value, str | int) for value in values):
        return "/".join(map(str, values))
    return f"with _id {record.get('_id')}"


DERIVED_KEYS = {
    "candidate_summaries": ("candidate_id",),
    "screening_queue": ("campaign", "stage", "candidate_id"),
    "campaign_metrics": ("campaign", "round"),
}


def _dangling(connection: Connection, collection: str, batch: list[dict[str, Any]]) -> dict[int, str]:
    """Return id(record) -> what it refers to that the database does not have."""
    from stores.records import _known
    from stores.references import FIELDS

    found: dict[int, str] = {}
    for field, target in FIELDS.get(collection, {}).items():
        key = "name" if target == "campaigns" else f"{target.removesuffix('s')}_id"
        wanted = [record[field] for record in batch if isinstance(record.get(field), str)]
        missing = set(wanted) - _known(target, key, sorted(set(wanted)), connection)
        for record in batch:
            if record.get(field) in missing:
                found.setdefault(id(record), f"{field} {record[field]} is not in {target}")
    return found


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."

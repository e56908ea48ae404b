"""Index entries: hashes of field values such that values MongoDB holds equal have the same hash."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import bson
from mongomock_ng import filtering, helpers
from pymongo.errors import DocumentTooLarge, DuplicateKeyError

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # MongoDB's limit, kept so that nothing works here that fails there

_REGEX = (re.Pattern, bson.Regex)


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Return a document's BSON; DocumentTooLarge above MongoDB's limit."""
    blob = bson.encode(document)
    if len(blob) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge(f"document of {len(blob)} bytes is larger than MongoDB's {MAX_DOCUMENT_BYTES}")
    return blob


def decode_config(blob: bytes) -> dict[str, Any]:
    """Return an index's configuration as mongomock has it."""
    config = bson.decode(blob)
    config["key"] = [tuple(item) for item in config["key"]]
    return config


def id_key(value: Any) -> bytes:
    """Return the canonical bytes of an ``_id``."""
    return bson.encode({"": _normal(value)})


def entry(fields: tuple[str, ...], values: Iterable[Any]) -> bytes:
    """Return the index entry of field values: 128 bits of the BLAKE2b hash of their canonical BSON."""
    text = bson.encode({"fields": ",".join(fields), "values": [_normal(value) for value in values]})
    return hashlib.blake2b(text, digest_size=16).digest()


def _normal(value: Any) -> Any:  # noqa: PLR0911 (one line per BSON type)
    """Return a form in which values that MongoDB holds equal are the same bytes: 1 and 1.0, missing and null."""
    if value is None or value is filtering.NOTHING:
        return None
    if isinstance(value, (str, bool, bytes, bson.ObjectId)):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) <= 2**53 else value
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return value + 0.0  # -0.0 is 0.0
    if isinstance(value, Mapping):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normal(item) for item in value]
    return value


def entries_of(document: Mapping[str, Any], fields: tuple[str, ...]) -> set[bytes]:
    """Return the entries of a document for a field tuple: one, or one per array element."""
    choices = [_values(document, field) for field in fields]
    if all(len(choice) == 1 for choice in choices):
        return {entry(fields, [choice[0] for choice in choices])}
    return {entry(fields, values) for values in itertools.product(*choices)}


def _values(document: Mapping[str, Any], field: str) -> list[Any]:
    """Return every value by which an equality filter could meet a field: itself, and an array's elements."""
    found = [document.get(field)] if "." not in field else filtering.iter_key_candidates(field, document)
    values: list[Any] = []
    for value in found:
        values.append(value)
        if isinstance(value, list):
            values.extend(value)
    return values or [None]


def covers(config: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Return whether an index has this document (sparse and partial indexes leave some out)."""
    expression = config.get("partialFilterExpression")
    if expression is not None and not filtering.filter_applies(expression, document):
        return False
    if config.get("sparse"):
        return any(value is not None for field, _ in config["key"] for value in _values(document, field))
    return True


def equalities(spec: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return field -> possible values, for the fields that a filter pins down by equality or ``$in``."""
    equal: dict[str, list[Any]] = {}
    for field, condition in spec.items():
        if field == "$and":
            for part in condition:
                equal.update(equalities(part))
            continue
        if field.startswith("$"):
            continue
        if isinstance(condition, Mapping):
            if "$eq" in condition:
                values = [condition["$eq"]]
            elif isinstance(condition.get("$in"), (list, tuple, set)):
                values = list(condition["$in"])
            else:
                continue
        else:
            values = [condition]
        if not any(isinstance(value, (Mapping, *_REGEX)) for value in values):
            equal[field] = values
    return equal


def duplicate_key(collection: str, fields: list[str], document: Mapping[str, Any]) -> DuplicateKeyError:
    """Return the error that a taken key gives, worded and numbered as MongoDB's."""
    values = {field: helpers.get_value_by_dot(document, field) for field in fields}
    values = {field: None if value is filtering.NOTHING else value for field, value in values.items()}
    return DuplicateKeyError(
        f"E11000 duplicate key error collection: {collection} dup key: {values}",
        11000,
        {"keyPattern": dict.fromkeys(fields, 1), "keyValue": values, "errmsg": "E11000 duplicate key error"},
    )

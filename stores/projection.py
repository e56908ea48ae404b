"""Projections without operators, as MongoDB does them: fields kept or left out, dotted ones inside of lists too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo.errors import OperationFailure

Tree = dict[str, Any]
"""Field -> its own tree, empty where the whole field is meant."""


def parse(projection: Any) -> tuple[bool, bool, Tree] | None:
    """Return (whether fields are kept rather than left out, whether ``_id`` is kept, the fields as a tree).

    ``None`` for what has operators, positions or both kinds of fields, and for nothing at all.
    """
    if not projection:
        return None
    plain = dict(projection) if isinstance(projection, Mapping) else dict.fromkeys(projection, 1)
    with_id = plain.pop("_id", None)
    values = [*plain.values(), *([] if with_id is None else [with_id])]
    if any(not isinstance(v, bool | int | float) for v in values) or any(
        not isinstance(name, str) or "$" in name or "" in name.split(".") for name in plain
    ):
        return None
    kinds = {bool(value) for value in plain.values()}
    if len(kinds) > 1:
        return None
    keep = kinds.pop() if kinds else bool(with_id)
    tree: Tree = {}
    for name in sorted(plain, key=lambda name: name.count(".")):
        place = tree
        *path, last = name.split(".")
        for step in path:
            if step in place and not place[step]:
                return None  # a field and a part of it: MongoDB refuses that
            place = place.setdefault(step, {})
        if last in place:
            return None
        place[last] = {}
    return keep, True if with_id is None else bool(with_id), tree


def refuse_nested_operators(projection: Any) -> None:
    """Refuse operators on a part of a field, of which mongomock returns nothing.

    Raises
    ------
    OperationFailure
        If there are any.
    """
    nested = projection.items() if isinstance(projection, Mapping) else ()
    for name, value in nested:
        if isinstance(value, Mapping) and isinstance(name, str) and "." in name:
            raise OperationFailure(
                f"the embedded store projects no {next(iter(value), 'operator')} of the nested field {name!r}; "
                f"project {name.split('.')[0]!r} and take the part of it"
            )


def project(document: Mapping[str, Any], keep: bool, with_id: bool, tree: Tree) -> dict[str, Any]:
    """Return a document's part under a parsed projection; values are not copied."""
    found = _kept(document, tree) if keep else _left(document, tree)
    if not with_id:
        found.pop("_id", None)
    elif "_id" in document and "_id" not in found:
        found = {"_id": document["_id"], **found}
    return found


def _kept(document: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name not in tree:
            continue
        inner = tree[name]
        if not inner:
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = _kept(value, inner)
        elif isinstance(value, list):
            found[name] = _kept_items(value, inner)
    return found


def _kept_items(items: list[Any], tree: Tree) -> list[Any]:
    """Return the parts of a list's documents; other items are no part of a dotted field."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, Mapping):
            found.append(_kept(item, tree))
        elif isinstance(item, list):
            found.append(_kept_items(item, tree))
    return found


def _left(document: Mapping[str, Any], tree: Tree) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name not in tree:
            found[name] = value
        elif tree[name]:
            found[name] = _left_inside(value, tree[name])
    return found


def _left_inside(value: Any, tree: Tree) -> Any:
    if isinstance(value, Mapping):
        return _left(value, tree)
    if isinstance(value, list):
        return [_left_inside(item, tree) for item in value]
    return value

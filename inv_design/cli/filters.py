"""Conditions of `query` as a MongoDB filter: what is typed, checked against the fields that there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALIASES = {
    "K": "bulk_modulus_vrh",
    "bulk_modulus": "bulk_modulus_vrh",
    "G": "shear_modulus_vrh",
    "id": "candidate_id",
    "natoms": "nsites",
}
"""Short field names; beside them every field of a candidate summary can be used, dotted where it is nested."""

OPERATORS = {">=": "$gte", "<=": "$lte", "!=": "$ne", ">": "$gt", "<": "$lt", "=": "$eq"}
CONDITION = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(>=|<=|!=|==|>|<|=)\s*(.*?)\s*", re.DOTALL)


def where_filter(texts: Iterable[str], fields: Mapping[str, type | None]) -> dict[str, Any]:
    """Return the MongoDB filter of conditions such as ``K=340..360``, ``stages.mlip.value>300``, ``status=passed``.

    Parameters
    ----------
    fields
        Known field -> its type (``float``, ``int``, ``bool``, ``str``), or ``None`` where it varies.

    Raises
    ------
    click.BadParameter
        If a condition has another form, its field is unknown, or its value does not fit the field.
    """
    clauses: list[dict[str, Any]] = []
    for text in texts:
        match = CONDITION.fullmatch(text)
        if match is None:
            raise click.BadParameter(
                f"{text!r} is no condition; write FIELD=VALUE, FIELD=LOW..HIGH, or use >, >=, <, <=, !=",
                param_hint="--where",
            )
        name, operator, value = match.groups()
        field = field_name(name, fields, option="--where")
        clauses.append({field: _comparison(field, operator.replace("==", "="), value, fields.get(field))})
    return {"$and": clauses} if len(clauses) > 1 else (clauses[0] if clauses else {})


def sort_keys(texts: Iterable[str], fields: Mapping[str, type | None]) -> list[tuple[str, int]]:
    """Return (field, 1 or -1) for ``K`` and ``-K``; commas separate several.

    Raises
    ------
    click.BadParameter
        If a field is unknown.
    """
    keys = []
    for text in (part.strip() for item in texts for part in item.split(",")):
        if text:
            keys.append((field_name(text.lstrip("+-"), fields, option="--sort"), -1 if text.startswith("-") else 1))
    return keys


def pareto_keys(text: str, fields: Mapping[str, type | None]) -> list[tuple[str, bool]]:
    """Return (field, whether more of it is better) for ``K,G,-density``; a minus means that less is better.

    Raises
    ------
    click.BadParameter
        If a field is unknown or holds no numbers, or none is given.
    """
    keys = []
    for part in (part.strip() for part in text.split(",")):
        if part:
            field = field_name(part.lstrip("+-"), fields, option="--pareto")
            if fields[field] in (str, bool):
                raise click.BadParameter(
                    f"{field} holds no numbers; give fields such as K,G,-density", param_hint="--pareto"
                )
            keys.append((field, not part.startswith("-")))
    if not keys:
        raise click.BadParameter("no field; give for example K,G,-density, or objectives", param_hint="--pareto")
    return keys


def field_value(document: Mapping[str, Any], field: str) -> float | None:
    """Return the number at a dotted field of a document, ``None`` if there is none."""
    value: Any = document
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def field_name(name: str, fields: Mapping[str, type | None], *, option: str) -> str:
    """Return the stored name of a field.

    Raises
    ------
    click.BadParameter
        If there is no such field; the nearest one is named.
    """
    full = ALIASES.get(name, name)
    if full in fields:
        return full
    if f"properties.{full}" in fields:  # the campaign's own
        return f"properties.{full}"
    close = nearest(name, [*ALIASES, *fields])
    if close.startswith("; known"):  # the whole list would be no help
        close = f"; known: {', '.join(sorted(f for f in fields if '.' not in f))}"
    raise click.BadParameter(f"unknown field {name!r}{close}", param_hint=option)


def element_filter(every: list[str], any_of: list[str], without: list[str]) -> dict[str, Any]:
    """Return the filter on ``elements``: all of ``every``, at least one of ``any_of``, none of ``without``."""
    condition: dict[str, Any] = {}
    if every:
        condition["$all"] = every
    if any_of:
        condition["$in"] = any_of
    if without:
        condition["$nin"] = without
    return {"elements": condition} if condition else {}


def known_fields(declared: Mapping[str, type | None], documents: Iterable[Mapping[str, Any]]) -> dict[str, type | None]:
    """Return the fields that can be asked for: the declared ones, and the dotted ones that documents have."""
    found: dict[str, type | None] = dict(declared)
    for document in documents:
        for name, value in _flatten(document):
            kind = _kind(value)
            if name not in found or found[name] is None:
                found[name] = kind
            elif kind is not None and {found[name], kind} == {int, float}:
                found[name] = float
    return found


def _comparison(field: str, operator: str, text: str, kind: type | None) -> Any:
    if text == "":
        raise click.BadParameter(f"{field}{operator} has no value; give one after {operator}", param_hint="--where")
    if ".." in text and operator in ("=", "!="):
        low, _, high = text.partition("..")
        bounds = {key: _number(field, part) for key, part in (("$gte", low), ("$lte", high)) if part.strip()}
        if not bounds:
            raise click.BadParameter(f"{field}={text} has no bound; write {field}=LOW..HIGH", param_hint="--where")
        if len(bounds) == 2 and bounds["$gte"] > bounds["$lte"]:
            raise click.BadParameter(f"{field}={text} is empty; write the lower bound first", param_hint="--where")
        return bounds if operator == "=" else {"$not": bounds}
    if operator in ("<", "<=", ">", ">="):
        return {OPERATORS[operator]: _number(field, text)}
    value = _value(field, text, kind)
    return {OPERATORS[operator]: value}


def _value(field: str, text: str, kind: type | None) -> Any:
    lower = text.lower()
    if lower in ("none", "null"):
        return None
    if kind is bool or (kind is None and lower in ("true", "false")):
        if lower not in ("true", "false", "yes", "no"):
            raise click.BadParameter(f"{field} is true or false, not {text!r}", param_hint="--where")
        return lower in ("true", "yes")
    if kind in (int, float):
        return _number(field, text)
    if kind is None:
        try:
            return float(text)
        except ValueError:
            return text
    return _canonical(field, text)


def _canonical(field: str, text: str) -> str:
    """Return a formula or chemical system in the order in which it is stored."""
    if field == "chemsys":
        return "-".join(sorted(text.split("-")))
    if field == "formula":
        from pymatgen.core import Composition

        try:
            return str(Composition(text).reduced_formula)
        except ValueError:
            return text
    return text


def _number(field: str, text: str) -> float | int:
    try:
        value = float(text)
    except ValueError:
        raise click.BadParameter(
            f"{text.strip()!r} is no number to compare {field} with", param_hint="--where"
        ) from None
    return int(value) if value.is_integer() and re.fullmatch(r"\s*[-+]?\d+\s*", text) else value


def _flatten(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in document.items():
        if name in ("_id", "provenance"):
            continue
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")


def _kind(value: Any) -> type | None:
    return next((kind for kind in (bool, int, float, str) if type(value) is kind), None)

"""Questions about candidates as MongoDB filters and sort orders: pure translation, checked and free of injection.

Only operators that are written here reach a database. A field name is made of letters, digits, ``_``, ``-`` and dots;
a value is text, a number, true, false, a time or none; anything else is refused, and so is what starts with ``$``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Fields = Mapping[str, type | None]
Where = str | tuple[str, str, Any]
Keys = list[tuple[str, int]]

ALIASES = {
    "K": "bulk_modulus_vrh",
    "bulk_modulus": "bulk_modulus_vrh",
    "G": "shear_modulus_vrh",
    "id": "candidate_id",
    "natoms": "nsites",
}
"""Short field names; beside them every field of a candidate summary can be used, dotted where it is nested."""

STAGES = ("generated", "predictor", "mlip", "dft")
JUDGES = STAGES[1:]
"""The stages that have results, and so a protocol."""
STATUSES = ("passed", "rejected", "failed", "waiting")

OPERATORS = {">=": "$gte", "<=": "$lte", "!=": "$ne", ">": "$gt", "<": "$lt", "=": "$eq", "==": "$eq"}
SETS = {"in": "$in", "not in": "$nin"}
CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(>=|<=|!=|==|>|<|=)\s*(.*?)\s*", re.DOTALL)
LARGEST = 2**53
"""Whole numbers beyond it are compared as floating-point ones."""
NAME = re.compile(r"[A-Za-z_][\w-]*(\.\w[\w-]*)*", re.ASCII)


def candidate_filter(
    *,
    campaign: str | None = None,
    where: Where | Iterable[Where] = (),
    elements: str | Iterable[str] = (),
    any_of: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
    stage: str | None = None,
    status: str | None = None,
    round: int | Sequence[int] | None = None,
    protocol: str | Iterable[str] = (),
    fields: Fields | None = None,
) -> dict[str, Any]:
    """Return the MongoDB filter of a question; see :func:`stores.queries.candidates` for what the parts mean.

    Parameters
    ----------
    fields
        The fields that can be asked for with their types; without it every well-formed name is taken.

    Raises
    ------
    ValueError
        If a part has another form, a field or element is unknown, or a value does not fit its field.
    """
    clauses: list[dict[str, Any]] = []
    if campaign is not None:
        clauses.append({"campaign": _plain("campaign", campaign)})
    rounds = [round] if isinstance(round, int) else list(round or ())
    if any(not isinstance(number, int) or isinstance(number, bool) for number in rounds):
        raise ValueError(f"round {round!r} is no whole number")
    if rounds:
        clauses.append({"round": rounds[0] if len(rounds) == 1 else {"$in": rounds}})
    for name, value, known in (("stage", stage, STAGES), ("status", status, STATUSES)):
        if value is not None:
            if value not in known:
                raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
            clauses.append({name: value})
    clauses.append(element_filter(elements, any_of, without))
    clauses += [condition(item, fields) for item in conditions(where)]
    clauses += [protocol_filter(item) for item in ([protocol] if isinstance(protocol, str) else protocol)]
    return merge(clauses)


def conditions(where: Where | Iterable[Where]) -> list[Where]:
    """Return one condition, or several, as a list."""
    one = isinstance(where, str) or (isinstance(where, tuple) and len(where) == 3 and where[1] in [*OPERATORS, *SETS])
    return [where] if one else list(where)  # type: ignore[list-item]


def condition(where: Where, fields: Fields | None = None) -> dict[str, Any]:
    """Return the filter of one condition: text such as ``K=340..360``, or ``(field, operator, value)``.

    Operators are ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, and as a tuple also ``in`` and ``not in``. A candidate
    without a value at the field meets ``!=``, ``not in`` and ``= none``, and nothing else.

    Raises
    ------
    ValueError
        If it has another form, its field is unknown, or its value does not fit the field.
    """
    if isinstance(where, str):
        match = CONDITION.fullmatch(where)
        if match is None:
            raise ValueError(f"{where!r} is no condition; write FIELD=VALUE, FIELD=LOW..HIGH, or use >, >=, <, <=, !=")
        name, operator, text = match.groups()
        field = field_name(name, fields)
        return {field: _comparison(field, operator, text, (fields or {}).get(field))}
    if not (isinstance(where, tuple) and len(where) == 3 and isinstance(where[0], str)):
        raise ValueError(f"{where!r} is no condition; give text such as 'K=340..360', or (field, operator, value)")
    name, operator, value = where
    field = field_name(name, fields)
    if operator in SETS:
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise ValueError(f"{field} {operator} {value!r}: give a list of values")
        return {field: {SETS[operator]: [_plain(field, item) for item in value]}}
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}; known: {', '.join([*OPERATORS, *SETS])}")
    kind = (fields or {}).get(field)
    if OPERATORS[operator] not in ("$eq", "$ne"):
        if value is None or isinstance(value, bool) or kind in (bool, dict):
            raise ValueError(f"{field} {operator} {value!r} has no order; use = or !=")
        if kind in (int, float) and not isinstance(value, int | float):
            raise ValueError(f"{value!r} is no number to compare {field} with")
    return {field: {OPERATORS[operator]: _plain(field, value)}}


def element_filter(
    every: str | Iterable[str], any_of: str | Iterable[str], without: str | Iterable[str]
) -> dict[str, Any]:
    """Return the filter on ``elements``: all of ``every``, at least one of ``any_of``, none of ``without``.

    Raises
    ------
    ValueError
        If a name is neither an element nor, in the last two, a group such as ``metals``.
    """
    parts = {"$all": symbols(every, groups=False), "$in": symbols(any_of), "$nin": symbols(without)}
    wanted = {operator: found for operator, found in parts.items() if found}
    return {"elements": wanted} if wanted else {}


def symbols(names: str | Iterable[str], *, groups: bool = True) -> list[str]:
    """Return element symbols from ``"Tc,Os"`` or a list; groups such as ``actinides`` are expanded if allowed.

    Raises
    ------
    ValueError
        If a name is neither an element nor a group.
    """
    from inv_design.structures.elements import ACTINIDES, METALLIC_RADII, NOBLE_GASES, NON_METALS, expand_elements

    texts = [names] if isinstance(names, str) else list(names)
    given = {name for text in texts for name in re.split(r"[,\s]+", str(text)) if name}
    if given <= {*METALLIC_RADII, *ACTINIDES, *NOBLE_GASES, *NON_METALS}:  # spares the import of pymatgen
        return sorted(given)
    found = expand_elements(sorted(given))
    if not groups and given != found:
        raise ValueError(f"{', '.join(sorted(given - found))}: give element symbols, such as Re,W")
    return sorted(found)


def protocol_filter(protocol: str) -> dict[str, Any]:
    """Return the filter on the protocol of any stage's result (``p-3f2a``) or of one stage's (``mlip=p-3f2a``).

    Raises
    ------
    ValueError
        If the stage is unknown or no id is given.
    """
    stage, sign, identity = str(protocol).rpartition("=")
    identity = _plain("protocol", identity.strip())
    if not identity or (sign and stage.strip() not in JUDGES):
        raise ValueError(f"protocol {protocol!r} is neither ID nor STAGE=ID with one of {', '.join(JUDGES)}")
    if sign:
        return {f"stages.{stage.strip()}.protocol_id": identity}
    return {"$or": [{f"stages.{judge}.protocol_id": identity} for judge in JUDGES]}


def sort_keys(texts: str | Iterable[str], fields: Fields | None = None) -> Keys:
    """Return (field, 1 or -1) for ``K`` and ``-K``; commas separate several.

    Raises
    ------
    ValueError
        If a field is unknown or has no order.
    """
    keys: Keys = []
    for text in _split(texts):
        field = field_name(text.lstrip("+-"), fields)
        if (fields or {}).get(field) in (list, dict):
            raise ValueError(f"{field} holds more than one value; sort by a field with one, such as K or round")
        keys.append((field, -1 if text.startswith("-") else 1))
    return keys


def pareto_keys(texts: str | Iterable[str], fields: Fields | None = None) -> list[tuple[str, bool]]:
    """Return (field, whether more of it is better) for ``K,G,-density``; a minus means that less is better.

    Raises
    ------
    ValueError
        If a field is unknown or holds no numbers, or none is given.
    """
    keys = []
    for text in _split(texts):
        field = field_name(text.lstrip("+-"), fields)
        if (fields or {}).get(field) in (str, bool, list, dict):
            raise ValueError(f"{field} holds no numbers; give fields such as K,G,-density")
        keys.append((field, not text.startswith("-")))
    if not keys:
        raise ValueError("no field; give for example K,G,-density, or objectives")
    return keys


def field_name(name: str, fields: Fields | None = None) -> str:
    """Return the stored name of a field.

    Raises
    ------
    ValueError
        If it is no name, or there is no such field; the nearest one is named.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no field; names are letters, digits, _ and -, with dots where they are nested")
    full = ALIASES.get(name, name)
    if fields is None or full in fields:
        return full
    if f"properties.{full}" in fields:  # the campaign's own
        return f"properties.{full}"
    by_lower = {known.lower(): known for known in [*ALIASES, *fields]}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    if close:
        raise ValueError(f"unknown field {name!r}; did you mean {by_lower[close[0]]!r}?")
    raise ValueError(f"unknown field {name!r}; known: {', '.join(sorted(f for f in fields if '.' not in f))}")


def known_fields(declared: Fields, documents: Iterable[Mapping[str, Any]]) -> dict[str, type | None]:
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


def merge(clauses: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one filter that holds where all clauses do; fields stay at its top, where an index is looked for."""
    merged: dict[str, Any] = {}
    more: list[Mapping[str, Any]] = []
    for clause in clauses:
        for name, wanted in clause.items():
            if name not in merged:
                merged[name] = wanted
                continue
            both = [_operators(merged[name]), _operators(wanted)]
            # $eq stands alone: some servers fail on it beside $in, on lists
            taken = both[0].keys() & both[1].keys() or "$eq" in {*both[0], *both[1]}
            if name.startswith("$") or taken:
                more.append({name: wanted})
            else:
                merged[name] = both[0] | both[1]
    if more:
        merged["$and"] = [*merged.get("$and", []), *more]
    return merged


def _operators(wanted: Any) -> dict[str, Any]:
    return dict(wanted) if isinstance(wanted, Mapping) else {"$eq": wanted}


def _comparison(field: str, operator: str, text: str, kind: type | None) -> Any:
    """Return the right side of a condition that was written as text."""
    if text == "":
        raise ValueError(f"{field}{operator} has no value; give one after {operator}")
    if ".." in text and operator in ("=", "==", "!="):
        low, _, high = text.partition("..")
        bounds = {key: _number(field, part) for key, part in (("$gte", low), ("$lte", high)) if part.strip()}
        if not bounds:
            raise ValueError(f"{field}={text} has no bound; write {field}=LOW..HIGH")
        if len(bounds) == 2 and bounds["$gte"] > bounds["$lte"]:
            raise ValueError(f"{field}={text} is empty; write the lower bound first")
        return bounds if operator != "!=" else {"$not": bounds}
    if operator in ("<", "<=", ">", ">="):
        if kind in (bool, dict):
            raise ValueError(f"{field}{operator}{text} has no order; use = or !=")
        return {OPERATORS[operator]: _number(field, text)}
    return {OPERATORS[operator]: _value(field, text, kind)}


def _value(field: str, text: str, kind: type | None) -> Any:
    lower = text.lower()
    if lower in ("none", "null"):
        return None
    if kind is bool or (kind is None and lower in ("true", "false")):
        if lower not in ("true", "false", "yes", "no"):
            raise ValueError(f"{field} is true or false, not {text!r}")
        return lower in ("true", "yes")
    if kind is dict:
        raise ValueError(f"{field} holds more than one value; name one of them, such as {field}.NAME={text}")
    if kind in (int, float):
        return _number(field, text)
    if kind in (None, list):
        try:
            return _number(field, text)
        except ValueError:
            return _plain(field, text)
    return _canonical(field, str(_plain(field, text)))


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
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"{text.strip()!r} is no number to compare {field} with")
    whole = re.fullmatch(r"\s*[-+]?\d+\s*", text) and abs(value) <= LARGEST
    return int(value) if whole else value


def _plain(field: str, value: Any) -> Any:
    """Return a value that is no operator, pattern or code; refuse any other."""
    if isinstance(value, str) and (value.startswith("$") or "\0" in value):
        raise ValueError(f"{field}: {value!r} is an operator, not a value")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{field}: NaN compares with nothing; use none")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return float(value)
    if value is None or isinstance(value, str | int | float | bool | datetime):
        return value
    raise ValueError(f"{field}: {value!r} is no value; give text, a number, true, false, a time or none")


def _split(texts: str | Iterable[str]) -> list[str]:
    given = [texts] if isinstance(texts, str) else list(texts)
    return [part for text in given for part in (p.strip() for p in text.split(",")) if part]


def _flatten(document: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in document.items():
        if name in ("_id", "provenance"):
            continue
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")


def _kind(value: Any) -> type | None:
    return next((kind for kind in (bool, int, float, str, list, dict) if type(value) is kind), None)

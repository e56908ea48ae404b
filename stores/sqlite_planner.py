"""Which index answers a filter and a sort: equality on its first fields, a range on the next, its order the sort."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import bson

from stores.index_keys import SMALLEST_NUMBER, after, encode, entry, inverted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stores.sqlite_index import Index

MAX_RANGES = 50_000  # beyond this many $in combinations a scan is cheaper

_RANGE_OPERATORS = {"$gt", "$gte", "$lt", "$lte"}
_RANGE_TYPES = (str, bool, int, float, bson.ObjectId, datetime)
_NO_EQUALITY = (Mapping, re.Pattern, bson.Regex)
_ENCODING_ERRORS = (bson.errors.InvalidDocument, ValueError, OverflowError, TypeError)

Range = tuple[bytes, bytes | None]
"""The entries from the first up to (without) the second; with ``None``, those that are the first."""


class Condition:
    """What a filter demands of one field: one of some values, or a range within one type."""

    def __init__(self) -> None:
        self.values: list[Any] | None = None
        self.low: tuple[bytes, bool] | None = None
        self.high: tuple[bytes, bool] | None = None

    @property
    def is_range(self) -> bool:
        """Whether it is a range."""
        return self.low is not None or self.high is not None


class Conditions:
    """What of a filter the indexes can serve.

    Attributes
    ----------
    fields
        Field -> condition. Every matching document meets all of them.
    exact
        Whether every document that meets all of them matches.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.fields: dict[str, Condition] = {}
        self.exact = True
        self._parse(spec)

    def _parse(self, spec: Mapping[str, Any]) -> None:
        for field, demand in spec.items():
            if field == "$and" and isinstance(demand, (list, tuple)) and all(isinstance(d, Mapping) for d in demand):
                for part in demand:
                    self._parse(part)
                self.exact = self.exact and bool(demand)
            elif field.startswith("$") or field in self.fields or not self._add(field, demand):
                self.exact = False

    def _add(self, field: str, demand: Any) -> bool:
        """Add what a filter demands of a field; return whether that is all it demands."""
        if not isinstance(demand, Mapping):
            return self._add_values(field, [demand])
        if "$eq" in demand:
            return self._add_values(field, [demand["$eq"]]) and len(demand) == 1
        for operator in ("$in", "$all"):
            values = demand.get(operator)
            if isinstance(values, (list, tuple)) and (values or operator == "$in"):
                wanted = values if operator == "$in" else values[:1]
                return self._add_values(field, wanted) and len(demand) == 1 and len(wanted) == len(values)
        if demand and demand.keys() <= _RANGE_OPERATORS:
            return self._add_range(field, demand)
        bounds = {operator: demand[operator] for operator in _RANGE_OPERATORS & demand.keys()}
        if bounds:
            self._add_range(field, bounds)
        return False

    def _add_values(self, field: str, values: Sequence[Any]) -> bool:
        for value in values:
            items = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(item, _NO_EQUALITY) for item in items):
                return False
        condition = self.fields[field] = Condition()
        condition.values = list(values)
        return all(_is_exact(value, field) for value in values)

    def _add_range(self, field: str, bounds: Mapping[str, Any]) -> bool:
        if not all(isinstance(value, _RANGE_TYPES) for value in bounds.values()):
            return False
        try:
            encoded = {operator: encode(value) for operator, value in bounds.items()}
        except _ENCODING_ERRORS:
            return False
        kinds = {key[:1] for key in encoded.values()}
        if len(kinds) > 1 or any(value != value for value in bounds.values()):  # noqa: PLR0124 (NaN)
            return False
        condition = self.fields[field] = Condition()
        lows = [(encoded[name], name == "$gt") for name in ("$gt", "$gte") if name in encoded]
        highs = [(encoded[name], name == "$lte") for name in ("$lt", "$lte") if name in encoded]
        condition.low = max(lows, default=None)
        condition.high = min(highs, default=None)
        return True


@dataclass(frozen=True)
class Plan:
    """A way to read the documents that match: by ranges of an index's entries.

    Attributes
    ----------
    cuts
        Per range, the leading bytes of its entries that do not tell the order between the ranges.
    exact
        Whether nothing of the filter is left to be checked on the documents.
    bounded
        The fields that the ranges bound.
    sorted_keys
        How many leading keys of the sort the entries' order gives.
    backward
        Whether they are read backward for it.
    """

    index: Index
    ranges: tuple[Range, ...]
    cuts: tuple[int, ...]
    exact: bool
    bounded: frozenset[str]
    sorted_keys: int = 0
    backward: bool = False


def plan_of(index: Index, conditions: Conditions, sort: Sequence[tuple[str, int]]) -> Plan | None:
    """Return how an index serves a filter and a sort, or ``None`` if it helps neither."""
    if index.partial is not None:
        return None
    prefixes, fixed, used = [index.slot], 0, 0
    start = len(index.slot)  # where the entries of the ranges begin to differ
    for field, direction in index.fields:
        parts = _equality(conditions.fields.get(field), direction)
        if parts is None or len(prefixes) * len(parts) > MAX_RANGES:
            break
        prefixes = [prefix + part for prefix in prefixes for part in parts]
        if len(parts) == 1 and fixed == used:
            fixed += 1
            start = len(prefixes[0])
        used += 1
    if index.sparse and not _leaves_out_null(conditions, index, used):
        return None
    ranges, count, exact = _ranges(index, conditions, prefixes, used)
    bounded = frozenset(field for field, _ in index.fields[:count])
    cuts = [len(prefix) for prefix in prefixes]
    sorted_keys, backward = 0, False
    if sort and not index.multikey:
        single = {field for field, _ in index.fields[:used] if len(conditions.fields[field].values or ()) == 1}
        sorted_keys, backward = _order(index.fields[used:], single, sort)
        if fixed < used:  # the order may as well begin at the first field with several values
            first, first_backward = _order(index.fields[fixed:], single, sort)
            if first > sorted_keys:
                sorted_keys, backward, cuts = first, first_backward, [start] * len(prefixes)
    if not bounded and not sorted_keys:
        return None
    exact = exact and conditions.exact and len(bounded) == len(conditions.fields)
    return Plan(index, tuple(ranges), tuple(cuts), exact, bounded, sorted_keys, backward)


def _ranges(index: Index, conditions: Conditions, prefixes: list[bytes], used: int) -> tuple[list[Range], int, bool]:
    """Return the ranges behind the prefixes, how many fields bound them, and whether they say all of it."""
    if used == len(index.fields):
        return [(prefix, None) for prefix in prefixes], used, True
    field, direction = index.fields[used]
    condition = conditions.fields.get(field)
    if condition is None or not condition.is_range:
        return [(prefix, after(prefix) if prefix else b"\xff") for prefix in prefixes], used, True
    one_sided = index.multikey and condition.low is not None and condition.high is not None
    ranges = [_stretch(prefix, condition, direction, one_sided=one_sided) for prefix in prefixes]
    return ranges, used + 1, not one_sided


def _equality(condition: Condition | None, direction: int) -> list[bytes] | None:
    """Return the different entry parts of an equality, or ``None`` if there is none that has entries."""
    if condition is None or condition.values is None:
        return None
    try:
        parts = {entry(value) for value in condition.values}
    except _ENCODING_ERRORS:
        return None
    return sorted(inverted(part) for part in parts) if direction < 0 else sorted(parts)


def _leaves_out_null(conditions: Conditions, index: Index, used: int) -> bool:
    """Return whether no document that a sparse index lacks can match."""
    found = [conditions.fields[field] for field, _ in index.fields[: used + 1] if field in conditions.fields]
    return any(c.is_range or (c.values is not None and None not in c.values) for c in found)


def _stretch(prefix: bytes, condition: Condition, direction: int, *, one_sided: bool) -> Range:
    """Return the entries of a range on the field that follows a prefix; one bound of two where arrays are about.

    Of an array, one element may meet the lower and another the upper bound, so that no entry meets both.
    """
    known = condition.low or condition.high
    assert known is not None
    kind = known[0][:1]
    low = condition.low or (SMALLEST_NUMBER if kind == SMALLEST_NUMBER[:1] else kind, False)
    high = (kind, True) if condition.high is None or one_sided else condition.high
    if direction < 0:
        low_key, high_key = inverted(low[0]), inverted(high[0])
        return (
            prefix + high_key if high[1] else after(prefix + high_key),
            prefix + low_key if low[1] else after(prefix + low_key),
        )
    return (
        after(prefix + low[0]) if low[1] else prefix + low[0],
        after(prefix + high[0]) if high[1] else prefix + high[0],
    )


def _order(fields: Sequence[tuple[str, int]], fixed: set[str], sort: Sequence[tuple[str, int]]) -> tuple[int, bool]:
    """Return how many leading sort keys the order of the fields gives, and whether read backward."""
    waiting = (item for item in fields if item[0] not in fixed)
    backward: bool | None = None
    count = 0
    for field, direction in sort:
        if field not in fixed:
            expected = next(waiting, None)
            if expected is None or expected[0] != field:
                break
            opposite = expected[1] != direction
            if backward is None:
                backward = opposite
            elif backward != opposite:
                break
        count += 1
    return (count, bool(backward)) if backward is not None or count == len(sort) else (0, False)


def _is_exact(value: Any, field: str) -> bool:
    """Return whether an index holds a value equal to exactly what the filter does."""
    if value is None:
        return "." not in field
    return isinstance(value, (str, bool, int, float, bson.ObjectId, datetime))


class Literal:
    """A value that equals what MongoDB calls equal: to Python ``True`` is 1 and ``False`` is 0, too."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bool) == isinstance(self.value, bool) and self.value == other

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def type_strict(spec: Any) -> Any:
    """Return a filter, or the operators on one field, by which truth values do not equal the numbers 0 and 1.

    It is to be given to mongomock's filter, which compares as Python does; only such values are replaced.
    """
    if not isinstance(spec, Mapping):
        return spec
    return {name: _strict_demand(name, demand) for name, demand in spec.items()}


def _strict_demand(name: str, demand: Any) -> Any:
    if name in {"$and", "$or", "$nor"}:
        return [type_strict(part) for part in demand] if isinstance(demand, (list, tuple)) else demand
    if name in {"$not", "$elemMatch"}:
        return type_strict(demand)
    if name in {"$in", "$nin", "$all"}:
        return [_strict_value(value) for value in demand] if isinstance(demand, (list, tuple)) else demand
    if name.startswith("$") and name not in {"$eq", "$ne"}:
        return demand
    return _strict_value(demand, operators=not name.startswith("$"))


def _strict_value(value: Any, *, operators: bool = True) -> Any:
    if isinstance(value, (bool, int, float)):
        return Literal(value) if value in (0, 1) else value
    if isinstance(value, list):
        return [_strict_value(item, operators=False) for item in value]
    if type(value) is dict:  # others compare in ways of their own
        if operators and value and all(name.startswith("$") for name in value):
            return type_strict(value)
        return {name: _strict_value(item, operators=False) for name, item in value.items()}
    return value


def explained(plan: Plan | None, spec: Mapping[str, Any], sort: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return a plan in the words of MongoDB's ``explain``."""
    if plan is None:
        stage: dict[str, Any] = {"stage": "COLLSCAN", "filter": dict(spec), "direction": "forward"}
    else:
        scan = {
            "stage": "IXSCAN",
            "keyPattern": dict(plan.index.config["key"]),
            "indexName": plan.index.name,
            "isMultiKey": plan.index.multikey,
            "isUnique": plan.index.unique,
            "direction": "backward" if plan.backward else "forward",
        }
        stage = {"stage": "FETCH", "inputStage": scan}
        if not plan.exact:
            stage["filter"] = dict(spec)
    if sort and (plan is None or plan.sorted_keys < len(sort)):
        stage = {"stage": "SORT", "sortPattern": dict(sort), "inputStage": stage}
    return stage


def sort_pairs(sort: Any) -> list[tuple[str, int]]:
    """Return a sort in pymongo's several forms as (field, direction) pairs."""
    if not sort:
        return []
    if isinstance(sort, str):
        return [(sort, 1)]
    items: Iterable[Any] = sort.items() if isinstance(sort, Mapping) else sort
    return [(item, 1) if isinstance(item, str) else (item[0], int(item[1])) for item in items]


def worth_comparing(plans: Iterable[Plan]) -> list[Plan]:
    """Leave out the plans than which another bounds the same fields and more, and sorts as well."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (-len(plan.bounded), -plan.sorted_keys)):
        if not any(plan.bounded <= other.bounded and plan.sorted_keys <= other.sorted_keys for other in kept):
            kept.append(plan)
    return kept


def cheapest(plans: Sequence[tuple[Plan, int]], sort: Sequence[tuple[str, int]], wanted: int | None) -> Plan:
    """Return the plan that reads the fewest documents.

    Parameters
    ----------
    plans
        Each with the number of its entries.
    wanted
        How many documents are read of the sorted ones, ``None`` for all.
    """
    fewest = max(1, min(count for _, count in plans))

    def cost(item: tuple[Plan, int]) -> tuple[float, int, int]:
        plan, count = item
        reads = float(count)
        if sort and wanted is not None and plan.sorted_keys:
            reads = min(reads, wanted * count / fewest)
        return reads, -plan.sorted_keys, -len(plan.bounded)

    return min(plans, key=cost)[0]

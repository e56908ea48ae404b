"""Which candidates are duplicates: of a crystal that was known when they were made, or of an earlier candidate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inv_design.structures.matching import StructureIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pymatgen.core import Structure

    Load = Callable[[Sequence[str]], dict[str, Structure]]
    Stored = Mapping[str, tuple[str, str | None]]

KEY = 20
"""Characters of a hash that are stored as the key of a result."""
CRYSTALS = 1000
"""Crystals that are held in memory at once before they are compared."""


@dataclass(frozen=True)
class Member:
    """One crystal in the order in which the search meets them.

    Attributes
    ----------
    name
        What a duplicate is reported as: a candidate's id, or the structure id of a crystal of the training set.
    known
        Whether it is a crystal of the training set, which is never itself a duplicate.
    """

    name: str
    structure_id: str
    formula: str
    known: bool


@dataclass
class Bucket:
    """The crystals of one reduced formula, in order: only they can be like each other.

    Attributes
    ----------
    key
        Hash of everything that decides about the next member: the tolerances and the members so far.
    leaders
        Members that a later one is compared with: known crystals, and candidates that are no duplicates.
    first
        Structure id -> name of the first leader with it, so that equal ids need no matcher.
    index
        The crystals of the first ``compared`` leaders; they are loaded when a candidate has to be compared.
    results
        Candidate -> (key, the first member that it matches).
    """

    key: str
    index: StructureIndex
    met: list[Member] = field(default_factory=list)
    leaders: list[Member] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    results: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def settle(self, member: Member, stored: Stored) -> bool:
        """Take the next member in if that needs no comparison; return whether it did."""
        if member.known:
            self._meet(member)
            self._lead(member)
            return True
        if member.structure_id in self.first:
            self._decide(member, self.first[member.structure_id])
            return True
        key, result = stored.get(member.name, ("", None))
        if key == self._next_key(member)[:KEY]:
            self._decide(member, result)
            return True
        return False

    def compare(self, member: Member, crystals: Mapping[str, Structure]) -> None:
        """Take the next member in by comparing it; one without a readable crystal matches nothing."""
        for leader in self.leaders[self.compared :]:
            if leader.structure_id in crystals:
                self.index.add(leader.name, crystals[leader.structure_id])
        self.compared = len(self.leaders)
        crystal = crystals.get(member.structure_id)
        self._decide(member, None if crystal is None else self.index.find(crystal, member.name))

    def _decide(self, member: Member, result: str | None) -> None:
        self._meet(member)
        self.results[member.name] = (self.key[:KEY], result)
        if result is None:
            self._lead(member)

    def _meet(self, member: Member) -> None:
        self.key = self._next_key(member)
        self.met.append(member)

    def _lead(self, member: Member) -> None:
        if member.structure_id not in self.first:
            self.first[member.structure_id] = member.name
            self.leaders.append(member)

    def _next_key(self, member: Member) -> str:
        return hashlib.sha256(f"{self.key} {member.name} {member.structure_id}".encode()).hexdigest()


@dataclass
class DuplicateSearch:
    """Finds the first crystal that each candidate matches, formula by formula, and goes on where it stopped.

    A candidate's result depends on the crystals of its own formula alone: on those of the training sets and on the
    candidates before it. So does its key; a result stored with the same key is taken over without loading or comparing
    anything, and crystals are loaded only of formulas that have a candidate to compare.

    Attributes
    ----------
    results, keys
        Candidate id -> the name of the first crystal that it matches (``None``: it is new) and the key of that result.
    """

    tolerances: dict[str, float]
    results: dict[str, str | None] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    _buckets: dict[str, Bucket] = field(default_factory=dict, repr=False)

    def advance(self, members: Sequence[Member], load: Load, stored: Stored | None = None) -> None:
        """Judge all candidates among ``members``; those judged before only where their bucket has changed.

        Parameters
        ----------
        members
            All crystals in order; see :func:`order_members`.
        load
            Returns structure id -> crystal; ids without a readable crystal are left out.
        stored
            Candidate id -> (key, result) of an earlier build.
        """
        groups: dict[str, list[Member]] = {}
        for member in members:
            groups.setdefault(member.formula, []).append(member)
        self._buckets = {formula: self._bucket(formula, group) for formula, group in groups.items()}
        waiting: list[tuple[Bucket, list[Member]]] = []
        size = 0
        for formula, group in groups.items():
            bucket = self._buckets[formula]
            rest = group[len(bucket.met) :]
            settled = next((n for n, m in enumerate(rest) if not bucket.settle(m, stored or {})), len(rest))
            if settled == len(rest):
                continue
            waiting.append((bucket, rest[settled:]))
            size += len(bucket.leaders) - bucket.compared + len(rest) - settled
            if size >= CRYSTALS:
                _compare(waiting, load, stored or {})
                waiting, size = [], 0
        _compare(waiting, load, stored or {})
        judged = {name: found for bucket in self._buckets.values() for name, found in bucket.results.items()}
        self.keys = {name: key for name, (key, _) in judged.items()}
        self.results = {name: result for name, (_, result) in judged.items()}

    def continues(self, members: Sequence[Member]) -> bool:
        """Return whether any of ``members`` was met before."""
        return any(m.name in self.results for m in members) or not self.results

    def _bucket(self, formula: str, group: list[Member]) -> Bucket:
        """Return the bucket that ``group`` continues, or a new one in its place."""
        bucket = self._buckets.get(formula)
        if bucket is not None and group[: len(bucket.met)] == bucket.met:
            return bucket
        start = json.dumps([self.tolerances, formula], sort_keys=True)
        return Bucket(hashlib.sha256(start.encode()).hexdigest(), StructureIndex(**self.tolerances))


def _compare(waiting: Sequence[tuple[Bucket, list[Member]]], load: Load, stored: Stored) -> None:
    """Judge what is left of some buckets, whose crystals are loaded together."""
    wanted = [m.structure_id for bucket, rest in waiting for m in (*bucket.leaders[bucket.compared :], *rest)]
    crystals = load(list(dict.fromkeys(wanted))) if wanted else {}
    for bucket, rest in waiting:
        for member in rest:
            if not bucket.settle(member, stored):
                bucket.compare(member, crystals)


def search_for(
    cache: dict[str, DuplicateSearch], key: str, tolerances: dict[str, float], members: Sequence[Member]
) -> DuplicateSearch:
    """Return the cached search that ``members`` continue, or a new one in its place."""
    search = cache.get(key)
    if search is None or search.tolerances != tolerances or not search.continues(members):
        search = cache[key] = DuplicateSearch(tolerances)
    return search


def first_like(structure: Structure, tolerances: dict[str, float]) -> str | None:
    """Return the id of the first crystal of the database, by id, that one matches, or ``None``.

    Only the crystals of its reduced formula are read, by the index that serves it.

    Raises
    ------
    ValueError
        If the crystal cannot be compared: partially occupied sites, no atoms, a degenerate cell.
    """
    from inv_design.structures.matching import unmatchable
    from stores.queries import structures_of_formula

    if (reason := unmatchable(structure)) is not None:
        raise ValueError(f"{reason}; it cannot be compared with others")
    index = StructureIndex(**tolerances)
    for identity, known in sorted(structures_of_formula(structure.composition.reduced_formula).items()):
        index.add(identity, known)
    return index.find(structure)


def order_members(
    candidates: Iterable[Mapping[str, Any]],
    known: Mapping[int, Iterable[str]],
    formulas: Mapping[str, str],
) -> list[Member]:
    """Return all crystals in order: by round, in each the training set's, then the candidates by seed and index.

    Parameters
    ----------
    candidates
        Candidate records.
    known
        Round -> structure ids of the training sets of that round.
    formulas
        Structure id -> reduced formula.
    """
    ordered = sorted(candidates, key=lambda c: (c["round"], c["seed"], c["index"], c["candidate_id"]))
    rounds = sorted({c["round"] for c in ordered} | set(known))
    members: list[Member] = []
    seen: set[str] = set()
    for number in rounds:
        for identity in sorted(set(known.get(number, ())) - seen):
            seen.add(identity)
            members.append(Member(identity, identity, formulas.get(identity, ""), True))
        members += [
            Member(c["candidate_id"], c["structure_id"], formulas.get(c["structure_id"], ""), False)
            for c in ordered
            if c["round"] == number
        ]
    return members

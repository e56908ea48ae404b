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
class DuplicateSearch:
    """Finds the first crystal that each candidate matches, and goes on where it stopped.

    Crystals of the training set are compared only when a candidate of their formula turns up, so that they need not
    be loaded before. ``key`` after a member is a hash of everything that decides about it: the members up to it and
    the tolerances. A result stored with the same key is taken over without comparing anything.
    """

    tolerances: dict[str, float]
    met: list[Member] = field(default_factory=list)
    results: dict[str, str | None] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index = StructureIndex(**self.tolerances)
        self._waiting: dict[str, list[Member]] = {}
        self._first: dict[str, str] = {}  # structure id -> first name, so that equal ids need no matcher
        self._formulas: set[str] = set()  # formulas of candidates
        self._key = hashlib.sha256(json.dumps(self.tolerances, sort_keys=True).encode()).hexdigest()

    def continues(self, members: Sequence[Member]) -> bool:
        """Return whether ``members`` begin with those met so far."""
        return list(members[: len(self.met)]) == self.met

    def advance(
        self, members: Sequence[Member], load: Load, stored: Mapping[str, tuple[str, str | None]] | None = None
    ) -> None:
        """Go on to the last of ``members``, which begin with those met so far.

        Parameters
        ----------
        load
            Returns structure id -> crystal; ids without a readable crystal are left out.
        stored
            Candidate id -> (key, result) of an earlier build.
        """
        new = members[len(self.met) :]
        formulas = {m.formula for m in new if not m.known}
        wanted = [m for m in new if not m.known or m.formula in formulas | self._formulas]
        wanted += [m for formula in formulas for m in self._waiting.get(formula, [])]
        crystals = load(list(dict.fromkeys(m.structure_id for m in wanted)))
        for member in new:
            self.met.append(member)
            self._key = hashlib.sha256(f"{self._key} {member.name} {member.structure_id}".encode()).hexdigest()
            if member.known:
                self._add_known(member, crystals)
            else:
                self.keys[member.name] = self._key[:20]
                self.results[member.name] = self._judge(member, crystals, (stored or {}).get(member.name))

    def _add_known(self, member: Member, crystals: Mapping[str, Structure]) -> None:
        if member.structure_id in self._first:
            return
        if member.formula in self._formulas:
            self._add(member, crystals)
        else:
            self._waiting.setdefault(member.formula, []).append(member)

    def _add(self, member: Member, crystals: Mapping[str, Structure]) -> None:
        self._first.setdefault(member.structure_id, member.name)
        if member.structure_id in crystals:
            self._index.add(member.name, crystals[member.structure_id])

    def _judge(
        self, member: Member, crystals: Mapping[str, Structure], stored: tuple[str, str | None] | None
    ) -> str | None:
        self._formulas.add(member.formula)
        for known in self._waiting.pop(member.formula, []):
            self._add(known, crystals)
        if member.structure_id in self._first:
            return self._first[member.structure_id]
        if stored is not None and stored[0] == self.keys[member.name]:
            match = stored[1]
        elif member.structure_id in crystals:
            match = self._index.find(crystals[member.structure_id], member.name)
        else:
            match = None
        if match is None:
            self._add(member, crystals)
        return match


def search_for(
    cache: dict[str, DuplicateSearch], key: str, tolerances: dict[str, float], members: Sequence[Member]
) -> DuplicateSearch:
    """Return the cached search that ``members`` continue, or a new one in its place."""
    search = cache.get(key)
    if search is None or search.tolerances != tolerances or not search.continues(members):
        search = cache[key] = DuplicateSearch(tolerances)
    return search


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

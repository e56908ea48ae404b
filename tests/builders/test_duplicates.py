"""The search for duplicates: by formula, in order, reading only what has to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from builders.duplicates import DuplicateSearch, Member, first_like, search_for
from inv_design.structures.matching import StructureIndex
from stores.provenance import provenance
from stores.records import insert_structures

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
FORMULAS = ("ReW", "ReRu", "IrW")


def crystal(formula: str, shape: int, scale: float = 1.0) -> Structure:
    """Return one of three unlike structures of AB."""
    pair = {"ReW": ["Re", "W"], "ReRu": ["Re", "Ru"], "IrW": ["Ir", "W"]}[formula]
    if shape == 0:
        return Structure(Lattice.cubic(3.1 * scale), pair, [[0, 0, 0], [0.5] * 3])
    if shape == 1:
        return Structure(Lattice.from_parameters(3.5, 3.5, 3.5, 60, 60, 60), pair, [[0, 0, 0], [0.5] * 3])
    return Structure(Lattice.tetragonal(2.6 * scale, 6.5 * scale), pair, [[0, 0, 0], [0.5, 0.5, 0.3]])


class Shelf:
    """Crystals by id, and which of them were asked for."""

    def __init__(self) -> None:
        self.crystals: dict[str, Structure] = {}
        self.read: list[str] = []

    def member(self, name: str, formula: str, shape: int, *, known: bool = False, scale: float = 1.0) -> Member:
        identity = f"s-{formula}-{shape}-{scale}"
        self.crystals[identity] = crystal(formula, shape, scale)
        return Member(identity if known else name, identity, formula, known)

    def load(self, ids: Sequence[str]) -> dict[str, Structure]:
        self.read += ids
        return {i: self.crystals[i] for i in ids if i in self.crystals}


def test_duplicates_by_hand():
    shelf = Shelf()
    members = [
        shelf.member("", "ReW", 0, known=True),
        shelf.member("c-0", "ReW", 0, scale=1.02),
        shelf.member("c-1", "ReW", 2),
        shelf.member("c-2", "ReW", 2, scale=1.1),
        shelf.member("c-3", "ReRu", 2),
        shelf.member("c-4", "ReW", 0),
        shelf.member("c-5", "ReRu", 2),
    ]
    search = DuplicateSearch(TOLERANCES)
    search.advance(members, shelf.load)
    known = members[0].name
    assert search.results == {"c-0": known, "c-1": None, "c-2": "c-1", "c-3": None, "c-4": known, "c-5": "c-3"}


def test_a_new_candidate_reads_only_crystals_of_its_formula():
    shelf = Shelf()
    members = [shelf.member(f"c-{f}-{i}", f, i) for f in FORMULAS for i in range(2)]
    members += [shelf.member("", "IrW", 2, known=True)]
    first = DuplicateSearch(TOLERANCES)
    first.advance(members, shelf.load)
    stored = {name: (first.keys[name], first.results[name]) for name in first.results}

    later = DuplicateSearch(TOLERANCES)  # a new process, which knows only what was written
    shelf.read = []
    later.advance(members, shelf.load, stored)
    assert shelf.read == []
    assert later.results == first.results
    later.advance([*members, shelf.member("c-new", "ReRu", 1, scale=2.0)], shelf.load, stored)
    assert later.results["c-new"] == "c-ReRu-1"
    assert all("ReRu" in identity for identity in shelf.read)
    assert len(shelf.read) == 3


def test_a_late_candidate_changes_the_keys_of_its_own_formula_only():
    shelf = Shelf()
    members = [shelf.member(f"c-{f}-{i}", f, i, scale=1.0 + i / 10) for f in FORMULAS for i in range(3)]
    search = DuplicateSearch(TOLERANCES)
    search.advance(members, shelf.load)
    before = dict(search.keys)
    late = shelf.member("c-late", "ReRu", 2, scale=1.3)
    search.advance([late, *members], shelf.load)
    changed = {name for name in before if search.keys[name] != before[name]}
    assert changed == {f"c-ReRu-{i}" for i in range(3)}
    assert search.results["c-ReRu-2"] == "c-late"


def test_a_crystal_that_cannot_be_read_matches_nothing():
    shelf = Shelf()
    members = [shelf.member("c-0", "ReW", 0), shelf.member("c-1", "ReW", 0, scale=1.01)]
    shelf.crystals.pop(members[0].structure_id)
    search = DuplicateSearch(TOLERANCES)
    search.advance(members, shelf.load)
    assert search.results == {"c-0": None, "c-1": None}


def test_searches_are_kept_while_they_are_continued():
    cache: dict[str, DuplicateSearch] = {}
    shelf = Shelf()
    members = [shelf.member("c-0", "ReW", 0)]
    search = search_for(cache, "x", TOLERANCES, members)
    search.advance(members, shelf.load)
    assert search_for(cache, "x", TOLERANCES, members) is search
    assert search_for(cache, "x", {**TOLERANCES, "ltol": 0.1}, members) is not search
    search.advance(members, shelf.load)
    assert search_for(cache, "x", TOLERANCES, [shelf.member("other", "ReW", 0)]) is not search


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_way_of_advancing_gives_the_result_of_one_pass(data):
    shelf = Shelf()
    picks = st.tuples(
        st.sampled_from(FORMULAS), st.integers(0, 2), st.booleans(), st.sampled_from([1.0, 1.01, 1.02, 1.03])
    )
    found = [
        shelf.member(f"c-{i}", f, shape, known=known, scale=scale)
        for i, (f, shape, known, scale) in enumerate(data.draw(st.lists(picks, min_size=1, max_size=14)))
    ]
    members = list({m.name: m for m in found}.values())
    whole = DuplicateSearch(TOLERANCES)
    whole.advance(members, shelf.load)

    # one index over everything, in order, is the definition
    index, expected = StructureIndex(**TOLERANCES), {}
    for member in members:
        if not member.known:
            expected[member.name] = index.find(shelf.crystals[member.structure_id])
        if member.known or expected[member.name] is None:
            index.add(member.name, shelf.crystals[member.structure_id])
    assert {k: v is None for k, v in whole.results.items()} == {k: v is None for k, v in expected.items()}

    cut = data.draw(st.integers(0, len(members)))
    subset = data.draw(st.lists(st.sampled_from(members), unique=True))
    parts = DuplicateSearch(TOLERANCES)
    parts.advance([m for m in members if m in subset], shelf.load)
    stored = {n: (parts.keys[n], parts.results[n]) for n in parts.results}
    parts.advance(members[:cut], shelf.load)
    parts.advance(members, shelf.load, stored)
    assert (parts.results, parts.keys) == (whole.results, whole.keys)


def test_first_like_reads_one_formula(connection, monkeypatch):
    crystals = [crystal(f, i) for f in FORMULAS for i in range(3)]
    source = {"kind": "ingested", "id": "x"}
    ids = insert_structures(crystals, [source] * len(crystals), provenance())
    added: list[str] = []
    add = StructureIndex.add
    monkeypatch.setattr(StructureIndex, "add", lambda self, name, s: added.append(name) or add(self, name, s))
    assert first_like(crystal("ReW", 2, 1.2), TOLERANCES) == ids[2]
    assert sorted(added) == sorted(ids[:3])
    assert first_like(Structure(Lattice.cubic(3), ["Os"], [[0, 0, 0]]), TOLERANCES) is None
    with pytest.raises(ValueError, match="partially occupied"):
        first_like(Structure(Lattice.cubic(3), [{"Re": 0.5, "W": 0.5}], [[0, 0, 0]]), TOLERANCES)


def test_a_document_that_is_no_crystal_is_passed_over(connection):
    [identity] = insert_structures([crystal("ReW", 0)], [{"kind": "ingested", "id": "x"}], provenance())
    connection.db["structures"].insert_one({"structure_id": "s-bad", "formula": "ReW", "structure": {"lattice": None}})
    assert first_like(crystal("ReW", 0, 1.05), TOLERANCES) == identity

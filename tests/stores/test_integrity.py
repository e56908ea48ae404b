"""The check of a database: a sound one has no problem, and each kind of change is found and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pymatgen.core import Lattice, Structure

from stores import integrity, records
from stores.provenance import provenance

if TYPE_CHECKING:
    from stores.connection import Connection


def written(connection: Connection) -> dict[str, str]:
    """Write one record of several kinds; return their ids."""
    made = provenance(command="tests")
    crystal = Structure(Lattice.cubic(3.0), ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    structure = records.insert_structure(crystal, {"kind": "ingested", "id": "x"}, made)
    calculation, _ = records.insert_calculation(
        structure_id=structure, kind="eos", method="surrogate", protocol_id="p-1", state="completed",
        results={"bulk_modulus_vrh": 350.0}, provenance=made,
    )  # fmt: skip
    label = {"value": 350.0, "unit": "GPa", "calculation_id": calculation, "method": "surrogate"}
    member = {"structure_id": structure, "labels": {"K": label}, "chemsys": "Re-W", "split": "train"}
    training_set, _ = records.insert_training_set([member], provenance=made)
    return {"structures": structure, "calculations": calculation, "training_sets": training_set}


def test_a_sound_database_has_no_problem(connection):
    written(connection)
    seen: list[tuple[int, int, str]] = []
    assert list(integrity.problems(connection, progress=lambda *step: seen.append(step))) == []
    assert seen[-1][0] == seen[-1][1] == 3


@pytest.mark.parametrize(
    ("collection", "change", "said"),
    [
        ("structures", {"nsites": 3}, "nsites is 3, its content has 2"),
        ("structures", {"nsites": "two"}, "nsites is 'two', not an integer"),
        ("structures", {"elements": ["Re", 5]}, "elements has 5 among its items, not text"),
        ("structures", {"structure": {}}, "not a pymatgen structure"),
        ("structures", {"colour": "red"}, "has a field 'colour' that is not declared"),
        ("calculations", {"protocol_id": "p-2"}, "calculation_id is"),
        ("calculations", {"state": "perhaps"}, "state is 'perhaps', none of completed, failed"),
        ("calculations", {"output_structure_id": "s-gone"}, "output_structure_id s-gone is not in structures"),
        ("training_sets", {"members": []}, "training_set_id is"),
    ],
)
def test_what_was_changed_is_named(connection, collection, change, said):
    ids = written(connection)
    connection.db[collection].update_one({}, {"$set": change})
    (problem,) = integrity.problems(connection)
    assert (problem.collection, problem.key, problem.cure) == (
        collection, ids[collection], integrity.AUTHORITATIVE_CURE,
    )  # fmt: skip
    assert said in problem.text


def test_a_derived_record_is_to_be_built_again(embedded_connection):
    embedded_connection.db["candidate_summaries"].insert_one({"candidate_id": "c-1", "campaign": "a", "stages": 5})
    (problem,) = integrity.problems(embedded_connection, shapes_only=True)
    assert str(problem) == (
        "candidate_summaries c-1: stages is 5, not a mapping; run `inv-design build --from-scratch`"
    )

import pytest
from pymatgen.core import Lattice, Structure

from stores import queries
from stores.provenance import provenance
from stores.queries import INDEXES, ensure_indexes, indexes
from stores.records import insert_calculation, insert_candidates, insert_model, insert_prediction, insert_structure


@pytest.fixture
def candidates(connection):
    made = provenance()
    place = {"campaign": "x", "seed": 1, "provenance": made}
    insert_candidates([{**place, "round": r, "index": i, "structure_id": f"s-{i}"} for r in (1, 0) for i in range(4)])
    insert_candidates([{**place, "campaign": "y", "round": 0, "index": 9, "structure_id": "s-9"}])
    return made


def test_every_named_query_has_its_index(connection):
    made = {
        collection: [
            tuple(field for field, _ in index["key"])
            for index in connection.db[collection].index_information().values()
        ]
        for collection in indexes()
    }
    for name, (collection, fields) in INDEXES.items():
        assert any(index[: len(fields)] == fields for index in made[collection]), f"{name} has no index in {collection}"


def test_indexes_are_made_once(connection):
    before = {name: connection.db[name].index_information() for name in indexes()}
    ensure_indexes()
    assert {name: connection.db[name].index_information() for name in indexes()} == before


def test_candidates_without_a_result(candidates):
    insert_prediction(structure_id="s-1", property="k", value=1.0, protocol_id="p", provenance=candidates)
    insert_prediction(structure_id="s-2", property="k", error="no", protocol_id="p", provenance=candidates)
    insert_prediction(structure_id="s-3", property="k", value=1.0, protocol_id="other", provenance=candidates)
    lacking = queries.candidates_without_prediction("x", "k", "p", round=0)
    assert [c["structure_id"] for c in lacking] == ["s-0", "s-3"]
    assert len(queries.candidates_without_prediction("x", "k", "p")) == 4
    insert_calculation(
        structure_id="s-0",
        kind="relax",
        method="mlip",
        protocol_id="p",
        state="failed",
        error="e",
        provenance=candidates,
    )
    assert [c["index"] for c in queries.candidates_without_calculation("x", "relax", "p", round=1)] == [1, 2, 3]


def test_labels_are_the_completed_ones(candidates):
    for i, (state, results) in enumerate([("completed", {"k": 5.0}), ("failed", {}), ("completed", {"other": 1.0})]):
        insert_calculation(
            structure_id=f"s-{i}", kind="reference", method="reference", protocol_id="p", state=state, results=results,
            provenance=candidates,
        )  # fmt: skip
    [label] = queries.reference_labels("k")
    assert (label["structure_id"], label["value"], label["method"]) == ("s-0", 5.0, "reference")


def test_structures_by_id_and_likeness(candidates):
    crystals = [Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]) for a in (4.0, 4.1)]
    ids = [insert_structure(crystal, {"kind": "reference", "id": "1"}, candidates) for crystal in crystals]
    assert queries.structures_by_id([*ids, "s-none"]) == dict(zip(ids, crystals, strict=True))
    assert queries.alike(["CsCl|2|221", "NaCl|2|225"]) == {"CsCl|2|221": sorted(ids)}


def test_latest_model(candidates):
    for number in (0, 2, 1):
        insert_model(bytes([number]), kind="generator", name="g", campaign="x", round=number, provenance=candidates)
    assert queries.latest_model("x", "generator")["round"] == 2
    assert queries.latest_model("x", "generator", round=1)["round"] == 1
    assert queries.latest_model("x", "predictor") is None


def test_queue_and_funnel(connection):
    summaries = [("generated", "rejected"), ("mlip", "passed"), ("mlip", "passed")]
    connection.db["candidate_summaries"].insert_many(
        [
            {"candidate_id": f"c-{i}", "campaign": "x", "round": 0, "stage": s, "status": t}
            for i, (s, t) in enumerate(summaries)
        ]
    )
    assert queries.funnel("x") == {(0, "generated", "rejected"): 1, (0, "mlip", "passed"): 2}
    connection.db["screening_queue"].insert_many(
        [
            {"candidate_id": f"c-{i}", "campaign": "x", "round": 0, "stage": "dft", "priority": p}
            for i, p in enumerate([1, 3, 2])
        ]
    )
    assert [item["candidate_id"] for item in queries.queue("x", 0, "dft", limit=2)] == ["c-1", "c-2"]

import hashlib
import math

import numpy as np
import pytest
from mongoengine.errors import FieldDoesNotExist, NotUniqueError
from pymatgen.core import Lattice, Structure

from stores.artifacts import get, put, spill, unspill
from stores.documents import AUTHORITATIVE, Calculation, Campaign, Candidate, Model, Prediction, TrainingSet
from stores.documents import Structure as StructureDocument
from stores.provenance import provenance
from stores.records import (
    calculation_id,
    insert_calculation,
    insert_campaign,
    insert_candidates,
    insert_documents,
    insert_model,
    insert_prediction,
    insert_predictions,
    insert_structure,
    insert_structures,
    insert_training_set,
    plain,
    training_set_id,
)
from stores.steps import claim_step, release_step, step_exists, steps


@pytest.fixture
def made(connection):
    return provenance(command="test")


def rock_salt(a=5.64, first="Na"):
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [first, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_a_crystal_sent_twice_is_one_document(made):
    conventional = rock_salt()
    first = insert_structure(conventional, {"kind": "reference", "id": "mp-1"}, made)
    second = insert_structure(conventional.get_primitive_structure(), {"kind": "generated", "id": "c-2"}, made)
    assert first == second
    [document] = StructureDocument.objects
    assert document.formula == "NaCl"
    assert document.elements == ["Cl", "Na"]
    assert document.spacegroup == {"number": 225, "symbol": "Fm-3m", "symprec": 0.01}
    assert document.sources == [{"kind": "reference", "id": "mp-1"}]  # authoritative documents are not rewritten
    assert document.volume == pytest.approx(5.64**3)
    assert document.density == pytest.approx(conventional.density, rel=1e-6)
    assert document.fingerprint == "NaCl|8|225"
    assert document.to_pymatgen() == conventional


def test_bulk_structures_keep_their_order_and_drop_doubles(made):
    crystals = [rock_salt(5.6), rock_salt(5.7), rock_salt(5.6), rock_salt(6.3, "K")]
    ids = insert_structures(crystals, [{"kind": "generated", "id": str(i)} for i in range(4)], made)
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3
    assert StructureDocument.objects.count() == 3
    assert StructureDocument.objects(elements="K").count() == 1


def prediction(i, made, **fields):
    return {
        "structure_id": f"s-{i}",
        "property": "bulk_modulus_vrh",
        "value": 100.0 + i,
        "std": 1.0,
        "unit": "GPa",
        "model_id": "m-1",
        "protocol_id": "p-1",
        "provenance": made,
        **fields,
    }


def test_results_are_inserted_once_and_never_changed(made):
    assert insert_prediction(**prediction(1, made)) == ("s-1/bulk_modulus_vrh/p-1", True)
    late = [prediction(i, made, value=999.0) for i in (0, 1, 2)]
    assert [inserted for _, inserted in insert_predictions(late)] == [True, False, True]
    assert Prediction.objects.get(structure_id="s-1").value == 101.0


def test_a_prediction_that_is_not_finite_is_an_error(made):
    insert_prediction(**prediction(1, made, value=math.nan, std=np.float32("inf")))
    document = Prediction.objects.get(structure_id="s-1")
    assert document.value is None
    assert "nan" in document.error


def calculation(made, **fields):
    return {
        "structure_id": "s-1",
        "kind": "elastic",
        "method": "mlip",
        "protocol_id": "p-1",
        "state": "completed",
        "results": {"bulk_modulus_vrh": np.float64(200.0), "tensor": np.eye(2)},
        "provenance": made,
        **fields,
    }


def test_calculation_is_unique_per_structure_kind_and_protocol(made):
    identity, inserted = insert_calculation(**calculation(made))
    assert inserted
    assert identity == calculation_id("s-1", "elastic", "p-1")
    assert insert_calculation(**calculation(made, state="failed", error="late")) == (identity, False)
    assert insert_calculation(**calculation(made, protocol_id="p-2"))[1]
    document = Calculation.objects.get(calculation_id=identity)
    assert document.results == {"bulk_modulus_vrh": 200.0, "tensor": [[1.0, 0.0], [0.0, 1.0]]}


def test_results_that_are_not_finite_leave_a_flag(made):
    results = {"energy_per_atom": math.nan, "tensor": [[1.0, math.inf], [0.0, 1.0]]}
    insert_calculation(**calculation(made, results=results, flags=["not_converged"]))
    document = Calculation.objects.first()
    assert document.results == {"energy_per_atom": None, "tensor": [[1.0, None], [0.0, 1.0]]}
    assert document.flags == ["not_converged", "non_finite:energy_per_atom", "non_finite:tensor"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "guess"),
        ({"state": None}, "lacks 'state'"),
        ({"results_": {}}, "no field 'results_'"),
        ({"error": 3}, "error 3"),
        ({"provenance": None}, "lacks 'provenance'"),
    ],
)
def test_a_malformed_record_is_refused_before_anything_is_written(made, change, message):
    with pytest.raises(ValueError, match=message):
        insert_calculation(**calculation(made, **change))
    assert Calculation.objects.count() == 0


def test_authoritative_documents_are_never_rewritten(made):
    campaign = Campaign(name="a", config={"x": 1}, provenance=made).save()
    campaign.state = "changed"
    with pytest.raises(NotUniqueError):
        campaign.save()
    for change in (
        lambda: Campaign.objects(name="a").update(set__state="changed"),
        lambda: Campaign.objects(name="a").update_one(set__state="changed"),
        lambda: Campaign.objects(name="a").modify(set__state="changed"),
        lambda: campaign.update(set__state="changed"),
    ):
        with pytest.raises(PermissionError, match="campaigns are authoritative"):
            change()
    assert Campaign.objects.get(name="a").state == "active"


def test_a_read_only_snapshot_journals_nothing(embedded_connection):
    from stores.connection import connect

    path = embedded_connection.client.path
    embedded_connection.close()
    with connect(f"embedded:{path}", read_only=True), pytest.raises(PermissionError, match="read-only"):
        insert_prediction(**prediction(1, provenance()))
    assert connect(f"embedded:{path}").db["predictions"].count_documents({}) == 0


def test_strict_documents_refuse_unknown_fields(made):
    with pytest.raises(FieldDoesNotExist):
        Candidate(candidate_id="c-1", nickname="x")


def test_mongoengine_sees_the_unique_index(made):
    Campaign(name="a", config={"x": 1}, provenance=made).save()
    with pytest.raises(NotUniqueError):
        Campaign(name="a", config={"x": 2}, provenance=made).save()
    assert insert_campaign("a", {}, targets={}, provenance=made) == ("a", False)


def test_candidates_are_known_by_their_place(made):
    place = {"campaign": "x", "round": 0, "seed": 7, "structure_id": "s-1", "provenance": made}
    first = insert_candidates([{**place, "index": i, "condition": {"bulk_modulus_vrh": 350}} for i in range(3)])
    again = insert_candidates([{**place, "index": i, "structure_id": "s-other"} for i in range(4)])
    assert [inserted for _, inserted in again] == [False, False, False, True]
    assert [i for i, _ in first] == [i for i, _ in again][:3]
    assert Candidate.objects(campaign="x", structure_id="s-1").count() == 3


def test_a_large_result_goes_to_gridfs_and_comes_back(made):
    rng = np.random.default_rng(0)
    trajectory = rng.random((400, 20, 20)).tolist()
    identity, _ = insert_calculation(**calculation(made, results={"bulk_modulus_vrh": 1.5, "trajectory": trajectory}))
    document = Calculation.objects.get(calculation_id=identity)
    assert document.results["bulk_modulus_vrh"] == 1.5  # numbers stay where queries find them
    assert document.results["trajectory"] == []
    assert document.complete()["results"]["trajectory"] == trajectory


def test_spill_and_unspill_are_inverse(connection):
    record = {"a": {"x": "1" * 5000, "y": [1.5] * 800, "z": 1}, "b": list(range(900)), "c": 3, "provenance": {"p": 1}}
    small = spill(record, limit=700)
    assert len(small["spilled"]) >= 3
    assert small["a"]["z"] == 1
    assert unspill(small) == record
    with pytest.raises(ValueError, match="cannot be made smaller"):
        spill({"provenance": {"p": "x" * 16_000_000}}, limit=1000)


def test_artifacts_are_content_addressed_and_verified(connection):
    blob = b"weights" * 100_000
    digest = hashlib.sha256(blob).hexdigest()
    assert put(blob) == put(blob)
    assert get(digest) == blob
    with pytest.raises(KeyError, match="no artifact"):
        get("0" * 64)
    connection.db["artifacts.chunks"].update_one({"n": 1}, {"$set": {"data": b"damage" * 10}})
    with pytest.raises(ValueError, match="damaged"):
        get(digest)


def test_a_model_is_its_weights_and_its_training_set(made):
    model = insert_model(b"blob", kind="predictor", name="cgcnn", provenance=made, training_set_id="t-1")
    same = insert_model(b"blob", kind="predictor", name="cgcnn", provenance=made, training_set_id="t-1")
    other = insert_model(b"blob", kind="predictor", name="cgcnn", provenance=made, training_set_id="t-2")
    assert model.model_id == same.model_id != other.model_id
    assert model.load() == b"blob"
    assert model.sha256 == hashlib.sha256(b"blob").hexdigest()
    assert Model.objects.count() == 2


def members(count):
    label = {"unit": "GPa", "method": "reference"}
    return [
        {
            "structure_id": f"s-{i}",
            "labels": {"bulk_modulus_vrh": {"value": float(i), "calculation_id": f"k-{i}", **label}},
            "chemsys": "A-B",
            "split": "train",
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [3, 8000])
def test_training_set_is_known_by_its_content(made, count):
    identity, inserted = insert_training_set(members(count), provenance=made, campaign="x", round=0)
    assert inserted
    assert insert_training_set(members(count)[::-1], provenance=made) == (identity, False)
    document = TrainingSet.objects.get(training_set_id=identity)
    assert document.size == count
    assert document.labels_by_method == {"reference": count}
    assert document.load_members() == members(count)
    assert bool(document.spilled) == (count > 1000)


def test_one_label_more_is_another_training_set():
    changed = members(3)
    changed[1]["labels"]["bulk_modulus_vrh"]["value"] += 1e-3
    assert training_set_id(changed) != training_set_id(members(3))
    assert training_set_id(members(3)[::-1]) == training_set_id(members(3))


def test_a_step_is_claimed_once(made):
    assert claim_step("x/0/generate", {"campaign": "x"})
    assert not claim_step("x/0/generate", {"campaign": "x"})
    assert claim_step("x/1/generate", {"campaign": "x", "fw_ids": [1, 2]})
    assert [step["key"] for step in steps("x")] == ["x/0/generate", "x/1/generate"]
    assert step_exists("x/0/generate")
    assert release_step("x/0/generate")
    assert not step_exists("x/0/generate")


def test_derived_collections_are_not_written_here(made):
    with pytest.raises(ValueError, match="no authoritative collection"):
        insert_documents("candidate_summaries", [{"candidate_id": "c-1"}])


def test_every_authoritative_collection_has_a_key(made):
    from stores.records import _KEYS

    assert set(_KEYS) == {document._meta["collection"] for document in AUTHORITATIVE}


def test_plain_makes_bson_of_anything_numeric():
    lost = []
    assert plain({"a": np.float32(0.5), 1: (np.int64(2), math.inf), "s": {3, 1}}, lost=lost) == {
        "a": 0.5,
        "1": [2, None],
        "s": [1, 3],
    }
    assert lost == ["1"]

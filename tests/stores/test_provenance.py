import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.connection import scrub
from stores.lineage import lineage, related_ids
from stores.provenance import provenance, scrub_secrets
from stores.records import (
    insert_calculation,
    insert_candidate,
    insert_documents,
    insert_model,
    insert_prediction,
    insert_training_set,
)


def test_provenance_says_who_when_with_what(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/inv-design", "run", "a b"])
    made = provenance(inputs=["s-1", "m-1", "s-1"], fw_id=3)
    assert made["command"] == "inv-design run 'a b'"
    assert made["inputs"] == ["s-1", "m-1"]
    assert made["fw_id"] == 3
    assert "@" in made["created_by"]
    assert {"python", "inv_design", "pymatgen", "torch"} <= set(made["versions"])
    assert made["created_at"].tzinfo is None


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "--database", "mongodb://me:hush@host/db"],
        ["run", "--password", "hush"],
        ["run", "--password=hush"],
        ["run", "api_key=hush"],
        ["run", "mongodb+srv://me:p@ss:hush@host/db?authSource=x"],
    ],
)
def test_no_secret_of_the_command_line_is_kept(monkeypatch, argv):
    monkeypatch.setattr("sys.argv", ["inv-design", *argv])
    assert "hush" not in json.dumps(provenance(), default=str)


@given(st.from_regex(r"[A-Za-z0-9_@:/%!.-]{6,20}", fullmatch=True))
def test_a_password_in_a_uri_never_survives(password):
    marked = "zq" + password + "qz"
    assert marked not in scrub(f"see mongodb://user:{marked}@host/db now")
    assert "mongodb" in scrub_secrets(f"see mongodb://user:{marked}@host/db now")


@pytest.fixture
def campaign(connection):
    """Two rounds: reference -> t0 -> generator m0 -> candidate c0 -> relaxation -> DFT -> t1 -> m1 -> candidate c1."""
    made = provenance(command="test")

    def structure(id, kind, source):
        record = {
            "structure_id": id, "structure": {"x": 1}, "formula": "NaCl", "chemsys": "Cl-Na", "elements": ["Cl", "Na"],
            "nsites": 2, "volume": 1.0, "density": 1.0, "spacegroup": {"number": 225, "symbol": "Fm-3m"},
            "fingerprint": "NaCl|2|225", "sources": [{"kind": kind, "id": source}], "provenance": made,
        }  # fmt: skip
        insert_documents("structures", [record])

    def calculation(structure_id, kind, method, **fields):
        return insert_calculation(
            structure_id=structure_id, kind=kind, method=method, protocol_id=f"p-{method}", state="completed",
            results={"bulk_modulus_vrh": 1.0}, provenance=made, **fields,
        )[0]  # fmt: skip

    def member(structure_id, calculation, method):
        label = {"value": 1.0, "unit": "GPa", "calculation_id": calculation, "method": method}
        return {
            "structure_id": structure_id,
            "labels": {"bulk_modulus_vrh": label},
            "chemsys": "Cl-Na",
            "split": "train",
        }

    references = []
    for i in range(5):
        structure(f"s-ref{i}", "reference", f"mp-{i}")
        references.append(member(f"s-ref{i}", calculation(f"s-ref{i}", "reference", "reference"), "reference"))
    t0, _ = insert_training_set(references, provenance=made)
    m0 = insert_model(b"0", kind="generator", name="con_cdvae", provenance=made, training_set_id=t0).model_id
    place = {"campaign": "x", "seed": 1, "index": 0, "provenance": made}
    structure("s-gen0", "generated", "")
    c0, _ = insert_candidate(**place, round=0, structure_id="s-gen0", generator_model_id=m0)
    relaxation = calculation("s-gen0", "relax", "mlip", output_structure_id="s-relaxed0")
    structure("s-relaxed0", "relaxed", relaxation)
    dft = calculation("s-relaxed0", "eos", "surrogate")
    t1, _ = insert_training_set(
        [*references, member("s-relaxed0", dft, "surrogate")], provenance=made, parent_training_set_id=t0
    )
    m1 = insert_model(
        b"1", kind="generator", name="con_cdvae", provenance=made, training_set_id=t1, parent_model_id=m0
    ).model_id
    structure("s-gen1", "generated", "")
    c1, _ = insert_candidate(**place, round=1, structure_id="s-gen1", generator_model_id=m1)
    return {"t0": t0, "t1": t1, "m0": m0, "m1": m1, "c0": c0, "c1": c1, "relaxation": relaxation, "dft": dft}


def path_to(tree, id):
    if tree["id"] == id and not tree.get("seen"):
        return [tree["id"]]
    for child in tree["children"]:
        below = path_to(child, id)
        if below:
            return [tree["id"], *below]
    return []


def test_up_from_a_candidate_to_the_earlier_candidates(campaign):
    ids = campaign
    tree = lineage(ids["c1"])
    expected = [
        ids["c1"],
        ids["m1"],
        ids["t1"],
        ids["dft"],
        "s-relaxed0",
        ids["relaxation"],
        "s-gen0",
        ids["c0"],
        ids["m0"],
    ]
    assert path_to(tree, ids["m0"]) == expected
    assert path_to(tree, ids["t0"])
    training = next(n for n in walk(tree) if n["id"] == ids["t1"])
    assert training["counted"] == {"labels by reference": 5}
    assert not any(node["id"].startswith("s-ref") for node in walk(tree))


def walk(tree):
    yield tree
    for child in tree["children"]:
        yield from walk(child)


def test_everything_lists_the_reference_labels_too(campaign):
    tree = lineage(campaign["t0"], everything=True)
    assert {f"s-ref{i}" for i in range(5)} <= set(related_ids(tree))


def test_down_from_one_result_to_everything_trained_on_it(campaign):
    ids = campaign
    tree = lineage(ids["dft"], direction="down")
    assert path_to(tree, ids["c1"]) == [ids["dft"], ids["t1"], ids["m1"], ids["c1"]]
    assert ids["c0"] not in related_ids(tree)
    assert ids["t0"] not in related_ids(tree)


def test_down_from_a_reference_label(campaign):
    from stores.records import calculation_id

    tree = lineage(calculation_id("s-ref0", "reference", "p-reference"), direction="down")
    assert {campaign[name] for name in ("t0", "t1", "m0", "m1", "c0", "c1", "dft")} <= set(related_ids(tree))


def test_depth_says_what_is_left_out(campaign):
    tree = lineage(campaign["c1"], depth=1)
    [model] = tree["children"]
    assert model["children"] == []
    assert model["more"] == 2  # training set and parent


def test_predictions_have_a_lineage(campaign):
    made = provenance(inputs=[campaign["m0"]])
    identity, _ = insert_prediction(
        structure_id="s-gen0", property="bulk_modulus_vrh", value=1.0, unit="GPa", model_id=campaign["m0"],
        protocol_id="p-1", provenance=made,
    )  # fmt: skip
    tree = lineage(identity)
    assert tree["type"] == "prediction"
    assert tree["label"] == "bulk_modulus_vrh = 1 GPa"
    assert campaign["t0"] in related_ids(tree)
    assert identity in related_ids(lineage("s-gen0", direction="down"))


def test_unknown_ids_are_told(campaign):
    with pytest.raises(KeyError, match="no document"):
        lineage("c-nobody")
    with pytest.raises(ValueError, match="no id"):
        lineage("nonsense")
    with pytest.raises(ValueError, match="neither"):
        lineage(campaign["c0"], direction="sideways")


def test_a_broken_reference_is_shown_as_missing(connection):
    made = provenance()
    candidate, _ = insert_candidate(
        campaign="x", seed=1, round=0, index=0, structure_id="s-1", generator_model_id="m-gone", provenance=made
    )
    [child] = lineage(candidate)["children"]
    assert child["missing"] is True

"""Artifacts: what is too large for a document goes to GridFS and comes back whole; what is damaged is refused."""

from __future__ import annotations

import hashlib
import math
import random
from typing import TYPE_CHECKING, Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores import artifacts, journal, records
from stores.documents import Calculation, TrainingSet
from stores.provenance import provenance

if TYPE_CHECKING:
    from stores.connection import Connection

MADE = {"created_at": None, "created_by": "ada@lab"}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Keep artifacts in a dictionary."""
    kept: dict[str, bytes] = {}

    def put(blob: bytes, **_: Any) -> None:
        kept[hashlib.sha256(blob).hexdigest()] = blob

    monkeypatch.setattr(artifacts, "put", put)
    monkeypatch.setattr(artifacts, "get", lambda sha256, **_: kept[sha256])
    return kept


# -- spilling ---------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=40)
LARGE = (
    st.builds(lambda n, x: [x] * n, st.integers(0, 3000), st.floats(allow_nan=False))
    | st.builds(lambda n: "å" * n, st.integers(0, 20000))
    | st.builds(bytes, st.integers(0, 30000))
    | st.builds(lambda n: {f"k{i}": i for i in range(n)}, st.integers(0, 2000))
    | st.builds(lambda n: {f"k{i}": [i] * 20 for i in range(n)}, st.integers(0, 200))
)
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    LEAVES | LARGE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["structure_id", "protocol", "results", "flags", "error", "sources", "members", "x.y", "$z"])


@settings(max_examples=150, deadline=None)
@given(document=st.dictionaries(FIELDS, VALUES, max_size=6), limit=st.sampled_from([2_000, 20_000, 200_000]))
def test_any_document_comes_back_whole(document: dict[str, Any], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kept: dict[str, bytes] = {}
        patch.setattr(artifacts, "put", lambda blob, **_: kept.update({hashlib.sha256(blob).hexdigest(): blob}))
        patch.setattr(artifacts, "get", lambda sha256, **_: kept[sha256])
        before = bson.encode(document)
        spilled = artifacts.spill({**document, "provenance": MADE}, limit=limit)
        assert bson.encode(document) == before  # the caller's document is left alone
        whole = artifacts.unspill(spilled)
        assert list(whole) == [*document, "provenance"]
        assert bson.encode({k: v for k, v in whole.items() if k != "provenance"}) == before
        size, listed = len(bson.encode(spilled)), len(bson.encode({"spilled": spilled.get("spilled", [])}))
        assert size <= max(limit, listed + 10 * limit // 100 + 4_000)
        if len(before) + 200 <= limit:
            assert kept == {}


def float_list(n: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.random() for _ in range(n)]


SHAPES: dict[str, dict[str, Any]] = {
    "one deep part": {"results": {"a": {"b": {"c": {"d": float_list(80_000)}}}}},
    "two equal parts": {"results": {"K": 350.0, "one": float_list(50_000), "two": float_list(50_000, 1)}},
    "many medium parts": {"results": {"K": 350.0, **{f"frame {i}": float_list(500, i) for i in range(200)}}},
    "very many numbers": {"results": {f"K{i}": float(i) for i in range(90_000)}},
    "a long text": {"error": "x" * 1_500_000},
    "bytes": {"results": {"charge density": random.Random(1).randbytes(1_500_000), "K": 350.0}},
    "an empty field before": {"protocol": {}, "flags": [], "results": {"trajectory": float_list(90_000)}},
    "many flags": {"flags": [f"flag {i}" for i in range(60_000)]},
    "keys with dots": {"results": {"a.b": {"$c": float_list(90_000)}, "K": 350.0}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_worst_shapes(shape: str, memory: dict[str, bytes]) -> None:
    document = {"kind": "elastic", **SHAPES[shape], "provenance": MADE}
    assert len(bson.encode(document)) > artifacts.SPILL_BYTES
    spilled = artifacts.spill(document)
    assert len(bson.encode(spilled)) < artifacts.SPILL_BYTES
    assert len(memory) <= 3  # few files, whatever the number of parts
    assert artifacts.unspill(spilled) == document


def test_numbers_stay_where_queries_find_them(connection: Connection) -> None:
    results = {"bulk_modulus_vrh": 350.0, "born_stable": True, **SHAPES["two equal parts"]["results"]}
    insert(results)
    found = connection.db["calculations"].find_one({"results.bulk_modulus_vrh": {"$gt": 340}})
    assert found["results"] == {"bulk_modulus_vrh": 350.0, "born_stable": True, "K": 350.0}
    assert Calculation.objects.first().complete()["results"] == results


def test_a_small_document_stays_as_it_is(memory: dict[str, bytes]) -> None:
    document = {"results": {"K": 350.0}, "provenance": MADE}
    assert artifacts.spill(document) == document
    assert memory == {}


def test_many_inputs_stay_in_the_document(memory: dict[str, bytes]) -> None:
    inputs = [f"k-{i:020x}" for i in range(60_000)]  # a training set of sixty thousand labels
    document = {"size": 60_000, "members": SHAPES["many flags"]["flags"], "provenance": {**MADE, "inputs": inputs}}
    spilled = artifacts.spill(document)
    assert spilled["provenance"]["inputs"] == inputs  # the lineage is searched by them
    assert spilled["members"] == []
    assert artifacts.unspill(spilled) == document


def test_what_cannot_be_made_small_enough_is_said(memory: dict[str, bytes]) -> None:
    document = {"provenance": {"inputs": ["x" * 100] * 200_000}}
    with pytest.raises(ValueError, match="cannot be made smaller"):
        artifacts.spill(document)


def test_a_projection_that_lacks_the_field_is_no_error(memory: dict[str, bytes]) -> None:
    spilled = artifacts.spill({"kind": "elastic", **SHAPES["one deep part"]})
    found = artifacts.unspill({"kind": "elastic", "spilled": spilled["spilled"]})
    assert found["results"] == SHAPES["one deep part"]["results"]


# -- in the databases -------------------------------------------------------------------------------------------------


def insert(results: dict[str, Any], **more: Any) -> None:
    records.insert_calculation(
        structure_id="s-1", kind="elastic", method="mlip", protocol_id="p-1", state="completed", results=results,
        provenance=provenance(command="test"), **more,
    )  # fmt: skip


def trajectory(megabytes: int) -> dict[str, Any]:
    """Return results with a trajectory of about so many MB of BSON: frames of positions, forces, energy and a label."""
    rng = random.Random(7)
    numbers = [rng.uniform(-10.0, 10.0) for _ in range(1009)]
    frames, size = [], 0
    while size < megabytes * 1_000_000:
        i = len(frames)
        rows = [[numbers[(7 * i + 3 * j + k) % 1009] for k in range(3)] for j in range(200)]
        frames.append({"positions": rows, "forces": rows[::-1], "energy": numbers[i % 1009], "step": i})
        size += 17_000
    return {
        "bulk_modulus_vrh": 350.0,
        "trajectory": frames,
        "elastic_tensor": [[float(i + j) for i in range(6)] for j in range(6)],
    }


@pytest.mark.slow
def test_forty_megabytes_come_back_whole(connection: Connection) -> None:
    results = trajectory(40)
    assert len(bson.encode({"results": results})) > 40_000_000
    insert(results)
    stored = connection.db["calculations"].find_one({"results.bulk_modulus_vrh": 350.0})
    assert len(bson.encode(stored)) < artifacts.SPILL_BYTES
    (part,) = stored["spilled"]
    assert part["path"] == ["results", "trajectory"]
    assert stored["results"]["elastic_tensor"] == results["elastic_tensor"]
    document = Calculation.objects.first()
    document.validate()
    assert document.complete()["results"] == results


@pytest.mark.slow
def test_forty_megabytes_wait_in_the_journal(embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    results = trajectory(40)

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "put", gone)
        insert(results)
    assert embedded_connection.db["calculations"].count_documents({}) == 0
    assert journal.pending() == 1
    assert journal.deliver()["delivered"] == 1
    assert Calculation.objects.first().complete()["results"] == results


def test_numbers_that_are_none_are_told(connection: Connection) -> None:
    results = {"K": math.nan, "trajectory": [*float_list(90_000), math.inf]}
    insert(results)
    found = Calculation.objects.first().complete()
    assert found["results"]["trajectory"][-1] is None
    assert set(found["flags"]) == {"non_finite:K", "non_finite:trajectory"}


def test_large_training_sets_keep_their_members(connection: Connection) -> None:
    members = [
        {
            "structure_id": f"s-{i:06d}", "chemsys": "Re-W", "split": "train",
            "labels": {"bulk_modulus_vrh": {"value": float(i), "unit": "GPa", "calculation_id": f"k-{i}"}},
        }
        for i in range(8_000)
    ]  # fmt: skip
    records.insert_training_set(members, provenance=provenance(command="test"))
    stored = TrainingSet.objects.first()
    assert stored.size == 8_000
    assert stored.load_members() == members


# -- integrity --------------------------------------------------------------------------------------------------------


def test_the_same_bytes_are_stored_once(connection: Connection) -> None:
    blob = random.Random(3).randbytes(600_000)
    assert artifacts.put(blob) == artifacts.put(blob)
    assert connection.db["artifacts.files"].count_documents({}) == 1
    assert artifacts.get(hashlib.sha256(blob).hexdigest()) == blob


@pytest.mark.parametrize("damage", ["flip", "cut", "missing chunk"])
def test_damage_is_refused_and_a_good_copy_found(connection: Connection, damage: str) -> None:
    blob = random.Random(4).randbytes(600_000)
    digest = hashlib.sha256(blob).hexdigest()
    artifacts.put(blob)
    chunks = connection.db["artifacts.chunks"]
    first = chunks.find_one({"n": 0})
    if damage == "missing chunk":
        chunks.delete_one({"_id": first["_id"]})
    else:
        data = bytes(first["data"])
        data = data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:]
        chunks.update_one({"_id": first["_id"]}, {"$set": {"data": data}})
    with pytest.raises(ValueError, match="damaged"):
        artifacts.get(digest)
    connection.gridfs().put(blob, filename=digest)  # restored from a backup
    assert artifacts.get(digest) == blob


def test_a_missing_part_is_said(connection: Connection) -> None:
    with pytest.raises(KeyError, match="no artifact with SHA-256"):
        artifacts.get("0" * 64)

"""Campaign archives: the round trip is the identity, merging doubles nothing, damage is refused and changes nothing."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from stores import records
from stores.archive import Archive, ArchiveWriter, decode, encode
from stores.archive_check import ORDER, ArchiveCheck
from stores.connection import connect, current
from stores.exchange import export_archive, import_archives
from stores.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stores.connection import Connection

CONFIG: dict[str, Any] = {"targets": {"bulk_modulus_vrh": "350 GPa"}}


def crystal(a: str, b: str, length: float) -> Structure:
    return Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])


def write(campaign: str, crystals: list[tuple[str, str, float]], *, value: float = 340.0, big: bool = False) -> None:
    """Write a campaign of one round: data, models, candidates, results; into the process's database."""
    made = provenance(command="tests")
    records.insert_campaign(campaign, {"name": campaign, **CONFIG}, targets=CONFIG["targets"], provenance=made)
    known = records.insert_structure(crystal("Fe", "Al", 2.9), {"kind": "reference", "id": "mp-1"}, made)
    label, _ = records.insert_calculation(
        structure_id=known, kind="reference", method="reference", protocol_id="p-data", state="completed",
        results={"bulk_modulus_vrh": 150.0}, provenance=made,
    )  # fmt: skip
    member = {
        "structure_id": known, "chemsys": "Al-Fe", "split": "train",
        "labels": {"bulk_modulus_vrh": {"value": 150.0, "unit": "GPa", "calculation_id": label, "method": "reference"}},
    }  # fmt: skip
    if big:  # members above the limit go to GridFS
        member["note"] = ["x" * 1000 + str(i) for i in range(1200)]
    training_set, _ = records.insert_training_set([member], provenance=made, campaign=campaign, round=0)
    models = {}
    for kind in ("predictor", "generator"):
        weights = f"{campaign} {kind}".encode() + bytes(range(256)) * 20
        models[kind] = records.insert_model(
            weights, kind=kind, name=kind, provenance=made, training_set_id=training_set, campaign=campaign, round=0
        ).model_id
    for index, (a, b, length) in enumerate(crystals):
        identity = records.insert_structure(crystal(a, b, length), {"kind": "generated"}, made)
        records.insert_candidate(
            campaign=campaign, structure_id=identity, round=0, seed=7, index=index, provenance=made, score=1.0 / 3,
            generator_model_id=models["generator"], condition={"targets": {"bulk_modulus_vrh": 350.0}},
        )  # fmt: skip
        records.insert_prediction(
            structure_id=identity, property="bulk_modulus_vrh", value=value + index, std=1e-7, unit="GPa",
            model_id=models["predictor"], protocol_id=f"p-{models['predictor']}", provenance=made,
        )  # fmt: skip
        relaxed = records.insert_structure(crystal(a, b, length * 1.01), {"kind": "relaxed"}, made)
        records.insert_calculation(
            structure_id=identity, kind="elastic", method="mlip", protocol_id="p-mlip", state="completed",
            results={"bulk_modulus_vrh": value, "elastic_tensor": np.eye(6) / 3}, output_structure_id=relaxed,
            provenance=made,
        )  # fmt: skip
    evaluation = {
        "evaluation_id": f"e-{campaign}", "campaign": campaign, "round": 0, "generator_model_id": models["generator"],
        "property": "bulk_modulus_vrh", "target": 350.0, "judge": "E(V)", "unit": "GPa", "n": 1, "values": [300.0],
        "provenance": made,
    }  # fmt: skip
    records.insert_documents("evaluations", [evaluation])
    for key in ("generate/chunk-0/done", "mlip/0123456789ab"):
        step = {"key": f"{campaign}/0/{key}", "campaign": campaign, "payload": {}, "provenance": made}
        records.insert_documents("steps", [step])


A = [("Re", "W", 3.12), ("Os", "W", 3.10), ("Ir", "Re", 3.05)]
B = [("Re", "W", 3.12), ("Os", "Ta", 3.20)]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[str], Connection]]:
    """Give a function that opens another embedded database, beside the process's own."""
    opened: list[Connection] = []

    def open_one(name: str) -> Connection:
        opened.append(connect(f"embedded:{name}.sqlite", root=tmp_path, alias=name))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


def members(path: Path) -> dict[str, bytes]:
    """Return the archive's members; of the manifest without its time."""
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(found.pop("manifest.json"))
    manifest.pop("created_at")
    return found | {"manifest.json": json.dumps(manifest, sort_keys=True).encode()}


def contents(connection: Connection) -> dict[str, Any]:
    """Return everything that is in a database, without what belongs to it alone."""
    from bson.json_util import dumps

    found: dict[str, Any] = {}
    for name in ORDER:
        documents = connection.db[name].find({}, {"_id": 0, "artifact": 0})
        found[name] = sorted(dumps(document) for document in documents)
    found["artifacts"] = sorted((f.filename, f.read()) for f in connection.gridfs().find({}))
    return found


# -- the round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True], ids=["small", "spilled"])
def test_the_round_trip_is_the_identity(
    connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path, big: bool
) -> None:
    write("a", A, big=big)
    report = export_archive(connection, tmp_path / "one.zip", campaigns=["a"])
    other = elsewhere("other")
    result = import_archives(other, [tmp_path / "one.zip"])
    assert result["conflicts"] == []
    assert {n: c["new"] for n, c in result["collections"].items()} == {n: c for n, c in report["counts"].items() if c}
    export_archive(other, tmp_path / "two.zip", campaigns=["a"])
    assert members(tmp_path / "two.zip") == members(tmp_path / "one.zip")
    export_archive(other, tmp_path / "all.zip", campaigns=None)
    assert members(tmp_path / "all.zip") == members(tmp_path / "one.zip")
    here, there = contents(connection), contents(other)
    here["steps"] = [text for text in here["steps"] if "/done" in text]
    assert there == here
    assert ("artifacts", len(there["artifacts"])) == ("artifacts", 3 if big else 2)
    model = other.db["models"].find_one({"kind": "predictor"})
    assert other.gridfs().get(model["artifact"]).read().startswith(b"a predictor")


def test_importing_again_changes_nothing(embedded_connection: Connection, tmp_path: Path) -> None:
    write("a", A)
    before = contents(embedded_connection)
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    result = import_archives(embedded_connection, [tmp_path / "a.zip", tmp_path / "a.zip"])
    assert all(c["new"] == c["conflicts"] == 0 for c in result["collections"].values())
    assert result["artifacts"] == {"new": 0, "known": 4, "left_out": 0}
    assert contents(embedded_connection) == before


def test_two_groups_merge_without_doubles(
    embedded_connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path
) -> None:
    write("a", A)
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    embedded_connection.close()
    with connect("embedded:second.sqlite", root=tmp_path) as second:
        write("b", B, value=340.0)
        export_archive(second, tmp_path / "b.zip", campaigns=["b"])
    merged = elsewhere("merged")
    dry = import_archives(None, [tmp_path / "a.zip", tmp_path / "b.zip"], dry_run=True)
    result = import_archives(merged, [tmp_path / "a.zip", tmp_path / "b.zip"])
    assert dry["collections"] == result["collections"]
    assert result["campaigns"] == ["a", "b"]
    assert result["conflicts"] == []
    # Fe-Al with its label, Re-W and relaxed Re-W with its calculation, and the training set are in both
    assert result["collections"]["structures"] == {"records": 12, "new": 9, "known": 3, "conflicts": 0}
    assert result["collections"]["calculations"]["known"] == 2
    assert result["collections"]["training_sets"]["known"] == 1
    for name, key in (
        ("structures", "structure_id"),
        ("calculations", "calculation_id"),
        ("candidates", "candidate_id"),
    ):
        ids = [d[key] for d in merged.db[name].find()]
        assert len(ids) == len(set(ids))
    export_archive(merged, tmp_path / "b2.zip", campaigns=["b"])
    assert set(members(tmp_path / "b2.zip")) == set(members(tmp_path / "b.zip"))


def test_a_campaign_leaves_the_others_behind(
    embedded_connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path
) -> None:
    write("a", A)
    write("b", B)
    report = export_archive(embedded_connection, tmp_path / "b.zip", campaigns=["b"])
    assert report["counts"]["candidates"] == 2
    assert report["counts"]["models"] == 2
    assert report["missing"] == {}
    other = elsewhere("other")
    import_archives(other, [tmp_path / "b.zip"])
    assert other.db["models"].distinct("campaign") == ["b"]
    assert other.db["predictions"].count_documents({}) == 2  # Re-W has one by the predictor of a too, which stays
    assert [s["key"] for s in other.db["steps"].find()] == ["b/0/generate/chunk-0/done"]
    with pytest.raises(LookupError, match="no campaign 'c'; it holds a, b"):
        export_archive(embedded_connection, tmp_path / "c.zip", campaigns=["c"])
    assert not (tmp_path / "c.zip").exists()


def test_without_models_the_records_stay(
    embedded_connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path
) -> None:
    from stores import artifacts

    write("a", A)
    report = export_archive(embedded_connection, tmp_path / "thin.zip", campaigns=["a"], models=False)
    export_archive(embedded_connection, tmp_path / "full.zip", campaigns=["a"])
    assert len(report["left_out"]) == 2
    other = elsewhere("other")
    result = import_archives(other, [tmp_path / "thin.zip"])
    assert result["artifacts"] == {"new": 0, "known": 0, "left_out": 2}
    sha256 = other.db["models"].find_one({})["sha256"]
    with pytest.raises(KeyError, match="not imported"):
        artifacts.get(sha256, connection=other)
    again = export_archive(other, tmp_path / "thin2.zip", campaigns=["a"])
    assert again["left_out"] == report["left_out"]
    result = import_archives(other, [tmp_path / "full.zip"])  # the weights can come later
    assert result["artifacts"]["new"] == 2
    assert artifacts.get(sha256, connection=other)


@pytest.mark.parametrize(
    "blob", [b"", bytes(3_000_000), b"ab" * 1_000_000, b"\n".join(b"%d" % i for i in range(400_000))]
)
def test_artifacts_that_pack_well_are_no_bombs(tmp_path: Path, blob: bytes) -> None:
    sha256 = hashlib.sha256(blob).hexdigest()
    with ArchiveWriter(tmp_path / "x.zip") as writer:
        writer.artifact(sha256, blob)
        writer.finish({})
    with Archive(tmp_path / "x.zip") as archive:
        assert archive.artifact(sha256) == blob
        archive.verify_seal()


NUMBERS = st.one_of(
    st.floats(allow_nan=False),
    st.just(math.nan),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
)


@given(st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(alphabet="abc_ é", min_size=1, max_size=4), inner, max_size=3), max_leaves=12))  # fmt: skip
def test_a_line_gives_the_record_back_exactly(value: Any) -> None:
    import bson

    record = {"value": value, "when": provenance()["created_at"].replace(microsecond=123000)}
    assert bson.encode(decode(encode(record))) == bson.encode(record)


# -- conflicts --------------------------------------------------------------------------------------------------------


def test_a_record_of_other_content_is_told_with_both(
    embedded_connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path
) -> None:
    write("a", A)
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    other = elsewhere("other")
    import_archives(other, [tmp_path / "a.zip"])
    calculations = other.db["calculations"]
    chosen = calculations.find_one({"kind": "elastic"})["calculation_id"]
    noisy = calculations.find_one({"kind": "elastic", "calculation_id": {"$ne": chosen}})["calculation_id"]
    calculations.update_one({"calculation_id": chosen}, {"$set": {"results.bulk_modulus_vrh": 300.0}})
    calculations.update_one({"calculation_id": noisy}, {"$set": {"results.bulk_modulus_vrh": 340.0000001}})
    before = contents(other)
    result = import_archives(other, [tmp_path / "a.zip"])
    [conflict] = result["conflicts"]
    assert (conflict["collection"], conflict["id"]) == ("calculations", chosen)
    assert conflict["differences"] == [{"field": "results.bulk_modulus_vrh", "here": 300.0, "there": 340.0}]
    assert result["collections"]["calculations"]["conflicts"] == 1
    assert contents(other) == before


@pytest.mark.parametrize(("factor", "conflicts"), [(1.1, 1), (1.0 + 1e-9, 0)])
def test_a_difference_in_a_spilled_part_is_told(
    embedded_connection: Connection,
    elsewhere: Callable[[str], Connection],
    tmp_path: Path,
    factor: float,
    conflicts: int,
) -> None:
    frequencies = [float(i) for i in range(120_000)]

    def calculate(values: list[float], campaign: str) -> None:
        write(campaign, A[:1])
        candidate = current().db["candidates"].find_one({"campaign": campaign})
        records.insert_calculation(
            structure_id=candidate["structure_id"], kind="phonon", method="mlip", protocol_id="p-phonon",
            state="completed", results={"frequencies": values}, provenance=provenance(command="tests"),
        )  # fmt: skip

    calculate(frequencies, "a")
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    here = elsewhere("here")
    with connect(f"embedded:{tmp_path / 'second.sqlite'}") as second:
        calculate([value * factor for value in frequencies], "b")
        export_archive(second, tmp_path / "b.zip", campaigns=["b"])
    import_archives(here, [tmp_path / "b.zip"])
    result = import_archives(here, [tmp_path / "a.zip"])
    assert len(result["conflicts"]) == conflicts
    if conflicts:
        assert result["conflicts"][0]["differences"][0]["field"].startswith("results.frequencies")


def test_a_damaged_artifact_is_healed_by_an_import(embedded_connection: Connection, tmp_path: Path) -> None:
    from stores import artifacts

    write("a", A)
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    sha256 = embedded_connection.db["models"].find_one({})["sha256"]
    stored = embedded_connection.gridfs().find_one({"filename": sha256})
    embedded_connection.db["artifacts.chunks"].update_one({"files_id": stored._id}, {"$set": {"data": b"\0" * 10}})
    assert artifacts.find(sha256) is None
    result = import_archives(embedded_connection, [tmp_path / "a.zip"])
    assert result["artifacts"]["new"] == 1
    assert hashlib.sha256(artifacts.get(sha256)).hexdigest() == sha256


def test_what_a_record_needs_is_read_after_it() -> None:
    """Others may write while a server's database is read: what was written before a record is there when it is."""
    from stores.references import FIELDS, LAST_WRITTEN_FIRST

    assert set(LAST_WRITTEN_FIRST) == set(FIELDS)
    place = {collection: number for number, collection in enumerate(LAST_WRITTEN_FIRST)}
    for collection, fields in FIELDS.items():
        assert all(place[collection] < place[target] or target == collection for target in fields.values())
    assert place["steps"] < place["candidates"]  # a chunk is finished when all its candidates are there


def test_a_campaign_of_the_same_name_and_other_settings_is_refused(
    embedded_connection: Connection, elsewhere: Callable[[str], Connection], tmp_path: Path
) -> None:
    write("a", A)
    export_archive(embedded_connection, tmp_path / "a.zip", campaigns=["a"])
    other = elsewhere("other")
    config = {"name": "a", "targets": {"bulk_modulus_vrh": "200 GPa"}, "rounds": 7}
    other.db["campaigns"].insert_one({"name": "a", "config": config, "provenance": provenance()})
    before = contents(other)
    with pytest.raises(ValueError, match=r"campaign 'a' has other settings.*200.*350.*nothing was imported"):
        import_archives(other, [tmp_path / "a.zip"])
    assert contents(other) == before
    # the rounds and the database's address may differ from place to place
    other.db["campaigns"].update_one({}, {"$set": {"config.targets": CONFIG["targets"]}})
    assert import_archives(other, [tmp_path / "a.zip"])["collections"]["campaigns"]["known"] == 1


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the archive of a campaign; its tests only read it."""
    folder = tmp_path_factory.mktemp("whole")
    with connect("embedded", root=folder) as connection:
        write("a", A, big=True)
        export_archive(connection, folder / "a.zip", campaigns=["a"])
    return folder / "a.zip"


def refusal(path: Path, connection: Connection | None = None) -> str:
    """Return the message with which an archive is refused; nothing may have been written."""
    before = contents(connection) if connection is not None else None
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the message is what the callers look at)
        import_archives(connection, [path], dry_run=connection is None)
    if connection is not None:
        assert contents(connection) == before
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["flip", "bit", "cut", "zeros", "twice", "append"]))
def test_random_damage_is_refused(whole: Path, tmp_path: Path, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    blob = bytearray(whole.read_bytes())
    place = rng.randrange(len(blob))
    if kind == "flip":
        blob[place] ^= rng.randrange(1, 256)
    elif kind == "bit":
        blob[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del blob[place:]
    elif kind == "zeros":
        blob[place : place + 64] = bytes(len(blob[place : place + 64]))
        if bytes(blob) == whole.read_bytes():
            return
    elif kind == "twice":
        blob[place:place] = blob[max(0, place - 100) : place] or b"x"
    else:
        blob += bytes(rng.randrange(256) for _ in range(1 + place % 50))
    path = tmp_path / "damaged.zip"
    path.write_bytes(blob)
    assert refusal(path)


def rewrite(whole: Path, path: Path, change: Callable[[str, list[dict[str, Any]]], None], **manifest: Any) -> Path:
    """Write an archive with changed records and valid checksums: what only the records themselves can betray."""
    with Archive(whole) as source, ArchiveWriter(path) as writer:
        for collection in ORDER:
            found = [record for _, record in source.records(collection)]
            change(collection, found)
            writer.records(collection, found)
        for sha256 in source.artifacts:
            writer.artifact(sha256, source.artifact(sha256))
        kept = {k: v for k, v in source.manifest.items() if k not in ("members", "format", "version")}
        writer.finish(kept | manifest)
    return path


def edit(collection: str, line: int, **values: Any) -> Callable[[str, list[dict[str, Any]]], None]:
    def change(name: str, found: list[dict[str, Any]]) -> None:
        if name == collection:
            found[line - 1] = {k: v for k, v in (found[line - 1] | values).items() if v is not ...}

    return change


OTHER = crystal("Re", "W", 3.5).as_dict()


@pytest.mark.parametrize(
    ("place", "values", "says"),
    [
        (("structures", 3), {"structure": OTHER}, "structures.jsonl, line 3: structure_id is 's-"),
        (("structures", 2), {"structure": {"lattice": "none"}}, "structures.jsonl, line 2: not a pymatgen structure"),
        (("structures", 1), {"formula": "Xx"}, "structures.jsonl, line 1: formula is 'Xx'"),
        (("structures", 1), {"fingerprint": ...}, "structures.jsonl, line 1: a record of structures lacks"),
        (("structures", 1), {"_id": 5}, "structures.jsonl, line 1: has an _id"),
        (("calculations", 2), {"kind": "eos"}, "calculations.jsonl, line 2: calculation_id is 'k-"),
        (("calculations", 1), {"state": "guessed"}, "calculations.jsonl, line 1: state 'guessed' of calculations is"),
        (("calculations", 1), {"extra": 1}, "calculations.jsonl, line 1: calculations have no field 'extra'"),
        (("calculations", 3), {"output_structure_id": "s-00"}, "calculations.jsonl, line 3: refers to s-00 of"),
        (("candidates", 2), {"index": 77}, "candidates.jsonl, line 2: candidate_id is 'c-"),
        (("candidates", 1), {"structure_id": "s-1"}, "candidates.jsonl, line 1: refers to s-1 of structures"),
        (("models", 2), {"sha256": "0" * 64}, "models.jsonl, line 2: model_id is 'm-"),
        (("models", 1), {"size": 3}, "models.jsonl, line 1: says its artifact has 3 bytes"),
        (("training_sets", 1), {"members": [], "spilled": []}, "training_sets.jsonl, line 1: training_set_id is 't-"),
        (("training_sets", 1), {"parent_training_set_id": "t-x"}, "training_sets.jsonl, line 1: refers to t-x of"),
        (("predictions", 1), {"value": "high"}, "predictions.jsonl, line 1: value 'high' of predictions must be float"),
        (("campaigns", 1), {"config": {"name": "a"}}, "campaigns.jsonl, line 1: campaign 'a' has settings that"),
        (("steps", 1), {"key": "a/0/mlip/123"}, "steps.jsonl, line 1: step 'a/0/mlip/123' is not a finished one"),
    ],
)  # fmt: skip
def test_records_that_are_not_what_they_say_are_refused(
    whole: Path, embedded_connection: Connection, place: tuple[str, int], values: dict[str, Any], says: str
) -> None:
    path = rewrite(whole, whole.with_name("changed.zip"), edit(*place, **values))
    assert f"{path}: {says}" in refusal(path, embedded_connection)


def test_a_dropped_a_doubled_and_a_swapped_line_are_found(whole: Path, tmp_path: Path) -> None:
    def drop(name: str, found: list[dict[str, Any]]) -> None:
        if name == "structures":
            del found[2]

    def double(name: str, found: list[dict[str, Any]]) -> None:
        if name == "structures":
            found.append(found[0])

    # with the checksums made anew; of a line that others refer to
    assert "which the archive does not have" in refusal(rewrite(whole, tmp_path / "drop.zip", drop))
    assert "structures.jsonl, line 8: s-" in refusal(rewrite(whole, tmp_path / "double.zip", double))
    # with the checksums as they were
    for name, change in (("cut", lambda ls: ls[:3] + ls[4:]), ("swap", lambda ls: [*ls[:3], ls[4], ls[3], *ls[5:]])):
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for info in source.infolist():
                blob = source.read(info)
                if info.filename == "structures.jsonl":
                    blob = b"".join(change(blob.splitlines(keepends=True)))
                target.writestr(info, blob)
        said = refusal(path)
        assert "structures.jsonl" in said
        assert "line 4" in said or "bytes, the manifest says" in said


def test_names_bombs_and_strangers_are_refused(whole: Path, tmp_path: Path) -> None:
    def repack(name: str, **extra: bytes) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for info in source.infolist():
                target.writestr(info, extra.pop(info.filename, None) or source.read(info))
            for member, blob in extra.items():
                target.writestr(member, blob)
        return path

    with zipfile.ZipFile(whole) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert "'../../evil' which the manifest" in refusal(repack("path.zip", **{"../../evil": b"x"})).replace(",", "")
    listed = manifest | {"members": manifest["members"] | {"../evil": {"size": 1, "sha256": "0" * 64}}}
    path = repack("listed.zip", **{"manifest.json": json.dumps(listed).encode(), "../evil": b"x"})
    assert "'../evil', which is neither" in refusal(path)
    bomb = bytes(50_000_000)
    digest = hashlib.sha256(bomb).hexdigest()
    listed = manifest | {
        "members": manifest["members"] | {f"artifacts/{digest}": {"size": len(bomb), "sha256": digest}}
    }
    path = repack("bomb.zip", **{"manifest.json": json.dumps(listed).encode(), f"artifacts/{digest}": bomb})
    assert "unpacks to more than" in refusal(path)
    assert "between its members" in refusal(repack("same.zip"))  # packed again by something else: not as it was written
    (tmp_path / "text.zip").write_text("no archive")
    assert "no zip that is complete" in refusal(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as target:
        target.writestr("readme.txt", "something else")
    assert "manifest.json: is missing" in refusal(tmp_path / "foreign.zip")
    path = rewrite(whole, tmp_path / "newer.zip", lambda *_: None, schema_version=999)
    assert "schema version 999, newer than" in refusal(path)


def test_nothing_in_an_archive_is_unpickled_or_extracted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("an archive must not do this")

    monkeypatch.setattr(zipfile.ZipFile, "extract", forbidden)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", forbidden)
    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    assert import_archives(None, [whole], dry_run=True)["collections"]["candidates"]["new"] == 3


# -- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["artifacts", "structures", "models", "candidates", "campaigns"])
def test_an_interrupted_import_is_completed_by_the_next(
    whole: Path, embedded_connection: Connection, place: str
) -> None:
    checked = 0

    def stop(done: int, total: int, text: str) -> None:
        nonlocal checked
        checked += done == total  # the check comes to its end first
        if checked and text == place and done < total:
            raise InterruptedError

    if place == "campaigns":
        with Archive(whole) as archive:
            ArchiveCheck(archive, embedded_connection).run()
    else:
        with pytest.raises(InterruptedError):
            import_archives(embedded_connection, [whole], progress=stop)
        assert embedded_connection.db["campaigns"].count_documents({}) == 0  # it comes last: no half campaign is run
    result = import_archives(embedded_connection, [whole])
    assert result["conflicts"] == []
    export_archive(embedded_connection, whole.parent / "again.zip", campaigns=["a"])
    assert members(whole.parent / "again.zip") == members(whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from stores.connection import connect
from stores.exchange import import_archives

def stop(done, total, text):
    if text == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

with connect("embedded", root=Path(sys.argv[1])) as connection:
    import_archives(connection, [Path(sys.argv[2])], progress=stop)
"""


@pytest.mark.parametrize("place", ["structures", "candidates"])
def test_a_killed_import_is_completed_by_the_next(whole: Path, tmp_path: Path, place: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(whole), place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with connect("embedded", root=tmp_path) as connection:
        assert connection.db[place].count_documents({}) > 0
        assert connection.db["campaigns"].count_documents({}) == 0
        result = import_archives(connection, [whole])
        assert result["conflicts"] == []
        assert result["collections"][place]["new"] == 0
        export_archive(connection, tmp_path / "again.zip", campaigns=["a"])
    assert members(tmp_path / "again.zip") == members(whole)


def test_an_export_that_fails_leaves_the_old_file(embedded_connection: Connection, tmp_path: Path) -> None:
    write("a", A)
    path = tmp_path / "a.zip"
    export_archive(embedded_connection, path, campaigns=["a"])
    before = path.read_bytes()
    file = embedded_connection.gridfs().find_one({})
    embedded_connection.db["artifacts.chunks"].delete_many({"files_id": file._id})
    with pytest.raises(ValueError, match="is damaged"):
        export_archive(embedded_connection, path, campaigns=["a"])
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
    shutil.copy(path, tmp_path / "b.zip")
    assert import_archives(None, [tmp_path / "b.zip"], dry_run=True)["conflicts"] == []

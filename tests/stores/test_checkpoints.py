"""Checkpoints in the database: the last whole one counts, its identity decides, and they are no records."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fireworks_specs.checkpoints import StoredAnswers, StoredCheckpoint, checkpoint_seconds, checkpointed
from inv_design.checkpoint import State
from inv_design.mechanics.evaluate import Evaluation
from stores import checkpoints
from stores.claims import Claims
from stores.provenance import provenance
from stores.records import insert_campaign

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

TENSORS = {"a": np.arange(5000.0), "b": np.array([1, 2], dtype=np.uint8), "c": np.zeros((0, 3))}


def save(step: int, key: str = "k", identity: str = "i") -> None:
    checkpoints.save(key, identity, {**TENSORS, "step": np.array([step])}, {"step": step, "loss": 0.1 + 0.2})


@pytest.fixture
def in_parts(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the collection on a database where a checkpoint takes several documents."""
    monkeypatch.setattr(checkpoints, "PART_BYTES", 10_000)
    return connection.db["checkpoints"]


def test_the_last_one_comes_back_as_it_was(in_parts: Any) -> None:
    assert checkpoints.load("k", "i") is None
    save(1)
    save(2)
    save(7, key="another")
    assert in_parts.count_documents({"key": "k"}) == 5  # one checkpoint, in parts
    found = checkpoints.load("k", "i")
    assert found is not None
    tensors, values = found
    assert values == {"step": 2, "loss": 0.1 + 0.2}
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    assert checkpoints.load("k", "of other settings") is None
    assert checkpoints.saved_keys(["k", "another", "none"]) == {"k", "another"}
    checkpoints.discard(["k", "none"])
    assert set(in_parts.distinct("key")) == {"another"}


def test_one_that_was_cut_off_or_damaged_does_not_count(in_parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    save(1)
    good = [dict(part) for part in in_parts.find()]
    save(2)
    last = in_parts.find_one({"part": 3})
    in_parts.insert_many(good)  # a process that was killed before it deleted them
    in_parts.delete_one({"_id": last["_id"]})  # or before it had written all
    found = checkpoints.load("k", "i")
    assert found is not None
    assert found[1]["step"] == 1
    in_parts.update_one({"_id": good[0]["_id"]}, {"$set": {"data": b"x" * 10_000}})
    assert checkpoints.load("k", "i") is None
    assert "damaged" in caplog.text
    save(3)
    assert in_parts.count_documents({}) == 5


def test_what_nobody_goes_on_with_is_deleted_in_time(connection: Connection) -> None:
    save(1, key="abandoned")
    save(1, key="young")
    collection = connection.db["checkpoints"]
    old = connection.now() - timedelta(days=checkpoints.KEPT_DAYS + 1)
    collection.update_many({"key": "abandoned"}, {"$set": {"saved_at": old}})
    save(1)
    assert set(collection.distinct("key")) == {"k", "young"}


def test_the_size_is_bounded(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LARGEST", 1000)
    with pytest.raises(ValueError, match="is not kept"):
        save(1)
    assert connection.db["checkpoints"].count_documents({}) == 0


# -- those of firetasks -----------------------------------------------------------------------------------------------


def test_only_who_holds_the_claim_saves(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    with Claims() as claims:
        claims.claim(["mine"])
        for key in ("mine", "lost"):
            StoredCheckpoint(key, "i", claims).offer(lambda: State(dict(TENSORS), {"step": 1}))
    assert set(connection.db["checkpoints"].distinct("key")) == {"mine"}


def test_it_is_saved_now_and_then_and_deleted_at_the_end(connection: Connection, caplog: Any) -> None:
    offered = []

    def state() -> State:
        offered.append(1)
        return State(dict(TENSORS), {"step": len(offered)})

    with checkpointed("k", "i") as checkpoint:
        checkpoint.offer(state)
        assert not offered  # the first 30 s are not over
        checkpoint._keeper.saved_at -= 31.0
        checkpoint.offer(state)
        checkpoint.offer(state)
    assert len(offered) == 1
    assert connection.db["checkpoints"].count_documents({}) == 0

    def fail() -> None:
        with checkpointed("k", "i") as checkpoint:
            checkpoint._keeper.saved_at -= 31.0
            checkpoint.offer(state)
            raise RuntimeError("it failed")

    with pytest.raises(RuntimeError, match="it failed"):
        fail()
    resumed = StoredCheckpoint("k", "i").resume()
    assert resumed is not None
    assert resumed.values == {"step": 2}
    assert "k goes on from its checkpoint (step 2)" in caplog.text


def test_what_cannot_be_saved_stops_nothing(connection: Connection, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    monkeypatch.setattr(checkpoints, "LARGEST", 1000)
    checkpoint = StoredCheckpoint("k", "i")
    for _ in range(3):
        checkpoint.offer(lambda: State(dict(TENSORS)))
    assert caplog.text.count("no checkpoint was saved") == 1
    assert connection.db["checkpoints"].count_documents({}) == 0


def test_answers_are_kept_for_each_crystal(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    answer = [Evaluation(-1.0, np.ones((2, 3)), np.zeros(6))]
    first = StoredAnswers(["one", "two", "three"], "i")
    first.offer({0: [answer], 1: [answer, answer], 2: []})
    assert set(connection.db["checkpoints"].distinct("key")) == {"one", "two"}
    again = StoredAnswers(["two", "three", "one"], "i")  # planned anew, in another order
    assert [len(again.recall(index)) for index in range(3)] == [2, 0, 1]
    again.forget(0)
    assert set(connection.db["checkpoints"].distinct("key")) == {"one"}


@pytest.mark.parametrize("text", ["-1", "often"])
def test_an_impossible_interval_is_quoted(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", text)
    with pytest.raises(ValueError, match=f"INV_DESIGN_CHECKPOINT is '{text}'"):
        checkpoint_seconds()


def test_an_archive_has_no_checkpoints(embedded_connection: Connection, tmp_path: Path) -> None:
    from zipfile import ZipFile

    from stores.exchange import export_archive

    insert_campaign("small", {"name": "small"}, targets={"bulk_modulus_vrh": 150.0}, provenance=provenance())
    save(1, key="train/small/0/predictor")
    export_archive(embedded_connection, tmp_path / "all.zip", campaigns=None)
    assert not [name for name in ZipFile(tmp_path / "all.zip").namelist() if "checkpoint" in name]

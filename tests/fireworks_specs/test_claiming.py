"""Fireworks that share crystals: each result is computed once, and none of them ends before all results are there."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs.firetasks.elastic import ElasticTask, insert_result
from fireworks_specs.protocols import mlip_protocol
from inv_design.config import CampaignConfig
from stores import claims as module
from stores.claims import Claims, result_key
from stores.protocol import protocol_id
from stores.provenance import provenance
from stores.records import insert_campaign, insert_structures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

RECORD: dict[str, Any] = {
    "state": "completed", "results": {"bulk_modulus_vrh": 100.0}, "flags": [], "error": None, "structure": None,
}  # fmt: skip


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the computation by one of a tenth of a second that notes the formulas."""
    from inv_design.mechanics import stages

    seen: list[str] = []

    def measure(structures: list[Structure], **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, structure in enumerate(structures):
            seen.append(structure.formula)
            time.sleep(0.1)
            yield index, dict(RECORD)

    monkeypatch.setattr(stages, "measure_elasticities", measure)
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.setattr(module, "PAUSES", (0.05, 0.2))
    return seen


def campaign(name: str) -> CampaignConfig:
    settings = {
        "name": name,
        "targets": {"bulk_modulus_vrh": "150 GPa"},
        "stages": {"mlip": {"calculator": "emt"}, "dft": {"backend": "surrogate", "calculator": "emt"}},
    }
    config = CampaignConfig.model_validate(settings)
    insert_campaign(name, config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    return config


def crystals(count: int) -> list[str]:
    made = [Structure(Lattice.cubic(2.8 + 0.01 * i), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]) for i in range(count)]
    return insert_structures(made, [{"kind": "ingested", "id": "test"}] * count, provenance())


def test_campaigns_that_share_crystals_compute_them_once(connection: Connection, computed: list[str]) -> None:
    for name in ("one", "two"):
        campaign(name)
    ids = crystals(12)
    shares = {"one": ids[:8], "two": ids[4:][::-1]}
    counts: dict[str, int] = {}

    def work(name: str) -> None:
        ElasticTask(campaign=name, round=0, structure_ids=shares[name]).work()
        found = connection.db["calculations"].count_documents({"structure_id": {"$in": shares[name]}})
        counts[name] = found  # when its firework ends, everything that it was asked for has a result

    threads = [threading.Thread(target=work, args=(name,)) for name in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"one": 8, "two": 8}
    assert len(computed) == 12
    assert connection.db["calculations"].count_documents({}) == 12
    assert connection.db["claims"].count_documents({}) == 0


@pytest.mark.wire
def test_a_firework_takes_over_from_a_worker_that_died(wire_connection: Connection, computed: list[str]) -> None:
    protocol = mlip_protocol(campaign("one"))
    ids = crystals(3)
    other = Claims(campaign="two", stage="mlip", lease=1.0)
    other.worker = {"host": "node7", "pid": 1, "machine": "another"}
    keys = [result_key(i, "elastic", protocol_id(protocol)) for i in ids]
    other.claim(keys[:2])
    where: dict[str, Any] = {"kind": "elastic", "method": "mlip", "protocol": protocol}
    # of its two claims it finishes one, later, and dies with the other
    finish = threading.Timer(0.4, insert_result, (dict(RECORD), ids[0]), {**where, "provenance": provenance()})
    finish.start()
    began = time.monotonic()
    ElasticTask(campaign="one", round=0, structure_ids=ids).work()
    assert time.monotonic() - began > 0.6
    finish.join()
    assert len(computed) == 2
    assert wire_connection.db["calculations"].count_documents({"structure_id": {"$in": ids}}) == 3
    other.release_all()
    assert wire_connection.db["claims"].count_documents({}) == 0


def test_a_second_result_is_dropped_and_said(
    connection: Connection, computed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    protocol = mlip_protocol(campaign("one"))
    [identity] = crystals(1)
    where: dict[str, Any] = {"kind": "elastic", "method": "mlip", "protocol": protocol, "provenance": provenance()}
    insert_result(dict(RECORD), identity, **where)
    assert "another worker was faster" not in caplog.text
    insert_result(RECORD | {"results": {"bulk_modulus_vrh": 1.0}}, identity, **where)
    assert "another worker was faster" in caplog.text
    assert connection.db["calculations"].find_one()["results"]["bulk_modulus_vrh"] == 100.0

"""A run whose server is stopped and started again under it ends as if nothing had been."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from fireworks_specs import execution
from inv_design.config import CampaignConfig
from inv_design.testing import WireServer
from stores import journal
from stores.connection import connect
from stores.outage import PATIENCE_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "name": "small",
    "targets": {"bulk_modulus_vrh": "150 GPa"},
    "data": {"elements": ["Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"], "exclude": [], "max_entries": 30},
    "generator": {"name": "substitution", "samples_per_round": 6, "chunk": 3, "max_sites": 4},
    "stages": {
        "predictor": {"model": "extra_trees", "tolerance": 0.9},
        "mlip": {"calculator": "emt", "tolerance": 0.9, "chunk": 3, "born_stable": False},
        "dft": {"backend": "surrogate", "calculator": "emt", "budget_per_round": 2},
    },
    "evaluation": {"targets": []},
    "rounds": 0,
}
RECORDS = ("structures", "candidates", "predictions", "calculations", "models", "evaluations")


@pytest.mark.slow
@pytest.mark.wire
def test_a_run_goes_on_when_the_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(tmp_path / "journal"))
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.setenv(PATIENCE_VARIABLE, "300")
    config = CampaignConfig.model_validate(CONFIG)
    server = WireServer(tmp_path)
    server.start()
    stops: list[float] = []
    over = threading.Event()

    def stop_now_and_then() -> None:
        while not over.wait(2.0):
            began = time.monotonic()
            server.stop()
            server.start()
            stops.append(time.monotonic() - began)

    try:
        with connect(f"{server.uri}/quiet") as connection:
            assert execution.run(connection, config).finished
            expected = {name: connection.db[name].count_documents({}) for name in RECORDS}
        with connect(f"{server.uri}/stopped") as connection:
            thread = threading.Thread(target=stop_now_and_then)
            thread.start()
            summary = execution.run(connection, config)
            over.set()
            thread.join()
            assert summary.finished
            assert {name: connection.db[name].count_documents({}) for name in RECORDS} == expected
            assert connection.db["claims"].count_documents({}) == 0
            assert connection.db["workflows"].count_documents({"locked": True}) == 0
            assert journal.pending(connection) == 0
            states = {f["state"] for f in connection.db["fireworks"].find()}
        assert stops
        print(f"\nstopped {len(stops)} times for {sum(stops):.1f} s; {summary}; states {states}")
    finally:
        over.set()
        server.close()

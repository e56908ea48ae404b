"""The pool: results in any order, a worker that dies costs its own crystal at most."""

from __future__ import annotations

import os

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs import pool
from inv_design.mechanics.stages import measure_elasticity, measure_equation_of_state

COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.61), ["Cu"], [[0, 0, 0]]).get_primitive_structure()
TUNGSTEN = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.16), ["W"], [[0, 0, 0]]).get_primitive_structure()
EOS = {"calculator": "emt", "strain": 0.04}


@pytest.fixture(autouse=True)
def _closed_pool():
    yield
    pool.close()


def die(**_: object) -> dict[str, object]:
    os._exit(9)


def test_results_carry_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    crystals = [COPPER, TUNGSTEN, COPPER.copy().scale_lattice(COPPER.volume * 1.05)]
    results = dict(pool.map_unordered(measure_equation_of_state, [{"structure": s, **EOS} for s in crystals]))
    assert [results[i]["state"] for i in range(3)] == ["completed", "failed", "completed"]
    assert results[0]["results"]["bulk_modulus_vrh"] == pytest.approx(
        results[2]["results"]["bulk_modulus_vrh"], rel=0.01
    )
    assert "W" in results[1]["error"] or "EMT" in results[1]["error"]


def test_a_worker_that_dies_leaves_a_failed_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    results = dict(pool.map_unordered(die, [{"n": 1}, {"n": 2}]))
    assert {r["state"] for r in results.values()} == {"failed"}
    assert "died" in results[0]["error"]


def test_the_number_of_workers_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "many")
    with pytest.raises(ValueError, match="INV_DESIGN_WORKERS is 'many'"):
        pool.worker_count()


def test_stage_two_measures_relaxation_and_tensor() -> None:
    keep = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
    record = measure_elasticity(COPPER, calculator="emt", fmax=0.01, max_steps=200, keep_structure=keep)
    assert record["state"] == "completed", record["error"]
    results = record["results"]
    # ASE's EMT copper: C11 about 172, C12 about 116 GPa
    assert results["bulk_modulus_vrh"] == pytest.approx(135, abs=8)
    assert results["born_stable"] is True
    assert results["structure_matched"] is True
    assert results["relaxed"] is True


def test_a_crystal_that_cannot_be_computed_is_a_failed_record() -> None:
    keep = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
    record = measure_elasticity(TUNGSTEN, calculator="emt", fmax=0.01, max_steps=20, keep_structure=keep)
    assert record["state"] == "failed"
    assert record["structure"] is None
    assert "\n" not in record["error"]

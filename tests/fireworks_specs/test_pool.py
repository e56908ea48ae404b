"""The pool: results in any order, a worker that dies costs its own crystal at most."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs import pool
from inv_design.mechanics.stages import measure_elasticity, measure_equation_of_state, measure_equations_of_state
from inv_design.screening.retries import may_pass, reason_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.61), ["Cu"], [[0, 0, 0]]).get_primitive_structure()
TUNGSTEN = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.16), ["W"], [[0, 0, 0]]).get_primitive_structure()
EOS = {"calculator": "emt", "strain": 0.04}


@pytest.fixture(autouse=True)
def _closed_pool():
    yield
    pool.close()


DEADLY = """
import os


def die(**_):
    os._exit(9)


def die_of_one(structures, *, calculator):
    for index, number in enumerate(structures):
        if number == 3:
            os._exit(9)
        yield index, {"state": "completed", "number": number}
"""


LOSING = """
import os

from ase.calculators.emt import EMT


class Losing(EMT):
    # a GPU that a crystal with gold breaks: it fails for all that follow in the process

    lost = False

    def calculate(self, atoms=None, *rest):
        Losing.lost |= "Au" in atoms.get_chemical_symbols()
        if Losing.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        super().calculate(atoms, *rest)


def make():
    return Losing()


def busy():
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gpu_that_fails_costs_its_own_crystal_at_most(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losing.py").write_text(LOSING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("INV_DESIGN_WORKERS", workers)
    gold = COPPER.copy()
    gold.replace_species({"Cu": "Au"})
    crystals = [COPPER, gold, COPPER.copy().scale_lattice(COPPER.volume * 1.05)]
    options = {"strain": 0.04}
    found = dict(pool.map_structures(measure_equations_of_state, crystals, calculator="losing:make", **options))
    assert [found[i]["state"] for i in range(3)] == ["completed", "failed", "completed"]
    assert may_pass({"state": "failed", "reason": reason_of(found[1]["error"])})
    with pytest.raises(RuntimeError, match="devices are busy"):  # the machine's fault: no crystal gets a record
        list(pool.map_structures(measure_equations_of_state, crystals, calculator="losing:busy", **options))


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that worker processes can import, which test modules are not."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    return importlib.import_module("deadly")


def test_results_carry_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    crystals = [COPPER, TUNGSTEN, COPPER.copy().scale_lattice(COPPER.volume * 1.05)]
    results = dict(pool.map_unordered(measure_equation_of_state, [{"structure": s, **EOS} for s in crystals]))
    assert [results[i]["state"] for i in range(3)] == ["completed", "failed", "completed"]
    assert results[0]["results"]["bulk_modulus_vrh"] == pytest.approx(
        results[2]["results"]["bulk_modulus_vrh"], rel=0.01
    )
    assert "W" in results[1]["error"] or "EMT" in results[1]["error"]


def test_a_worker_that_dies_leaves_a_failed_record(deadly: ModuleType) -> None:
    results = dict(pool.map_unordered(deadly.die, [{"n": 1}, {"n": 2}]))
    assert {r["state"] for r in results.values()} == {"failed"}
    assert "died" in results[0]["error"]


def test_only_the_crystal_that_kills_its_worker_fails(deadly: ModuleType) -> None:
    found = dict(pool.map_structures(deadly.die_of_one, list(range(6)), calculator="mace-alloy-small"))
    assert sorted(found) == list(range(6))
    assert [found[i]["state"] for i in range(6)] == ["completed"] * 3 + ["failed"] + ["completed"] * 2
    assert [found[i]["number"] for i in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


def test_workers_and_this_process_give_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = [COPPER, TUNGSTEN, COPPER.copy().scale_lattice(COPPER.volume * 1.05)]
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    here = dict(pool.map_structures(measure_equations_of_state, crystals, **EOS))
    monkeypatch.setenv("INV_DESIGN_WORKERS", "2")
    there = dict(pool.map_structures(measure_equations_of_state, crystals, **EOS))
    assert here == there


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

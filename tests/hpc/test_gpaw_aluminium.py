"""GPAW for real: aluminium's E(V) through a firework, two MPI ranks, and failures that are GPAW's own."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure

from inv_design.calculators.gpaw_calculator import GpawCalculator, results_folder
from inv_design.config import CampaignConfig, DftConfig, GpawConfig

if TYPE_CHECKING:
    from stores.connection import Connection

pytestmark = pytest.mark.hpc

ALUMINIUM = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.00), ["Al"], [[0, 0, 0]])
BULK_MODULUS = 77.0  # GPa, PBE
TINY = {"cutoff": 250.0, "k_density": 2.0}


@pytest.fixture(autouse=True)
def gpaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Require GPAW; a folder and kept results of this test alone."""
    if importlib.util.find_spec("gpaw") is None:
        if os.environ.get("INV_DESIGN_REQUIRE_HPC") == "1":
            pytest.fail("INV_DESIGN_REQUIRE_HPC=1, but gpaw is not installed")
        pytest.skip("gpaw is not installed; docs/how-to/gpaw.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for variable in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):  # in a container one is root
        monkeypatch.setenv(variable, "1")


def stage(kind: str = "eos", **gpaw: Any) -> DftConfig:
    return DftConfig(backend="gpaw", gpaw=GpawConfig(kind=kind, **gpaw))  # type: ignore[arg-type]


def launch(connection: Connection, name: str, identity: str) -> str:
    """Put stage III of one crystal on the launchpad and run it as rlaunch does; return the firework's state."""
    from fireworks import Firework, FWorker
    from fireworks.core.rocket_launcher import launch_rocket

    from fireworks_specs.firetasks.dft import DftTask

    launchpad = connection.launchpad()
    task = DftTask(campaign=name, round=0, structure_ids=[identity])
    launchpad.add_wf(Firework(task, spec={"_add_launchpad_and_fw_id": True}))
    errors = io.StringIO()
    assert launch_rocket(launchpad, FWorker(), strm_lvl="CRITICAL", err_file=errors)
    return f"{launchpad.fireworks.find_one({}, sort=[('fw_id', -1)])['state']} {errors.getvalue()}".strip()


def test_aluminium_through_a_firework(embedded_connection: Connection) -> None:
    from inv_design.calculators.frames import frames_of_calculation
    from stores.provenance import provenance
    from stores.queries import structures_by_id
    from stores.records import insert_campaign, insert_structure

    settings = stage(cutoff=400, k_density=5.2)
    config = CampaignConfig(
        name="al",
        targets={"bulk_modulus_vrh": "77 GPa"},
        stages={"dft": settings.model_dump()},  # type: ignore[arg-type]
    )
    insert_campaign("al", config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    identity = insert_structure(ALUMINIUM, {"kind": "ingested", "id": "test"}, provenance())

    assert launch(embedded_connection, "al", identity) == "COMPLETED"
    (record,) = embedded_connection.db["calculations"].find()
    assert (record["method"], record["kind"], record["state"]) == ("gpaw", "eos", "completed"), record["error"]
    assert record["results"]["bulk_modulus_vrh"] == pytest.approx(BULK_MODULUS, rel=0.03)
    assert record["results"]["v0"] == pytest.approx(4.04**3 / 4, rel=0.01)
    assert record["flags"] == []
    assert record["protocol"]["cutoff"] == 400
    assert "ranks" not in record["protocol"]
    relaxed = structures_by_id([record["output_structure_id"]])[record["output_structure_id"]]
    frames = frames_of_calculation(record, relaxed)
    assert len(frames) > 7
    # energies and stresses are of one potential: dE/dV of the outer volumes is minus the pressure between them
    by_volume = sorted(frames, key=lambda frame: frame.volume)
    low, high = by_volume[0], by_volume[1]
    slope = (high.energy - low.energy) / (high.volume - low.volume) * 160.21766  # type: ignore[operator]
    assert low.known_pressure > -slope > high.known_pressure  # type: ignore[operator]


def test_two_ranks_give_the_same_numbers() -> None:
    if shutil.which("mpiexec") is None:
        pytest.skip("mpiexec is not installed")
    found = []
    for ranks in (1, 2):
        atoms = bulk("Al", "fcc", a=4.0)
        with GpawCalculator(GpawConfig(**TINY, ranks=ranks), keep=False) as calculator:
            atoms.calc = calculator
            found.append((atoms.get_potential_energy(), atoms.get_stress()))
        assert "cores:  2" in Path("gpaw.txt").read_text() if ranks == 2 else True
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)


def test_an_element_without_data_set_is_a_failure_that_names_it() -> None:
    from fireworks_specs.backends.gpaw import measure

    technetium = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.9), ["Tc"], [[0, 0, 0]])
    record = measure(technetium, stage(**TINY))
    assert (record["state"], record["reason"]) == ("failed", "error")
    assert "Tc" in record["error"]


def test_iron_keeps_its_moment() -> None:
    atoms = bulk("Fe", "bcc", a=2.83)
    with GpawCalculator(GpawConfig(cutoff=350, k_density=3.0)) as calculator:
        atoms.calc = calculator
        atoms.get_potential_energy()
        assert atoms.get_magnetic_moment() == pytest.approx(2.2, abs=0.3)
        assert calculator.spinpol


def test_a_crystal_without_moment_goes_on_without_spin() -> None:
    atoms = bulk("NiAl", "cesiumchloride", a=2.9)
    with GpawCalculator(GpawConfig(cutoff=350, k_density=4.0)) as calculator:
        for length in (2.90, 2.91):
            atoms.set_cell([length] * 3, scale_atoms=True)
            atoms.calc = calculator
            atoms.get_stress()
        assert [e["spinpol"] for e in calculator.evaluations] == [True, False]
        energies = [e["energy_per_atom"] for e in calculator.evaluations]
    assert abs(energies[1] - energies[0]) < 0.01  # one scale of energies, with and without spin


def test_a_killed_worker_takes_its_gpaw_along(tmp_path: Path) -> None:
    program = (
        "from ase.build import bulk\n"
        "from inv_design.config import GpawConfig\n"
        "from inv_design.calculators.gpaw_calculator import GpawCalculator\n"
        "atoms = bulk('Al'); atoms.calc = GpawCalculator(GpawConfig(cutoff=600, k_density=9), keep=False)\n"
        "atoms.get_stress()\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (found := children(worker.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker.kill()
    worker.wait()
    while alive(found[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(found[0])


def test_a_killed_gpaw_is_a_failure_and_the_next_attempt_goes_on() -> None:
    """Kill the process after two finished volumes, as a full memory would; then again, without the killer."""
    from fireworks_specs.backends.gpaw import measure

    settings = stage(cutoff=300, k_density=3)
    records: list[dict[str, Any]] = []
    worker = threading.Thread(target=lambda: records.append(measure(ALUMINIUM, settings)))
    worker.start()
    deadline = time.monotonic() + 300
    while len(kept()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    while worker.is_alive() and time.monotonic() < deadline:
        for child in children():
            os.kill(child, signal.SIGKILL)
        time.sleep(0.2)
    worker.join()
    assert (records[0]["state"], records[0]["reason"]) == ("failed", "killed"), records[0]["error"]
    finished = {path: path.stat().st_mtime_ns for path in kept()}
    assert len(finished) >= 2

    record = measure(ALUMINIUM, settings)
    assert record["state"] == "completed", record["error"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_converge_finds_settings_for_aluminium(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from inv_design.cli import main

    ALUMINIUM.to(str(tmp_path / "Al.cif"))
    command = ["dft", "converge", str(tmp_path / "Al.cif"), "--error", "10%", "--cutoffs", "220,300,400"]
    result = CliRunner().invoke(main, [*command, "--k-densities", "2,3,4", "-o", "plot.svg", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["converged"]
    assert abs(found["chosen"]["bulk_modulus"] / BULK_MODULUS - 1) < 0.2  # 10 %, and what 4 k points per 1/Å lack
    assert found["chosen"]["seconds"] <= found["finest"]["seconds"]
    assert Path("plot.svg").read_text().startswith("<?xml")
    again = time.monotonic()
    assert json.loads(CliRunner().invoke(main, [*command, "--k-densities", "2,3,4", "--json"]).stdout) == found
    assert time.monotonic() - again < 10  # from what was kept


def kept() -> list[Path]:
    return sorted(results_folder().glob("*.json"))


def children(parent: int | str = "self") -> list[int]:
    """Return the processes of GPAW that a process started."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    found = [int(pid) for path in tasks for pid in path.read_text().split()]
    return [pid for pid in found if b"subprocesscalculator" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for is dead."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False

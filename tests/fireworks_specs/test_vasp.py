"""The vasp backend with a stand-in for VASP: its inputs, its outputs on the way to a record, and how it fails."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from custodian.custodian import ReturnCodeError
from pymatgen.core import Lattice, Structure

from fireworks_specs.backends.vasp import INCAR, OURS, PAPER, Vasp
from fireworks_specs.backends.vasp_failures import CONVERGED, FINISHED, WALLTIME, failure_of, is_cut
from fireworks_specs.flows import JobFailed
from fireworks_specs.ingestion import ingest_outputs
from inv_design import testing_vasp
from inv_design.config import CampaignConfig

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = CampaignConfig(name="c", targets={"bulk_modulus_vrh": "150 GPa"})
COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.65), ["Cu"], [[0, 0, 0]]).get_primitive_structure()
GOLD_COPPER = Structure(Lattice.cubic(3.1), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.52]])

COMMON = {
    "ENCUT": 700, "EDIFF": 1e-8, "EDIFFG": -0.01, "GGA": "Pe", "KSPACING": 0.1, "KGAMMA": True, "ISMEAR": 1,
    "SIGMA": 0.2, "PREC": "Accurate", "IBRION": 2, "NSW": 99, "NELM": 200, "ISPIN": 2, "MAGMOM": [0.6],
    "LASPH": True, "LREAL": False, "LORBIT": 11, "LMIXTAU": True, "LAECHG": False, "LCHARG": False, "LELF": False,
    "LVTOT": False, "LWAVE": False,
}  # fmt: skip


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_the_input_sets_are_the_papers() -> None:
    """Li et al. 2025, II C 3: PBE, 700 eV, 0.1 1/Å, 1e-5 meV, 0.01 eV/Å; and nothing but what is written here."""
    assert PAPER == {"GGA": "PE", "ENCUT": 700, "EDIFF": 1e-5 * 1e-3, "EDIFFG": -0.01, "KSPACING": 0.1}
    assert PAPER.keys().isdisjoint(OURS)
    maker = Vasp().maker()
    double: Any = maker.bulk_relax_maker
    relaxation = COMMON | {"ISIF": 3, "ALGO": "Fast"}
    deformation = COMMON | {"ISIF": 2, "ALGO": "Normal"}
    for job, expected in (
        (double.relax_maker1, relaxation), (double.relax_maker2, relaxation), (maker.elastic_relax_maker, deformation),
    ):  # fmt: skip
        inputs = job.input_set_generator.get_input_set(COPPER, potcar_spec=True)
        incar = {name: value for name, value in inputs["INCAR"].items() if name != "LMAXMIX"}
        assert incar == expected
        assert inputs.get("KPOINTS") is None  # KSPACING rules
        generator = job.input_set_generator
        assert generator.user_potcar_functional == Vasp().protocol(CONFIG)["potcars"] == "PBE_54"
        assert generator.config_dict["POTCAR_FUNCTIONAL"] == "PBE_54"  # for which the choice per element was made
        assert job.run_vasp_kwargs["handlers"], "custodian is on"
    assert maker.max_failed_deformations == 0  # a tensor of fewer strains is not the same number


def test_the_spacing_of_k_points_has_the_factor_2_pi(tmp_path: Path) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(Structure(Lattice.tetragonal(4.0, 2.5), ["Cu"], [[0, 0, 0]]))
    assert testing_vasp.divisions(tmp_path, atoms, {"KSPACING": 0.1}) == (16, 16, 26)
    # as dense as what the predictor learned from: at least 7000 k points per reciprocal atom, where 0.1 without
    # the factor 2π would be 40
    copper = AseAtomsAdaptor.get_atoms(COPPER)
    assert np.prod(testing_vasp.divisions(tmp_path, copper, {"KSPACING": INCAR["KSPACING"]})) > 7000


def test_a_worker_says_what_it_lacks(vasp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomate2 import SETTINGS as ATOMATE2
    from pymatgen.core import SETTINGS

    Vasp().require()
    monkeypatch.setattr(ATOMATE2, "VASP_INCAR_UPDATES", {"NCORE": 4, "kpar": 2})
    Vasp().require()
    monkeypatch.setattr(ATOMATE2, "VASP_INCAR_UPDATES", {"NCORE": 4, "ISPIN": 1, "ENCUT": 300})
    with pytest.raises(RuntimeError, match=r"VASP_INCAR_UPDATES sets ENCUT, ISPIN, which .* may set .*NCORE"):
        Vasp().require()
    monkeypatch.setattr(ATOMATE2, "VASP_INCAR_UPDATES", {})
    for accepting in (True, False):
        monkeypatch.setattr(ATOMATE2, "VASP_HANDLE_UNSUCCESSFUL", accepting)
        with pytest.raises(RuntimeError, match=f"VASP_HANDLE_UNSUCCESSFUL is {accepting}.* would become labels"):
            Vasp().require()
    monkeypatch.setattr(ATOMATE2, "VASP_HANDLE_UNSUCCESSFUL", "error")
    old = testing_vasp.write_potcars(vasp / "old", ["Cu"], "POT_GGA_PAW_PBE")
    (empty := vasp / "empty" / "POT_GGA_PAW_PBE_54").mkdir(parents=True)
    for folder, said in (
        (None, "PMG_VASP_PSP_DIR is not set"),
        ("/not/mounted", "no POTCARs of PBE_54 on this worker: /not/mounted/POT_GGA_PAW_PBE_54: No such file"),
        (str(old), "no POTCARs of PBE_54 .*No such file"),
        (str(empty.parent), "is empty"),
    ):
        monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", folder)
        with pytest.raises(RuntimeError, match=said):
            Vasp().require()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="VASP_CMD is 'vasp_std'"):
        Vasp().require()


def test_a_run_ends_before_slurm_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from fireworks_specs.backends.vasp import handlers

    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert WALLTIME[-1] not in {type(handler).__name__ for handler in handlers()}
    for left in (3600, 1800):  # a second flow in the same job counts from its own beginning
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left))
        limit = next(handler for handler in handlers() if type(handler).__name__ == WALLTIME[-1])
        assert limit.wall_time == pytest.approx(left, abs=5)
        assert abs(time.time() - limit.start_time.timestamp()) < 5 or limit.start_time.tzinfo is None


# -- the stand-in -----------------------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, structure: Structure, **incar: Any) -> Path:
    from pymatgen.io.vasp import Incar, Poscar

    structure = structure.get_sorted_structure()
    Poscar(structure).write_file(tmp_path / "POSCAR", significant_figures=16)
    Incar({"KSPACING": 0.5, "ENCUT": 300, **incar}).write_file(tmp_path / "INCAR")
    symbols = list(dict.fromkeys(site.specie.symbol for site in structure))
    testing_vasp.write_potcars(tmp_path, symbols, ".")
    (tmp_path / "POTCAR").write_text("".join((tmp_path / s / "POTCAR").read_text() for s in symbols))
    return tmp_path


@pytest.mark.parametrize(("isif", "nsw"), [(2, 0), (2, 60), (3, 99)])
def test_the_stand_in_does_what_incar_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isif: int, nsw: int
) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.vasp import Oszicar, Outcar, Vasprun

    from inv_design.calculators.registry import get_calculator

    monkeypatch.setenv(testing_vasp.CALCULATOR_VARIABLE, "emt")
    folder = folder_of(tmp_path, GOLD_COPPER, ISIF=isif, NSW=nsw, IBRION=2, EDIFFG=-0.002, NELM=40)
    assert testing_vasp.main(folder) == 0
    run = Vasprun(folder / "vasprun.xml", parse_potcar_file=False)
    assert run.converged
    assert (len(run.ionic_steps) > 1) == (nsw > 0)
    before, after = run.initial_structure, Structure.from_file(folder / "CONTCAR")
    assert np.allclose(before.lattice.matrix, GOLD_COPPER.lattice.matrix)
    assert np.allclose(before.lattice.matrix, after.lattice.matrix) == (isif == 2)
    assert np.allclose(run.final_structure.lattice.matrix, after.lattice.matrix, atol=1e-10)
    forces = np.abs(run.ionic_steps[-1]["forces"]).max()
    assert (forces < 0.002) == (nsw > 0)
    atoms = AseAtomsAdaptor.get_atoms(after, msonable=False)  # the numbers are the potential's
    atoms.calc = get_calculator("emt")
    assert run.final_energy == pytest.approx(atoms.get_potential_energy() - 8.0, abs=1e-6)
    assert run.ionic_steps[-1]["stress"] == pytest.approx(-atoms.get_stress(voigt=False) * 1602.17663, abs=1e-4)
    assert Oszicar(folder / "OSZICAR").final_energy == pytest.approx(run.final_energy, abs=1e-6)
    assert Outcar(folder / "OUTCAR").final_energy == pytest.approx(run.final_energy, abs=1e-6)
    assert "not VASP" in (folder / "OUTCAR").read_text().splitlines()[0]
    assert run.eigenvalue_band_properties[0] == 0  # a metal


def test_the_stand_in_takes_a_poscar_that_is_not_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymatgen.io.vasp import Incar, Poscar, Vasprun

    monkeypatch.setenv(testing_vasp.CALCULATOR_VARIABLE, "emt")
    places = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0, 0.5]]
    symbols = ["Cu", "Au", "Au", "Pd", "Cu"]
    structure = Structure(Lattice.orthorhombic(4, 4, 5), symbols, places)
    Poscar(structure).write_file(tmp_path / "POSCAR")
    Incar({"KSPACING": 0.5}).write_file(tmp_path / "INCAR")
    testing_vasp.write_potcars(tmp_path, ["Cu", "Au", "Pd"], ".")
    potcars = [(tmp_path / symbol / "POTCAR").read_text() for symbol in ("Cu", "Au", "Pd", "Cu")]
    (tmp_path / "POTCAR").write_text("".join(potcars))
    assert testing_vasp.main(tmp_path) == 0
    run = Vasprun(tmp_path / "vasprun.xml", parse_potcar_file=False)
    assert run.atomic_symbols == symbols
    assert [spec.split()[1] for spec in run.potcar_symbols] == ["Cu", "Au", "Pd", "Cu"]
    assert [site.specie.symbol for site in Structure.from_file(tmp_path / "CONTCAR")] == symbols
    (tmp_path / "POTCAR").write_text("".join(potcars[:3]))
    with pytest.raises(ValueError, match="POTCAR is of"):
        testing_vasp.main(tmp_path)


def test_the_stand_in_counts_what_it_was_told_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(testing_vasp.STATE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(testing_vasp.FAIL_VARIABLE, "killed@CuAu/strain*2, memory@Cu3Au")
    found = [testing_vasp.planned_failure("AuCu", relaxes=False) for _ in range(3)]
    assert found == ["killed", "killed", None]
    assert testing_vasp.planned_failure("AuCu", relaxes=True) is None
    assert testing_vasp.planned_failure("Cu3Au", relaxes=True) == "memory"
    monkeypatch.setenv(testing_vasp.FAIL_VARIABLE, "sulking")
    with pytest.raises(ValueError, match="sulking"):
        testing_vasp.planned_failure("AuCu", relaxes=True)


# -- to a record ------------------------------------------------------------------------------------------------------


def tag_of(structure_id: str = "s-1") -> dict[str, Any]:
    from stores.protocol import protocol_id

    protocol = Vasp().protocol(CONFIG)
    where = {"kind": "elastic", "method": "vasp", "protocol": protocol, "protocol_id": protocol_id(protocol)}
    return {"campaign": "c", "structure_id": structure_id, "inputs": [structure_id, "k-stage-two"], **where}


def numbers(record: dict[str, Any]) -> Any:
    """Return the results as JSON has them, of frames what was computed."""
    results = {**record["results"], "frames": [{**f, "structure": None} for f in record["results"]["frames"]]}
    return json.loads(json.dumps(results))


def measure(structure: Structure) -> dict[str, Any]:
    ((_, record),) = Vasp().compute([structure], CONFIG, tags=[tag_of()])
    return record


def test_a_flow_that_was_cut_off_goes_on_and_is_ingested_once(
    embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    from inv_design.calculators.registry import get_calculator

    monkeypatch.setenv(testing_vasp.FAIL_VARIABLE, "killed/strain*1")
    record = measure(COPPER)
    assert (record["state"], record["reason"]) == ("failed", "killed")
    first = sorted(path.name for path in (vasp / "dft" / "s-1").iterdir())
    assert [name.split("-", 1)[1] for name in first if "relax" in name][:2] == ["tight-relax-1", "tight-relax-2"]
    assert ingest_outputs().found == 0  # nothing is finished

    record = measure(COPPER)
    assert record["state"] == "completed", record["error"]
    further = [path.name for path in (vasp / "dft" / "s-1").iterdir() if path.name not in first]
    assert not [name for name in further if "tight" in name]  # the relaxations were done
    outputs = list(embedded_connection.db["outputs"].find({"metadata.adopted": {"$exists": True}}))
    assert sorted(o["name"] for o in outputs) == ["tight relax 1", "tight relax 2"]
    # ASE's EMT copper: 134 GPa from E(V)
    assert record["results"]["bulk_modulus_vrh"] == pytest.approx(134, rel=0.03)
    assert record["results"]["born_stable"] is True
    assert record["results"]["volume_per_atom"] == pytest.approx(3.59**3 / 4, rel=0.003)
    assert len(record["jobs"]) == len(set(record["jobs"])) == 5 + 6
    assert record["results"]["code_version"].endswith("stand-in")
    assert [titel.split()[0] for titel in record["results"]["potcars"]] == ["PAW_PBE"]
    assert record["results"]["volume_change"] == pytest.approx((3.59 / 3.65) ** 3 - 1, abs=0.002)
    frames = record["results"]["frames"]  # the relaxed cell and the strained ones
    assert len(frames) == 1 + 6
    assert np.abs(frames[0]["stress"]).max() < 0.1
    assert frames[0]["energy"] == pytest.approx(min(frame["energy"] for frame in frames), abs=1e-4)
    atoms = AseAtomsAdaptor.get_atoms(Structure.from_dict(frames[3]["structure"]), msonable=False)
    atoms.calc = get_calculator("emt")
    assert np.allclose(frames[3]["stress"], atoms.get_stress(voigt=False) * 160.217663, atol=1e-3)

    # the process ended before it inserted the calculation
    calculations = embedded_connection.db["calculations"]
    assert ingest_outputs(campaign="another").found == 0
    assert (ingest_outputs().inserted, ingest_outputs().inserted) == (1, 0)
    (calculation,) = calculations.find()
    assert numbers(calculation) == numbers(record)
    assert calculation["provenance"]["inputs"] == ["s-1", "k-stage-two", *record["jobs"]]
    assert calculation["output_structure_id"]
    runs = len(list((vasp / "dft" / "s-1").glob("*relax*")))
    assert numbers(measure(COPPER)) == numbers(record)  # everything was done
    assert len(list((vasp / "dft" / "s-1").glob("*relax*"))) == runs
    assert (ingest_outputs().found, ingest_outputs().inserted, calculations.count_documents({})) == (2, 0, 1)

    assert "local part" not in str(list(embedded_connection.db["outputs"].find()))  # no POTCAR is stored


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "killed"),
        ("memory", "out_of_memory"),
        ("truncated", "truncated_output"),
        ("unconverged", "electronic_nonconvergence"),
    ],
)
def test_each_failure_has_its_reason(
    embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str
) -> None:
    monkeypatch.setenv(testing_vasp.FAIL_VARIABLE, f"{how}/relax")
    record = measure(COPPER)
    assert (record["state"], record["reason"]) == ("failed", reason), record["error"]
    assert record["error"].startswith("tight relax 1: ")
    assert embedded_connection.db["outputs"].count_documents({}) == 0
    if how == "unconverged":  # custodian tried what it knows
        (folder,) = (vasp / "dft" / "s-1").iterdir()
        (run,) = json.loads((folder / "custodian.json").read_text())
        changed = [action["action"]["_set"] for c in run["corrections"] for action in c["actions"] or []]
        assert [c.get("ALGO") for c in changed][:2] == ["Normal", "All"]


def test_a_worker_where_vasp_does_not_start_blames_no_candidate(embedded_connection: Connection, vasp: Path) -> None:
    broken = "vasp_std: error while loading shared libraries: libmkl.so.2: cannot open shared object file"
    program = vasp.parent / "bin" / "vasp_std"
    program.write_text(f"#!/bin/sh\necho '{broken}' >&2\nexit 127\n")
    with pytest.raises(RuntimeError, match=f"VASP does not start on this worker: {broken}"):
        measure(COPPER)
    program.write_text("no program")
    with pytest.raises(RuntimeError, match=r"VASP does not start on this worker: .*Exec format error"):
        measure(COPPER)


def test_a_potcar_that_one_element_lacks_is_no_fault_of_the_crystal(
    embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymatgen.core import SETTINGS

    from inv_design.screening.retries import PASSING

    folder = testing_vasp.write_potcars(vasp / "others", ["Al"])
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(folder))
    record = measure(COPPER)
    assert (record["state"], record["reason"]) == ("failed", "not_available")
    assert record["reason"] in PASSING
    assert "symbol='Cu'" in record["error"]
    monkeypatch.setattr(Vasp, "require", lambda _: None)  # the file system went after it was looked at
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", "/not/mounted")
    with pytest.raises(RuntimeError, match="no POTCARs of PBE_54 on this worker: /not/mounted"):
        measure(COPPER)


SLOW = """#!{python}
import contextlib, io, sys, time
from pathlib import Path
from inv_design import testing_vasp as vasp, testing_vasp_files as files

def record(run, atoms, plain=vasp.record):
    plain(run, atoms)
    with contextlib.redirect_stdout(io.StringIO()):
        files.write_outputs(Path(), run, complete=False)
    time.sleep(1.5)

vasp.record = record
sys.exit(vasp.main())
"""


def test_a_run_that_slurms_limit_stopped_is_no_result(
    embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import time

    from fireworks_specs.backends import vasp as backend

    monkeypatch.setattr(backend, "POLLING", {"polling_time_step": 1, "monitor_freq": 1})
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 200))
    (vasp.parent / "bin" / "vasp_std").write_text(SLOW.format(python=sys.executable))
    record = measure(GOLD_COPPER)
    assert (record["state"], record["reason"]) == ("failed", "out_of_time"), record["error"]
    assert record["error"] == "tight relax 1: VASP was stopped before the job's wall time was over"
    assert embedded_connection.db["outputs"].count_documents({}) == 0
    (folder,) = (vasp / "dft" / "s-1").iterdir()
    assert FINISHED in (folder / "OUTCAR").read_text()  # it ended well, and has converged nothing


def test_a_run_that_ends_shortly_before_slurms_limit_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks_specs.backends.vasp_walltime import StopBeforeWalltime

    monkeypatch.setenv(testing_vasp.CALCULATOR_VARIABLE, "emt")
    monkeypatch.delenv("CUSTODIAN_WALLTIME_START", raising=False)
    folder = folder_of(tmp_path, COPPER, ISIF=3, NSW=60, IBRION=2, EDIFFG=-0.01, NELM=40)
    assert testing_vasp.main(folder) == 0
    limit = StopBeforeWalltime(wall_time=100)
    assert not limit.check(str(folder))
    outcar = (folder / "OUTCAR").read_text()
    (folder / "OUTCAR").write_text(outcar.replace(CONVERGED, ""))
    assert limit.check(str(folder))


@pytest.mark.parametrize("handler", WALLTIME)
def test_runs_that_were_stopped_are_not_taken_over(handler: str) -> None:
    from types import SimpleNamespace

    from jobflow import JobStore, job
    from maggma.stores import MemoryStore

    from fireworks_specs.flows import adopt

    store = JobStore(MemoryStore())
    store.connect()
    cut = [{"corrections": [{"handler": {"@class": handler}, "errors": ["Walltime reached"], "actions": None}]}]
    whole = [{"corrections": [{"handler": {"@class": "VaspErrorHandler"}, "errors": ["zbrent"], "actions": None}]}]
    for number, custodian in enumerate((cut, whole)):
        document = {"uuid": f"u-{number}", "index": 1, "completed_at": str(number), "metadata": {"work": f"w-{number}"}}
        store.docs_store.update(document | {"output": {"state": "successful", "custodian": custodian}})
    following = job(len)("")
    assert adopt(following, "w-0", store) is None
    assert adopt(following, "w-1", store)["state"] == "successful"
    run = SimpleNamespace(calcs_reversed=[{}], task_label="tight relax 1", custodian=[SimpleNamespace(**cut[0])])
    assert is_cut(run)
    record = Vasp().record([run])
    assert (record["state"], record["reason"]) == ("failed", "out_of_time")
    assert record["error"] == "tight relax 1: stopped before the job's wall time was over"
    assert not is_cut(SimpleNamespace(custodian=[SimpleNamespace(**whole[0])]))


@pytest.mark.parametrize(
    ("cause", "said", "reason"),
    [
        (OSError(28, "No space left on device"), None, "not_available"),
        (ReturnCodeError("return code 1"), "forrtl: error during write, Disk quota exceeded", "not_available"),
        (ReturnCodeError("return code 1"), "forrtl: severe (174): SIGSEGV", "killed"),
        (MemoryError("Cannot allocate"), None, "out_of_memory"),
    ],
)  # fmt: skip
def test_the_reason_is_told_by_what_was_said(tmp_path: Path, cause: Exception, said: str | None, reason: str) -> None:
    if said is not None:
        for name, text in (("INCAR", "NSW = 1"), ("vasp.out", ""), ("std_err.txt", said), ("OUTCAR", "vasp.6")):
            (tmp_path / name).write_text(text)
        os.utime(tmp_path / "INCAR", (1, 1))
    assert failure_of(failed_job(tmp_path, cause))[0] == reason


def test_the_outcar_of_the_job_before_is_no_start(tmp_path: Path) -> None:
    for name, text in (("OUTCAR", FINISHED), ("INCAR", "NSW = 1"), ("vasp.out", ""), ("std_err.txt", "node is down")):
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "OUTCAR", (1, 1))
    with pytest.raises(RuntimeError, match="does not start on this worker: node is down"):
        failure_of(failed_job(tmp_path, ReturnCodeError("return code 1")))


def failed_job(folder: Path, cause: Exception) -> JobFailed:
    error = JobFailed("tight relax 1", folder)
    error.__cause__ = cause
    return error


def test_an_interrupt_ends_vasp_too(
    embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal
    import threading
    import time

    import psutil

    running: list[psutil.Process] = []

    def interrupt() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            running[:] = [p for p in psutil.Process().children(recursive=True) if "testing_vasp" in str(p.cmdline())]
            if running:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.2)

    monkeypatch.setenv(testing_vasp.SLEEP_VARIABLE, "300")
    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            measure(COPPER)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert running
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)


def test_a_cell_that_is_no_crystal_is_not_computed(embedded_connection: Connection, vasp: Path) -> None:
    record = measure(Structure(Lattice.cubic(3.0), ["Cu", "Au"], [[0, 0, 0], [0, 0, 0.1]]))
    assert (record["state"], record["reason"]) == ("failed", "unphysical")
    assert not (vasp / "dft").exists()

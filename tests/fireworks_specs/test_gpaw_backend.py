"""The gpaw backend without GPAW: settings, grids, kept results, failures, and flows with EMT in its place."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st
from jobflow import Flow
from pymatgen.core import Lattice, Structure

from fireworks_specs.backends import get_backend
from inv_design.calculators import gpaw_calculator, gpaw_settings
from inv_design.calculators.gpaw_calculator import GpawCalculator, GpawProcess, last_iterations
from inv_design.calculators.gpaw_settings import is_magnetic, k_grid, starting_moments
from inv_design.config import CampaignConfig, DftConfig, GpawConfig

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

    from stores.connection import Connection

ALUMINIUM = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.95), ["Al"], [[0, 0, 0]])
CHEAP = GpawConfig(cutoff=300, k_density=3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to compute in and to keep results in, and versions although GPAW may not be installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpaw_calculator, "gpaw_versions", lambda: {"version": "26.7.0", "setups": "1.2.1"})
    return tmp_path


@pytest.fixture
def emt(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """EMT in GPAW's place; returns the settings of what was computed, one per crystal."""
    from ase.calculators.emt import EMT

    computed: list[dict[str, Any]] = []

    def compute(self: GpawCalculator, atoms: Atoms, settings: dict[str, Any]) -> dict[str, Any]:
        computed.append(settings)
        crystal = atoms.copy()
        crystal.calc = EMT()
        results = {
            "energy": float(crystal.get_potential_energy()),
            "free_energy": float(crystal.get_potential_energy()),
            "forces": crystal.get_forces().tolist(),
            "stress": crystal.get_stress().tolist(),
            "iterations": 1,
            "seconds": 0.0,
        }
        return results | ({"magmoms": [0.0] * len(atoms), "magmom": 0.0} if settings["spinpol"] else {})

    monkeypatch.setattr(GpawCalculator, "_compute", compute)
    return computed


def campaign(**gpaw: Any) -> CampaignConfig:
    stage = DftConfig(backend="gpaw", gpaw=GpawConfig(**gpaw))
    return CampaignConfig(name="c", targets={"bulk_modulus_vrh": "350 GPa"}, stages={"dft": stage.model_dump()})


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_json_and_those_of_the_configuration() -> None:
    settings = GpawCalculator(GpawConfig()).settings(bulk("NiAl", "cesiumchloride", a=2.89))
    assert json.loads(json.dumps(settings)) == settings
    assert settings["mode"]["ecut"] >= 550
    assert settings["kpts"] == {"size": [16, 16, 16], "gamma": True}
    assert settings["occupations"] == {"name": "marzari-vanderbilt", "width": 0.3}
    assert settings["symmetry"] == {"symmorphic": False}
    assert settings["spinpol"] is True  # nickel


@given(a=st.floats(2.0, 12.0), density=st.floats(0.5, 12.0))
def test_a_grid_is_as_dense_as_asked_and_equal_along_equal_axes(a: float, density: float) -> None:
    atoms = bulk("Al", "fcc", a=a)
    size = k_grid(atoms, density)
    axes = 2 * np.pi * np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    assert len(set(size)) == 1
    assert (np.array(size) >= axes * density * (1 - 1e-6)).all()
    assert (np.array(size) - 1 < axes * density).all()


@pytest.mark.parametrize(
    ("symbols", "spin", "expected"),
    [
        (["Al", "Ti"], "auto", False),
        (["Al", "Ni"], "auto", True),
        (["Gd"], "auto", True),
        (["Fe"], "off", False),
        (["Al"], "on", True),
    ],
)
def test_spin_goes_by_the_elements_unless_told(symbols: list[str], spin: str, expected: bool) -> None:
    assert is_magnetic(symbols, spin) is expected
    assert all(moment > 0 for moment in starting_moments(symbols))


def test_protocols_tell_settings_apart_but_not_ranks() -> None:
    from stores.protocol import protocol_id

    pytest.importorskip("gpaw")

    def identity(**gpaw: Any) -> str:
        return protocol_id(get_backend("gpaw").protocol(campaign(**gpaw)))

    assert identity() == identity(ranks=2)
    assert (
        len({identity(), identity(cutoff=600), identity(k_density=8), identity(kind="eos"), identity(spin="on")}) == 5
    )


def test_the_kind_is_that_of_the_configuration() -> None:
    assert get_backend(campaign(kind="eos").stages.dft).kind == "eos"
    assert get_backend(campaign().stages.dft).kind == "elastic"


# -- flows ------------------------------------------------------------------------------------------------------------


def test_an_elastic_flow_becomes_a_record_with_frames(emt: list[dict[str, Any]]) -> None:
    from inv_design.calculators.frames import frames_of_calculation

    pytest.importorskip("gpaw")
    config = campaign(k_density=3, cutoff=300)
    ((index, record),) = list(get_backend(config.stages.dft).compute([ALUMINIUM], config))
    assert (index, record["state"], record["error"]) == (0, "completed", None)
    results = record["results"]
    assert results["bulk_modulus_vrh"] == pytest.approx(39.5, abs=2.0)  # ASE's EMT aluminium, from E(V)
    assert results["born_stable"] is True
    assert np.shape(results["elastic_tensor"]) == (6, 6)
    assert results["volume_change"] == pytest.approx((3.995 / 3.95) ** 3 - 1, abs=0.01)
    # a cell of one atom, one grid for all that is strained, and the six strains that symmetry leaves
    assert Structure.from_dict(record["structure"]).num_sites == 1
    grids = [tuple(settings["kpts"]["size"]) for settings in emt]
    assert len(set(grids[-6:])) == 1
    json.dumps(results)
    crystal = Structure.from_dict(record["structure"])
    frames = frames_of_calculation({"calculation_id": "k", "protocol_id": "p", "results": results}, crystal)
    assert len(frames) == len(emt)
    # the first frame lies below the equilibrium volume: compressed, so that its stress is negative
    assert frames[0].known_pressure > 1.0
    strained = frames[-1]
    assert strained.stress is not None
    assert strained.stress.shape == (3, 3)


def test_an_equation_of_state_becomes_a_record(emt: list[dict[str, Any]]) -> None:
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.eos import equation_of_state

    pytest.importorskip("gpaw")
    config = campaign(kind="eos", k_density=3)
    ((_, record),) = list(get_backend(config.stages.dft).compute([ALUMINIUM], config))
    results = record["results"]
    assert record["state"] == "completed", record["error"]
    # what this package's own E(V) gives for the relaxed crystal over the same volumes
    own = equation_of_state(Structure.from_dict(record["structure"]), get_calculator("emt"), strain=0.04)
    assert results["bulk_modulus_vrh"] == pytest.approx(own.bulk_modulus, rel=1e-6)
    assert len(results["volumes"]) == len(results["energies"]) == 7
    assert results["volumes"] == sorted(results["volumes"])
    assert results["frames"]


def test_strained_cells_of_a_crystal_that_has_no_moment_are_computed_without_spin(emt: list[dict[str, Any]]) -> None:
    from fireworks_specs.backends.gpaw import measure

    nickel = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.5), ["Ni"], [[0, 0, 0]])
    record = measure(nickel, DftConfig(backend="gpaw", gpaw=CHEAP))
    assert record["state"] == "completed", record["error"]
    spins = [settings["spinpol"] for settings in emt]
    assert spins == [True] + [False] * (len(spins) - 1)


@pytest.mark.parametrize(("lost_below", "magnetic"), [(10.3, True), (12.0, False)])
def test_the_volumes_of_a_point_have_spin_if_the_crystal_has_a_moment(
    lost_below: float, magnetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dft converge` begins with the smallest volume, where the moment is gone: K without it is 1.5 times as large."""
    from fireworks_specs.backends.gpaw import measure_point

    def compute(self: GpawCalculator, atoms: Atoms, settings: dict[str, Any]) -> dict[str, Any]:
        n, volume = len(atoms), atoms.get_volume() / len(atoms)
        moment = max(0.0, volume - lost_below) if settings["spinpol"] else 0.0
        results = {"energy": n * (0.057 * (volume - 11.0) ** 2 - 0.02 * moment**2), "stress": [0.0] * 6}
        results |= {"forces": np.zeros((n, 3)).tolist(), "iterations": 1, "seconds": 1.0}
        return results | ({"magmom": n * moment, "magmoms": [moment] * n} if settings["spinpol"] else {})

    monkeypatch.setattr(GpawCalculator, "_compute", compute)
    nickel = Structure.from_spacegroup("Fm-3m", Lattice.cubic((4 * 11.3) ** (1 / 3)), ["Ni"], [[0, 0, 0]])
    found = {s: measure_point(nickel, CHEAP.model_copy(update={"spin": s}), 300, 3) for s in ("auto", "on", "off")}
    assert found["auto"] == found["on" if magnetic else "off"]
    if magnetic:
        assert found["off"].bulk_modulus > 1.2 * found["on"].bulk_modulus


def test_a_grid_follows_a_cell_that_relaxes_a_lot(emt: list[dict[str, Any]]) -> None:
    from fireworks_specs.backends.gpaw import measure

    swollen = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.4), ["Al"], [[0, 0, 0]])
    stage = DftConfig(backend="gpaw", gpaw=GpawConfig(cutoff=300, k_density=7))
    record = measure(swollen, stage)
    relaxed = Structure.from_dict(record["structure"]).to_ase_atoms()
    assert emt[0]["kpts"]["size"] != emt[-1]["kpts"]["size"]
    assert emt[-1]["kpts"]["size"] == k_grid(relaxed, 7)


def test_what_is_finished_is_not_computed_again(emt: list[dict[str, Any]], here: Path) -> None:
    from fireworks_specs.backends.gpaw import measure

    stage = DftConfig(backend="gpaw", gpaw=CHEAP)
    first = measure(ALUMINIUM, stage)
    count = len(emt)
    files = sorted((here / "cache" / "inv_design" / "gpaw").iterdir())
    assert len(files) == count
    again = measure(ALUMINIUM, stage)
    assert len(emt) == count
    assert again["results"] == first["results"]
    files[0].write_text(files[0].read_text()[:40])  # a disk that was full
    assert measure(ALUMINIUM, stage)["results"] == first["results"]
    assert len(emt) == count + 1


@pytest.mark.parametrize("kind", ["elastic", "eos"])
def test_the_firetask_inserts_one_calculation_of_the_configured_kind(
    kind: str, emt: list[dict[str, Any]], embedded_connection: Connection
) -> None:
    from fireworks_specs.firetasks.dft import DftTask
    from stores.provenance import provenance
    from stores.records import insert_campaign, insert_structure

    pytest.importorskip("gpaw")
    config = campaign(kind=kind, cutoff=300, k_density=3)
    insert_campaign("c", config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    identity = insert_structure(ALUMINIUM, {"kind": "ingested", "id": "test"}, provenance())
    for _ in range(2):
        DftTask(campaign="c", round=0, structure_ids=[identity]).work()
    (record,) = embedded_connection.db["calculations"].find()
    assert (record["kind"], record["method"], record["state"]) == (kind, "gpaw", "completed"), record["error"]
    assert record["protocol"]["kind"] == kind
    assert record["results"]["frames"]
    assert identity in record["provenance"]["inputs"]
    uuids = set(embedded_connection.db["outputs"].distinct("uuid"))
    assert uuids & set(record["provenance"]["inputs"])


def test_what_was_finished_but_not_inserted_is_ingested(
    emt: list[dict[str, Any]], embedded_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A firework that is killed between its flow and its record; nobody computes or warns of it again."""
    from fireworks_specs.backends.gpaw import measure
    from fireworks_specs.ingestion import Ingested, ingest_outputs
    from stores.protocol import protocol_id
    from stores.provenance import provenance
    from stores.records import insert_structure

    identity = insert_structure(ALUMINIUM, {"kind": "ingested", "id": "test"}, provenance())
    protocol = {"code": "gpaw"}
    tag = {
        "campaign": "c", "structure_id": identity, "inputs": [identity], "protocol_id": protocol_id(protocol),
        "kind": "elastic", "method": "gpaw", "protocol": protocol,
    }  # fmt: skip
    record = measure(ALUMINIUM, DftConfig(backend="gpaw", gpaw=CHEAP), tag=tag)
    assert record["state"] == "completed", record["error"]
    assert ingest_outputs() == Ingested(found=1, inserted=1, unreadable=0)
    assert ingest_outputs() == Ingested(found=1, inserted=0, unreadable=0)
    assert not [r for r in caplog.records if r.name == "fireworks_specs.ingestion"]
    (calculation,) = embedded_connection.db["calculations"].find()
    assert (calculation["kind"], calculation["method"], calculation["state"]) == ("elastic", "gpaw", "completed")
    results = {name: value for name, value in record["results"].items() if name != "volume_change"}
    assert calculation["results"].keys() == results.keys()
    assert calculation["results"]["bulk_modulus_vrh"] == pytest.approx(results["bulk_modulus_vrh"])
    assert calculation["results"]["energy_per_atom"] == pytest.approx(results["energy_per_atom"])
    assert len(calculation["results"]["frames"]) == len(results["frames"])


def test_a_finished_equation_of_state_is_adopted_by_the_next_attempt(
    emt: list[dict[str, Any]],
    embedded_connection: Connection,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from fireworks_specs.backends.gpaw import measure
    from fireworks_specs.ingestion import Ingested, ingest_outputs

    stage = DftConfig(backend="gpaw", gpaw=CHEAP.model_copy(update={"kind": "eos"}))
    tag = {"structure_id": "s-1", "inputs": ["s-1"], "protocol_id": "p-1", "kind": "eos", "method": "gpaw"}
    measure(ALUMINIUM, stage, tag=tag)
    count = len(emt)
    assert ingest_outputs() == Ingested()
    assert not [r for r in caplog.records if r.name == "fireworks_specs.ingestion"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "elsewhere"))
    assert measure(ALUMINIUM, stage, tag=tag)["state"] == "completed"
    assert len(emt) == count


@pytest.mark.parametrize(
    "calculator", ["m-0123456789abcdef", "nowhere/alloys.safetensors", "no_such_package:calculator"]
)
def test_a_worker_without_the_weights_of_stage_two_starts_from_what_they_relaxed(
    calculator: str, embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks_specs.backends.gpaw import Gpaw
    from fireworks_specs.firetasks.dft import DftTask
    from inv_design.mechanics.stages import failed
    from stores.protocol import protocol_id
    from stores.provenance import provenance
    from stores.records import insert_calculation, insert_campaign, insert_structure

    config = campaign(kind="eos")
    config.stages.mlip.calculator = calculator
    insert_campaign("c", config.model_dump(mode="json"), targets=config.targets, provenance=provenance())
    identity = insert_structure(ALUMINIUM, {"kind": "ingested", "id": "test"}, provenance())
    name = calculator.rpartition("/")[2]
    for number, by in enumerate((name, "chgnet")):  # the newest one is another potential's
        relaxed = ALUMINIUM.copy()
        relaxed.scale_lattice(ALUMINIUM.volume * (1.02 + number / 10))
        protocol = {"stage": "mlip", "calculator": {"calculator": by, "weights_sha256": "0" * 64}}
        insert_calculation(
            structure_id=identity, kind="elastic", method="mlip", protocol_id=protocol_id(protocol), protocol=protocol,
            state="completed", results={}, provenance=provenance(),
            output_structure_id=insert_structure(relaxed, {"kind": "relaxed", "id": identity}, provenance()),
        )  # fmt: skip
    started: list[Structure] = []

    def compute(self: Gpaw, structures: list[Structure], *_: Any, **__: Any) -> Any:
        started.extend(structures)
        yield 0, failed("it came to the DFT")

    monkeypatch.setattr(gpaw_settings, "gpaw_versions", lambda: {"version": "26.7.0", "setups": "1.2.1"})
    monkeypatch.setattr(Gpaw, "compute", compute)
    DftTask(campaign="c", round=0, structure_ids=[identity]).work()
    assert [crystal.volume for crystal in started] == [pytest.approx(1.02 * ALUMINIUM.volume)]


@pytest.mark.parametrize("kind", ["elastic", "eos"])
def test_a_job_that_the_database_has_is_not_run_again(
    kind: str, emt: list[dict[str, Any]], embedded_connection: Connection, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, without the files that this one kept: the campaign's JobStore is enough."""
    from fireworks_specs.backends.gpaw import measure

    stage = DftConfig(backend="gpaw", gpaw=CHEAP.model_copy(update={"kind": kind}))
    tag = {"campaign": "c", "structure_id": "s-1", "protocol_id": "p-1"}
    first = measure(ALUMINIUM, stage, tag=tag)
    assert first["state"] == "completed", first["error"]
    outputs = list(embedded_connection.db["outputs"].find())
    assert {document["metadata"]["structure_id"] for document in outputs} == {"s-1"}
    assert set(first["jobs"]) == {document["uuid"] for document in outputs}
    count = len(emt)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "elsewhere"))
    again = measure(ALUMINIUM, stage, tag=tag)
    assert len(emt) == count
    assert again["results"] == first["results"]


def test_results_of_other_settings_or_crystals_are_others(emt: list[dict[str, Any]]) -> None:
    atoms = bulk("Al", "fcc", a=4.0)
    for config in (CHEAP, CHEAP.model_copy(update={"cutoff": 400}), CHEAP.model_copy(update={"ranks": 2})):
        crystal = atoms.copy()
        crystal.calc = GpawCalculator(config)
        crystal.get_potential_energy()
    assert len(emt) == 2  # on how many ranks makes no difference
    crystal.set_cell(crystal.cell.array * 1.0001, scale_atoms=True)
    crystal.get_potential_energy()
    assert len(emt) == 3


# -- failures ---------------------------------------------------------------------------------------------------------


ANSWERS = """
import os, pickle, sys
i, o = sys.stdin.buffer, sys.stdout.buffer
[pickle.load(i) for _ in range(3)]  # the calculator, and a function that is called to see that it runs
pickle.dump(("return", 0), o)
o.flush()
[pickle.load(i) for _ in range(2)]  # what to compute
"""


def replace_gpaw(monkeypatch: pytest.MonkeyPatch, program: str, argv: list[str] | None = None) -> None:
    """Let a Python program, or ``argv``, run in GPAW's place."""

    def init(self: Any, ranks: int, errors: Path) -> None:
        self.argv, self.errors, self.process = argv or [sys.executable, "-c", program], errors, None

    monkeypatch.setattr(gpaw_calculator.GpawCommand, "__init__", init)


@pytest.mark.parametrize(
    ("program", "kind", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", ChildProcessError, "killed"),
        ("import os; os.kill(os.getpid(), 15)", TimeoutError, "out_of_time"),
        ("import sys; sys.exit('MemoryError: 3 GB')", MemoryError, "out_of_memory"),
        ("import sys; sys.exit('there is only [Errno 28] No space left on device')", RuntimeError, "not_available"),
        ("import sys; sys.exit('Segmentation fault')", RuntimeError, "error"),
    ],
)
def test_a_process_that_dies_is_an_error_with_its_cause(
    program: str, kind: type[Exception], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks_specs.backends.gpaw import measure

    replace_gpaw(monkeypatch, ANSWERS + program)
    process = GpawProcess({}, ranks=1)
    with pytest.raises(kind):
        process.results(bulk("Al"), ["energy"])
    process.close()
    record = measure(ALUMINIUM, DftConfig(backend="gpaw", gpaw=CHEAP))
    assert (record["state"], record["reason"]) == ("failed", reason)
    assert "GPAW" in record["error"]


def test_an_error_of_the_system_in_gpaw_is_not_a_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from fireworks_specs.backends.gpaw import measure

    full = "pickle.dump(('raise', OSError(28, 'No space left on device')), o); o.flush(); pickle.load(i)"
    replace_gpaw(monkeypatch, ANSWERS + full)
    record = measure(ALUMINIUM, DftConfig(backend="gpaw", gpaw=CHEAP))
    assert (record["state"], record["reason"]) == ("failed", "not_available")
    assert "No space left" in record["error"]
    assert "exit code" not in record["error"]


@pytest.mark.parametrize(
    "argv", [[sys.executable, "-c", "import sys; sys.exit('not enough slots available')"], ["/no/such/mpiexec"]]
)
def test_what_ends_before_gpaw_begins_blames_no_candidate(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fireworks_specs.backends.gpaw import measure

    replace_gpaw(monkeypatch, "", argv)
    with pytest.raises(RuntimeError, match=r"GPAW did not start.*(not enough slots|/no/such/mpiexec)"):
        measure(ALUMINIUM, DftConfig(backend="gpaw", gpaw=CHEAP))


def test_what_does_not_converge_is_tried_in_small_steps_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from fireworks_specs.backends.gpaw import measure

    asked: list[dict[str, Any]] = []

    def never(self: GpawProcess, atoms: Atoms, properties: list[str]) -> dict[str, Any]:
        asked.append(self.settings)
        raise ArithmeticError("the electrons did not converge in 120 iterations")

    monkeypatch.setattr(GpawProcess, "results", never)
    record = measure(ALUMINIUM, DftConfig(backend="gpaw", gpaw=CHEAP))
    assert (record["state"], record["reason"]) == ("failed", "electronic_nonconvergence")
    assert [settings["mixer"]["beta"] for settings in asked if "mixer" in settings] == [0.02]
    assert len(asked) == 2


def test_a_relaxation_without_end_is_a_failure(emt: list[dict[str, Any]]) -> None:
    from fireworks_specs.backends import gpaw_makers
    from fireworks_specs.backends.gpaw import job_store, run
    from fireworks_specs.flows import JobFailed

    swollen = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.4), ["Al"], [[0, 0, 0]])
    maker = gpaw_makers.GpawRelaxMaker(
        steps=2, calculator_kwargs={"config": CHEAP.model_dump(), "size": None, "spinpol": None}
    )
    with pytest.raises(JobFailed) as failure:
        run(Flow([maker.make(swollen)]), job_store(), {})
    assert "did not converge" in str(failure.value.__cause__)


def test_a_worker_without_gpaw_blames_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(RuntimeError, match=r"libxc.*\[gpaw\]"):
        list(get_backend("gpaw").compute([ALUMINIUM], campaign()))
    with pytest.raises(RuntimeError, match="gpaw"):
        gpaw_settings.gpaw_versions()


def test_ranks_without_mpi_are_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"Open MPI.*INV_DESIGN_GPAW_RANKS=1"):
        gpaw_calculator.mpi_launcher()
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))  # noqa: PTH120
    monkeypatch.setenv("INV_DESIGN_MPIEXEC", os.path.basename(sys.executable) + " --mpi=pmix")  # noqa: PTH119
    assert gpaw_calculator.mpi_launcher()[1:] == ["--mpi=pmix"]


def test_a_worker_may_say_how_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GpawConfig(ranks=2)
    assert gpaw_calculator.ranks_of(config) == 2
    monkeypatch.setenv("INV_DESIGN_GPAW_RANKS", "16")
    assert gpaw_calculator.ranks_of(config) == 16
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("INV_DESIGN_GPAW_RANKS", wrong)
        with pytest.raises(RuntimeError, match=rf"INV_DESIGN_GPAW_RANKS is '{wrong}'.*at least 1"):
            gpaw_calculator.ranks_of(config)


def test_iterations_are_read_from_a_log(here: Path) -> None:
    log = here / "gpaw.txt"
    assert last_iterations(log) is None
    log.write_text("|iter:   1| 23:37:07 |  -3.7 |\n|iter:  12| 23:37:08 |   -3.733057c|\n\nConverged\n")
    assert last_iterations(log) == 12

"""Stage-III backends: their protocols, VASP's inputs, and an atomate2 flow read into a record."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs.backends import get_backend
from inv_design.config import CampaignConfig

CONFIG = CampaignConfig(name="c", targets={"bulk_modulus_vrh": "350 GPa"})
ALUMINIUM = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.99), ["Al"], [[0, 0, 0]]).get_primitive_structure()


def test_vasp_inputs_are_the_papers_settings() -> None:
    backend = get_backend("vasp")
    maker = backend.maker()  # type: ignore[attr-defined]
    for job in (maker.bulk_relax_maker.relax_maker1, maker.bulk_relax_maker.relax_maker2, maker.elastic_relax_maker):
        inputs = job.input_set_generator.get_input_set(ALUMINIUM, potcar_spec=True)
        incar = inputs["INCAR"]
        assert (incar["ENCUT"], incar["EDIFF"], incar["EDIFFG"], incar["KSPACING"]) == (700, 1e-8, -0.01, 0.1)
        assert incar["GGA"].upper() == "PE"
        assert inputs.get("KPOINTS") is None
    assert maker.elastic_relax_maker.input_set_generator.user_incar_settings["ISIF"] == 2


def test_a_worker_without_vasp_blames_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="VASP_CMD"):
        list(get_backend("vasp").compute([ALUMINIUM], CONFIG))


def test_an_unknown_backend_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        get_backend("espresso")


def test_protocols_tell_backends_and_settings_apart() -> None:
    from stores.protocol import protocol_id

    other = CONFIG.model_copy(deep=True)
    other.stages.dft.strain = 0.03
    ids = {
        protocol_id(get_backend("surrogate").protocol(CONFIG)),
        protocol_id(get_backend("surrogate").protocol(other)),
        protocol_id(get_backend("vasp").protocol(CONFIG)),
    }
    assert len(ids) == 3


def test_an_atomate2_flow_becomes_a_record(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VASP's flow with EMT in its place: jobs, store, elastic document and Born verdict are real."""
    from atomate2.forcefields.flows.elastic import ElasticMaker

    from fireworks_specs.backends.atomate import run_elastic_flow

    monkeypatch.chdir(tmp_path)
    emt = {"@module": "ase.calculators.emt", "@callable": "EMT"}
    record = run_elastic_flow(ElasticMaker.from_force_field_name(emt), ALUMINIUM)
    assert record["state"] == "completed", record["error"]
    # ASE's EMT aluminium: K of E(V) is 39-40 GPa
    assert record["results"]["bulk_modulus_vrh"] == pytest.approx(39.5, abs=3.0)
    assert record["results"]["born_stable"] is True
    assert record["structure"]["lattice"]["volume"] > 10


def test_a_flow_that_fails_is_a_record(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomate2.forcefields.flows.elastic import ElasticMaker

    from fireworks_specs.backends.atomate import run_elastic_flow

    monkeypatch.chdir(tmp_path)
    tungsten = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.2), ["W"], [[0, 0, 0]])
    emt = {"@module": "ase.calculators.emt", "@callable": "EMT"}  # knows no tungsten
    record = run_elastic_flow(ElasticMaker.from_force_field_name(emt), tungsten)
    assert record["state"] == "failed"
    assert record["error"]

"""Stage-III backends: their protocols, and an atomate2 flow read into a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pymatgen.core import Lattice, Structure

from fireworks_specs.backends import get_backend
from inv_design.config import CampaignConfig

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

CONFIG = CampaignConfig(name="c", targets={"bulk_modulus_vrh": "350 GPa"})
ALUMINIUM = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.99), ["Al"], [[0, 0, 0]]).get_primitive_structure()


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


def test_an_atomate2_flow_becomes_a_record(
    embedded_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_flow_that_fails_is_a_record(
    embedded_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atomate2.forcefields.flows.elastic import ElasticMaker

    from fireworks_specs.backends.atomate import AtomateElastic

    emt = {"@module": "ase.calculators.emt", "@callable": "EMT"}  # knows no tungsten

    class Emt(AtomateElastic):
        def maker(self) -> ElasticMaker:
            return ElasticMaker.from_force_field_name(emt)

        def require(self) -> None: ...

    monkeypatch.chdir(tmp_path)
    tungsten = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.2), ["W"], [[0, 0, 0]])
    ((index, record),) = Emt().compute([tungsten], CONFIG)
    assert (index, record["state"], record["reason"]) == (0, "failed", "error")
    assert "NotImplementedError" in record["error"]

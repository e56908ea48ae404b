"""The vasp backend: atomate2's elastic flow with the settings of Li et al. 2025 (section II C 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fireworks_specs.backends.atomate import AtomateElastic

if TYPE_CHECKING:
    from atomate2.vasp.flows.elastic import ElasticMaker

INCAR = {"GGA": "PE", "ENCUT": 700, "EDIFF": 1e-8, "EDIFFG": -0.01, "KSPACING": 0.1, "LREAL": False}
"""PBE, 700 eV, 1e-5 meV between electronic steps, 0.01 eV/Å, k points 0.1 1/Å apart."""


class Vasp(AtomateElastic):
    """VASP through custodian; the worker has VASP_CMD (atomate2's settings) and the user's own POTCARs."""

    method = "vasp"
    label = "DFT (VASP, PBE)"

    def maker(self) -> ElasticMaker:
        """Return the flow: tight relaxation twice, then 24 strains reduced by symmetry, ions relaxed."""
        from atomate2.vasp.flows.core import DoubleRelaxMaker
        from atomate2.vasp.flows.elastic import ElasticMaker
        from atomate2.vasp.jobs.core import TightRelaxMaker
        from atomate2.vasp.jobs.elastic import ElasticRelaxMaker
        from atomate2.vasp.powerups import update_user_incar_settings

        strained = ElasticRelaxMaker()
        strained.input_set_generator.user_kpoints_settings = {}  # KSPACING rules, as in the paper
        relaxed: Any = DoubleRelaxMaker.from_relax_maker(TightRelaxMaker())
        maker: Any = ElasticMaker(bulk_relax_maker=relaxed, elastic_relax_maker=strained)
        updated: ElasticMaker = update_user_incar_settings(maker, INCAR)
        return updated

    def settings(self) -> dict[str, Any]:
        """Return the INCAR updates; everything else is atomate2's, whose version is in the protocol."""
        return {"incar": dict(INCAR)}

    def require(self) -> None:
        """Raise RuntimeError unless VASP and the POTCARs are set up on this worker."""
        import shutil

        from atomate2 import SETTINGS
        from pymatgen.core import SETTINGS as PYMATGEN

        program = SETTINGS.VASP_CMD.split()[-1]
        if shutil.which(program) is None:
            raise RuntimeError(f"VASP_CMD is {SETTINGS.VASP_CMD!r}, but {program!r} is not on this worker's PATH")
        if not PYMATGEN.get("PMG_VASP_PSP_DIR"):
            raise RuntimeError("PMG_VASP_PSP_DIR is not set; run `pmg config -p` with your POTCARs")

"""A worker with VASP: the stand-in on its PATH, and what stands for POTCARs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")


@pytest.fixture
def vasp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set this process up as a worker that has VASP, with EMT for electrons; give its working directory."""
    from atomate2.vasp.sets.core import StaticSetGenerator
    from pymatgen.core import SETTINGS

    from inv_design import testing_vasp

    monkeypatch.setenv("PATH", f"{testing_vasp.install(tmp_path / 'bin').parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(testing_vasp.CALCULATOR_VARIABLE, "emt")
    monkeypatch.setenv(testing_vasp.STATE_VARIABLE, str(tmp_path / "met"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    symbols = StaticSetGenerator().config_dict["POTCAR"]
    potcars = testing_vasp.write_potcars(tmp_path / "potcars", [symbols[metal] for metal in METALS])
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(potcars))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work

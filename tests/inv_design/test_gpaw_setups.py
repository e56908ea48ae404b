"""GPAW's data sets: those of gpaw-data, whose version the protocol names, whatever the place would have it read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from inv_design.calculators.gpaw_calculator import GpawProcess
from inv_design.calculators.gpaw_settings import gpaw_settings
from inv_design.config import GpawConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_a_place_with_data_sets_of_its_own_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gpaw")
    packaged = pytest.importorskip("gpaw_data").datapath()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GPAW_SETUP_PATH", str(tmp_path / "module"))
    (tmp_path / ".gpaw").mkdir()
    (tmp_path / ".gpaw" / "rc.py").write_text(f"setup_paths.insert(0, {str(tmp_path / 'rc')!r})\n")
    process = GpawProcess(gpaw_settings(GpawConfig(), [1, 1, 1], spinpol=False), ranks=1)
    try:
        process._start()
        there: Any = process.calculator.protocol
        there.send("callfunction")
        there.send((eval, ("[str(path) for path in __import__('gpaw').setup_paths]",), {}))
        assert there.recv() == [str(packaged)]
    finally:
        process.close()

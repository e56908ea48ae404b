"""A loop learns from labels outside the range that its reference data were cut to."""

from __future__ import annotations

from typing import Any

from builders.training_set import distrust, passes_filter
from inv_design.config import DataConfig

HIDDEN = DataConfig(label_range=(0.0, 250.0))


def label(value: float) -> dict[str, Any]:
    return {"state": "completed", "results": {"bulk_modulus_vrh": value}, "flags": []}


def test_a_label_above_the_reference_range_is_learned_from_and_a_reference_is_not() -> None:
    structure = {"elements": ["Os", "W"], "nsites": 4}
    assert not passes_filter(label(350.0), structure, HIDDEN)
    assert passes_filter(label(240.0), structure, HIDDEN)
    assert distrust(label(350.0), HIDDEN) is None


def test_a_label_that_no_solid_has_is_not_learned_from() -> None:
    assert distrust(label(700.0), HIDDEN) == "label 700 GPa is outside (0, 500] GPa"
    assert distrust(label(-5.0), HIDDEN) == "label -5 GPa is outside (0, 500] GPa"
    assert distrust(label(600.0), DataConfig(label_range=(0.0, 800.0))) is None

"""A user's own labelled crystals from files: CIF, extxyz, csv or JSON records with properties."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from inv_design.datasets.mp_binaries import LabelledStructure

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("inv_design")


def load_labelled(path: str | Path, label: str = "bulk_modulus_vrh") -> list[LabelledStructure]:
    """Return the crystals of a file that carry a label; what cannot be read is logged and left out.

    Raises
    ------
    ValueError
        If no crystal of the file has the label.
    """
    from inv_design.structures.files import read_structures

    entries = []
    problems = []
    for item in read_structures(path):
        if item.structure is None or label not in item.properties:
            problems.append(item.error or f"{item.source} has no {label}")
            continue
        numbers = {k: v for k, v in item.properties.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        labels = {name: float(value) for name, value in numbers.items()}
        entries.append(LabelledStructure(item.structure, labels, item.source))
    for problem in problems[:20]:
        logger.warning("%s", problem)
    if not entries:
        first = problems[0] if problems else "the file is empty"
        raise ValueError(f"{path} holds no crystal with a {label} in GPa ({first}); add the column or key {label!r}")
    return entries

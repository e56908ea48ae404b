"""Forms: what makes two drafts likely the same crystal, and which forms a sampler passes over."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from inv_design.generators.property_model import count_elements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.generators.settings import ConCDVAESettings

Form = tuple[float, tuple[int, ...]]
"""A composition key, and number of sites, angles and cell shape on a coarse grid: what likely is the same crystal."""


def composition_keys(counts: np.ndarray) -> np.ndarray:
    """Return one number (n,) per composition, the same for the same fractions: a projection on irrational weights."""
    weights = np.sqrt(np.arange(counts.shape[1]) + 0.5) % 1.0
    keys: np.ndarray = np.round(counts @ weights / counts.sum(1), 10)
    return keys


def system_keys(counts: np.ndarray) -> np.ndarray:
    """Return one number (n,) per chemical system, the same for the same elements."""
    weights = np.sqrt(np.arange(counts.shape[1]) + 0.5) % 1.0
    keys: np.ndarray = np.round((counts > 0) @ weights, 10)
    return keys


def forms_of(numbers: np.ndarray, lengths: np.ndarray, angles: np.ndarray) -> list[Form]:
    """Return the forms of crystals: numbers (n, sites) padded with 0, lengths (n, 3) and angles (n, 3)."""
    keys = composition_keys(count_elements(numbers)).tolist()
    shape = np.log(lengths / lengths.prod(1, keepdims=True) ** (1 / 3)) / 0.1
    cells = np.column_stack([(numbers > 0).sum(1), np.rint(angles / 8.0), np.rint(shape)]).astype(int)
    return [(key, tuple(cell)) for key, cell in zip(keys, cells.tolist(), strict=True)]


class SeenForms:
    """Forms that a ``sample`` call passes over or puts last: of known crystals, and drawn before.

    They would cost a decoder call each and mostly give a known crystal again. ``avoided`` forms are passed over from
    the start: what a relaxation finds there is most likely the crystal to avoid, however the draft was distorted.
    """

    def __init__(self, known: Sequence[Form], settings: ConCDVAESettings, avoided: Sequence[Form] = ()) -> None:
        self.settings = settings
        self.forms = Counter(dict.fromkeys(known, 1))
        self.compositions = Counter({form[0]: 1 for form in known})
        self.refused: Counter[Form] = Counter(dict.fromkeys(avoided, settings.patience))
        self.strict = False

    def penalty(self, form: Form) -> float:
        """Return what is added to the cost of a draft: infinite if it is passed over."""
        if self.refused[form] >= self.settings.patience or (self.strict and self.forms[form]):
            return math.inf
        return self.settings.variety * (3 * self.forms[form] + self.compositions[form[0]])

    def choose(self, form: Form) -> None:
        """Note that a draft of this form is decoded."""
        self.forms[form] += self.settings.unique
        self.compositions[form[0]] += self.settings.unique

    def refuse(self, form: Form, reason: str) -> None:
        """Note that a decoded crystal was refused."""
        self.refused[form] += reason in ("known", "duplicate")

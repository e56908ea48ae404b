from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inv_design.mechanics.born import born_stable


def cubic(c11: float, c12: float, c44: float) -> np.ndarray:
    tensor = np.diag([c11 - c12] * 3 + [c44] * 3)
    tensor[:3, :3] += c12
    return tensor


@pytest.mark.parametrize(
    ("constants", "stable"),
    [
        ((168, 121, 75), True),  # copper, experiment
        ((100, 120, 75), False),  # C11 < C12: unstable against a tetragonal strain
        ((168, 121, -20), False),  # K_VRH looks fine, shear does not
        ((100, -60, 50), False),  # C11 + 2 C12 < 0: negative bulk modulus
        ((100, 100, 50), False),  # a zero eigenvalue is no stability
    ],
)
def test_cubic_conditions(constants: tuple[float, float, float], stable: bool) -> None:
    verdict, eigenvalues = born_stable(cubic(*constants))
    assert verdict is stable
    assert eigenvalues.shape == (6,)
    assert (np.diff(eigenvalues) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(-300, 500)] * 3))
def test_agrees_with_the_closed_form_of_mouhat_and_coudert(constants: tuple[float, float, float]) -> None:
    c11, c12, c44 = constants
    margins = (c11 - c12, c11 + 2 * c12, c44)
    if min(abs(m) for m in margins) > 1e-3:
        assert born_stable(cubic(c11, c12, c44))[0] == (min(margins) > 0)


def test_only_the_symmetric_part_counts() -> None:
    skew = np.zeros((6, 6))
    skew[0, 1], skew[1, 0] = 500, -500
    assert born_stable(cubic(168, 121, 75) + skew)[0]


@pytest.mark.parametrize("tensor", [np.eye(3), np.full((6, 6), np.nan)])
def test_refuses_what_is_no_tensor(tensor: np.ndarray) -> None:
    with pytest.raises(ValueError, match="elastic tensor"):
        born_stable(tensor)


def test_the_zero_tensor_is_not_stable() -> None:
    assert born_stable(np.zeros((6, 6)))[0] is False

"""Born stability: a crystal without load is stable against strain if its elastic tensor is positive definite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def born_stable(tensor: ArrayLike) -> tuple[bool, np.ndarray]:
    """Return (stable, eigenvalues in GPa, ascending) of an elastic tensor (6, 6) in Voigt notation, GPa.

    The necessary and sufficient condition in all crystal systems is that every eigenvalue is positive (Mouhat and
    Coudert, Phys. Rev. B 90, 224104 (2014), eq. 4 and the text below it); only the symmetric part counts.

    Raises
    ------
    ValueError
        If the tensor is not 6 x 6 or holds a number that is not finite.
    """
    matrix = np.asarray(tensor, dtype=float)
    if matrix.shape != (6, 6):
        raise ValueError(f"an elastic tensor of shape {matrix.shape}; 6 x 6 in Voigt notation is needed")
    if not np.isfinite(matrix).all():
        raise ValueError("the elastic tensor holds a number that is not finite")
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    # a shear constant that is zero but for rounding is no stability
    scale = float(np.abs(matrix).max())
    return bool(eigenvalues[0] > 1e-9 * scale) and scale > 0, eigenvalues

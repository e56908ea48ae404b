"""GPAW's settings for one crystal: k points, magnetism and everything else, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from inv_design.config import GpawConfig

CONVERGENCE = {"energy": 1e-5, "density": 1e-5}
"""eV and electrons per valence electron; stresses are then good to 0.001 GPa (``benchmarks/gpaw_crystals.py``)."""

MOMENTS = {"Cr": 3.0, "Mn": 4.0, "Fe": 3.0, "Co": 2.0, "Ni": 1.0} | dict(
    zip(
        ("Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb"),
        (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0),
        strict=True,
    )
)
"""Starting moments, μB: near those of the elements, 3d metals a little above; all parallel (ferromagnetic)."""

MIN_MOMENT = 0.05
"""μB; a crystal whose atoms all have less is not magnetic."""

MAX_ITERATIONS = 120
PATIENT = {"mixer": {"backend": "pulay", "beta": 0.02, "nmaxold": 5, "weight": 100.0}, "maxiter": 400}
"""For what does not converge with GPAW's own mixer: small steps, long waves damped. The result is the same."""


def k_grid(atoms: Atoms, density: float) -> list[int]:
    """Return the divisions of the Γ-centred grid with at least ``density`` k points per 1/Å along each axis.

    A reciprocal axis is 2π long per lattice spacing here, as in ASE and GPAW: 7 gives 16 for a cubic cell of 2.9 Å.
    """
    from ase.calculators.calculator import kptdensity2monkhorstpack

    slightly_less = density * (1 - 1e-9)  # equal axes get equal numbers, however they are rounded
    return [int(n) for n in kptdensity2monkhorstpack(atoms, slightly_less, even=False)]


def is_magnetic(symbols: Sequence[str], spin: str) -> bool:
    """Return whether to compute with spin: ``on``, ``off``, or ``auto`` by the elements in :data:`MOMENTS`."""
    return spin == "on" or (spin == "auto" and any(symbol in MOMENTS for symbol in symbols))


def starting_moments(symbols: Sequence[str]) -> list[float]:
    """Return the moments to start from, μB; elements that are not magnetic get a little, so that they can follow."""
    return [MOMENTS.get(symbol, 0.1) for symbol in symbols]


def gpaw_settings(config: GpawConfig, size: Sequence[int], *, spinpol: bool) -> dict[str, Any]:
    """Return the keyword arguments of GPAW for a grid of ``size`` k points: JSON, and all that determines a result."""
    return {
        "mode": {"name": "pw", "ecut": config.cutoff},
        "xc": "PBE",
        "kpts": {"size": list(size), "gamma": True},
        "occupations": {"name": "marzari-vanderbilt", "width": config.smearing},
        "convergence": dict(CONVERGENCE),
        "symmetry": {"symmorphic": False},
        "spinpol": spinpol,
        "maxiter": MAX_ITERATIONS,
    }


def gpaw_versions() -> dict[str, str]:
    """Return the versions of GPAW and of its PAW data sets.

    Raises
    ------
    RuntimeError
        If one of them is not installed here; the text says how to install it.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"version": version("gpaw"), "setups": version("gpaw-data")}
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"the package {error.name} is not installed on this worker: compilers, libxc, BLAS, FFTW and MPI from "
            "apt-get or your cluster's modules, then pip install '.[gpaw]' in a clone; docs/how-to/gpaw.md says more"
        ) from None


def use_packaged_setups() -> None:
    """Let GPAW find the PAW data sets of gpaw-data alone, in the process that computes.

    ``$GPAW_SETUP_PATH`` (a cluster's module may set it) and ``~/.gpaw/rc.py`` put other folders first: other numbers,
    of which neither the protocol nor the key of a kept result would tell.
    """
    import gpaw
    import gpaw_data

    gpaw.setup_paths[:] = [gpaw_data.datapath()]

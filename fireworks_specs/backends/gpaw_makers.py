"""GPAW as atomate2 makers: relaxation, elastic tensor, and equation of state, each a jobflow flow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from atomate2.ase.jobs import AseRelaxMaker
from atomate2.common.flows.elastic import BaseElasticMaker
from jobflow import Flow, Maker, Response, job

from inv_design.calculators.gpaw_calculator import GpawCalculator, has_moment
from inv_design.calculators.gpaw_settings import k_grid
from inv_design.config import GpawConfig

if TYPE_CHECKING:
    from pathlib import Path

    from atomate2.ase.schemas import AseResult, AseStructureTaskDoc
    from pymatgen.core import Structure

FMAX = 0.005
"""eV/Å; largest force after relaxation, of ions and cell."""

MAX_STEPS = 80

SYMPREC = 0.01
"""Å; the crystal is symmetrised within it first, for GPAW's symmetry is exact and saves most of the work."""


@dataclass
class GpawRelaxMaker(AseRelaxMaker):
    """A relaxation with GPAW; ``calculator_kwargs`` holds ``config`` (GpawConfig), ``size`` and ``spinpol``, as JSON.

    Without a ``size`` the grid of k points is that of the relaxed cell: where it differs from that of the cell at the
    start, the relaxation goes on with it.
    """

    name: str = "GPAW relaxation"
    steps: int = MAX_STEPS
    relax_kwargs: dict[str, Any] = field(default_factory=lambda: {"fmax": FMAX})
    optimizer_kwargs: dict[str, Any] = field(default_factory=lambda: {"optimizer": "BFGS"})

    def _get_calculator(self) -> GpawCalculator:
        options = dict(self.calculator_kwargs)
        return GpawCalculator(GpawConfig.model_validate(options.pop("config")), **options)

    def run_ase(self, mol_or_struct: Any, prev_dir: str | Path | None = None) -> AseResult:
        """Relax a crystal; the process of GPAW ends with it.

        Raises
        ------
        RuntimeError
            If the relaxation does not converge; and as :meth:`GpawCalculator.calculate`.
        """
        calculator: Any = self.calculator
        with calculator:
            result = super().run_ase(mol_or_struct, prev_dir)
            final: Any = result.final_mol_or_struct
            if self.relax_cell and self.calculator_kwargs.get("size") is None:
                wanted = grid_of(final, self.calculator_kwargs)
                if wanted != calculator.size:
                    calculator.close()
                    calculator.size = wanted
                    calculator.reset()
                    result = super().run_ase(final, prev_dir)
        if not result.converged:
            raise RuntimeError(f"{UNRELAXED} to {self.relax_kwargs['fmax']} eV/Å in {self.steps} steps")
        return result


UNRELAXED = "the relaxation did not converge"


def grid_of(structure: Structure, calculator_kwargs: dict[str, Any]) -> list[int]:
    """Return the grid of k points of a crystal."""
    return k_grid(structure.to_ase_atoms(), calculator_kwargs["config"]["k_density"])


def of_relaxed(calculator_kwargs: dict[str, Any], relaxed: AseStructureTaskDoc) -> dict[str, Any]:
    """Return the calculator's settings for deformed cells of a relaxed crystal: one grid, and spin only where it has.

    ``spin: on`` keeps it in any case.
    """
    spinpol = None
    if calculator_kwargs["config"]["spin"] == "auto":
        steps: Any = relaxed.output.ionic_steps
        spinpol = has_moment({"magmoms": steps[-1].magmoms or [0.0]})
    return {**calculator_kwargs, "size": grid_of(relaxed.structure, calculator_kwargs), "spinpol": spinpol}


@dataclass
class GpawElasticMaker(BaseElasticMaker):
    """Relaxation, then the stresses of strained cells with the ions relaxed, then the tensor."""

    name: str = "elastic"
    symprec: float = SYMPREC
    bulk_relax_maker: Any = None
    elastic_relax_maker: Any = None

    def make(
        self,
        structure: Structure,
        prev_dir: str | Path | None = None,
        equilibrium_stress: Any = None,
        conventional: bool = False,
    ) -> Flow:
        """Return the flow; parameters as in atomate2. The strained cells get their settings from the relaxed one.

        The flow has no output of its own: the last job's, ``fit_elastic_tensor``, is the result.
        """
        if self.bulk_relax_maker is None:
            return super().make(structure, prev_dir, equilibrium_stress, conventional)
        relaxed = self.bulk_relax_maker.make(structure)
        strained: Any = strain_relaxed(self, relaxed.output, conventional)
        return Flow([relaxed, strained], name=self.name)

    @property
    def prev_calc_dir_argname(self) -> Any:
        """No job reads the files of another."""
        return None


@job
def strain_relaxed(maker: GpawElasticMaker, relaxed: AseStructureTaskDoc, conventional: bool) -> Response:
    """Replace itself with the elastic flow of a relaxed crystal."""
    strained = maker.elastic_relax_maker
    kwargs = of_relaxed(strained.calculator_kwargs, relaxed)
    rest = replace(maker, bulk_relax_maker=None, elastic_relax_maker=replace(strained, calculator_kwargs=kwargs))
    flow = rest.make(relaxed.structure, equilibrium_stress=relaxed.output.stress, conventional=conventional)
    flow.output = None  # a job that only points to the tensor would count as a second one when outputs are ingested
    return Response(replace=flow)


@dataclass
class GpawEosMaker(Maker):
    """Relaxation, then energies of the crystal scaled isotropically, its fractional coordinates kept."""

    name: str = "equation of state"
    bulk_relax_maker: GpawRelaxMaker = field(default_factory=GpawRelaxMaker)
    strain: float = 0.04
    n_points: int = 7

    def make(self, structure: Structure) -> Flow:
        """Return the flow; its output is a list of documents, one per volume."""
        relaxed = self.bulk_relax_maker.make(structure)
        scaled: Any = scale_relaxed(self, relaxed.output)
        return Flow([relaxed, scaled], output=scaled.output, name=self.name)


@job
def scale_relaxed(maker: GpawEosMaker, relaxed: AseStructureTaskDoc) -> Response:
    """Replace itself with the volumes of a relaxed crystal."""
    import numpy as np

    kwargs = of_relaxed(maker.bulk_relax_maker.calculator_kwargs, relaxed)
    static = replace(maker.bulk_relax_maker, name=VOLUME, relax_cell=False, steps=1, calculator_kwargs=kwargs)
    jobs: list[Any] = []
    for number, scale in enumerate(np.linspace(1 - maker.strain, 1 + maker.strain, maker.n_points), start=1):
        scaled = relaxed.structure.copy()
        scaled.scale_lattice(relaxed.structure.volume * scale**3)
        point = static.make(scaled)
        point.append_name(f" {number}/{maker.n_points}")
        jobs.append(point)
    return Response(replace=Flow(jobs, output=[point.output for point in jobs]))


VOLUME = "GPAW volume"


def elastic_maker(config: GpawConfig) -> GpawElasticMaker:
    """Return the maker of elastic tensors: atomate2's 24 strains up to 1 %, reduced by symmetry."""
    # not fix_symmetry for strained cells: within its tolerance it would undo the strain
    return GpawElasticMaker(
        bulk_relax_maker=_relax_maker(config),
        elastic_relax_maker=GpawRelaxMaker(
            name="GPAW strain", relax_cell=False, calculator_kwargs=_calculator_kwargs(config)
        ),
    )


def eos_maker(config: GpawConfig, *, strain: float, n_points: int) -> GpawEosMaker:
    """Return the maker of equations of state over ±``strain`` (linear)."""
    return GpawEosMaker(bulk_relax_maker=_relax_maker(config), strain=strain, n_points=n_points)


def _relax_maker(config: GpawConfig) -> GpawRelaxMaker:
    return GpawRelaxMaker(fix_symmetry=True, symprec=SYMPREC, calculator_kwargs=_calculator_kwargs(config))


def _calculator_kwargs(config: GpawConfig) -> dict[str, Any]:
    return {"config": config.model_dump(), "size": None, "spinpol": None}

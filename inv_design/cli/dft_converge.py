"""`dft converge`: the cheapest cutoff and k-point density for a stated error of the bulk modulus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from inv_design.config import GpawConfig
    from inv_design.mechanics.convergence import Convergence

COLUMNS = ("cutoff (eV)", "k per 1/Å", "k points", "K (GPa)", "from finest", "V0 (Å^3/atom)", "time", "")


class Fraction(click.ParamType):
    """A number between 0 and 1, or a percentage such as 2%."""

    name = "fraction"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is no number; give for example 0.02 or 2%", param, ctx)
        if not 0 < number < 1:
            self.fail(f"{text!r} is not between 0 and 1 (100 %)", param, ctx)
        return number


class Numbers(click.ParamType):
    """Positive numbers separated by commas, at least two."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers in rising order."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({float(part) for part in str(value).split(",")}))
        except ValueError:
            self.fail(f"{value!r} are no numbers separated by commas", param, ctx)
        if len(numbers) < 2 or not numbers[0] > 0:
            self.fail(f"{value!r}: give at least two different positive numbers", param, ctx)
        return numbers


@click.command()
@click.argument("structure", metavar="STRUCTURE")
@click.option(
    "-e", "--error", type=Fraction(), default="2%", show_default=True, help="Largest error of K, as 0.02 or 2%."
)
@click.option("--backend", type=click.Choice(["gpaw"]), default="gpaw", show_default=True, help="What computes.")
@click.option("--cutoffs", type=Numbers(), metavar="EV,...", help="Cutoffs to try.  [default: 350,450,550,650,750]")
@click.option("--k-densities", type=Numbers(), metavar="N,...", help="k points per 1/Å to try.  [default: 3,4,...,10]")
@click.option("--ranks", type=click.IntRange(min=1), help="MPI ranks.  [default: the campaign file's, else 1]")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Plot, such as plot.png.")
@json_option
@database_options
@click.pass_obj
def converge(
    settings: Settings,
    *,
    structure: str,
    error: float,
    backend: str,  # noqa: ARG001 - the only one that can
    cutoffs: tuple[float, ...] | None,
    k_densities: tuple[float, ...] | None,
    ranks: int | None,
    output: Path | None,
) -> None:
    """Find the cutoff and k-point density that a crystal's bulk modulus needs.

    STRUCTURE is a file with one crystal, near its equilibrium. E(V) is computed at rising density and cutoff until K
    changes no more; the cheapest setting within the error of the finest is chosen. What is computed is kept: called
    again, the command goes on where it was. Elastic constants need more k points than K does.
    """
    from inv_design.calculators.gpaw_calculator import RANKS_VARIABLE
    from inv_design.config import GpawConfig
    from inv_design.mechanics import convergence
    from inv_design.report.convergence import draw_convergence

    crystal = one_crystal(structure)
    config = settings.load_config().stages.dft.gpaw if settings.has_config() else GpawConfig()
    if ranks is not None:
        config = config.model_copy(update={"ranks": ranks})
        os.environ.pop(RANKS_VARIABLE, None)
    if output is not None:
        check_plot(output)
    with render.progress("Convergence") as bar:
        found = search(crystal, config, error=error, cutoffs=cutoffs or convergence.CUTOFFS,
                       k_densities=k_densities or convergence.K_DENSITIES, bar=bar)  # fmt: skip
    formula = crystal.composition.reduced_formula
    if output is not None:
        draw_convergence(found, output, title=formula)
    if settings.as_json:
        render.json_document({"structure": structure, "formula": formula, "backend": "gpaw", **found.as_dict()})
    else:
        show(found)
    if not found.converged:
        raise CommandFailed(f"{'; '.join(found.reasons)}: give larger --cutoffs or --k-densities, or a larger --error")


def one_crystal(path: str) -> Structure:
    """Return the crystal of a file that holds one."""
    from inv_design.cli.inputs import read_files

    items = list(read_files([path]))
    if len(items) != 1:
        raise click.BadParameter(f"{path} has {len(items)} crystals; give a file with one", param_hint="STRUCTURE")
    if items[0].structure is None:
        raise click.BadParameter(str(items[0].error), param_hint="STRUCTURE")
    crystal: Structure = items[0].structure
    return crystal


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before hours of computing."""
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in known:
        raise click.BadParameter(f"{str(path)!r}: the suffix must be one of {', '.join(known)}", param_hint="--output")
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {str(path.parent)!r} does not exist", param_hint="--output")


def search(
    crystal: Structure,
    config: GpawConfig,
    *,
    error: float,
    cutoffs: tuple[float, ...],
    k_densities: tuple[float, ...],
    bar: render.Bar,
) -> Convergence:
    """Return the convergence of a crystal's K with the settings of GPAW; its files lie in a folder that is removed."""
    import tempfile

    from fireworks_specs.backends import gpaw
    from inv_design.mechanics.convergence import converge as find

    gpaw.require(config)
    start, here = gpaw.symmetrised(crystal), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # GPAW writes its log where it runs
        try:
            return find(
                lambda cutoff, density: gpaw.measure_point(start, config, cutoff, density),
                error=error,
                cutoffs=cutoffs,
                k_densities=k_densities,
                progress=bar,
            )
        finally:
            os.chdir(here)


def show(found: Convergence) -> None:
    """Print all points by cost, the chosen one marked, and what to write into campaign.yaml."""
    rows = [
        (
            f"{p.cutoff:g}", f"{p.k_density:g}", "x".join(str(n) for n in p.k_points), f"{p.bulk_modulus:.2f}",
            f"{100 * found.deviation(p):+.2f} %", f"{p.v0:.3f}", render.duration(p.seconds),
            "<- chosen" if p is found.chosen else "finest" if p is found.finest else "",
        )
        for p in sorted(found.points, key=lambda p: p.seconds)
    ]  # fmt: skip
    render.table(rows, COLUMNS, right=COLUMNS[:7])
    cutoff, density = found.chosen.setting
    click.echo(f"\nwithin {100 * found.error:g} % of the finest: gpaw: {{cutoff: {cutoff:g}, k_density: {density:g}}}")
    render.say("elastic constants need more k points than K: for kind elastic keep at least the defaults")

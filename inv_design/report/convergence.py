"""The plot of a convergence test: bulk modulus against cutoff and against the density of k points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.report.figures import GRID, INK, MUTED, ROUND_COLOURS, STYLE, TARGET

if TYPE_CHECKING:
    from pathlib import Path

    from inv_design.mechanics.convergence import Convergence


def draw_convergence(convergence: Convergence, path: Path, *, title: str) -> None:
    """Write a plot of all points (the suffix decides the format), the allowed band around the finest, and the choice.

    Raises
    ------
    ValueError
        If matplotlib knows no such format.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        views = (
            (axes[0], "k_density", "cutoff", "k points per 1/Å", "eV"),
            (axes[1], "cutoff", "k_density", "cutoff (eV)", "per 1/Å"),
        )
        finest = convergence.finest.bulk_modulus
        for axis, across, along, label, unit in views:
            axis.axhspan(finest * (1 - convergence.error), finest * (1 + convergence.error), color=GRID, zorder=0)
            series = sorted({getattr(point, along) for point in convergence.points})
            for index, value in enumerate(series):
                points = sorted(
                    (p for p in convergence.points if getattr(p, along) == value), key=lambda p: getattr(p, across)
                )
                axis.plot(
                    [getattr(p, across) for p in points],
                    [p.bulk_modulus for p in points],
                    marker="o",
                    markersize=4,
                    color=ROUND_COLOURS[index % len(ROUND_COLOURS)],
                    label=f"{value:g} {unit}",
                )
            chosen = convergence.chosen
            axis.plot(getattr(chosen, across), chosen.bulk_modulus, "o", markersize=10, fillstyle="none", color=TARGET)
            axis.set_xlabel(label)
            axis.legend(title=None)
            axis.tick_params(colors=MUTED)
        axes[0].set_ylabel("Bulk modulus of E(V) (GPa)", color=INK)
        axes[0].set_title(title)
        figure.savefig(path, dpi=150)

"""Convergence of the bulk modulus with the settings of a plane-wave code: cutoff and density of k points."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inv_design.mechanics.records import plain_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Progress = Callable[[int, int, str], None]

CUTOFFS = (350.0, 450.0, 550.0, 650.0, 750.0)
"""eV"""

K_DENSITIES = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
"""k points per 1/Å"""

AGREEING = 3
"""So many values in a row must agree: two may do so by chance."""

REST = 0.5
"""Of the error: within it they must agree, for what comes after them is as far from them again."""


@dataclass(frozen=True)
class Point:
    """The bulk modulus at one setting.

    Attributes
    ----------
    cutoff, k_density
        eV, and k points per 1/Å.
    bulk_modulus
        K of E(V), GPa.
    v0
        Volume of the minimum, Å^3/atom.
    seconds
        What all its volumes took, or took when they were computed.
    k_points
        The divisions of the grid.
    """

    cutoff: float
    k_density: float
    bulk_modulus: float
    v0: float
    seconds: float
    k_points: tuple[int, ...] = ()

    @property
    def setting(self) -> tuple[float, float]:
        """(cutoff, k_density)."""
        return self.cutoff, self.k_density

    @property
    def on_grid(self) -> tuple[float, tuple[int, ...]]:
        """(cutoff, k_points): what determines the numbers."""
        return self.cutoff, self.k_points


@dataclass(frozen=True)
class Convergence:
    """What a search found.

    Attributes
    ----------
    error
        The largest relative deviation of K from that of the finest that was allowed.
    points
        All that was measured, in order.
    finest
        The point at the largest cutoff and density that were tried: what the others are compared with.
    chosen
        The cheapest point that is within ``error`` of the finest and on the settled part of both scans: below it
        values agree by chance. The finest where there is no other.
    reasons
        Why the finest itself may not be converged; empty if it is.
    """

    error: float
    points: list[Point]
    finest: Point
    chosen: Point
    reasons: list[str] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        """Whether both scans came to rest, and a cheaper setting on both agrees with the finest."""
        return not self.reasons

    def deviation(self, point: Point) -> float:
        """Return the relative deviation of K from that of the finest point."""
        return point.bulk_modulus / self.finest.bulk_modulus - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        points = [{**plain_fields(p), "deviation": self.deviation(p), "chosen": p is self.chosen} for p in self.points]
        return {
            "error": self.error,
            "converged": self.converged,
            "reasons": list(self.reasons),
            "chosen": plain_fields(self.chosen),
            "finest": plain_fields(self.finest),
            "points": points,
        }


def converge(
    measure: Callable[[float, float], Point],
    *,
    error: float,
    cutoffs: Sequence[float] = CUTOFFS,
    k_densities: Sequence[float] = K_DENSITIES,
    progress: Progress | None = None,
) -> Convergence:
    """Find the cheapest cutoff and k-point density whose bulk modulus is within ``error`` of the finest one's.

    Density is raised at the smallest cutoff, then the cutoff at the density found, each until three values in a row, of
    different grids, agree within half the error: so near the limit is the finest that few choices are further from that
    than the error. Then the choice is measured beside the finest of both, which a change of the one with the other
    would show.
    Points below the density or cutoff from which on values agree are not chosen, though one may lie near the finest.

    Parameters
    ----------
    measure
        Returns the point at (cutoff, k_density); called once per setting.
    error
        Largest relative deviation of K from that of the finest, such as 0.02.
    cutoffs, k_densities
        What to try, eV and k points per 1/Å.
    progress
        Called with (measured, at most, text).

    Raises
    ------
    ValueError
        If the error is not between 0 and 1, or there is nothing to compare.
    """
    if not 0 < error < 1:
        raise ValueError(f"an error of {error} is not between 0 and 1; give for example 0.02")
    cutoffs, k_densities = sorted(set(cutoffs)), sorted(set(k_densities))
    if len(cutoffs) < 2 or len(k_densities) < 2:
        raise ValueError("give at least two cutoffs and two densities, so that there is something to compare")
    known: dict[tuple[float, float], Point] = {}
    most = len(cutoffs) + len(k_densities) + 1

    def at(cutoff: float, k_density: float) -> Point:
        if (cutoff, k_density) not in known:
            point = known[(cutoff, k_density)] = measure(cutoff, k_density)
            if progress is not None:
                progress(
                    len(known), most, f"{cutoff:g} eV, {k_density:g} k points per 1/Å: {point.bulk_modulus:.2f} GPa"
                )
        return known[(cutoff, k_density)]

    by_density = scan((at(cutoffs[0], density) for density in k_densities), error)
    density = by_density[settled(by_density, error)].k_density
    by_cutoff = scan((at(cutoff, density) for cutoff in cutoffs), error)
    cutoff = by_cutoff[settled(by_cutoff, error)].cutoff
    finest = at(by_cutoff[-1].cutoff, by_density[-1].k_density)
    at(cutoff, density)
    points = list(known.values())
    enough = [
        p for p in points if p.cutoff >= cutoff and p.k_density >= density and (p is finest or agree(p, finest, error))
    ]
    chosen = min(enough, key=lambda p: p.seconds)
    reasons = [
        f"K has not come to rest within {100 * REST * error:g} % at {what}"
        for found, what in (
            (by_density, f"{k_densities[-1]:g} k points per 1/Å"),
            (by_cutoff, f"a cutoff of {cutoffs[-1]:g} eV"),
        )
        if not at_rest(found, error)
    ]
    if not reasons and enough == [finest]:
        reasons.append(
            f"K at {cutoff:g} eV and {density:g} k points per 1/Å, where the scans settle, is more than "
            f"{100 * error:g} % from that of the finest setting, which is chosen"
        )
    return Convergence(error, points, finest, chosen, reasons)


def scan(points: Iterable[Point], error: float) -> list[Point]:
    """Return points of rising cost up to where :data:`AGREEING` of them in a row are at rest, or all.

    Of points on the same grid, as neighbouring densities have it in large cells, the first: they agree in any case.
    """
    found: list[Point] = []
    for point in points:
        if not (found and point.k_points and point.on_grid == found[-1].on_grid):
            found.append(point)
        if len(found) >= AGREEING and at_rest(found, error):
            break
    return found


def at_rest(points: Sequence[Point], error: float) -> bool:
    """Return whether the last points agree within :data:`REST` of ``error``; two, where there are not more."""
    last = points[-AGREEING:]
    return len(last) >= 2 and all(agree(a, b, REST * error) for a in last for b in last)


def settled(points: Sequence[Point], error: float) -> int:
    """Return the index of the first point from which on all agree with their successor and with the last."""
    index = len(points) - 1
    while index > 0:
        before = points[index - 1]
        if not (agree(before, points[index], error) and agree(before, points[-1], error)):
            break
        index -= 1
    return index


def agree(a: Point, b: Point, error: float) -> bool:
    """Return whether two bulk moduli differ by at most ``error``, relative to the second."""
    return abs(a.bulk_modulus - b.bulk_modulus) <= error * abs(b.bulk_modulus)

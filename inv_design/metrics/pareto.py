"""Pareto fronts: the candidates that no other beats in every respect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Points = Sequence[Sequence[float]] | np.ndarray


def pareto_front(
    points: Sequence[Sequence[float]] | np.ndarray, *, maximise: Sequence[bool] | None = None
) -> list[int]:
    """Return the indices of the points (n, k) that no other dominates, in the order given.

    A point dominates another if it is at least as good in all of the k respects and better in one; equal points are
    all kept. Points with a value that is not finite are never on the front.

    Parameters
    ----------
    maximise
        Per respect whether more is better (k); less is better in all by default.

    Raises
    ------
    ValueError
        If the points are no table, or ``maximise`` has another length.
    """
    values = np.asarray(points, float)
    if values.size == 0:
        return []
    if values.ndim != 2:
        raise ValueError(f"points of shape {values.shape} are no table; give n rows of k values")
    if maximise is not None:
        if len(maximise) != values.shape[1]:
            raise ValueError(f"{len(maximise)} directions for {values.shape[1]} columns; give one for each")
        values = np.where(np.asarray(maximise, bool), -values, values)
    valid = np.flatnonzero(np.isfinite(values).all(axis=1))
    front: list[int] = []
    # in lexicographic order no later point dominates an earlier one, so the front found so far decides
    for i in valid[np.lexsort(values[valid].T[::-1])]:
        best = values[front] if front else np.empty((0, values.shape[1]))
        dominated = ((best <= values[i]).all(axis=1) & (best < values[i]).any(axis=1)).any()
        if not dominated:
            front.append(int(i))
    return sorted(front)


def pareto_ranks(
    points: Sequence[Sequence[float]] | np.ndarray, *, maximise: Sequence[bool] | None = None
) -> list[int]:
    """Return each point's front (n): 0 for the Pareto front, 1 for that of the rest, and so on; -1 if not finite."""
    values = np.asarray(points, float)
    ranks = [-1] * len(values)
    left = np.arange(len(values))
    rank = 0
    while len(left) and (front := pareto_front(values[left], maximise=maximise)):
        for i in front:
            ranks[int(left[i])] = rank
        left = np.delete(left, front)
        rank += 1
    return ranks

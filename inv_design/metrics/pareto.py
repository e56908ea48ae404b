"""Pareto fronts: the candidates that no other beats in every respect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Points = Sequence[Sequence[float]] | np.ndarray


def pareto_front(points: Points, *, maximise: Sequence[bool] | None = None) -> list[int]:
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
    values = _minimised(points, maximise)
    if not len(values):
        return []
    valid = np.flatnonzero(np.isfinite(values).all(axis=1))
    front: list[int] = []
    # in lexicographic order no later point dominates an earlier one, so the front found so far decides
    for i in valid[np.lexsort(values[valid].T[::-1])]:
        best = values[front] if front else np.empty((0, values.shape[1]))
        if not _dominated(values[i], best):
            front.append(int(i))
    return sorted(front)


def pareto_ranks(points: Points, *, maximise: Sequence[bool] | None = None) -> list[int]:
    """Return each point's front (n): 0 for the Pareto front, 1 for that of the rest, and so on; -1 if not finite.

    Efficient non-dominated sorting with binary search (Zhang et al., IEEE Trans. Evol. Comput. 19, 201 (2015)): in
    lexicographic order a point belongs to the first front that has no point which dominates it.

    Raises
    ------
    ValueError
        As :func:`pareto_front`.
    """
    values = _minimised(points, maximise)
    ranks = [-1] * len(values)
    if not len(values):
        return ranks
    fronts: list[list[int]] = []
    valid = np.flatnonzero(np.isfinite(values).all(axis=1))
    for i in valid[np.lexsort(values[valid].T[::-1])]:
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if _dominated(values[i], values[fronts[middle]]):
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append([])
        fronts[low].append(int(i))
        ranks[int(i)] = low
    return ranks


def _minimised(points: Points, maximise: Sequence[bool] | None) -> np.ndarray:
    """Return the points (n, k) with the signs turned such that less is better in all respects."""
    values = np.asarray(points, float)
    if values.size == 0:
        return np.empty((len(values), 0))
    if values.ndim != 2:
        raise ValueError(f"points of shape {values.shape} are no table; give n rows of k values")
    if maximise is None:
        return values
    if len(maximise) != values.shape[1]:
        raise ValueError(f"{len(maximise)} directions for {values.shape[1]} columns; give one for each")
    return np.where(np.asarray(maximise, bool), -values, values)


def _dominated(point: np.ndarray, others: np.ndarray) -> bool:
    """Return whether one of the others (m, k) is at least as good as a point (k) in all respects and better in one."""
    return bool(((others <= point).all(axis=1) & (others < point).any(axis=1)).any())

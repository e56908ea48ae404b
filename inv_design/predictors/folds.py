"""Folds for cross-validation that keep related crystals together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def grouped_folds(groups: Sequence[str], n_folds: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ``n_folds`` pairs (train indices, test indices); no group is on both sides of a pair.

    Groups are shuffled, then dealt largest first to the smallest fold, so folds differ by at most one group's size.

    Raises
    ------
    ValueError
        If there are fewer groups than folds, or fewer than two folds.
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if not 2 <= n_folds <= len(names):
        raise ValueError(f"{n_folds} folds of {len(names)} groups; choose between 2 and the number of groups")
    sizes = np.bincount(member)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    fold_of_group = np.empty(len(names), dtype=int)
    load = np.zeros(n_folds, dtype=int)
    for group in order:
        fold_of_group[group] = load.argmin()
        load[fold_of_group[group]] += sizes[group]
    fold = fold_of_group[member]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def held_out(groups: Sequence[str], fraction: float) -> np.ndarray:
    """Return a mask (n,) of about ``fraction`` of the groups, chosen by a hash of their names.

    The choice depends on nothing but the name, so a group held out of one training is held out of every later one,
    and a model that continues from an earlier one is still judged on groups it never saw. A positive fraction of two
    groups or more holds out at least one and keeps at least one.
    """
    names = sorted({str(group) for group in groups}, key=_digest)
    if fraction <= 0.0 or len(names) < 2:
        return np.zeros(len(groups), dtype=bool)
    below = sum(_digest(name) < fraction for name in names)
    chosen = set(names[: min(max(below, 1), len(names) - 1)])
    return np.array([str(group) in chosen for group in groups], dtype=bool)


def held_out_parts(groups: Sequence[str], n_parts: int = 5) -> list[np.ndarray]:
    """Return the indices of up to ``n_parts`` disjoint parts of ``groups`` (n,), each group whole."""
    n = min(n_parts, len(set(groups)))
    return [test for _, test in grouped_folds(groups, n)] if n > 1 else [np.arange(len(groups))]


def _digest(name: str) -> float:
    """Return a number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48

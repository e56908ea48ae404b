"""Folds for cross-validation that keep related crystals together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def grouped_folds(groups: Sequence[str], n_folds: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ``n_folds`` pairs (train indices, test indices); no group is on both sides of a pair.

    Groups are shuffled, then dealt largest first to the smallest fold, so that folds differ by at most one group's size.

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
    and a model that continues from an earlier one is still judged on groups it never saw.
    """
    limit = int(fraction * 2**32)
    chosen = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < limit
        for name in set(map(str, groups))
    }
    return np.array([chosen[str(name)] for name in groups], dtype=bool)

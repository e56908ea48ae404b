"""Folds and the hash hold-out keep groups whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.predictors.folds import grouped_folds, held_out

GROUPS = st.lists(st.sampled_from([f"A-{c}" for c in "BCDEFGHIJKLMN"]), min_size=2, max_size=80)


@given(groups=GROUPS, seed=st.integers(0, 50), n=st.integers(2, 5))
def test_folds_partition_and_keep_groups_together(groups, seed, n):
    if len(set(groups)) < n:
        with pytest.raises(ValueError, match=f"{n} folds"):
            grouped_folds(groups, n, seed)
        return
    folds = grouped_folds(groups, n, seed)
    names = np.array(groups)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(len(groups)))
    for train, test in folds:
        assert len(test) > 0
        assert not set(names[train]) & set(names[test])
        assert len(train) + len(test) == len(groups)


def test_folds_are_even_and_follow_the_seed():
    groups = [f"g{i // 3}" for i in range(300)]
    sizes = [len(test) for _, test in grouped_folds(groups, 5, 1)]
    assert max(sizes) - min(sizes) <= 3
    same = zip(grouped_folds(groups, 5, 1), grouped_folds(groups, 5, 1), strict=True)
    assert all(np.array_equal(a[1], b[1]) for a, b in same)
    assert not np.array_equal(grouped_folds(groups, 5, 1)[0][1], grouped_folds(groups, 5, 2)[0][1])


@given(groups=GROUPS, more=GROUPS, fraction=st.sampled_from([0.1, 0.3]))
def test_the_hold_out_takes_whole_groups_and_never_everything(groups, more, fraction):
    mask = held_out(groups, fraction)
    names = np.array(groups)
    assert not set(names[mask]) & set(names[~mask])
    assert (~mask).any()
    assert mask.any() == (len(set(groups)) > 1)


def test_a_group_held_out_once_is_held_out_of_every_larger_set():
    old = [f"g{i}" for i in range(200)]
    first = {g for g, out in zip(old, held_out(old, 0.1), strict=True) if out}
    new = [*old, *[f"h{i}" for i in range(100)]]
    second = {g for g, out in zip(new, held_out(new, 0.1), strict=True) if out}
    assert first == {g for g in second if g.startswith("g")}
    assert 5 < len(first) < 40
    assert not held_out(old, 0.0).any()

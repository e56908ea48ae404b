"""Training sets as plain records: the split of a chemical system, and what distinguishes two versions."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Member = Mapping[str, Any]

VALIDATION, TEST = 0.1, 0.1
"""Shares of the chemical systems."""
PARTS = ("value", "unit", "method", "calculation_id")
"""What a label is told apart by."""


def split_of(chemsys: str) -> str:
    """Return ``train`` (80 %), ``val`` or ``test`` (10 % each) by a hash of the chemical system, such as ``Re-W``.

    The hash has no other input, so that a system is on one side in every version of every campaign's training set:
    no version learns from a crystal of a system that another one tests on. The order of the elements makes no
    difference. Sub-systems are systems of their own: Re-W may be trained on where Os-Re-W is tested.
    """
    system = "-".join(sorted(chemsys.split("-")))
    share = int.from_bytes(hashlib.sha256(system.encode()).digest()[:8], "big") / 2**64
    if share < TEST:
        return "test"
    return "val" if share < TEST + VALIDATION else "train"


@dataclass(frozen=True)
class TrainingSetDiff:
    """What distinguishes a training set from another; the lists are sorted by structure id.

    Attributes
    ----------
    added, removed
        Members of one of them alone.
    relabelled
        ``{"structure_id", "chemsys", "property", "old", "new"}`` for each label that differs, came or went on a crystal
        that both have; ``old`` and ``new`` are labels or ``None``.
    moved
        ``{"chemsys", "old", "new"}`` for each chemical system that is in other splits, ``[...]`` each. A system has
        one split in every version that the campaign manager makes, so that this is empty.
    old_methods, new_methods
        Method -> number of labels in each.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    relabelled: list[dict[str, Any]] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    old_methods: dict[str, int] = field(default_factory=dict)
    new_methods: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relabelled or self.moved)


def diff_members(old: Iterable[Member], new: Iterable[Member]) -> TrainingSetDiff:
    """Return what distinguishes the members of a training set from those of an older one.

    Parameters
    ----------
    old, new
        Members: ``{"structure_id", "labels": {property: {"value", "unit", "calculation_id", "method"}}, "chemsys",
        "split"}``. Their order makes no difference.

    Examples
    --------
    >>> label = {"value": 300.0, "unit": "GPa", "calculation_id": "k-1", "method": "vasp"}
    >>> one = {"structure_id": "s-1", "labels": {"K": label}, "chemsys": "Re-W", "split": "train"}
    >>> diff_members([one], [one]).added
    []
    >>> [m["structure_id"] for m in diff_members([], [one]).added]
    ['s-1']
    """
    before = {m["structure_id"]: m for m in old}
    after = {m["structure_id"]: m for m in new}
    return TrainingSetDiff(
        added=[dict(after[i]) for i in sorted(after.keys() - before.keys())],
        removed=[dict(before[i]) for i in sorted(before.keys() - after.keys())],
        relabelled=[row for i in sorted(before.keys() & after.keys()) for row in _relabelled(before[i], after[i])],
        moved=_moved(before.values(), after.values()),
        old_methods=methods(before.values()),
        new_methods=methods(after.values()),
    )


def methods(members: Iterable[Member]) -> dict[str, int]:
    """Return method -> number of labels by it, the most frequent first."""
    found = Counter(str(label.get("method")) for m in members for label in (m.get("labels") or {}).values())
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def splits_by_system(members: Iterable[Member]) -> dict[str, set[str]]:
    """Return chemical system -> the splits that its crystals are in: more than one is a leak."""
    found: dict[str, set[str]] = {}
    for member in members:
        found.setdefault(str(member.get("chemsys")), set()).add(str(member.get("split")))
    return found


def leaks(members: Iterable[Member]) -> list[str]:
    """Return the chemical systems that are in more than one split."""
    return sorted(system for system, splits in splits_by_system(members).items() if len(splits) > 1)


def _relabelled(old: Member, new: Member) -> list[dict[str, Any]]:
    before, after = old.get("labels") or {}, new.get("labels") or {}
    place = {"structure_id": new["structure_id"], "chemsys": new.get("chemsys")}
    return [
        {**place, "property": name, "old": before.get(name), "new": after.get(name)}
        for name in sorted(before.keys() | after.keys())
        if _told_apart(before.get(name)) != _told_apart(after.get(name))
    ]


def _told_apart(label: Mapping[str, Any] | None) -> list[Any] | None:
    return None if label is None else [label.get(part) for part in PARTS]


def _moved(old: Iterable[Member], new: Iterable[Member]) -> list[dict[str, Any]]:
    before, after = splits_by_system(old), splits_by_system(new)
    return [
        {"chemsys": system, "old": sorted(before[system]), "new": sorted(after[system])}
        for system in sorted(before.keys() & after.keys())
        if before[system] != after[system]
    ]

"""Training sets as records: identity, splits that stay, and what distinguishes two versions."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inv_design.datasets.training_set import diff_members, leaks, methods, split_of
from stores.records import training_set_id

ELEMENTS = ("Re", "W", "Os", "Ir", "Ta", "Ru")


def member(identity: str, system: str, value: float, method: str, split: str | None = None) -> dict[str, Any]:
    label = {"value": value, "unit": "GPa", "method": method, "calculation_id": f"k-{identity}-{method}"}
    chosen = split or split_of(system)
    return {"structure_id": identity, "labels": {"K": label}, "chemsys": system, "split": chosen}


systems = st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=3, unique=True).map(lambda e: "-".join(sorted(e)))
numbers = st.floats(1, 500, allow_nan=False).map(lambda x: round(x, 3))
# a crystal has one chemical system, whichever version it is in
crystals = st.lists(systems, min_size=1, max_size=8)


@st.composite
def versions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw two versions of a training set."""
    made = draw(crystals)

    def version() -> list[dict[str, Any]]:
        chosen = draw(st.lists(st.integers(0, len(made) - 1), unique=True))
        return [
            member(f"s-{i}", made[i], draw(numbers), draw(st.sampled_from(["reference", "vasp", "gpaw"])))
            for i in chosen
        ]

    return version(), version()


@given(versions())
def test_a_diff_leads_from_one_version_to_the_other(pair):
    old, new = pair
    found = diff_members(old, new)
    assert not found.moved  # a system has one split for ever
    assert leaks([*old, *new]) == []
    after = {m["structure_id"]: {k: dict(v) for k, v in m["labels"].items()} for m in old}
    for gone in found.removed:
        del after[gone["structure_id"]]
    for came in found.added:
        assert came["structure_id"] not in after
        after[came["structure_id"]] = came["labels"]
    for change in found.relabelled:
        assert after[change["structure_id"]][change["property"]] == change["old"] != change["new"]
        after[change["structure_id"]][change["property"]] = change["new"]
    assert after == {m["structure_id"]: m["labels"] for m in new}
    assert (found.old_methods, found.new_methods) == (methods(old), methods(new))


@given(versions(), st.randoms(use_true_random=False))
def test_the_id_is_the_content_whatever_its_order(pair, random):
    old, new = pair
    shuffled = [dict(reversed(list(m.items()))) for m in random.sample(old, len(old))]
    assert training_set_id(shuffled) == training_set_id(old)
    assert (training_set_id(old) == training_set_id(new)) == (not diff_members(old, new))


@given(systems, st.permutations(ELEMENTS))
def test_a_system_has_one_split_whoever_writes_it(system, order):
    written = "-".join(sorted(system.split("-"), key=order.index))
    assert split_of(written) == split_of(system)


def test_splits_are_pinned():
    """Whoever changes these lets a model train on what an earlier version tested on."""
    pinned = {"train": ["Al-Ni", "Os-Re-W", "Ru", "Nb-Re", "Ir-Mo"], "val": ["Re-W"], "test": ["Hf-Ta", "Mo-Os"]}
    assert {split: [s for s in systems if split_of(s) == split] for split, systems in pinned.items()} == pinned


def test_a_system_that_moved_is_told():
    old = [member("s-1", "Re-W", 300.0, "vasp", "train"), member("s-2", "Re-W", 310.0, "vasp", "train")]
    new = [old[0], member("s-2", "Re-W", 310.0, "vasp", "test")]
    found = diff_members(old, new)
    assert found.moved == [{"chemsys": "Re-W", "old": ["train"], "new": ["test", "train"]}]
    assert found
    assert [*found.added, *found.removed, *found.relabelled] == []
    assert leaks(new) == ["Re-W"]


def test_a_label_by_another_method_is_a_relabelling():
    old, new = [member("s-1", "Re-W", 300.0, "surrogate")], [member("s-1", "Re-W", 310.0, "vasp")]
    (change,) = diff_members(old, new).relabelled
    assert (change["old"]["method"], change["old"]["value"]) == ("surrogate", 300.0)
    assert (change["new"]["method"], change["new"]["value"]) == ("vasp", 310.0)
    new[0]["labels"]["G"] = {"value": 1.0, "unit": "GPa", "method": "vasp", "calculation_id": "k"}
    first, _ = diff_members(old, new).relabelled
    assert (first["property"], first["old"]) == ("G", None)

"""Finding duplicates: bucketed matching beside all pairs of pymatgen's StructureMatcher, with the same groups asserted.

    python benchmarks/matching.py                    # all parts, about ten minutes on one core
    python benchmarks/matching.py --n 300 --small 60 --store 1000 --output quick.json

``mixed`` is what a campaign meets: packaged crystals, strained, rattled and relabelled copies and supercells of them.
``one_formula`` is the worst case for buckets: every crystal is HfRe2. ``StructureMatcher.fit`` compares all pairs of
one formula on ``mixed`` and on the first ``--small`` crystals of ``one_formula``; pairs of different formulas, which it
refuses at its first line, are all counted but timed on a random sample. For all of ``one_formula`` the time of all
pairs is extrapolated from a random sample and the groups are checked against ``StructureMatcher.group_structures``.
``store`` is an embedded database that holds more and more structures while the same new crystals are looked up in it.
Seconds are processor seconds of one thread, because a benchmark may share its machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shlex
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.datasets.mp_binaries import load_mp_binaries
from inv_design.structures.elements import METALLIC_RADII
from inv_design.structures.matching import StructureIndex, duplicate_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymatgen.core import Structure

OUTPUT = Path(__file__).parent / "results" / "matching.json"
TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
SAMPLE = 500
MAX_SITES = 12
METALS = sorted(METALLIC_RADII)
PARTS = ("mixed", "one_formula", "store")


# -- crystals -------------------------------------------------------------------------------------------------------


def mixed(n: int, rng: np.random.Generator) -> list[Structure]:
    """Return packaged binaries (40 %) and copies of them: strained, rattled, supercells, other elements."""
    base = [entry.structure for entry in load_mp_binaries()]
    base = [base[i] for i in rng.permutation(len(base))]
    return grow(base[: n * 2 // 5], n, rng, relabel=base)


def one_formula(n: int, rng: np.random.Generator) -> list[Structure]:
    """Return HfRe2 in the structures of all packaged AB2 compounds, and strained, rattled copies and supercells."""
    base = []
    for entry in load_mp_binaries():
        counts = entry.structure.composition.reduced_composition.get_el_amt_dict()
        if sorted(counts.values()) == [1, 2] and len(entry.structure) <= MAX_SITES:
            one, two = sorted(counts, key=lambda symbol: counts[symbol])
            crystal = entry.structure.copy()
            crystal.replace_species({one: "Hf", two: "Re"})
            base.append(crystal)
    base = [base[i] for i in rng.permutation(len(base))]
    return grow(base[: n * 2 // 5], n, rng)


def grow(
    base: Sequence[Structure], n: int, rng: np.random.Generator, *, relabel: Sequence[Structure] = ()
) -> list[Structure]:
    """Return ``base`` and copies up to ``n``, in random order."""
    crystals = list(base)
    while len(crystals) < n:
        crystal = crystals[rng.integers(len(crystals))]
        kind = rng.integers(4)
        if kind == 0 and relabel:
            crystal = relabelled(crystal, relabel[rng.integers(len(relabel))])
        elif kind == 1 and len(crystal) <= MAX_SITES / 2:
            crystal = crystal.copy()
            crystal.make_supercell(rng.permutation([2, 1, 1]))
        crystals.append(distorted(crystal, rng))
    return [crystals[i] for i in rng.permutation(n)]


def relabelled(crystal: Structure, other: Structure) -> Structure:
    """Return a crystal with another one's elements."""
    old, new = (sorted(e.symbol for e in s.composition) for s in (crystal, other))
    copy = crystal.copy()
    if len(old) == len(new):
        copy.replace_species(dict(zip(old, new, strict=True)))
    return copy


def distorted(crystal: Structure, rng: np.random.Generator) -> Structure:
    """Return a shifted copy with up to 3 % strain, up to 5 % longer or shorter, rattled by up to 0.05 Å."""
    from pymatgen.core import Lattice, Structure

    strain = rng.uniform(-0.03, 0.03, (3, 3))
    lattice = Lattice(crystal.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2) * rng.uniform(0.95, 1.05))
    rattle = rng.normal(0.0, rng.uniform(0.0, 0.05), (len(crystal), 3))
    coords = crystal.frac_coords + rng.random(3) + lattice.get_fractional_coords(rattle)
    return Structure(lattice, crystal.species, coords)


# -- all pairs ------------------------------------------------------------------------------------------------------


def all_pairs(structures: Sequence[Structure], rng: np.random.Generator) -> tuple[list[list[int]], float]:
    """Return (groups led by their first member, seconds) of ``StructureMatcher.fit`` on every pair.

    Pairs of different formulas do not match; the seconds they take are measured on a sample.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(**TOLERANCES)
    formulas = [structure.composition.reduced_formula for structure in structures]
    pairs = list(itertools.combinations(range(len(structures)), 2))
    like = [(i, j) for i, j in pairs if formulas[i] == formulas[j]]
    unlike = [(i, j) for i, j in pairs if formulas[i] != formulas[j]]
    start = time.process_time()
    match = {(i, j) for i, j in like if matcher.fit(structures[i], structures[j])}
    seconds = time.process_time() - start
    if unlike:
        sample = [unlike[k] for k in rng.integers(len(unlike), size=4 * SAMPLE)]
        start = time.process_time()
        if any(matcher.fit(structures[i], structures[j]) for i, j in sample):
            raise SystemExit("crystals of different formulas match")
        seconds += (time.process_time() - start) / len(sample) * len(unlike)
    groups: list[list[int]] = []
    for j in range(len(structures)):
        own = next((group for group in groups if (group[0], j) in match), None)
        if own is None:
            groups.append([j])
        else:
            own.append(j)
    return groups, seconds


def sampled_pairs(structures: Sequence[Structure], rng: np.random.Generator) -> float:
    """Return the seconds that all pairs would take, from a random sample of them."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(**TOLERANCES)
    n = len(structures)
    pairs = [rng.choice(n, 2, replace=False) for _ in range(SAMPLE)]
    start = time.process_time()
    for i, j in pairs:
        matcher.fit(structures[i], structures[j])
    return (time.process_time() - start) / SAMPLE * n * (n - 1) / 2


def library_groups(structures: Sequence[Structure]) -> tuple[list[list[int]], float]:
    """Return (groups, seconds) of ``StructureMatcher.group_structures``, which buckets by formula alone."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    position = {id(structure): i for i, structure in enumerate(structures)}
    start = time.process_time()
    found = StructureMatcher(**TOLERANCES).group_structures(list(structures))
    seconds = time.process_time() - start
    return sorted([position[id(s)] for s in group] for group in found), seconds


# -- bucketed -------------------------------------------------------------------------------------------------------


class Tally(StructureIndex):
    """An index that counts how many pairs reach each step."""

    def count(self, structures: Sequence[Structure]) -> dict[str, int]:
        """Return step -> pairs compared in finding the groups."""
        self.steps: Counter[str] = Counter()
        for i, structure in enumerate(structures):
            self.find_or_add(str(i), structure)
        return dict(self.steps)

    def _fit(self, first: Any, second: Any) -> bool:
        self.steps["same_formula"] += 1
        self.steps["same_sites"] += len(first.reduced) == len(second.reduced)
        fits = super()._fit(first, second)
        self.steps["matches"] += fits
        return fits

    def _lattices_fit(self, first: Any, second: Any) -> bool:
        fits = super()._lattices_fit(first, second)
        self.steps["same_lattice"] += fits
        return fits


class Untested(StructureIndex):
    """The index without the test of the lattices: buckets of formula and sites alone."""

    def _lattices_fit(self, first: Any, second: Any) -> bool:  # noqa: ARG002
        return True


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def without_test(structures: Sequence[Structure]) -> list[str | None]:
    index = Untested(**TOLERANCES)
    return [index.find_or_add(str(i), structure) for i, structure in enumerate(structures)]


def judge(name: str, structures: list[Structure], *, full: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Return seconds and groups of one set of crystals by every method."""
    n = len(structures)
    ours, seconds = timed(lambda: duplicate_groups(structures, **TOLERANCES))
    _, untested = timed(lambda: without_test(structures))
    library, library_seconds = library_groups(structures)
    if full:
        groups, pairs_seconds = all_pairs(structures, rng)
    else:
        groups, pairs_seconds = library, sampled_pairs(structures, rng)
    row = {
        "n": n,
        "formulas": len({s.composition.reduced_formula for s in structures}),
        "groups": len(ours),
        "pairs": n * (n - 1) // 2,
        "all_pairs": "measured, pairs of different formulas on a sample"
        if full
        else f"extrapolated from {SAMPLE} random pairs",
        "groups_checked_against": "all pairs" if full else "StructureMatcher.group_structures",
        "groups_are_the_same": sorted(ours) == sorted(groups),
        "groups_of_library_are_the_same": sorted(ours) == library,
        "seconds": {
            "all_pairs": pairs_seconds,
            "group_structures": library_seconds,
            "formula_and_sites": untested,
            "bucketed": seconds,
        },
        "times_faster_than_all_pairs": pairs_seconds / seconds,
        "pairs_that_reach": Tally(**TOLERANCES).count(structures),
    }
    print(
        f"{name:12s} n {n:5d}  groups {len(ours):4d}  all pairs {pairs_seconds:9.1f} s ({row['all_pairs']})  "
        f"group_structures {library_seconds:7.1f} s  formula and sites {untested:6.1f} s  bucketed {seconds:6.1f} s  "
        f"{row['times_faster_than_all_pairs']:.0f} times faster  the same groups: {row['groups_are_the_same']}",
        flush=True,
    )
    print(f"{'':12s} pairs that reach {row['pairs_that_reach']}", flush=True)
    if not row["groups_are_the_same"]:
        raise SystemExit(f"{name}: the groups differ from those of {row['groups_checked_against']}")
    return row


# -- in a database --------------------------------------------------------------------------------------------------


def fill(connection: Any, first: int, last: int, rng: np.random.Generator) -> None:
    """Insert synthetic structure documents number ``first`` to ``last``: B2, L1_2 and rocksalt of two metals each.

    Formulas recur as in a campaign over all metals; one in 200 crystals is of Hf and Re.
    """
    from pymatgen.core import Lattice, Structure

    shapes = (
        (2.9, [0, 1], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        (3.7, [0, 1, 1, 1], [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
        (3.2, [0, 1, 1], [[0, 0, 0], [0.5, 0.5, 0.2], [0.5, 0.5, 0.8]]),
    )
    documents = []
    for number in range(first, last):
        edge, places, coords = shapes[rng.integers(3)]
        pair = ["Hf", "Re"] if rng.random() < 0.005 else list(rng.choice(METALS, 2, replace=False))
        lattice = Lattice.tetragonal(edge * rng.uniform(0.9, 1.1), edge * rng.uniform(0.6, 1.8))
        crystal = Structure(lattice, [pair[p] for p in places], coords)
        formula = crystal.composition.reduced_formula
        documents.append(
            {
                "structure_id": f"s-{number:020d}",
                "structure": crystal.as_dict(),
                "formula": formula,
                "chemsys": "-".join(sorted(set(pair))),
                "elements": sorted(set(pair)),
                "nsites": len(crystal),
                "volume": crystal.volume,
                "density": float(crystal.density),
                "spacegroup": {"number": 1, "symbol": "P1", "symprec": 0.01},
                "fingerprint": f"{formula}|{len(crystal)}|1",
                "sources": [{"kind": "ingested", "id": str(number)}],
            }
        )
        if len(documents) == 1000 or number == last - 1:
            connection.db["structures"].insert_many(documents)
            documents = []


def in_store(largest: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return one row per size of the store: milliseconds to judge one new crystal against all that is stored."""
    from pymatgen.core import Lattice, Structure

    from builders.duplicates import first_like
    from stores.connection import connect
    from stores.queries import ensure_indexes, structures_of_formula

    coords = [[0, 0, 0], [0.5, 0.5, 0.5]]
    pairs = [list(rng.choice(METALS, 2, replace=False)) for _ in range(40)]
    new = [Structure(Lattice.tetragonal(3.0, 3.0 * rng.uniform(0.8, 1.6)), pair, coords) for pair in pairs]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, connect(f"embedded:{folder}/store.db") as connection:
        ensure_indexes(connection)
        for size in [n for n in (1000, 10_000, 100_000) if n <= largest]:
            start = time.process_time()
            fill(connection, rows[-1]["structures"] if rows else 0, size, rng)
            filling = time.process_time() - start
            first_like(new[0], TOLERANCES)
            read = [len(structures_of_formula(s.composition.reduced_formula)) for s in new]
            start = time.process_time()
            for crystal in new:
                first_like(crystal, TOLERANCES)
            seconds = time.process_time() - start
            row = {
                "structures": size,
                "insert_seconds": filling,
                "ms_per_candidate": seconds / len(new) * 1e3,
                "crystals_read_per_candidate": float(np.mean(read)),
                **one_more_candidate(connection, new[0]),
            }
            rows.append(row)
            print(
                f"store        {size:7d} structures  {row['ms_per_candidate']:7.1f} ms per candidate, "
                f"{row['crystals_read_per_candidate']:.1f} crystals read; one more among as many judged candidates, in "
                f"a new process: {row['builder_ms']:.0f} ms, {row['builder_crystals_read']} crystals read",
                flush=True,
            )
    return rows


def one_more_candidate(connection: Any, crystal: Structure) -> dict[str, Any]:
    """Return the milliseconds of the builder's search for one more candidate, all stored crystals being judged ones.

    The search is new, as in another process, and takes over what was written; listing the candidates is not counted.
    """
    from builders.duplicates import DuplicateSearch, Member
    from stores.queries import structures_by_id

    documents = connection.db["structures"].find({}, {"_id": 0, "structure_id": 1, "formula": 1})
    members = [Member(f"c-{d['structure_id']}", d["structure_id"], d["formula"], False) for d in documents]
    first = DuplicateSearch(TOLERANCES)
    first.advance(members, lambda _: {})  # only the keys are wanted: no crystal is read, none is like another
    written = {name: (first.keys[name], first.results[name]) for name in first.results}
    members.append(Member("c-new", "s-new", crystal.composition.reduced_formula, False))
    asked: list[str] = []

    def load(ids: Sequence[str]) -> dict[str, Structure]:
        asked.extend(i for i in ids if i != "s-new")
        return {**structures_by_id(asked), "s-new": crystal}

    search = DuplicateSearch(TOLERANCES)
    start = time.process_time()
    search.advance(members, load, written)
    return {"builder_ms": (time.process_time() - start) * 1e3, "builder_crystals_read": len(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="crystals of each set")
    parser.add_argument("--small", type=int, default=200, help="crystals of one formula compared in all pairs")
    parser.add_argument("--store", type=int, default=100_000, help="structures of the largest store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="the others keep what is in the output"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    seeds = np.random.default_rng(arguments.seed).spawn(6)
    result: dict[str, Any] = {}
    if "mixed" in arguments.parts:
        result["mixed"] = judge("mixed", mixed(arguments.n, seeds[1]), full=True, rng=seeds[2])
    if "one_formula" in arguments.parts:
        hard = one_formula(arguments.n, seeds[0])
        result["one_formula_small"] = judge("one formula", hard[: arguments.small], full=True, rng=seeds[3])
        result["one_formula"] = judge("one formula", hard, full=False, rng=seeds[4])
    if "store" in arguments.parts:
        result["store"] = in_store(arguments.store, seeds[5])

    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    commands = known.get("commands", {}) | dict.fromkeys(
        arguments.parts, shlex.join(["python", "benchmarks/matching.py", *sys.argv[1:]])
    )
    known |= {"commands": commands, "python": platform.python_version(), "tolerances": TOLERANCES, **result}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Label strained metals with CHGNet: the training data of mace-alloy-small.

Parts: the packaged Materials Project alloys (primitive, at most 8 atoms); pure elements (fcc, bcc, hcp); hypothetical
compounds of every pair of elements; shears, at constant volume, of the alloys and of the other two; the alloys of 9 to
20 atoms; and the alloys with other elements in their place, a few of them ternary. The held-out chemical systems get
no labels, nor does a ternary that contains one.
One ``.npz`` file per part; energies in eV, forces in eV/Å, stresses in eV/Å^3 (tension positive).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from holdout import held_out_systems
from pymatgen.core import Element, Lattice, Structure

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.structures.elements import METALLIC_RADII

EV_PER_A3 = 160.21766208  # GPa
ISOTROPIC = (-0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06)
STRAIN = 0.03  # size of the random strains
PARTS = ("elements", "alloys", "pairs", "shears", "alloy_shears", "large_alloys", "decorated")
SHEAR = 0.04  # Frobenius norm of a shear
RATTLE = 0.07  # Å, standard deviation per coordinate
MAX_SITES = 8
MAX_SITES_LARGE, MAX_SITES_DECORATED = 20, 12
REACHES = (3.0, 30.0)  # of a substitution, in places of the Mendeleev order of the elements: chemists' guess, anything
TERNARY = 0.15  # share of the decorated alloys
# half of the others are left out: a network's errors are largest where these elements are
DIFFICULT = frozenset(
    ["Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba", "Eu", "Cr", "Mn", "Fe", "Co", "Pb", "Bi"]
)

Labeller = Callable[[Structure], tuple[float, np.ndarray, np.ndarray]]


@dataclass
class Labels:
    """Labelled configurations, kept as lists until they are written."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, structure: Structure, group: str, kind: str, label: tuple[float, np.ndarray, np.ndarray]) -> None:
        """Keep one configuration with its (energy eV, forces eV/Å, stress eV/Å^3)."""
        energy, forces, stress = label
        if not np.isfinite(energy) or np.abs(forces).max() > 15 or np.abs(stress).max() > 0.8:
            return
        self.rows.append(
            {
                "numbers": np.array([site.specie.Z for site in structure], dtype=np.int16),
                "positions": structure.cart_coords,
                "cell": structure.lattice.matrix,
                "energy": energy,
                "forces": forces,
                "stress": stress,
                "group": group,
                "kind": kind,
            }
        )

    def write(self, path: Path) -> None:
        """Write all rows as flat arrays; configuration i owns the atoms offsets[i]:offsets[i + 1]."""
        sizes = [len(row["numbers"]) for row in self.rows]
        stacked: dict[str, Any] = {
            key: np.concatenate([row[key] for row in self.rows]) for key in ("numbers", "positions", "forces")
        }
        for key in ("cell", "energy", "stress"):
            stacked[key] = np.array([row[key] for row in self.rows])
        for key in ("group", "kind"):
            stacked[key] = np.array([row[key] for row in self.rows], dtype=np.str_)
        np.savez_compressed(path, offsets=np.concatenate([[0], np.cumsum(sizes)]), **stacked)
        print(f"{path}: {len(self.rows)} configurations", flush=True)


def chgnet_labeller() -> Labeller:
    """Return a function from a crystal to CHGNet's (energy, forces, stress)."""
    import torch
    from chgnet.model import CHGNet

    torch.set_num_threads(1)
    model = CHGNet.load(use_device="cpu", verbose=False)

    def label(structure: Structure) -> tuple[float, np.ndarray, np.ndarray]:
        prediction = model.predict_structure(structure, task="efs")
        return (
            float(prediction["e"]) * len(structure),
            np.asarray(prediction["f"], dtype=float),
            np.asarray(prediction["s"], dtype=float) / EV_PER_A3,
        )

    return label


def deformed(
    structure: Structure, isotropic: float, rng: np.random.Generator | None = None, rattle: float = 0.0
) -> Structure:
    """Return the crystal with an isotropic linear strain, and with ``rng`` a random symmetric one and a rattle."""
    strain = np.eye(3) * (1 + isotropic)
    if rng is not None:
        noise = rng.normal(scale=STRAIN / 3**0.5, size=(3, 3))
        strain = strain + (noise + noise.T) / 2
    matrix = structure.lattice.matrix @ strain
    coords = structure.frac_coords @ matrix
    if rng is not None and rattle:
        coords = coords + rng.normal(scale=rattle, size=coords.shape)
    return Structure(Lattice(matrix), structure.species, coords, coords_are_cartesian=True)


def label_alloys(label: Labeller, held: set[str], rng: np.random.Generator, limit: int | None) -> Labels:
    """Label the packaged alloys outside ``held``: seven isotropic strains, one random strain, one with a rattle."""
    labels = Labels()
    for alloy in load_alloys()[:limit]:
        structure = alloy.structure.get_primitive_structure()
        if alloy.chemsys in held or len(structure) > MAX_SITES:
            continue
        for strain in ISOTROPIC:
            labels.add(cell := deformed(structure, strain), alloy.source_id, "isotropic", label(cell))
        labels.add(cell := deformed(structure, 0.0, rng), alloy.source_id, "strain", label(cell))
        labels.add(cell := deformed(structure, 0.0, rng, RATTLE), alloy.source_id, "rattle", label(cell))
    return labels


def prototype(name: str, symbols: list[str]) -> Structure:
    """Return a hypothetical crystal at the volume of its metallic radii (volumes per atom add, 4 sqrt(2) r^3)."""
    cells: dict[str, tuple[Lattice, list[list[float]], list[int]]] = {
        "fcc": (Lattice([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), [[0, 0, 0]], [0]),
        "bcc": (Lattice([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]), [[0, 0, 0]], [0]),
        "hcp": (Lattice.hexagonal(1, 1.62), [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], [0, 0]),
        "B2": (Lattice.cubic(1), [[0, 0, 0], [0.5, 0.5, 0.5]], [0, 1]),
        "L1_0": (Lattice.tetragonal(1, 2**0.5), [[0, 0, 0], [0.5, 0.5, 0.5]], [0, 1]),
        "C11b": (
            Lattice([[-0.5, 0.5, 1.7], [0.5, -0.5, 1.7], [0.5, 0.5, -1.7]]),
            [[0, 0, 0], [1 / 3, 1 / 3, 0], [2 / 3, 2 / 3, 0]],
            [0, 1, 1],
        ),
        "C15": (
            Lattice([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
            [[0.125] * 3, [0.875] * 3, [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
            [0, 0, 1, 1, 1, 1],
        ),
        "L1_2": (Lattice.cubic(1), [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [0, 1, 1, 1]),
    }
    lattice, coords, order = cells[name]
    species = [symbols[i] for i in order]
    volume = sum(4 * 2**0.5 * METALLIC_RADII[symbol] ** 3 for symbol in species)
    return Structure(lattice.scale(volume), species, coords)


def label_around_equilibrium(
    label: Labeller,
    labels: Labels,
    structure: Structure,
    group: str,
    *,
    rng: np.random.Generator,
    extra: int = 0,
    shear: bool = False,
) -> None:
    """Label three isotropic strains around CHGNet's zero pressure, ``extra`` more, one rattle, perhaps one shear."""
    results = []

    def pressure(strain: float) -> float:
        cell = deformed(structure, strain)
        results.append(strain)
        result = label(cell)
        labels.add(cell, group, "isotropic", result)
        return -float(np.trace(result[2])) / 3

    first = pressure(0.0)
    step = 0.04 if first > 0 else -0.04
    second = pressure(step)
    slope = (second - first) / step
    # secant step to zero pressure; where CHGNet is not elastic (slope >= 0) stay between the two points
    centre = float(np.clip(-first / slope, -0.12, 0.12)) if slope < 0 else step / 2
    pressure(centre + float(rng.uniform(-0.03, 0.03)))
    for _ in range(extra):
        pressure(centre + float(rng.uniform(-0.06, 0.06)))
    cell = deformed(structure, centre, rng, RATTLE)
    labels.add(cell, group, "rattle", label(cell))
    if shear:
        cell = sheared(deformed(structure, centre), shears(rng)[0])
        labels.add(cell, group, "shear", label(cell))


def label_elements(label: Labeller, elements: list[str], rng: np.random.Generator) -> Labels:
    """Label fcc, bcc and hcp of every element: six configurations around zero pressure each."""
    labels = Labels()
    for symbol, name in itertools.product(elements, ("fcc", "bcc", "hcp")):
        label_around_equilibrium(label, labels, prototype(name, [symbol]), f"{symbol}:{name}", rng=rng, extra=2)
    return labels


def label_pairs(label: Labeller, pairs: list[tuple[str, str]], seed: int, minutes: float) -> Labels:
    """Label hypothetical compounds of every pair, four configurations each; stop after ``minutes``.

    First B2 or L1_0, and L1_2, of all pairs; then the prototypes of a second round, as far as the time goes. Each pair
    has its own random stream, so that its labels do not depend on the pairs before it.
    """
    labels = Labels()
    start = time.time()
    rounds = (("B2", "L1_0"), ("L1_2",)), (("C11b", "C15"), ("L1_2", "B2", "L1_0"))
    for number, choices in enumerate(rounds):
        for done, pair in enumerate(pairs):
            if time.time() - start > 60 * minutes:
                print(f"stopped after {done} of {len(pairs)} pairs of round {number + 1}", flush=True)
                return labels
            rng = np.random.default_rng([seed, number, *(Element(symbol).Z for symbol in pair)])
            for names in choices:
                name = names[rng.integers(len(names))]
                symbols = list(pair) if rng.integers(2) else list(pair[::-1])
                group = f"{'-'.join(symbols)}:{name}"
                label_around_equilibrium(label, labels, prototype(name, symbols), group, rng=rng)
    return labels


def decorate(parent: Structure, elements: list[str], held: set[str], rng: np.random.Generator) -> Structure | None:
    """Return a crystal with other elements in its place, scaled by their metallic radii; ``None`` where none may be.

    An element gives way to one ``k`` places away in ``elements`` (in Mendeleev order) with probability ~ exp(-k/reach).
    """
    old = [site.specie.symbol for site in parent]
    reach = REACHES[rng.integers(len(REACHES))]

    def neighbour(symbol: str) -> str:
        weights = np.exp(-np.abs(np.arange(len(elements)) - elements.index(symbol)) / reach)
        return elements[rng.choice(len(elements), p=weights / weights.sum())]

    replacement = {symbol: neighbour(symbol) for symbol in sorted(set(old))}
    new = [replacement[symbol] for symbol in old]
    if rng.random() < TERNARY:
        site = int(rng.integers(len(new)))
        new[site] = neighbour(new[site])
    chosen = sorted(set(new))
    if len(chosen) < 2 or any("-".join(pair) in held for pair in itertools.combinations(chosen, 2)):
        return None
    if not DIFFICULT & set(chosen) and rng.random() < 0.5:
        return None
    ratio = sum(METALLIC_RADII[symbol] ** 3 for symbol in new) / sum(METALLIC_RADII[symbol] ** 3 for symbol in old)
    return Structure(parent.lattice.scale(parent.volume * ratio), new, parent.frac_coords)


def label_decorated(label: Labeller, held: set[str], elements: list[str], seed: int, numbers: range) -> Labels:
    """Label known alloys with other elements in their place: three isotropic strains, one rattle and one shear each.

    Crystal i of ``numbers`` has its own random stream: a file can be made in pieces.
    """
    labels = Labels()
    ordered = sorted(elements, key=lambda symbol: Element(symbol).mendeleev_no)
    cells = [a.structure.get_primitive_structure() for a in load_alloys() if a.chemsys not in held]
    parents = [cell for cell in cells if len(cell) <= MAX_SITES_DECORATED]
    for number in numbers:
        rng = np.random.default_rng([seed, 60, number])
        crystal = None
        while crystal is None:
            crystal = decorate(parents[rng.integers(len(parents))], ordered, held, rng)
        group = f"{crystal.chemical_system}:decorated {number}"
        label_around_equilibrium(label, labels, crystal, group, rng=rng, shear=True)
    return labels


def label_large_alloys(label: Labeller, held: set[str], seed: int, limit: int | None) -> Labels:
    """Label the packaged alloys of 9 to 20 atoms outside ``held``: five isotropic strains, one rattle, five shears."""
    labels = Labels()
    for alloy in load_alloys()[:limit]:
        structure = alloy.structure.get_primitive_structure()
        if alloy.chemsys in held or not MAX_SITES < len(structure) <= MAX_SITES_LARGE:
            continue
        rng = np.random.default_rng([seed, int(alloy.source_id.split("-")[1])])
        for strain in (-0.05, -0.025, 0.0, 0.025, 0.05):
            labels.add(cell := deformed(structure, strain), alloy.source_id, "isotropic", label(cell))
        labels.add(cell := deformed(structure, 0.0, rng, RATTLE), alloy.source_id, "rattle", label(cell))
        for shear in shears(rng):
            labels.add(cell := sheared(structure, shear), alloy.source_id, "shear", label(cell))
    return labels


def shears(rng: np.random.Generator) -> list[np.ndarray]:
    """Return five orthogonal traceless symmetric strains (3, 3) of norm SHEAR, as a set turned at random.

    The mean of their elastic energies gives the Voigt average of the shear modulus exactly, whatever the anisotropy.
    """
    root2, root6 = 2**0.5, 6**0.5
    basis = [np.diag([1, -1, 0]) / root2, np.diag([1, 1, -2]) / root6]
    for i, j in ((1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1 / root2
        basis.append(strain)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    return [SHEAR * rng.choice((-1, 1)) * np.tensordot(row, basis, axes=1) for row in turn]


def sheared(structure: Structure, strain: np.ndarray) -> Structure:
    """Return the crystal under a shear, at its own volume."""
    deformation = np.eye(3) + strain
    matrix = structure.lattice.matrix @ deformation / np.linalg.det(deformation) ** (1 / 3)
    return Structure(Lattice(matrix), structure.species, structure.frac_coords)


def label_alloy_shears(label: Labeller, held: set[str], seed: int, limit: int | None) -> Labels:
    """Label five orthogonal shears of every packaged alloy outside ``held``, about its PBE cell."""
    labels = Labels()
    for alloy in load_alloys()[:limit]:
        structure = alloy.structure.get_primitive_structure()
        if alloy.chemsys in held or len(structure) > MAX_SITES:
            continue
        for strain in shears(np.random.default_rng([seed, int(alloy.source_id.split("-")[1])])):
            labels.add(cell := sheared(structure, strain), alloy.source_id, "shear", label(cell))
    return labels


def label_shears(label: Labeller, folder: Path, seed: int, limit: int | None) -> Labels:
    """Label two shears of every group in ``folder``'s elements and pairs, near its volume of zero pressure."""
    labels = Labels()
    rng = np.random.default_rng(seed)
    for path in [folder / "elements.npz", *sorted(folder.glob("pairs*.npz"))]:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
        groups: dict[str, list[int]] = {}
        for row in np.flatnonzero(arrays["kind"] == "isotropic").tolist():
            groups.setdefault(str(arrays["group"][row]), []).append(row)
        for group, rows in list(groups.items())[:limit]:
            pressures = -np.trace(arrays["stress"][rows], axis1=1, axis2=2) / 3
            nearest = rows[int(np.argmin(np.abs(pressures)))]
            start, stop = arrays["offsets"][nearest : nearest + 2]
            structure = Structure(
                Lattice(arrays["cell"][nearest]),
                arrays["numbers"][start:stop].tolist(),
                arrays["positions"][start:stop],
                coords_are_cartesian=True,
            )
            for strain in shears(rng)[:2]:
                labels.add(cell := sheared(structure, strain), group, "shear", label(cell))
    return labels


def main() -> None:
    """Label the parts asked for into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pair-minutes", type=float, default=12.0, help="stop labelling pairs after this many minutes")
    parser.add_argument("--skip-pairs", type=int, default=0, help="leave out the first pairs (of an earlier, cut run)")
    parser.add_argument("--decorated", nargs=2, type=int, default=(0, 8000), help="first decorated alloy, and the end")
    parser.add_argument("--limit", type=int, default=None, help="use only the first alloys and pairs (for a trial)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    alloys = load_alloys()
    held = held_out_systems(alloy.chemsys for alloy in alloys)
    elements = sorted({element.symbol for alloy in alloys for element in alloy.structure.composition.elements})
    pairs = [pair for pair in itertools.combinations(elements, 2) if "-".join(pair) not in held]
    order = np.random.default_rng(arguments.seed).permutation(len(pairs))
    pairs = [pairs[i] for i in order][arguments.skip_pairs :][: arguments.limit]
    label = chgnet_labeller()
    rng = np.random.default_rng(arguments.seed)
    makers = {
        "elements": lambda: label_elements(label, elements[: arguments.limit], rng),
        "alloys": lambda: label_alloys(label, held, rng, arguments.limit),
        "pairs": lambda: label_pairs(label, pairs, arguments.seed, arguments.pair_minutes),
        "shears": lambda: label_shears(label, arguments.folder, arguments.seed, arguments.limit),
        "alloy_shears": lambda: label_alloy_shears(label, held, arguments.seed, arguments.limit),
        "large_alloys": lambda: label_large_alloys(label, held, arguments.seed, arguments.limit),
        "decorated": lambda: label_decorated(label, held, elements, arguments.seed, range(*arguments.decorated)),
    }
    for name in arguments.parts:
        start = time.time()
        skipped = {"pairs": arguments.skip_pairs, "decorated": arguments.decorated[0]}.get(name, 0)
        suffix = f"_from_{skipped}" if skipped else ""
        makers[name]().write(arguments.folder / f"{name}{suffix}.npz")
        print(f"{name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Crystal graphs: for every atom its nearest neighbours under periodic boundary conditions."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

NEIGHBOURS = 12  # Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018)
RADIUS = 8.0  # Å
MAX_PAIRS = 1_000_000  # distances held at once
CACHE_SIZE = 20_000
COINCIDENT = 0.1  # Å: closer atoms are one atom written twice
TIE = 1e-3  # Å: neighbours closer together than this are ordered by species, so that float noise does not choose

_CACHE: OrderedDict[bytes, CrystalGraph] = OrderedDict()


@dataclass(frozen=True, slots=True)
class CrystalGraph:
    """The neighbour graph of a crystal of N atoms with M neighbours each.

    Attributes
    ----------
    numbers
        Atomic numbers (N,).
    neighbours
        Index of each neighbour in the cell (N, M), nearest first.
    vectors
        Vector from the atom to that neighbour's image (N, M, 3) in Å. Where fewer than M atoms lie within the radius,
        the rest are copies of the atom itself at 1 Å beyond the radius, where no edge feature is left of them.
    volume
        Cell volume in Å^3.
    """

    numbers: np.ndarray
    neighbours: np.ndarray
    vectors: np.ndarray
    volume: float


def build_graph(structure: Structure, *, neighbours: int = NEIGHBOURS, radius: float = RADIUS) -> CrystalGraph:
    """Return the graph of the ``neighbours`` nearest atoms within ``radius`` (Å) of every atom; kept in a cache.

    Raises
    ------
    ValueError
        If the crystal is partially occupied, its cell degenerate, atoms coincide, or an atom has no neighbour.
    """
    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites; give an ordered crystal")
    lattice = np.ascontiguousarray(structure.lattice.matrix, dtype=float)
    coords = np.ascontiguousarray(structure.frac_coords, dtype=float)
    numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
    digest = hashlib.blake2b(lattice.tobytes() + coords.tobytes() + numbers.tobytes(), digest_size=16)
    key = digest.digest() + bytes(f"{neighbours}/{radius}", "ascii")
    graph = _CACHE.get(key)
    if graph is None:
        index, vectors = nearest_neighbours(lattice, coords, numbers, neighbours, radius)
        graph = CrystalGraph(numbers, index, vectors, float(abs(np.linalg.det(lattice))))
        _CACHE[key] = graph
        if len(_CACHE) > CACHE_SIZE:
            _CACHE.popitem(last=False)
    else:
        _CACHE.move_to_end(key)
    return graph


def clear_cache() -> None:
    """Forget all graphs, to free memory or to time the search."""
    _CACHE.clear()


def nearest_neighbours(
    lattice: np.ndarray, coords: np.ndarray, numbers: np.ndarray, count: int = NEIGHBOURS, radius: float = RADIUS
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices (N, count), vectors (N, count, 3) in Å) of the nearest periodic neighbours within ``radius``.

    ``lattice`` (3, 3) holds the cell vectors as rows in Å, ``coords`` (N, 3) fractional coordinates. The search starts
    with the sphere that should hold the neighbours at the crystal's density and grows until it does.
    """
    volume = abs(np.linalg.det(lattice))
    if not (np.isfinite(lattice).all() and np.isfinite(coords).all()) or volume < 0.1 * len(coords):
        raise ValueError(f"the cell of {len(coords)} atoms has a volume of {volume:.3g} Å^3; give a physical crystal")
    reach = min(radius, 1.25 * (3.0 * (count + 4) * volume / (4.0 * math.pi * len(coords))) ** (1.0 / 3.0))
    while True:
        index, vectors, distances = _search(lattice, coords, numbers, count, reach)
        if reach >= radius or (index.shape[1] == count and (distances[:, -1] <= reach).all()):
            break
        reach = min(radius, 1.4 * reach)
    if distances.size and distances[:, 0].min() < COINCIDENT:
        raise ValueError(f"two atoms are {distances[:, 0].min():.3g} Å apart; give a crystal without coinciding atoms")
    return _pad(index, vectors, distances, count, radius)


def _search(
    lattice: np.ndarray, coords: np.ndarray, numbers: np.ndarray, count: int, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (indices, vectors, distances) of up to ``count`` nearest images; complete only within ``reach``."""
    planes = np.linalg.norm(np.linalg.inv(lattice), axis=0)  # 1 / distance between lattice planes
    spans = np.floor(reach * planes + 0.5).astype(int)
    n_images = int(np.prod(2 * spans + 1))
    if n_images * len(coords) > MAX_PAIRS:
        raise ValueError(f"a cell with lattice planes {1 / planes.max():.3g} Å apart is degenerate; reduce it first")
    grids = np.meshgrid(*[np.arange(-s, s + 1) for s in spans], indexing="ij")
    images = np.stack(grids, axis=-1).reshape(-1, 3) @ lattice  # (m, 3)
    n_atoms = len(coords)
    block = max(1, MAX_PAIRS // (n_images * n_atoms))
    parts = []
    for start in range(0, n_atoms, block):
        fractional = coords[None, :, :] - coords[start : start + block, None, :]
        fractional -= np.rint(fractional)
        vectors = (fractional @ lattice)[:, :, None, :] + images  # (b, N, m, 3)
        vectors = vectors.reshape(len(fractional), -1, 3)
        squares = np.einsum("ijk,ijk->ij", vectors, vectors)
        rows = np.arange(len(fractional))[:, None]
        own = (np.arange(start, start + len(fractional)) * n_images + n_images // 2)[:, None]
        squares[rows, own] = np.inf
        keep = min(count, squares.shape[1] - 1)
        wide = min(keep + 12, squares.shape[1] - 1)  # room for ties at the edge of the shell
        if wide < 1:
            parts.append((np.empty((len(fractional), 0), int), np.empty((len(fractional), 0, 3)), np.empty((1, 0))))
            continue
        near = np.argpartition(squares, wide - 1, axis=1)[:, :wide]
        distances = np.sqrt(squares[rows, near])
        atoms = near // n_images
        order = np.lexsort((near, numbers[atoms], np.rint(distances / TIE)))[:, :keep]
        chosen = near[rows, order]
        parts.append((chosen // n_images, vectors[rows, chosen], distances[rows, order]))
    index, vectors, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    return index, vectors, distances


def _pad(
    index: np.ndarray, vectors: np.ndarray, distances: np.ndarray, count: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    n_atoms, found = index.shape
    if found == 0 or (distances[:, 0] > radius).any():
        raise ValueError(f"an atom has no neighbour within {radius:g} Å; give a connected crystal")
    far = np.array([radius + 1.0, 0.0, 0.0])
    full_index = np.repeat(np.arange(n_atoms)[:, None], count, axis=1)
    full_vectors = np.broadcast_to(far, (n_atoms, count, 3)).astype(np.float32)
    inside = distances <= radius
    full_index[:, :found] = np.where(inside, index, full_index[:, :found])
    full_vectors[:, :found] = np.where(inside[..., None], vectors, full_vectors[:, :found])
    return full_index.astype(np.int32), full_vectors

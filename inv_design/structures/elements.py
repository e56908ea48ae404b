"""Element sets and metallic radii: what counts as a metal, an actinide or a noble gas here."""

from __future__ import annotations

# ruff: noqa: SIM905
NOBLE_GASES = frozenset("He Ne Ar Kr Xe Rn Og".split())
ACTINIDES = frozenset("Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr".split())
NON_METALS = frozenset("H B C N O F Si P S Cl Ge As Se Sb Br Te I Po At".split())  # metalloids included

# Metallic radii in Å for coordination number 12 (Greenwood & Earnshaw, Chemistry of the Elements, 2nd ed., and Teatum,
# Gschneidner & Waber, LA-4003, for lanthanides and the heavier p metals).
METALLIC_RADII: dict[str, float] = {
    "Li": 1.57, "Be": 1.12, "Na": 1.91, "Mg": 1.60, "Al": 1.43, "K": 2.35, "Ca": 1.97, "Sc": 1.64, "Ti": 1.47,
    "V": 1.35, "Cr": 1.29, "Mn": 1.37, "Fe": 1.26, "Co": 1.25, "Ni": 1.25, "Cu": 1.28, "Zn": 1.37, "Ga": 1.53,
    "Rb": 2.50, "Sr": 2.15, "Y": 1.82, "Zr": 1.60, "Nb": 1.47, "Mo": 1.40, "Tc": 1.35, "Ru": 1.34, "Rh": 1.34,
    "Pd": 1.37, "Ag": 1.44, "Cd": 1.52, "In": 1.67, "Sn": 1.58, "Cs": 2.72, "Ba": 2.24, "La": 1.88,
    "Ce": 1.83, "Pr": 1.83, "Nd": 1.82, "Pm": 1.81, "Sm": 1.80, "Eu": 2.04, "Gd": 1.80, "Tb": 1.78, "Dy": 1.77,
    "Ho": 1.77, "Er": 1.76, "Tm": 1.75, "Yb": 1.94, "Lu": 1.73, "Hf": 1.59, "Ta": 1.47, "W": 1.41, "Re": 1.37,
    "Os": 1.35, "Ir": 1.36, "Pt": 1.39, "Au": 1.44, "Hg": 1.55, "Tl": 1.71, "Pb": 1.75, "Bi": 1.82,
}  # fmt: skip


def is_metal(symbol: str) -> bool:
    """Return whether an element counts as a metal (actinides included, metalloids not)."""
    return symbol not in NON_METALS and symbol not in NOBLE_GASES


def expand_elements(names: list[str]) -> frozenset[str]:
    """Return element symbols for a list of symbols and group names (``metals``, ``actinides``, ``noble_gases``).

    Raises
    ------
    ValueError
        If a name is neither an element nor one of the groups.
    """
    from pymatgen.core import Element

    symbols: set[str] = set()
    groups = {
        "metals": frozenset(e.symbol for e in Element if is_metal(e.symbol)),
        "actinides": ACTINIDES,
        "noble_gases": NOBLE_GASES,
        "non_metals": NON_METALS,
    }
    for name in names:
        if name in groups:
            symbols |= groups[name]
        elif Element.is_valid_symbol(name):
            symbols.add(name)
        else:
            raise ValueError(f"{name!r} is neither an element nor one of {', '.join(sorted(groups))}")
    return frozenset(symbols)

"""Files on the command line as one stream of crystals, and the texts of options as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inv_design.structures.files import ReadItem


def read_files(paths: Iterable[str]) -> Iterator[ReadItem]:
    """Yield the crystals of all files in the order given; what cannot be read is an item with its error."""
    from inv_design.structures.files import read_structures

    for path in paths:
        yield from read_structures(path)


def parse_targets(texts: Iterable[str]) -> dict[str, float]:
    """Return property -> value in its unit from ``bulk_modulus=350`` or ``K=350 GPa``.

    Raises
    ------
    click.BadParameter
        If a text has another form, the property is unknown or the value is not possible.
    """
    from inv_design.config import parse_target, property_name

    targets = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise click.BadParameter(f"{text!r} is not PROPERTY=VALUE, write for example bulk_modulus=350")
        try:
            full = property_name(name.strip())
            targets[full] = parse_target(value, name=full)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return targets


def parse_elements(texts: Iterable[str], *, groups: bool = True) -> list[str]:
    """Return element symbols from ``Tc,Os`` or repeated options; groups such as ``actinides`` are expanded.

    Raises
    ------
    click.BadParameter
        If a name is neither an element nor a group.
    """
    from inv_design.structures.elements import expand_elements

    names = [name.strip() for text in texts for name in text.replace(" ", ",").split(",") if name.strip()]
    try:
        symbols = expand_elements(names)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not groups and set(names) != symbols:
        raise click.BadParameter(f"{', '.join(sorted(set(names) - symbols))}: give element symbols, such as Re,W")
    return sorted(symbols)

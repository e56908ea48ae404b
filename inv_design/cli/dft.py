"""`inv-design dft`: settings of the DFT backends."""

from __future__ import annotations

import click

from inv_design.cli.lazy import LazyGroup, Table

COMMANDS: Table = {
    "converge": ("dft_converge:converge", "Find the cutoff and k-point density that a crystal's bulk modulus needs."),
}


class DftCommands(LazyGroup):
    """The sub-commands of `dft`."""

    table = COMMANDS


@click.group(cls=DftCommands)
def dft() -> None:
    """Choose the settings of a DFT backend."""

"""The surrogate backend: a universal potential's equation of state in place of DFT, for rehearsals and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inv_design.config import CampaignConfig


class Surrogate:
    """Relaxation and E(V) over ±4 % linear strain with CHGNet (10.5 % mean error in K against PBE on alloys)."""

    method = "surrogate"
    kind = "eos"
    batch = 10
    label = "surrogate (E(V), no DFT)"

    def protocol(self, config: CampaignConfig) -> dict[str, Any]:
        """Return calculator, strain and the code that applied them."""
        from inv_design import __version__
        from inv_design.calculators.registry import calculator_protocol
        from inv_design.mechanics.stages import METHOD

        stage = config.stages.dft
        return {
            "code": "inv_design",
            "version": __version__,
            "stage": "dft",
            "backend": self.method,
            "calculator": calculator_protocol(stage.calculator),
            "strain": stage.strain,
            "mechanics": METHOD,
        }

    def compute(self, structures: Sequence[Any], config: CampaignConfig) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, record) of the equation of state of each crystal."""
        from fireworks_specs.pool import map_structures
        from inv_design.mechanics.stages import measure_equations_of_state

        stage = config.stages.dft
        yield from map_structures(
            measure_equations_of_state, structures, calculator=stage.calculator, strain=stage.strain
        )

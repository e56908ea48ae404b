"""Protocol ids: everything that determines a stage's numbers, hashed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from inv_design import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inv_design.config import CampaignConfig


def predictor_protocol(model_id: str) -> str:
    """Return the protocol id of predictions by a model (its id hashes weights and settings)."""
    from stores.protocol import protocol_id

    return protocol_id({"code": "inv_design", "stage": "predictor", "model_id": model_id})


def mlip_protocol(config: CampaignConfig, calculator: str | None = None) -> dict[str, Any]:
    """Return what determines a stage-II result, by the configured calculator or another one."""
    stage = config.stages.mlip
    settings = {"fmax": stage.fmax, "max_steps": stage.max_steps, "keep_structure": dict(stage.keep_structure)}
    return calculation_protocol("elastic", calculator or stage.calculator, settings)


def round_calculator(campaign: str, config: CampaignConfig, number: int) -> str:
    """Return the calculator of a round's stage II: the configured one, or the round's fine-tuned potential."""
    from builders.potentials import calculator_of
    from fireworks_specs.steps import model_of_round

    model = model_of_round(campaign, number, "mlip")
    return config.stages.mlip.calculator if model is None else calculator_of(model.to_mongo())


def calculation_protocol(kind: str, calculator: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines a relaxation, elastic tensor or equation of state by a potential.

    An elastic tensor outside of a campaign is stage II's under the same settings.
    """
    from inv_design.mechanics.stages import METHOD

    return {
        "code": "inv_design",
        "version": __version__,
        "stage": {"elastic": "mlip"}.get(kind, kind),
        "calculator": dict(_calculator(calculator)),
        **settings,
        "mechanics": METHOD,
    }


def dft_protocol(config: CampaignConfig) -> dict[str, Any]:
    """Return what determines a stage-III result of the configured backend."""
    from fireworks_specs.backends import get_backend

    return get_backend(config.stages.dft.backend).protocol(config)


@cache
def _calculator(name: str) -> tuple[tuple[str, Any], ...]:
    from fireworks_specs.firetasks.train_mlip import fetch_calculator
    from inv_design.calculators.registry import calculator_protocol

    fetch_calculator(name)  # the protocol has the hash of the weights
    return tuple(sorted(calculator_protocol(name).items()))

"""Which potential judges the candidates of a round in stage II, and which calculations are by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inv_design.config import CampaignConfig, MlipConfig


def calculator_of(model: Mapping[str, Any]) -> str:
    """Return the name of the calculator that a round's ``models`` document of kind mlip stands for."""
    return str((model.get("hyperparameters") or {}).get("calculator") or model["model_id"])


def round_calculators(models: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return round -> calculator of the rounds that have a potential of their own; the others use the configured one.

    Of several models of a round it is the one that was inserted first.
    """
    own = [m for m in models if m.get("kind") == "mlip" and isinstance(m.get("round"), int)]
    found: dict[int, str] = {}
    for model in sorted(own, key=lambda m: str(m.get("_id"))):
        found.setdefault(model["round"], calculator_of(model))
    return found


def calculator_in(config: CampaignConfig, calculators: Mapping[int, str], number: int) -> str:
    """Return the calculator of a round's stage II."""
    return calculators.get(number, config.stages.mlip.calculator)


def is_of_stage(protocol: Any, calculator: str, stage: MlipConfig) -> bool:
    """Return whether a calculation's protocol is that of stage II with a calculator.

    What a protocol does not say is not held against it: records of other programs may have none. Versions do not
    count: of several the newest result does. A file of weights is known by its name and, where it can be read here, by
    what is in it.
    """
    protocol = protocol if isinstance(protocol, dict) else {}
    settings = {"fmax": stage.fmax, "max_steps": stage.max_steps, "keep_structure": dict(stage.keep_structure)}
    same = all(protocol.get(key, value) == value for key, value in settings.items())
    return same and is_by(protocol.get("calculator"), calculator)


def is_by(named: Any, calculator: str) -> bool:
    """Return whether what a protocol says of its calculator, a name or its settings, is a calculator of that name.

    A protocol that says nothing may be by any; a file's weights are compared where it can be read here.
    """
    weights = None
    if isinstance(named, dict):
        weights, named = named.get("weights_sha256"), named.get("calculator")
    if named not in {None, *names_of(calculator)}:
        return False
    return weights is None or weights_of(calculator) in (None, weights)


def names_of(calculator: str) -> set[str]:
    """Return the names by which protocols know a calculator: its own, of a file the file's."""
    weights = {"model.safetensors"} if Path(calculator).is_dir() else set()
    return {calculator, Path(calculator).name, *weights}


def weights_of(calculator: str) -> str | None:
    """Return the SHA-256 of a calculator's file of weights; ``None`` if it is no file, or none of this machine."""
    from inv_design.calculators.registry import sha256_of_file

    path = Path(calculator)
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        return sha256_of_file(path) if path.is_file() else None
    except OSError:
        return None

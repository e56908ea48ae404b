"""Registration: whether the database holds a campaign, and whether one may come in: what is inserted stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from inv_design.config import CampaignConfig

_SETTINGS_THAT_MAY_CHANGE = ("rounds", "database", "password_file")


def is_registered(config: CampaignConfig) -> bool:
    """Return whether the database holds the campaign.

    Raises
    ------
    ValueError
        If it holds one of that name with other settings.
    """
    from inv_design.config import CampaignConfig
    from stores.documents.campaign import Campaign

    stored = Campaign.objects(name=config.name).first()
    if stored is None:
        return False
    # validated, so that a key which is newer than the campaign counts as its default
    before = CampaignConfig.model_validate(stored.to_mongo().to_dict()["config"])
    changed = changed_settings(before.model_dump(mode="json"), config.model_dump(mode="json"))
    if changed:
        raise ValueError(
            f"campaign {config.name!r} is in the database with other settings ({'; '.join(changed)}): "
            "undo the change, or choose another `name` for a new campaign"
        )
    return True


def refuse_unknown_names(config: CampaignConfig) -> None:
    """Raise ConfigError if a generator, predictor or calculator is called what nobody can know.

    What only the workers may have is let through: import paths, weights in files, models of the database.
    """
    from inv_design.config import ConfigError
    from inv_design.generators.registry import generator_class, generator_names
    from inv_design.predictors.registry import make_predictor, predictor_names

    stages = config.stages
    calculators = {"stages.mlip.calculator": stages.mlip.calculator}
    if stages.dft.backend == "surrogate":
        calculators["stages.dft.calculator"] = stages.dft.calculator
    problems = []
    if config.generator.name not in generator_names():
        problems.append(f"generator.name: {_refusal(generator_class, config.generator.name)}")
    if stages.predictor.model not in predictor_names():
        problems.append(f"stages.predictor.model: {_refusal(make_predictor, stages.predictor.model)}")
    problems += [f"{key}: {why}" for key, name in calculators.items() if (why := _refusal(_mind_calculator, name))]
    if problems:
        raise ConfigError("; ".join(problems))


def _mind_calculator(name: str) -> None:
    """Raise ValueError if a calculator's name is neither known nor one of which this machine cannot tell."""
    from inv_design.calculators.registry import MODEL_ID, NAMES, get_calculator, supports_batches

    elsewhere = name.endswith(".safetensors") or MODEL_ID.fullmatch(name) is not None
    if name in NAMES or elsewhere or supports_batches(name) or ":" in name or "/" in name:
        return  # supports_batches refuses pickles, which no worker reads
    get_calculator(name)


def _refusal(make: Callable[[str], object], name: str) -> str:
    """Return why a name is refused; "" if it is not."""
    try:
        make(name)
    except ValueError as error:
        return str(error)
    return ""


def changed_settings(stored: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the settings that differ, as ``key old -> new``; rounds and the database's address may."""
    changed = []
    for key in sorted(stored.keys() | new.keys()):
        old_value, new_value = stored.get(key), new.get(key)
        if not prefix and key in _SETTINGS_THAT_MAY_CHANGE:
            continue
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            changed += changed_settings(old_value, new_value, f"{prefix}{key}.")
        elif old_value != new_value:
            changed.append(f"{prefix}{key} {old_value!r} -> {new_value!r}")
    return changed

"""CampaignConfig: the whole of campaign.yaml, validated; every key has a default, a unit and a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from inv_design.objective import ALIASES, PROPERTY_UNITS, Objective, objectives_of, property_name

__all__ = [
    "ALIASES", "PROPERTY_UNITS", "CampaignConfig", "ConfigError", "load_config", "parse_target", "property_name",
]  # fmt: skip


CrystalSystem = Literal["triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())


def parse_target(value: Any, *, name: str) -> float:
    """Return a target as a number in the property's unit from ``350`` or ``"350 GPa"``.

    Raises
    ------
    ValueError
        If the text is no number, the unit is another one, or a modulus is not positive.
    """
    objective = Objective.parse(name, value)
    if isinstance(objective.plain, str):
        raise ValueError(f"target {name}: {value!r} is not a number with a unit; one number is wanted here")
    return objective.plain


class DataConfig(_Section):
    """The labelled crystals that round 0 starts from."""

    source: str = Field(
        "mp-binaries", description="'mp-binaries' (packaged) or a file: CIF, extxyz, csv or JSON records"
    )
    elements: Annotated[
        list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ] = Field(["metals"], description="allowed elements: symbols, or the group 'metals'")  # fmt: skip
    exclude: list[str] = Field(
        ["actinides", "noble_gases"], description="elements that no training crystal may contain: symbols or groups"
    )
    max_sites: int = Field(20, ge=1, le=200, description="largest number of atoms in the cell")
    max_formation_energy: float = Field(
        0.15, description="eV/atom; entries above it are left out where the data states a formation energy"
    )
    label_range: tuple[float, float] = Field(
        (0.0, 500.0), description="GPa; reference labels outside (low, high] are left out"
    )
    max_entries: int | None = Field(None, ge=10, description="use only so many entries (rehearsals); null: all")

    @field_validator("elements", "exclude")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        from inv_design.structures.elements import expand_elements

        expand_elements(names)
        return names


class PredictorConfig(_Section):
    """Stage I: rules of composition and geometry, duplicates, and the property predictor."""

    model: str = Field("cgcnn", description="a predictor's name: cgcnn, extra_trees, forest or a plugin")
    committee: int = Field(4, ge=1, le=32, description="members of the ensemble that give the uncertainty")
    epochs: int | None = Field(None, ge=1, description="passes over the training set; null: the model's default")
    tolerance: float = Field(0.30, gt=0, description="largest relative deviation from the target")
    acquisition: Literal["threshold", "target_probability", "expected_hits"] = Field(
        "expected_hits",
        description="what orders candidates: nearness of the prediction to the target (the paper), its probability "
        "of a hit, or the expected gain in chemical systems with a hit",
    )
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="smallest probability of a hit that passes, instead of `tolerance`; null: `tolerance` decides; not "
        "used by acquisition threshold",
    )
    min_distance: float = Field(0.5, ge=0, description="Å; smallest distance between two atoms")
    min_radius_ratio: float = Field(
        0.75, ge=0, description="smallest distance in units of the sum of the metallic radii of the pair"
    )
    min_elements: int = Field(2, ge=1, description="number of elements; the paper drops single-element crystals")
    match: dict[str, float] = Field(
        {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}, description="tolerances of the duplicate check"
    )


class FineTuneConfig(_Section):
    """Fine-tuning of the stage-II potential, a MACE network, on the labels of each round."""

    enabled: bool = Field(
        False,
        description="fine-tune after each round, for the stage II of the next one; each time from `calculator`, with "
        "all labels so far",
    )
    epochs: int = Field(30, ge=1, description="passes over the labelled frames; training stops earlier if it may")
    rate: float = Field(1e-3, gt=0, description="largest learning rate")
    replay: int = Field(
        200, ge=0, description="deformed packaged alloys, labelled by `calculator` itself, that are learned again"
    )
    min_frames: int = Field(
        20,
        ge=1,
        description="frames that are new since the last fine-tuning (an E(V) label is about seven); with fewer the "
        "potential stays",
    )


class MlipConfig(_Section):
    """Stage II: relaxation and elastic tensor with a machine-learned potential."""

    calculator: str = Field("mace-alloy-small", description="a calculator's name or import path (see `elastic --help`)")
    tolerance: float = Field(0.20, gt=0, description="largest relative deviation from the target")
    fmax: float = Field(0.02, gt=0, description="eV/Å; largest force after relaxation")
    max_steps: int = Field(300, ge=1, description="optimiser steps before a relaxation counts as not converged")
    keep_structure: dict[str, float] = Field(
        {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0},
        description="a crystal that relaxes out of these tolerances is rejected",
    )
    born_stable: bool = Field(True, description="reject crystals whose elastic tensor is not positive definite")
    budget_per_round: int | None = Field(
        None, ge=0, description="candidates per round that are relaxed, best first; null: all that passed stage I"
    )
    chunk: int = Field(10, ge=1, description="candidates per firework")
    retries: int = Field(0, ge=0, le=10, description="further attempts after a failure that may pass, such as a kill")
    fine_tune: FineTuneConfig = FineTuneConfig()

    @model_validator(mode="after")
    def _trainable(self) -> MlipConfig:
        if self.fine_tune.enabled and (self.calculator in ("chgnet", "emt", "gpaw") or ":" in self.calculator):
            raise ValueError(f"fine_tune: {self.calculator!r} is no MACE network; use mace-alloy-small or another one")
        return self


class GpawConfig(_Section):
    """Settings of the gpaw backend: PBE, plane waves, Marzari-Vanderbilt smearing."""

    kind: Literal["elastic", "eos"] = Field(
        "elastic", description="elastic: the full tensor; eos: the equation of state, a few times cheaper"
    )
    cutoff: float = Field(550.0, ge=200, description="eV; plane-wave cutoff; below 500 stresses are not converged")
    k_density: float = Field(7.0, gt=0, description="k points per 1/Å along each reciprocal axis; below 7 C_ij are not")
    smearing: float = Field(
        0.3, gt=0, description="eV; width of the Marzari-Vanderbilt smearing; at 0.15 C_ij need twice the k points"
    )
    spin: Literal["auto", "on", "off"] = Field(
        "auto",
        description="spin polarisation (ferromagnetic); auto: for crystals with Cr, Mn, Fe, Co, Ni or a lanthanide, as "
        "long as they have a moment",
    )
    ranks: int = Field(1, ge=1, description="MPI ranks of one calculation")


class DftConfig(_Section):
    """Stage III: labels by DFT, or by a surrogate that is named as one everywhere."""

    backend: Literal["surrogate", "gpaw", "vasp"] = Field(
        "surrogate", description="surrogate (rehearsals), gpaw or vasp"
    )
    calculator: str = Field("chgnet", description="the surrogate's calculator; ignored by gpaw and vasp")
    budget_per_round: int = Field(20, ge=0, description="labels per round, best candidates first")
    audit_per_round: int = Field(
        0,
        ge=0,
        description="candidates that stage II rejected and that are labelled too, drawn at random, beyond the budget: "
        "the trust report then counts the hits that it missed",
    )
    strain: float = Field(0.04, gt=0, lt=0.2, description="largest linear strain of the equation of state")
    tolerance: float = Field(0.20, gt=0, description="a labelled candidate within it counts as a hit")
    retries: int = Field(1, ge=0, le=10, description="further attempts after a failure that may pass, such as a kill")
    gpaw: GpawConfig = GpawConfig()


class StagesConfig(_Section):
    """The three stages of rising cost."""

    predictor: PredictorConfig = PredictorConfig()
    mlip: MlipConfig = MlipConfig()
    dft: DftConfig = DftConfig()


class GeneratorConfig(_Section):
    """The conditional generator."""

    name: str = Field(
        "con_cdvae",
        description="con_cdvae, substitution, random_symmetric, external (a program of your own) or a plugin of the "
        "entry-point group inv_design.generators",
    )
    samples_per_round: int = Field(500, ge=1, description="crystals generated in each round")
    latent_filter: int = Field(20, ge=1, description="keep the best of so many latents by predicted property (1: off)")
    guidance: float = Field(1.5, ge=0, description="classifier-free guidance factor (1: conditional, no extrapolation)")
    chunk: int = Field(50, ge=1, description="crystals per firework")
    max_sites: int = Field(20, ge=1, le=64, description="largest number of atoms in a generated cell")
    sites: int | None = Field(None, ge=2, le=64, description="exact number of atoms in the primitive cell; null: any")
    composition: str | None = Field(None, description="reduced formula of all candidates, such as Re3W; null: any")
    crystal_system: CrystalSystem | None = Field(None, description="crystal system of all candidates; null: any")
    pretrained: bool = Field(True, description="start from the packaged weights where they fit the data")
    budget: float = Field(
        1.0, gt=0, description="training effort, as a multiple of the model's default number of steps"
    )
    finetune_budget: float = Field(1.0, gt=0, description="the same for the retraining of each later round")
    settings: dict[str, Any] = Field({}, description="further settings of the generator, passed on as they are")


class EvaluationConfig(_Section):
    """The check at the end of each round: samples at several targets, judged by the stage-II potential."""

    targets: list[float] = Field(
        [60.0, 100.0, 200.0, 250.0, 300.0, 350.0, 400.0],
        description="GPa; bulk moduli to sample at (empty: no evaluation)",
    )
    samples: int = Field(10, ge=1, description="crystals sampled and judged per target")


class ChemistryConfig(_Section):
    """Elements that candidates may not contain, and soft costs."""

    exclude: list[str] = Field([], description="elements that no candidate may contain: symbols or groups")
    cost: dict[str, float] = Field(
        {},
        description="element -> relative cost (0 if not listed); a crystal's cost is the mean over its atoms or its "
        "mass; shown, sortable and a possible target; not a filter",
    )
    cost_by: Literal["atoms", "mass"] = Field(
        "atoms", description="weights of the mean: atomic fractions, or mass fractions for prices per kilogram"
    )

    @field_validator("exclude")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        from inv_design.structures.elements import expand_elements

        expand_elements(names)
        return names


class CampaignConfig(_Section):
    """A campaign: what is wanted, where it starts, how candidates are made, screened and labelled."""

    name: str = Field(description="the campaign's name in the database", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    database: str = Field(
        "embedded", description="'embedded' (a file beside campaign.yaml) or mongodb://host/db, without password"
    )
    password_file: str | None = Field(
        None, description="a file that holds the database password; or $INV_DESIGN_DATABASE_PASSWORD"
    )
    properties: dict[str, str] = Field(
        {}, description="your own properties -> unit ('' for none), such as {hardness: GPa}; they can be targets too"
    )
    targets: dict[str, float | str] = Field(
        description="property -> what is wanted: a value with unit ('350 GPa'), a range ('300..400 GPa', '..0.1'), or "
        "max or min, which order candidates and reject none; the bulk modulus needs a value or a range"
    )
    data: DataConfig = DataConfig()
    generator: GeneratorConfig = GeneratorConfig()
    stages: StagesConfig = StagesConfig()
    rounds: int = Field(2, ge=0, le=1000, description="rounds after the initial one (round 0)")
    chemistry: ChemistryConfig = ChemistryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    retrain: list[Literal["predictor", "generator"]] = Field(
        ["predictor", "generator"],
        description="models that learn from the new labels in each later round; the others stay as they are in round 0",
    )
    seed: int = Field(0, ge=0, description="the one seed that all others derive from")

    @field_validator("properties")
    @classmethod
    def _own(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"{name!r} is no name of a property; use letters, digits and _")
            if name in PROPERTY_UNITS or name in ALIASES:
                raise ValueError(f"{name!r} is a property that every campaign has; leave it out")
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, value: Any, info: ValidationInfo) -> dict[str, float | str]:
        if not isinstance(value, dict) or not value:
            raise ValueError("give at least one target, such as {bulk_modulus_vrh: 350 GPa}")
        found = objectives_of({str(k): v for k, v in value.items()}, own=info.data.get("properties"))
        return {objective.name: objective.plain for objective in found}

    @field_validator("database")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if re.search(r"://[^/@:]+:[^@]+@", value):
            raise ValueError(
                "the database URI contains a password; take it out, set INV_DESIGN_DATABASE_PASSWORD or password_file"
            )
        return value

    @model_validator(mode="after")
    def _screenable(self) -> CampaignConfig:
        if "bulk_modulus_vrh" not in self.targets:
            raise ValueError("this version screens by bulk_modulus_vrh: add it to targets")
        _ = self.target  # a direction or an open range has none
        shape = [k for k in ("sites", "composition", "crystal_system") if getattr(self.generator, k) is not None]
        if shape and self.generator.name in ("substitution", "random_symmetric"):
            raise ValueError(f"the generator {self.generator.name} cannot fix {', '.join(shape)}; use con_cdvae")
        if "cost" in self.targets and not self.chemistry.cost:
            raise ValueError("targets has cost, but chemistry.cost is empty: give it the costs of the elements")
        return self

    @property
    def objectives(self) -> list[Objective]:
        """What is wanted, the bulk modulus first."""
        found = objectives_of(self.targets, own=self.properties)
        return sorted(found, key=lambda objective: objective.name != "bulk_modulus_vrh")

    @property
    def target(self) -> float:
        """The bulk modulus to aim at, in GPa: the one wanted, or the middle of the wanted range."""
        return self.objectives[0].centre


class ConfigError(ValueError):
    """A campaign file that cannot be used; the text is one line that names the key and the cure."""


def load_config(path: str | Path) -> CampaignConfig:
    """Return the validated campaign of a YAML file.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or a key or value is wrong; the message names it and what would be right.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `inv-design init DIR` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no keys; `inv-design init DIR` writes an example")
    try:
        return CampaignConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_error(error)}") from None


def describe_error(error: ValidationError) -> str:
    """Return one line for all problems of a configuration, with the nearest right key for a misspelt one."""
    parts = []
    for item in error.errors():
        where = ".".join(str(x) for x in item["loc"]) or "campaign"
        if item["type"] == "extra_forbidden":
            known = _keys_at(item["loc"][:-1])
            parts.append(f"unknown key {where!r}{_suggest(str(item['loc'][-1]), known)}")
        elif item["type"] == "missing":
            parts.append(f"key {where!r} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            parts.append(
                f"{where} = {item['input']!r}: {message}" if item["type"] != "value_error" else f"{where}: {message}"
            )
    return "; ".join(parts)


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = CampaignConfig
    for key in location:
        model = model.model_fields[key].annotation
    return list(model.model_fields)


def _suggest(key: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"

"""Predict: the round's predictor on every candidate of the round that lacks a prediction (stage I)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask, load_predictor_model
from fireworks_specs.progress import report
from stores.claims import Claims, result_key
from stores.queries import structures_by_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inv_design.config import CampaignConfig
    from inv_design.predictors.protocol import Prediction, Predictor
    from stores.documents.model import Model

BATCH = 100
ENOUGH = 20
"""Labels below which a further property is not predicted."""
SCREENED = "bulk_modulus_vrh"


@explicit_serialize
class PredictTask(CampaignTask):
    """Insert predictions; a crystal that cannot be predicted gets a prediction with its error.

    Beside the bulk modulus, every objective and property of the campaign that enough members of the training set have a
    label of is predicted, by a model that belongs to the training set.
    """

    def work(self) -> None:
        """Predict in batches that no other worker is at work on, inserting each batch when it is ready."""
        from fireworks_specs.protocols import predictor_protocol
        from fireworks_specs.steps import candidates_without_prediction, model_of_round

        name, number = self["campaign"], self["round"]
        own = model_of_round(name, number, "predictor")
        todo = candidates_without_prediction(name, number)
        # the bulk modulus last: a candidate that has it is done
        models = [*(further_models(self.config, own, self.provenance([own.training_set_id])) if todo else ()), own]
        done = 0
        with Claims(campaign=name, stage="predictor") as claims:
            protocol = predictor_protocol(own.model_id)
            shares = claims.shares(
                todo,
                key=lambda i: result_key(i, SCREENED, protocol),
                lacking=lambda ids: without_prediction(ids, protocol),
                limit=BATCH,
            )
            for ids in shares:
                structures = structures_by_id(ids)
                found = [i for i in ids if i in structures]
                for model in models:
                    prediction = load_predictor_model(model.model_id).predict([structures[i] for i in found])
                    self._insert(found, prediction, model.model_id)
                done += len(ids)
                report(f"round {number}: stage I, predict", done, len(todo))

    def _insert(self, ids: Sequence[str], prediction: Prediction, model_id: str) -> None:
        import numpy as np

        from fireworks_specs.protocols import predictor_protocol
        from stores.records import insert_predictions

        errors = prediction.errors or [None] * len(ids)
        provenance = self.provenance([model_id])
        insert_predictions(
            [
                {
                    "structure_id": structure_id,
                    "property": prediction.property,
                    "value": float(value) if np.isfinite(value) else None,
                    "std": float(std) if np.isfinite(std) else None,
                    "unit": prediction.unit,
                    "model_id": model_id,
                    "protocol_id": predictor_protocol(model_id),
                    "error": error,
                    "provenance": provenance,
                }
                for structure_id, value, std, error in zip(ids, prediction.values, prediction.std, errors, strict=True)
            ]
        )


def without_prediction(ids: Sequence[str], protocol: str) -> list[str]:
    """Return the structure ids that have no prediction under a protocol."""
    from stores.documents.prediction import Prediction

    known = set(Prediction.objects(protocol_id=protocol, structure_id__in=list(ids)).scalar("structure_id"))
    return [i for i in ids if i not in known]


def further_models(config: CampaignConfig, own: Model, provenance: Mapping[str, Any]) -> list[Model]:
    """Return the models of the campaign's further properties that learned from the training set of ``own``.

    They are trained and inserted where they are missing; a property with fewer than :data:`ENOUGH` labels has none.
    """
    from stores.documents.model import Model
    from stores.documents.training_set import TrainingSet
    from stores.records import insert_model

    units = {o.name: o.unit for o in config.objectives} | config.properties
    wanted = {
        name: unit for name, unit in units.items() if name not in (SCREENED, "density", "volume_per_atom", "cost")
    }
    found: list[Model] = []
    members: list[dict[str, Any]] | None = None
    for name, unit in wanted.items():
        place = {"training_set_id": own.training_set_id, "property": name, "kind": "predictor"}
        known = Model.objects(campaign=None, **place).order_by("model_id").first()
        if known is None:
            if members is None:
                training_set = TrainingSet.objects(training_set_id=own.training_set_id).first()
                members = [] if training_set is None else training_set.load_members()
            predictor = train_further(config, name, unit, members)
            if predictor is None:
                continue
            known = insert_model(
                predictor.to_bytes(), name=predictor.name, seed=config.seed, provenance=provenance,
                metrics=getattr(predictor, "metrics", {}), **place,
            )  # fmt: skip
        found.append(known)
    return found


def train_further(
    config: CampaignConfig, name: str, unit: str, members: Sequence[Mapping[str, Any]]
) -> Predictor | None:
    """Return a predictor of a property from the members of a training set, ``None`` if too few have a label of it.

    Where the packaged weights learned from the same labels, they are taken.
    """
    from fireworks_specs.firetasks.train import uses_packaged
    from inv_design.predictors.registry import default_predictor, make_predictor
    from inv_design.predictors.target import Target

    labelled = [m for m in members if trusted(m["labels"], name)]
    if uses_packaged(config) and all(m["labels"][name]["method"] == "reference" for m in labelled):
        try:
            return default_predictor(name)
        except ValueError:  # none is packaged
            pass
    structures = structures_by_id([m["structure_id"] for m in labelled])
    labelled = [m for m in labelled if m["structure_id"] in structures]
    if len(labelled) < ENOUGH:
        return None
    predictor = make_predictor(
        "extra_trees", property=Target.of(name, unit=unit)
    )  # seconds to train, whatever the property
    predictor.fit(
        [structures[m["structure_id"]] for m in labelled],
        [float(m["labels"][name]["value"]) for m in labelled],
        groups=[m["chemsys"] for m in labelled],
        seed=config.seed,
    )
    return predictor


def trusted(labels: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Return whether a property has a label to learn from; an implausible shear modulus is none."""
    from inv_design.objective import PROPERTY_UNITS, SIGNED
    from inv_design.predictors.packaged import MAX_SHEAR_RATIO, MIN_SHEAR

    if name not in labels:
        return False
    value = float(labels[name]["value"])
    if name == "shear_modulus_vrh":
        bulk = labels.get(SCREENED)
        return value >= MIN_SHEAR and (bulk is None or value <= MAX_SHEAR_RATIO * float(bulk["value"]))
    return value > 0 or name not in PROPERTY_UNITS or name in SIGNED

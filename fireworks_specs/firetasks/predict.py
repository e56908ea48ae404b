"""Predict: the round's predictor on every candidate of the round that lacks a prediction (stage I)."""

from __future__ import annotations

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask, load_predictor_model
from fireworks_specs.progress import report
from stores.queries import structures_by_id

BATCH = 100


@explicit_serialize
class PredictTask(CampaignTask):
    """Insert predictions; a crystal that cannot be predicted gets a prediction with its error."""

    def work(self) -> None:
        """Predict in batches, inserting each batch when it is ready."""
        import numpy as np

        from fireworks_specs.protocols import predictor_protocol
        from fireworks_specs.steps import candidates_without_prediction, model_of_round
        from stores.records import insert_predictions

        name, number = self["campaign"], self["round"]
        model = model_of_round(name, number, "predictor")
        predictor = load_predictor_model(model.model_id)
        todo = candidates_without_prediction(name, number)
        for start in range(0, len(todo), BATCH):
            ids = todo[start : start + BATCH]
            structures = structures_by_id(ids)
            found = [i for i in ids if i in structures]
            prediction = predictor.predict([structures[i] for i in found])
            errors = prediction.errors or [None] * len(found)
            provenance = self.provenance([model.model_id])
            insert_predictions(
                [
                    {
                        "structure_id": structure_id,
                        "property": prediction.property,
                        "value": float(value) if np.isfinite(value) else None,
                        "std": float(std) if np.isfinite(std) else None,
                        "unit": prediction.unit,
                        "model_id": model.model_id,
                        "protocol_id": predictor_protocol(model.model_id),
                        "error": error,
                        "provenance": provenance,
                    }
                    for structure_id, value, std, error in zip(
                        found, prediction.values, prediction.std, errors, strict=True
                    )
                ]
            )
            report(f"round {number}: stage I, predict", min(start + BATCH, len(todo)), len(todo))

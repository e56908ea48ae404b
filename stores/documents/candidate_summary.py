"""One candidate at a glance (derived)."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import BooleanField, DictField, FloatField, IntField, ListField, StringField

from stores.documents.record import Derived

STAGES = ("generated", "predictor", "mlip", "dft")


class CandidateSummary(Derived):
    """Every key number of a candidate, the last stage it entered, and why it is where it is.

    ``stages`` maps a stage to ``{"status", "value", ...}``; ``bulk_modulus_vrh`` (GPa) is the best available value and
    ``bulk_modulus_method`` says whose it is; ``target_error`` is relative. So with the shear modulus (GPa), the density
    (g/cm^3) and the volume per atom (Å^3); ``properties`` has all that the campaign names, each in its unit, and
    ``property_methods`` says whose they are. ``hit`` is whether a label met the targets, ``None`` without a label.
    """

    candidate_id = StringField(required=True)
    campaign = StringField(required=True)
    round = IntField()
    structure_id = StringField()
    formula = StringField()
    chemsys = StringField()
    elements = ListField(StringField())
    nsites = IntField()
    spacegroup = DictField()
    stage = StringField()
    status = StringField()
    reason = StringField()
    reasons = ListField(DictField())
    stages = DictField()
    bulk_modulus_vrh = FloatField()
    bulk_modulus_method = StringField()
    target_error = FloatField()
    shear_modulus_vrh = FloatField()
    density = FloatField()
    volume_per_atom = FloatField()
    cost = FloatField()
    properties = DictField()
    property_methods = DictField()
    hit = BooleanField()
    born_stable = BooleanField()
    mlip_dft_difference = DictField()
    flags = ListField(StringField())
    condition = DictField()
    seed = IntField()
    generator_model_id = StringField()
    model_id = StringField()

    meta: ClassVar[dict[str, Any]] = {
        "collection": "candidate_summaries",
        "indexes": [
            {"fields": ["candidate_id"], "unique": True},
            "structure_id",
            ("campaign", "round", "candidate_id"),
            ("campaign", "bulk_modulus_vrh", "candidate_id"),
            ("campaign", "target_error", "candidate_id"),
            ("campaign", "stage", "status", "bulk_modulus_vrh", "candidate_id"),
            ("campaign", "stage", "status", "round", "candidate_id"),
            ("campaign", "stage", "round", "candidate_id"),
            ("campaign", "status", "round", "candidate_id"),
            ("campaign", "chemsys", "round", "candidate_id"),
            ("campaign", "formula"),
            ("campaign", "elements"),
            ("campaign", "stages.predictor.protocol_id", "round", "candidate_id"),
            ("campaign", "stages.mlip.protocol_id", "round", "candidate_id"),
            ("campaign", "stages.dft.protocol_id", "round", "candidate_id"),
        ],
    }

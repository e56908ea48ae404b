"""Train: the predictor and the generator of a round, from an immutable training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.checkpoints import accepting, checkpointed
from fireworks_specs.firetasks.base import CampaignTask, load_generator_model, load_predictor_model
from fireworks_specs.firetasks.fine_tune import fine_tune_round
from fireworks_specs.progress import report
from fireworks_specs.seeds import derive_seed
from stores import checkpoints
from stores.queries import structures_by_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from inv_design.checkpoint import Checkpoint
    from inv_design.config import CampaignConfig
    from stores.claims import Claims
    from stores.documents.model import Model

PROPERTY = "bulk_modulus_vrh"


@explicit_serialize
class TrainTask(CampaignTask):
    """Train the model of one ``kind`` (predictor, generator) for a round and insert it with its parent.

    Round 0 learns from the reference labels (or takes the packaged weights, which learned from the same); later rounds
    continue from the round before, with the new labels and a replay of the old ones. A kind that ``retrain`` does not
    name is the same in every round: the round's document has the weights and the training set of the one before.
    """

    required_params = ("campaign", "round", "kind")

    def work(self) -> None:
        """Insert the model unless the round has one; wait if another worker is at it."""
        from fireworks_specs.steps import model_of_round
        from stores.claims import Claims

        name, number, kind = self["campaign"], self["round"], self["kind"]

        def lacking(keys: list[str]) -> list[str]:
            return keys if model_of_round(name, number, kind) is None else []

        key = f"train/{name}/{number}/{kind}"
        with Claims(campaign=name, stage="train") as claims:
            for _ in claims.shares([key], key=str, lacking=lacking):
                self._train(key, claims)
        checkpoints.discard([key])  # of a worker that was killed when it had inserted the model

    def _train(self, key: str, claims: Claims) -> None:
        """Train and insert the model, from the checkpoint of ``key`` if another worker left one."""
        from builders.run import build_training_set
        from fireworks_specs.steps import model_of_round
        from stores.documents.training_set import TrainingSet
        from stores.records import insert_model

        name, number, kind = self["campaign"], self["round"], self["kind"]
        if kind == "mlip":
            fine_tune_round(self)
            return
        parent = model_of_round(name, number - 1, kind) if number > 0 else None
        if parent is not None and kind not in self.config.retrain:
            self._keep(parent)
            return
        training_set = TrainingSet.objects(training_set_id=build_training_set(name, number)).first()
        seed = derive_seed(self.config.seed, number, "train", kind)
        train = train_predictor if kind == "predictor" else train_generator

        def progress(done: int, total: int, text: str = "") -> None:
            report(f"round {number}: train {kind} {text}".strip(), done, total)

        inputs = [training_set.training_set_id] + ([parent.model_id] if parent else [])
        with checkpointed(key, self._identity(inputs, seed), claims) as checkpoint:
            members = training_set.load_members()
            model, metrics, hyperparameters = train(self.config, members, parent, seed, progress, checkpoint=checkpoint)
            insert_model(
                model.to_bytes(),
                kind=kind,
                name=model.name,
                property=PROPERTY,
                training_set_id=training_set.training_set_id,
                parent_model_id=parent.model_id if parent else None,
                campaign=name,
                round=number,
                seed=seed,
                hyperparameters=hyperparameters,
                metrics=metrics,
                provenance=self.provenance(inputs),
            )

    def _identity(self, inputs: list[str], seed: int) -> str:
        """Return a hash of all that determines the weights: what it learns from, settings, seed and code."""
        from inv_design import __version__
        from stores.protocol import content_id

        config = self.config.model_dump(mode="json")
        settings = {"generator": config["generator"], "predictor": config["stages"]["predictor"]}
        return content_id("k", {"version": __version__, "inputs": inputs, "seed": seed, **settings})

    def _keep(self, parent: Model) -> None:
        """Insert the model of the round before as this round's."""
        from stores.records import insert_model

        insert_model(
            parent.load(),
            kind=parent.kind,
            name=parent.name,
            property=parent.property,
            training_set_id=parent.training_set_id,
            parent_model_id=parent.model_id,
            campaign=self["campaign"],
            round=self["round"],
            seed=parent.seed,
            hyperparameters={"kept_from_round": parent.round},
            metrics=dict(parent.metrics),
            provenance=self.provenance([parent.model_id]),
        )


def labelled(members: list[dict[str, Any]]) -> tuple[list[Any], list[float], list[str], list[str]]:
    """Return (structures, values in GPa, chemical systems, label methods) of a training set's members."""
    known = structures_by_id([m["structure_id"] for m in members])
    used = [m for m in members if m["structure_id"] in known and PROPERTY in m["labels"]]
    return (
        [known[m["structure_id"]] for m in used],
        [float(m["labels"][PROPERTY]["value"]) for m in used],
        [m["chemsys"] for m in used],
        [m["labels"][PROPERTY]["method"] for m in used],
    )


def train_predictor(
    config: CampaignConfig,
    members: list[dict[str, Any]],
    parent: Model | None,
    seed: int,
    progress: Callable[..., None],
    *,
    checkpoint: Checkpoint,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return (predictor, metrics, hyperparameters) of a round."""
    from inv_design.predictors.registry import default_predictor, make_predictor

    stage = config.stages.predictor
    if parent is None and uses_packaged(config) and stage.model == "cgcnn":
        predictor = default_predictor()
        return predictor, dict(getattr(predictor, "metrics", {})), {"packaged": True}
    settings: dict[str, Any] = {}
    if stage.model == "cgcnn":
        settings = {"committee": stage.committee} | ({"epochs": stage.epochs} if stage.epochs else {})
    structures, values, groups, _ = labelled(members)
    predictor = make_predictor(stage.model, property=PROPERTY, **settings)
    previous = load_predictor_model(parent.model_id) if parent else None
    metrics = predictor.fit(
        structures, values, groups=groups, seed=seed, warm_start=previous, progress=progress,
        **accepting(predictor.fit, checkpoint),
    )  # fmt: skip
    return predictor, metrics, {**settings, "model": stage.model, "warm_start": previous is not None}


def train_generator(
    config: CampaignConfig,
    members: list[dict[str, Any]],
    parent: Model | None,
    seed: int,
    progress: Callable[..., None],
    *,
    checkpoint: Checkpoint,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return (generator, metrics, hyperparameters) of a round."""
    from inv_design.generators.registry import default_generator, make_generator

    section = config.generator
    if parent is None and uses_packaged(config) and section.name == "con_cdvae":
        return default_generator(), {}, {"packaged": True}
    structures, values, _, methods = labelled(members)
    if parent is None:
        generator = make_generator(section.name, **section.settings)
        metrics = generator.fit(
            structures, values, property=PROPERTY, seed=seed, budget=section.budget, progress=progress,
            **accepting(generator.fit, checkpoint),
        )  # fmt: skip
        return generator, metrics, {"budget": section.budget, **section.settings}
    # a copy: finetune changes the generator in place, and the parent stays cached
    from inv_design.generators.registry import load_generator

    generator = load_generator(load_generator_model(parent.model_id).to_bytes())
    new = [i for i, method in enumerate(methods) if method != "reference"]
    old = [i for i, method in enumerate(methods) if method == "reference"]
    if not new:
        return generator, {}, {"finetuned_on": 0}
    metrics = generator.finetune(
        [structures[i] for i in new],
        [values[i] for i in new],
        replay_structures=[structures[i] for i in old],
        replay_values=[values[i] for i in old],
        seed=seed,
        budget=section.finetune_budget,
        progress=progress,
        **accepting(generator.finetune, checkpoint),
    )
    return generator, metrics, {"budget": section.finetune_budget, "finetuned_on": len(new), "replay": len(old)}


def uses_packaged(config: CampaignConfig) -> bool:
    """Return whether the packaged weights learned from exactly this campaign's data."""
    from inv_design.config import DataConfig

    return config.generator.pretrained and config.data == DataConfig()

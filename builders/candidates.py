"""CandidateBuilder: one summary document per candidate, every key number, the stage reached and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from builders.base import CampaignBuilder, newest, one_line
from builders.duplicates import order_members, search_for
from builders.training_members import training_set_ids
from stores.protocol import content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from builders.duplicates import DuplicateSearch
    from inv_design.config import CampaignConfig
    from inv_design.screening.verdict import Verdict

    Document = dict[str, Any]

LABEL_METHODS = ("surrogate", "gpaw", "vasp")
LABEL_KINDS = ("eos", "elastic")
PROPERTY = "bulk_modulus_vrh"
MLIP_NUMBERS = (
    "bulk_modulus_vrh", "shear_modulus_vrh", "born_stable", "volume_change", "structure_matched", "rms", "relaxed",
    "energy_per_atom", "volume_per_atom",
)  # fmt: skip
DFT_NUMBERS = ("bulk_modulus_vrh", "shear_modulus_vrh", "energy_per_atom", "volume_per_atom", "fit_residual")
HEAVY = {"provenance.versions": 0, "protocol": 0, "results.elastic_tensor": 0, "results.elastic_tensor_ieee": 0}
"""Parts of calculations that a summary does not show."""

_searches: dict[str, DuplicateSearch] = {}
"""Campaign -> the search of the last build in this process, continued where its crystals are the same."""
_formulas: dict[str, str] = {}
_members: dict[str, list[str]] = {}
"""Structure id -> formula, and training set id -> structure ids: both are content, read once in a process."""


class CandidateBuilder(CampaignBuilder):
    """Derives ``candidate_summaries`` from candidates, predictions and calculations.

    A summary is built again when what it is made of, the campaign's settings or this code changed, as told by its
    ``input_hash``; one that failed is always tried again.

    Parameters
    ----------
    protocols
        Stage -> protocol id whose results count; the newest completed result where a stage is not named.
    """

    version = "3"

    def __init__(
        self, campaign: str | None = None, protocols: dict[str, str | None] | None = None, chunk_size: int = 500
    ) -> None:
        self.protocols = protocols
        super().__init__(campaign, chunk_size)

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        return {
            "campaigns": "name", "candidates": "candidate_id", "structures": "structure_id",
            "predictions": "structure_id", "calculations": "calculation_id", "models": "model_id",
            "training_sets": "training_set_id",
        }  # fmt: skip

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        return "candidate_summaries", "candidate_id"

    def get_items(self) -> Iterator[Document]:
        """Yield what each candidate's summary is made of, for those whose summary is not up to date."""
        for name, config in self.campaigns():
            yield from self._items_of(name, config)

    def _items_of(self, name: str, config: CampaignConfig) -> Iterator[Document]:
        candidates = list(self.read["candidates"].query({"campaign": name}, properties={"provenance": 0}))
        ids = [c["structure_id"] for c in candidates]
        done = {
            s["candidate_id"]: s
            for s in self.target.query(
                {"campaign": name},
                properties=["candidate_id", "input_hash", "duplicate_key", "duplicate_of"],
            )
        }
        search = self._find_duplicates(name, config, candidates, done)
        predictions = _by_structure(
            self.fetch("predictions", "structure_id", ids, properties={"provenance.versions": 0})
        )
        calculations = _by_structure(self.fetch("calculations", "structure_id", ids, properties=HEAVY))
        predictors = self._predictors(name)
        settings = content_id("h", [self.version, _settings(config), self.protocols or {}])
        stale: list[Document] = []
        for candidate in candidates:
            identity = candidate["candidate_id"]
            records = calculations.get(candidate["structure_id"], [])
            item: Document = {
                "candidate": candidate,
                "predictions": self._predictions(
                    predictions.get(candidate["structure_id"], []), predictors.get(candidate["round"], set())
                ),
                "mlip": newest(r for r in records if self._counts(r, "mlip")),
                "dft": newest(r for r in records if self._counts(r, "dft")),
                "duplicate_of": search.results.get(identity),
                "duplicate_key": search.keys.get(identity),
                "config": config.model_dump(mode="json"),
            }
            item["input_hash"] = input_hash(item, settings)
            if (done.get(identity) or {}).get("input_hash") != item["input_hash"]:
                stale.append(item)
        self.total = len(stale)
        for start in range(0, len(stale), self.chunk_size):
            batch = stale[start : start + self.chunk_size]
            structures = {
                s["structure_id"]: s
                for s in self.fetch("structures", "structure_id", [i["candidate"]["structure_id"] for i in batch])
            }
            for item in batch:
                yield {**item, "structure": structures.get(item["candidate"]["structure_id"])}

    def process_item(self, item: Document) -> Document:
        """Return the summary of one candidate; one that cannot be made is a failed document with its error."""
        candidate = item["candidate"]
        try:
            summary = summarise_candidate(item)
        except Exception as error:  # one strange record never stops a build
            message = one_line(error)
            summary = {
                "stage": "predictor",
                "status": "failed",
                "state": "failed",
                "error": message,
                "reason": f"summary failed: {message}",
                "input_hash": None,
            }
        inputs = [candidate["candidate_id"], candidate["structure_id"]]
        inputs += [item[s]["calculation_id"] for s in ("mlip", "dft") if item[s]]
        return {**_place(candidate), **summary, **self.stamp(inputs)}

    def _find_duplicates(
        self, name: str, config: CampaignConfig, candidates: Sequence[Document], done: Mapping[str, Document]
    ) -> DuplicateSearch:
        known = {
            number: self._member_ids(sets)
            for number, sets in training_set_ids(self.read["training_sets"], self.read["models"], name).items()
        }
        every = [c["structure_id"] for c in candidates] + [i for ids in known.values() for i in ids]
        new = [i for i in every if i not in _formulas]
        for found in self.fetch("structures", "structure_id", new, properties={"structure_id": 1, "formula": 1}):
            _formulas[found["structure_id"]] = found["formula"]
        members = order_members(candidates, known, _formulas)
        tolerances = dict(config.stages.predictor.match)
        search = search_for(_searches, name, tolerances, members)
        stored = {
            identity: (str(summary.get("duplicate_key")), summary.get("duplicate_of"))
            for identity, summary in done.items()
        }
        search.advance(members, self._crystals, stored)
        return search

    def _member_ids(self, training_sets: Iterable[str]) -> list[str]:
        wanted = list(training_sets)
        for document in self.fetch("training_sets", "training_set_id", [i for i in wanted if i not in _members]):
            _members[document["training_set_id"]] = [m["structure_id"] for m in document.get("members", [])]
        return [member for identity in wanted for member in _members.get(identity, [])]

    def _crystals(self, ids: Sequence[str]) -> dict[str, Any]:
        from inv_design.structures.files import structure_from_dict

        found = {}
        for document in self.fetch(
            "structures", "structure_id", ids, properties={"structure_id": 1, "structure": 1, "spilled": 1}
        ):
            try:
                found[document["structure_id"]] = structure_from_dict(document["structure"])
            except ValueError as error:
                self.logger.error("%s cannot be compared: %s", document["structure_id"], error)
        return found

    def _predictors(self, name: str) -> dict[int, set[str]]:
        """Return round -> ids of the predictors that belong to it.

        Those of further properties belong to a training set and no campaign; a round's is that of its own predictor.
        """
        found: dict[int, set[str]] = defaultdict(set)
        rounds: dict[str, set[int]] = defaultdict(set)
        query: Document = {"campaign": name, "kind": "predictor"}
        for model in self.read["models"].query(query, properties=["round", "model_id", "training_set_id"]):
            if model.get("round") is not None:
                found[model["round"]].add(model["model_id"])
                rounds[str(model.get("training_set_id"))].add(model["round"])
        query = {"campaign": None, "kind": "predictor", "training_set_id": {"$in": sorted(rounds)}}
        for model in self.read["models"].query(query, properties=["model_id", "training_set_id"]):
            for number in rounds[model["training_set_id"]]:
                found[number].add(model["model_id"])
        return found

    def _predictions(self, records: list[Document], models: set[str]) -> list[Document]:
        """Return one prediction per property: by the round's own predictors, or the newest where it has none at all."""
        wanted = (self.protocols or {}).get("predictor")
        by_property: dict[str, list[Document]] = defaultdict(list)
        for record in records:
            if wanted is None or record["protocol_id"] == wanted or record["property"] != PROPERTY:
                by_property[record["property"]].append(record)
        chosen = []
        for _, group in sorted(by_property.items()):
            own = [r for r in group if r.get("model_id") in models]
            # a round's predictor decides about its candidates; later ones must not change the verdict
            best = newest(own) if models else newest(group)
            if best is not None:
                chosen.append(best)
        return chosen

    def _counts(self, record: Document, stage: str) -> bool:
        wanted = (self.protocols or {}).get(stage)
        if wanted is not None and record["protocol_id"] != wanted:
            return False
        if stage == "mlip":
            return record["kind"] == "elastic" and record["method"] == "mlip"
        return record["kind"] in LABEL_KINDS and record["method"] in LABEL_METHODS


def input_hash(item: Mapping[str, Any], settings: str) -> str:
    """Return the hash of everything that a summary is made of; records are immutable, so their ids suffice."""
    predictions = [[p["structure_id"], p["property"], p["protocol_id"]] for p in item["predictions"]]
    calculations = [item[stage] and item[stage]["calculation_id"] for stage in ("mlip", "dft")]
    duplicate = [item["duplicate_of"], item["duplicate_key"]]
    return content_id("h", [settings, item["candidate"]["candidate_id"], predictions, calculations, duplicate])


def summarise_candidate(item: Mapping[str, Any]) -> Document:
    """Return the summary of a candidate from its records: verdict by verdict until a stage is not passed.

    Parameters
    ----------
    item
        ``candidate``, ``structure``, ``predictions``, ``mlip``, ``dft``, ``duplicate_of`` and ``config`` as records.

    Raises
    ------
    ValueError
        If the structure is missing or cannot be read.
    """
    from inv_design.config import CampaignConfig
    from inv_design.screening.dft import screen_dft
    from inv_design.screening.mlip import screen_mlip
    from inv_design.screening.predictor import screen_predictor
    from inv_design.screening.quality import mlip_dft_difference
    from inv_design.structures.elements import expand_elements
    from inv_design.structures.files import structure_from_dict

    candidate, record = item["candidate"], item["structure"]
    if record is None:
        raise ValueError(f"structure {candidate['structure_id']} is not in the database; import it again")
    config = CampaignConfig.model_validate(item["config"])
    objectives = config.objectives
    structure = structure_from_dict(record["structure"])
    generated = generated_properties(record, config)
    cost = {"cost": generated["cost"]} if "cost" in generated else {}
    verdicts = [
        screen_predictor(
            structure,
            item["predictions"],
            targets=objectives,
            config=config.stages.predictor,
            known=cost,
            exclude=expand_elements(config.chemistry.exclude),
            duplicate_of=item["duplicate_of"],
            hit_tolerance=config.stages.dft.tolerance,
        )
    ]
    stages: Document = {"predictor": _predictor_stage(verdicts[0], item["predictions"])}
    if verdicts[-1].status == "passed":
        relaxed = {**cost, **relaxed_density(generated, item["mlip"])}
        verdicts.append(screen_mlip(item["mlip"], targets=objectives, config=config.stages.mlip, known=relaxed))
        stages["mlip"] = _calculation_stage(verdicts[-1], item["mlip"], MLIP_NUMBERS)
        if verdicts[-1].status == "passed":
            relaxed = {**cost, **relaxed_density(generated, item["dft"])}
            verdicts.append(screen_dft(item["dft"], targets=objectives, config=config.stages.dft, known=relaxed))
            stages["dft"] = _calculation_stage(verdicts[-1], item["dft"], DFT_NUMBERS)
    last = verdicts[-1]
    value, method = best_value(stages)
    judged = [item[stage] for stage in ("mlip", "dft") if stage in stages]
    entered = {s: item[s] or {} if s in stages else {} for s in ("mlip", "dft")}
    dft = {} if entered["dft"].get("method") == "surrogate" else entered["dft"]  # a rehearsal is no DFT
    difference, doubts = mlip_dft_difference(entered["mlip"].get("results"), dft.get("results"))
    properties, methods = best_properties(generated, item["predictions"], judged, wanted=wanted_properties(config))
    return {
        **{k: record[k] for k in ("formula", "chemsys", "elements", "nsites", "spacegroup")},
        **{k: properties.get(k) for k in ("density", "volume_per_atom", "cost", "shear_modulus_vrh")},
        "properties": {name: properties.get(name) for name in wanted_properties(config)},
        "property_methods": methods,
        "stage": last.stage,
        "status": last.status,
        "state": "successful",
        "hit": last.status == "passed" if last.stage == "dft" and last.status in ("passed", "rejected") else None,
        "reason": last.headline,
        "reasons": [reason for verdict in verdicts for reason in verdict.records()],
        "stages": stages,
        PROPERTY: value,
        "bulk_modulus_method": method,
        "born_stable": (stages.get("mlip") or {}).get("born_stable"),
        "target": config.target,
        "target_error": None if value is None else objectives[0].deviation(value),
        "mlip_dft_difference": difference,
        "flags": [*(f for s in ("mlip", "dft") for f in (stages.get(s) or {}).get("flags", [])), *doubts],
        "model_id": stages["predictor"].get("model_id"),
        "duplicate_of": item["duplicate_of"],
        "duplicate_key": item["duplicate_key"],
        "input_hash": item["input_hash"],
    }


def best_value(stages: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, str | None]:
    """Return (bulk modulus in GPa, whose it is) from the costliest stage that has one."""
    for stage in ("dft", "mlip", "predictor"):
        record = stages.get(stage) or {}
        if record.get("value") is not None:
            return float(record["value"]), record.get("method") or stage
    return None, None


def _place(candidate: Mapping[str, Any]) -> Document:
    """Return a candidate's place in its campaign."""
    fields = ("candidate_id", "campaign", "round", "structure_id", "generator_model_id", "condition", "seed", "index")
    return {name: candidate.get(name) for name in (*fields, "score")}


def generated_properties(record: Mapping[str, Any], config: CampaignConfig) -> dict[str, float]:
    """Return density (g/cm^3), volume per atom (Å^3) and cost of a crystal as it was generated."""
    from inv_design.metrics.elements import composition_cost

    found = {
        "density": float(record["density"]), "volume_per_atom": float(record["volume"]) / record["nsites"],
    }  # fmt: skip
    if config.chemistry.cost:
        sites = [species["element"] for site in record["structure"]["sites"] for species in site["species"]]
        found["cost"] = composition_cost(Counter(sites), config.chemistry.cost, by=config.chemistry.cost_by)
    return found


def relaxed_density(generated: Mapping[str, float], calculation: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the density (g/cm^3) and volume per atom (Å^3) after a calculation's relaxation, where it says so."""
    volume = ((calculation or {}).get("results") or {}).get("volume_per_atom")
    if not volume:
        return {}
    return {
        "density": generated["density"] * generated["volume_per_atom"] / float(volume),
        "volume_per_atom": float(volume),
    }


def wanted_properties(config: CampaignConfig) -> list[str]:
    """Return the properties that a summary names: the moduli, the campaign's objectives and its own properties."""
    names = [PROPERTY, "shear_modulus_vrh", *(o.name for o in config.objectives), *config.properties]
    return list(dict.fromkeys(names))


def best_properties(
    generated: Mapping[str, float],
    predictions: Iterable[Mapping[str, Any]],
    calculations: Iterable[Mapping[str, Any] | None],
    *,
    wanted: Iterable[str],
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (property -> number in its unit, property -> whose it is) from the costliest source that has one.

    Parameters
    ----------
    generated
        Properties of the crystal itself.
    predictions
        One prediction record per property.
    calculations
        The calculations of the stages that it entered, in order of rising cost.
    """
    from inv_design.screening.mlip import numbers

    names = set(wanted)
    values = dict(generated)
    methods = dict.fromkeys(generated, "structure")
    for prediction in predictions:
        if prediction["property"] in names and prediction.get("value") is not None and not prediction.get("error"):
            values[prediction["property"]] = float(prediction["value"])
            methods[prediction["property"]] = "predictor"
    for calculation in calculations:
        if calculation is None or calculation.get("state") != "completed":
            continue
        results = {k: v for k, v in numbers(calculation.get("results") or {}).items() if k in names}
        results |= relaxed_density(generated, calculation)
        values |= results
        methods |= dict.fromkeys(results, calculation["method"])
    return values, methods


def _predictor_stage(verdict: Verdict, predictions: Sequence[Mapping[str, Any]]) -> Document:
    own = next((p for p in predictions if p["property"] == PROPERTY), {})
    return {
        "status": verdict.status,
        **{k: own.get(k) for k in ("value", "std", "unit", "model_id", "protocol_id", "error")},
        **({"properties": {p["property"]: p.get("value") for p in predictions}} if len(predictions) > 1 else {}),
    }


def _calculation_stage(
    verdict: Verdict, calculation: Mapping[str, Any] | None, numbers: Sequence[str]
) -> Document:  # fmt: skip
    if calculation is None:
        return {"status": verdict.status}
    results = calculation.get("results") or {}
    stage: Document = {
        "status": verdict.status,
        "value": results.get(PROPERTY),
        **{name: results.get(name) for name in numbers if name in results},
        **{k: calculation.get(k) for k in ("calculation_id", "protocol_id", "method", "error", "output_structure_id")},
        "flags": list(calculation.get("flags") or []),
    }
    if verdict.stage == "dft":
        stage["hit"] = verdict.status == "passed" if verdict.status in ("passed", "rejected") else None
    return stage


def _settings(config: CampaignConfig) -> Document:
    """Return the settings that a summary depends on."""
    dump = config.model_dump(mode="json")
    return {k: dump[k] for k in ("targets", "properties", "stages", "chemistry")}


def _by_structure(documents: Iterable[Document]) -> dict[str, list[Document]]:
    grouped: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        grouped[document["structure_id"]].append(document)
    return grouped

"""CandidateBuilder: one summary document per candidate, every key number, the stage reached and why."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from builders.base import CampaignBuilder, newest, one_line
from builders.candidate_summary import PROPERTY, place_of, summarise_candidate, summary_settings
from builders.duplicates import order_members, search_for
from builders.labels import is_label
from builders.potentials import calculator_in, is_of_stage, round_calculators
from builders.state import digest
from builders.training_members import training_set_ids
from inv_design.screening.retries import attempt_of, retry_due
from stores.protocol import content_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from builders.duplicates import DuplicateSearch
    from inv_design.config import CampaignConfig

    Document = dict[str, Any]

LABEL_METHODS = ("surrogate", "gpaw", "vasp")
LABEL_KINDS = ("eos", "elastic")
HEAVY = dict.fromkeys(
    (
        "provenance.versions", "provenance.inputs", "protocol", "results.elastic_tensor",
        "results.elastic_tensor_ieee", "results.frames",
    ), 0,
)  # fmt: skip
"""Parts of calculations that a summary does not show."""
NEEDED = {"structure_id": str, "round": int, "seed": int, "index": int}
"""What a candidate must have to be looked at: field -> type."""

_searches: dict[str, DuplicateSearch] = {}
"""Campaign -> the search of the last build in this process, continued where its crystals are the same."""
_members: dict[str, list[str]] = {}
"""Training set id -> structure ids: its content, read once in a process."""


class CandidateBuilder(CampaignBuilder):
    """Derives ``candidate_summaries`` from candidates, predictions and calculations.

    A summary is built again when what it is made of, the campaign's settings or this code changed, as told by its
    ``input_hash``; one that failed is always tried again, one that is gone is made again, and one whose candidate is
    gone is removed. Where the ids of all inputs and the hashes of all summaries are those of the last run, nothing else
    is read.

    Parameters
    ----------
    protocols
        Stage -> protocol id whose results count; the newest completed result where a stage is not named.
    """

    version = "7"

    def __init__(
        self,
        campaign: str | None = None,
        protocols: dict[str, str | None] | None = None,
        chunk_size: int = 500,
        *,
        from_scratch: bool = False,
    ) -> None:
        self.protocols = protocols
        super().__init__(campaign, chunk_size, from_scratch=from_scratch)

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

    def items(self) -> Iterator[Document]:
        """Yield what each candidate's summary is made of, for those whose summary is not up to date."""
        for name, config in self.campaigns():
            yield from self._items_of(name, config)

    def _items_of(self, name: str, config: CampaignConfig) -> Iterator[Document]:
        settings = content_id("h", [self.version, summary_settings(config), self.protocols or {}])
        # before the candidates: whoever has a summary here has a candidate there, unless somebody took it away
        done = self._summaries(name)
        candidates = list(self.read["candidates"].query({"campaign": name}, properties={"provenance": 0}))
        self.counts.read += len(candidates)
        seen = self._inputs(name, settings, candidates)
        present = digest((identity, summary.get("input_hash")) for identity, summary in done.items())
        if self.up_to_date(name, seen, present):
            return
        if self.from_scratch:
            _searches.pop(name, None)
        there = {c["candidate_id"] for c in candidates if isinstance(c.get("candidate_id"), str)}
        self.delete({"candidate_id": i} for i in done.keys() - there)
        if self.from_scratch:
            done = {}
        sound, damaged = self._sort_out(candidates)
        search, complete = self._find_duplicates(name, config, sound, done)
        items = [*self._assemble(config, settings, sound, search), *damaged]
        expected = [(item["candidate"]["candidate_id"], item["input_hash"]) for item in items]
        stale = [i for i in items if i["input_hash"] is None or _hash_of(done, i) != i["input_hash"]]
        self._renew_keys(items, done)
        if complete:
            self.remember(name, seen, digest(expected))
        self.total = len(stale)
        dump = config.model_dump(mode="json")
        for start in range(0, len(stale), self.chunk_size):
            batch = stale[start : start + self.chunk_size]
            crystals = [i["candidate"]["structure_id"] if i["error"] is None else None for i in batch]
            wanted = [crystal for crystal in crystals if crystal is not None]
            structures = {s["structure_id"]: s for s in self.fetch("structures", "structure_id", wanted)}
            for item, crystal in zip(batch, crystals, strict=True):
                yield {**item, "config": dump, "structure": structures.get(crystal)}

    def process_item(self, item: Document) -> Document:
        """Return the summary of one candidate; one that cannot be made is a failed document with its error."""
        candidate = item["candidate"]
        message = item["error"]
        summary: Document = {}
        if message is None:
            try:
                summary = summarise_candidate(item)
            except Exception as error:  # one strange record never stops a build
                message = one_line(error)
        if message is not None:
            summary = {
                "stage": "predictor",
                "status": "failed",
                "state": "failed",
                "error": message,
                "reason": f"summary failed: {message}",
                "input_hash": None,
            }
        inputs = [candidate["candidate_id"], candidate.get("structure_id")]
        inputs += [item[s].get("calculation_id") for s in ("mlip", "dft") if item[s]]
        return {**place_of(candidate), **summary, **self.stamp(inputs)}

    # -- what is up to date ----------------------------------------------------------------------------------------

    def _summaries(self, name: str) -> dict[str, Document]:
        fields = ["candidate_id", "input_hash", "duplicate_key", "duplicate_of", "formula"]
        found = self.target.query({"campaign": name}, properties=fields)
        return {s["candidate_id"]: s for s in found if isinstance(s.get("candidate_id"), str)}

    def _inputs(self, name: str, settings: str, candidates: Sequence[Document]) -> str:
        """Return the digest of the ids of everything that the summaries of a campaign are made of."""
        ids = [s for c in candidates if isinstance(s := c.get("structure_id"), str)]
        models = list(
            self.read["models"].query(
                {"campaign": {"$in": [name, None]}},
                properties=["model_id", "kind", "campaign", "round", "training_set_id"],
            )
        )
        sets = [s for m in models if isinstance(s := m.get("training_set_id"), str)]
        known = {"training_set_id": 1, "campaign": 1, "round": 1}
        groups: list[Iterable[Any]] = [
            [[settings]],
            [[c.get("candidate_id"), c.get("structure_id"), c.get("round")] for c in candidates],
            _rows(
                self.fetch("predictions", "structure_id", ids, properties=_only("structure_id", *PREDICTION)),
                ("structure_id", *PREDICTION),
            ),
            _rows(
                self.fetch("calculations", "structure_id", ids, properties=_only("structure_id", "calculation_id")),
                ("calculation_id",),
            ),
            _rows(models, ("model_id", "kind", "campaign", "round", "training_set_id")),
            _rows(self.read["training_sets"].query({"campaign": name}, properties=known), known),
            _rows(self.fetch("training_sets", "training_set_id", sets, properties=known), known),
        ]
        return digest(*groups)

    def _renew_keys(self, items: Iterable[Document], done: Mapping[str, Document]) -> None:
        """Write the keys of duplicates that are as they were, though crystals that came before them are new."""
        from pymongo import UpdateOne

        changes = []
        for item in items:
            identity, key = item["candidate"]["candidate_id"], item["duplicate_key"]
            same = item["input_hash"] is not None and _hash_of(done, item) == item["input_hash"]
            if same and done[identity].get("duplicate_key") != key:
                changes.append(UpdateOne({"candidate_id": identity}, {"$set": {"duplicate_key": key}}))
        for start in range(0, len(changes), self.chunk_size):
            self.target._collection.bulk_write(changes[start : start + self.chunk_size], ordered=False)

    # -- what a summary is made of ---------------------------------------------------------------------------------

    def _sort_out(self, candidates: Iterable[Document]) -> tuple[list[Document], list[Document]]:
        """Return (the candidates that can be looked at, an item with its error for each that cannot)."""
        sound, damaged = [], []
        for candidate in candidates:
            reason = damage(candidate)
            if not isinstance(candidate.get("candidate_id"), str):
                self.logger.error("candidate %s has no candidate_id; nothing can be said of it", candidate["_id"])
            elif reason is None:
                sound.append(candidate)
            else:
                damaged.append(_item(candidate, error=reason))
        return sound, damaged

    def _assemble(
        self, config: CampaignConfig, settings: str, candidates: Sequence[Document], search: DuplicateSearch
    ) -> Iterator[Document]:
        name = config.name
        ids = [c["structure_id"] for c in candidates]
        predictions = _by_structure(
            self.fetch("predictions", "structure_id", ids, properties={"provenance.versions": 0})
        )
        calculations = _by_structure(self.fetch("calculations", "structure_id", ids, properties=HEAVY))
        predictors = self._predictors(name)
        judges = self._potentials(name)
        protocol_of = self._protocols()
        stages = config.stages
        for candidate in candidates:
            identity, structure = candidate["candidate_id"], candidate["structure_id"]
            records = calculations.get(structure, [])
            try:
                judge = calculator_in(config, judges, candidate["round"])
                relaxed = [r for r in self._chosen(records, "mlip") if (r["kind"], r["method"]) == ("elastic", "mlip")]
                judged = [r for r in relaxed if is_of_stage(protocol_of(r), judge, stages.mlip)]
                labels = self._chosen(records, "dft")
                labelled = [r for r in labels if is_label(r, protocol_of(r), stages.dft)]
                attempts = {
                    "mlip": attempts_that_count(judged, stages.mlip.retries),
                    "dft": attempts_that_count(labelled, stages.dft.retries),
                }
                item = _item(
                    candidate,
                    predictions=self._predictions(
                        predictions.get(structure, []), predictors.get(candidate["round"], set())
                    ),
                    mlip=newest(attempts["mlip"]),
                    dft=newest(attempts["dft"]),
                    attempts=attempts,
                    duplicate_of=search.results.get(identity),
                    duplicate_key=search.keys.get(identity),
                )
                item["input_hash"] = input_hash(item, settings)
            except Exception as error:  # one damaged record never stops a build
                item = _item(candidate, error=one_line(error))
            yield item

    def _find_duplicates(
        self, name: str, config: CampaignConfig, candidates: Sequence[Document], done: Mapping[str, Document]
    ) -> tuple[DuplicateSearch, bool]:
        """Return (the search, advanced to the present; whether every crystal was there)."""
        known = {
            number: self._member_ids(sets)
            for number, sets in training_set_ids(self.read["training_sets"], self.read["models"], name).items()
        }
        # a summary has its crystal's formula: those of thousands of structures need not be read again
        formulas = {
            c["structure_id"]: formula for c in candidates if (formula := _field(done, c["candidate_id"], "formula"))
        }
        every = {c["structure_id"] for c in candidates} | {i for ids in known.values() for i in ids}
        unread = sorted(every - formulas.keys())
        for found in self.fetch("structures", "structure_id", unread, properties=_only("structure_id", "formula")):
            formulas[found["structure_id"]] = str(found.get("formula") or "")
        members = order_members(candidates, known, formulas)
        search = search_for(_searches, name, dict(config.stages.predictor.match), members)
        stored = {
            identity: (str(summary.get("duplicate_key")), summary.get("duplicate_of"))
            for identity, summary in done.items()
        }
        search.advance(members, self._crystals, stored)
        return search, every <= formulas.keys()

    def _member_ids(self, training_sets: Iterable[str]) -> list[str]:
        wanted = list(training_sets)
        present = {d["training_set_id"] for d in self.fetch(
            "training_sets", "training_set_id", wanted, properties=_only("training_set_id")
        )}  # fmt: skip
        for document in self.fetch("training_sets", "training_set_id", sorted(present - _members.keys())):
            members = [m.get("structure_id") for m in document.get("members", [])]
            _members[document["training_set_id"]] = [m for m in members if m]
        return [member for identity in wanted if identity in present for member in _members[identity]]

    def _crystals(self, ids: Sequence[str]) -> dict[str, Any]:
        from inv_design.structures.files import structure_from_dict

        found = {}
        fields = _only("structure_id", "structure", "spilled")
        for document in self.fetch("structures", "structure_id", ids, properties=fields):
            try:
                found[document["structure_id"]] = structure_from_dict(document.get("structure") or {})
            except Exception as error:  # whatever is wrong with it concerns this crystal alone
                self.logger.error("%s cannot be compared: %s", document["structure_id"], one_line(error))
        return found

    def _potentials(self, name: str) -> dict[int, str]:
        """Return round -> calculator of the rounds that have a potential of their own."""
        query: Document = {"campaign": name, "kind": "mlip"}
        fields = ["round", "kind", "model_id", "hyperparameters"]
        found = self.read["models"].query(query, properties=fields)
        return round_calculators(self.legible(found, "model_id"))

    def _protocols(self) -> Callable[[Document], Any]:
        """Return a function of a calculation: the settings stored with it, read once per protocol."""
        found: dict[tuple[str, ...], Any] = {}

        def protocol_of(record: Document) -> Any:
            key = {name: record[name] for name in ("kind", "method", "protocol_id")}
            place = tuple(key.values())
            if place not in found:
                one = self.read["calculations"].query_one(key, properties=["protocol"]) or {}
                found[place] = one.get("protocol")
            return found[place]

        return protocol_of

    def _predictors(self, name: str) -> dict[int, set[str]]:
        """Return round -> ids of the predictors that belong to it.

        Those of further properties belong to a training set and no campaign; a round's is that of its own predictor.
        """
        found: dict[int, set[str]] = defaultdict(set)
        rounds: dict[str, set[int]] = defaultdict(set)
        query: Document = {"campaign": name, "kind": "predictor"}
        own = self.read["models"].query(query, properties=["round", "model_id", "training_set_id"])
        for model in self.legible(own, "model_id"):
            if model.get("round") is not None:
                found[model["round"]].add(model["model_id"])
                rounds[str(model.get("training_set_id"))].add(model["round"])
        query = {"campaign": None, "kind": "predictor", "training_set_id": {"$in": sorted(rounds)}}
        further = self.read["models"].query(query, properties=["model_id", "training_set_id"])
        for model in self.legible(further, "model_id", "training_set_id"):
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

    def _chosen(self, records: Iterable[Document], stage: str) -> list[Document]:
        """Return the calculations by the protocol that was named for a stage, all where none was."""
        wanted = (self.protocols or {}).get(stage)
        return [r for r in records if wanted is None or r["protocol_id"] == wanted]


PREDICTION = ("property", "protocol_id")
"""What makes a prediction of a structure unique."""


def damage(candidate: Mapping[str, Any], fields: Iterable[str] = NEEDED) -> str | None:
    """Return which of the fields a candidate lacks, ``None`` if none."""
    for name in fields:
        value, kind = candidate.get(name), NEEDED[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"the candidate's {name} is {value!r}, not {'a whole number' if kind is int else 'a text'}"
    return None


def input_hash(item: Mapping[str, Any], settings: str) -> str:
    """Return the hash of everything that a summary is made of; records are immutable, so their ids suffice.

    The key of the search for duplicates is not in it: it changes with every crystal of the same formula that comes
    before, which mostly changes nothing else.
    """
    predictions = [[p["structure_id"], p["property"], p["protocol_id"]] for p in item["predictions"]]
    calculations = [[a["calculation_id"] for a in item["attempts"][stage]] for stage in ("mlip", "dft")]
    return content_id(
        "h", [settings, item["candidate"]["candidate_id"], predictions, calculations, item["duplicate_of"]]
    )


def _item(candidate: Document, *, error: str | None = None, **parts: Any) -> Document:
    nothing: Document = {"predictions": [], "mlip": None, "dft": None, "duplicate_of": None, "duplicate_key": None}
    nothing["attempts"] = {"mlip": [], "dft": []}
    return {"candidate": candidate, "error": error, "input_hash": None, **nothing, **parts}


def _field(done: Mapping[str, Document], identity: str, name: str) -> Any:
    return (done.get(identity) or {}).get(name)


def _hash_of(done: Mapping[str, Document], item: Document) -> Any:
    """Return the hash of the summary that a candidate has; ``""`` where it has none."""
    return done.get(item["candidate"]["candidate_id"], {"input_hash": ""}).get("input_hash")


def _only(*fields: str) -> dict[str, int]:
    return dict.fromkeys(fields, 1)


def _rows(documents: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> list[list[Any]]:
    names = list(fields)
    return [[document.get(name) for name in names] for document in documents]


def attempts_that_count(calculations: Iterable[Document], retries: int) -> list[Document]:
    """Return the attempts at the result that counts, in their order.

    A completed result counts, the newest of several. Where all failed, a worker looks at those of its own protocol
    alone, which this code cannot name: its versions are the worker's. So nothing is due that one protocol is done with,
    and the attempts under several add up: what is due here, the worker lacks, and each attempt changes the number.
    """
    records = list(calculations)
    groups: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for record in records:
        groups[record["kind"], record["protocol_id"]].append(record)
    settled = [r for group in groups.values() if not retry_due(group, retries) for r in group]
    best = newest(settled)
    same = records if best is None else groups[best["kind"], best["protocol_id"]]
    return sorted(same, key=lambda r: (attempt_of(r), str(r["calculation_id"])))


def _by_structure(documents: Iterable[Document]) -> dict[str, list[Document]]:
    grouped: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        grouped[document["structure_id"]].append(document)
    return grouped

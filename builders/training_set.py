"""The next training set: reference labels and the trusted labels of earlier rounds, an immutable snapshot."""

from __future__ import annotations

import math
from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard

from builders.base import CampaignBuilder, newest, one_line
from builders.candidate_summary import PROPERTY
from builders.candidates import LABEL_KINDS, LABEL_METHODS, damage
from builders.labels import is_label
from builders.training_members import training_set_ids
from inv_design.datasets.training_set import split_of
from inv_design.screening.quality import distrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from inv_design.config import CampaignConfig, DataConfig
    from stores.connection import Connection

    Document = dict[str, Any]

LABELS = {"bulk_modulus_vrh": "GPa", "shear_modulus_vrh": "GPa"}
"""Labels that every training set carries, and their units; a campaign's further objectives and properties are added."""
STRUCTURAL = ("density", "volume_per_atom", "cost")
"""Objectives that a crystal has of itself: no label of them is learned from."""
FOREIGN = "not of this campaign's stage III: another backend, or other settings"
"""Why a label of a candidate's crystal, by whomever, is not learned from."""
LARGEST_LABEL = 500.0
"""GPa; a label above it (and above ``data.label_range``) is taken for a failed calculation."""


class TrainingSetBuilder(CampaignBuilder):
    """Inserts the training set of one round: the one builder that adds to an authoritative collection.

    Parameters
    ----------
    campaign, round
        Labels of candidates of earlier rounds are in it. ``round`` ``None``: the one after the last with candidates.
    """

    version = "1"

    def __init__(self, campaign: str | None = None, round: int | None = None, chunk_size: int = 500) -> None:
        self.round = round
        self.inserted: list[str] = []
        self._connection: Connection | None = None
        super().__init__(campaign, chunk_size)

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        return {
            "campaigns": "name", "candidates": "candidate_id", "structures": "structure_id",
            "calculations": "calculation_id", "models": "model_id", "training_sets": "training_set_id",
        }  # fmt: skip

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is added to, its key)."""
        return "training_sets", "training_set_id"

    def bind(self, connection: Connection) -> None:
        """Use a given connection instead of the process's own."""
        self._connection = connection
        super().bind(connection)

    def items(self) -> Iterator[Document]:
        """Yield what each campaign's next training set is made of."""
        for name, config in self.campaigns():
            candidates = list(
                self.read["candidates"].query({"campaign": name}, properties=["candidate_id", "structure_id", "round"])
            )
            sound = [c for c in candidates if damage(c, ("structure_id", "round")) is None]
            last = max((c["round"] for c in sound), default=-1)
            number = last + 1 if self.round is None else self.round
            earlier = [c for c in sound if c["round"] < number]
            references = self._sound(self._references(name, config))
            found = self._sound(self._labels([c["structure_id"] for c in earlier]))
            self.counts.read += len(references) + len(found)
            own = [is_label(record, record.pop("protocol", None), config.stages.dft) for record in found]
            labels = [record for record, ours in zip(found, own, strict=True) if ours]
            ids = [r["structure_id"] for r in references]
            ids += [r.get("output_structure_id") or r["structure_id"] for r in labels]
            told = ("chemsys", "elements", "nsites")
            crystals = self.fetch(
                "structures", "structure_id", ids, properties=dict.fromkeys(("structure_id", *told), 1)
            )
            structures = {s["structure_id"]: s for s in crystals if all(s.get(name) for name in told)}
            sets = training_set_ids(self.read["training_sets"], self.read["models"], name)
            parents = [i for k, group in sets.items() if k < number for i in group]
            yield {
                "campaign": name,
                "round": number,
                "data": config.data.model_dump(mode="json"),
                "units": label_units(config),
                "references": references,
                "labels": labels,
                "foreign": [_excluded(r, FOREIGN) for r, ours in zip(found, own, strict=True) if not ours],
                "structures": structures,
                "parent": parents[-1] if parents else None,
            }

    def process_item(self, item: Document) -> Document:
        """Return the members of a training set and what is excluded, or why there is none."""
        from inv_design.config import DataConfig

        try:
            members, excluded = select_members(
                item["references"],
                item["labels"],
                item["structures"],
                data=DataConfig.model_validate(item["data"]),
                units=item["units"],
            )
        except Exception as error:  # the other campaigns still get theirs
            return {**item, "error": one_line(error)}
        if not members:
            source = item["data"]["source"]
            return {
                **item,
                "error": f"campaign {item['campaign']!r} has no label to learn from: none of {len(item['references'])} "
                f"reference labels passes the data filter; ingest {source} or widen data.elements and label_range",
            }
        return {**item, "error": None, "members": members, "excluded": [*excluded, *item["foreign"]]}

    def write(self, items: list[Document]) -> int:
        """Insert what is new and remember the ids; a campaign without a training set has its error in the state.

        Raises
        ------
        ValueError
            If the campaign that was asked for gets none.
        """
        from stores.provenance import provenance
        from stores.records import insert_training_set

        new = 0
        for item in items:
            if item["error"]:
                if self.campaign is not None:
                    raise ValueError(item["error"])
                self.counts.failed += 1
                self.logger.error("%s", item["error"])
                self.remember(item["campaign"], "", "", error=item["error"])
                continue
            inputs = [label["calculation_id"] for m in item["members"] for label in m["labels"].values()]
            labelled = {c["calculation_id"] for c in item["labels"]}
            identity, inserted = insert_training_set(
                item["members"],
                provenance=provenance(inputs=[i for i in inputs if i in labelled]),
                campaign=item["campaign"],
                round=item["round"],
                parent_training_set_id=item["parent"],
                excluded=item["excluded"],
                connection=self._connection,
            )
            self.inserted.append(identity)
            self.remember(item["campaign"], identity, identity)
            new += inserted
        return new

    def _sound(self, records: Iterable[Document]) -> list[Document]:
        """Return the calculations that can be looked at; the others are named in the log."""
        kept = []
        for record in records:
            texts = all(isinstance(record.get(k), str) for k in ("calculation_id", "structure_id", "method"))
            if texts and isinstance(record.get("results", {}), dict):
                kept.append(record)
            else:
                self.logger.error("calculation %s is damaged; it is left out", record.get("calculation_id"))
        return kept

    def _references(self, name: str, config: CampaignConfig) -> list[Document]:
        """Return the reference calculations: all of the database, except the data of other campaigns alone."""
        own = _source_name(config.data.source)
        others = {
            _source_name(c["config"].get("data", {}).get("source", "mp-binaries"))
            for c in self.read["campaigns"].query({"name": {"$ne": name}}, properties=["config"])
        } - {own}
        query = {"kind": "reference", "method": "reference", "state": "completed"}
        found = self.read["calculations"].query(query, properties={"provenance": 0})
        return [c for c in found if (c.get("protocol") or {}).get("source") not in others]

    def _labels(self, ids: Iterable[str]) -> list[Document]:
        criteria = {"kind": {"$in": list(LABEL_KINDS)}, "method": {"$in": list(LABEL_METHODS)}}
        return list(
            self.fetch(
                "calculations",
                "structure_id",
                ids,
                criteria=criteria,
                properties={"results.elastic_tensor": 0},
            )
        )


def label_units(config: CampaignConfig) -> dict[str, str]:
    """Return the labels that a campaign's training sets carry -> unit."""
    further = {o.name: o.unit for o in config.objectives if o.name not in STRUCTURAL}
    return {**LABELS, **further, **config.properties}


def select_members(
    references: Iterable[Mapping[str, Any]],
    labels: Iterable[Mapping[str, Any]],
    structures: Mapping[str, Mapping[str, Any]],
    *,
    data: DataConfig,
    units: Mapping[str, str] = MappingProxyType(LABELS),
) -> tuple[list[Document], list[Document]]:
    """Return (members, excluded) of a training set, sorted by structure id.

    Parameters
    ----------
    references
        Reference calculations; those that the filter of ``data`` lets pass become members.
    labels
        Stage-III calculations of earlier rounds' candidates. A label belongs to the relaxed crystal it was computed
        for; failed and distrusted ones are excluded with their reason.
    structures
        Structure id -> record with ``chemsys``, ``elements`` and ``nsites``.
    units
        Labels to carry -> unit.
    """
    members: dict[str, Document] = {}
    excluded: list[Document] = []
    passing = [r for r in references if passes_filter(r, structures.get(r["structure_id"]), data)]
    passing.sort(key=lambda r: (str(r["results"].get("source_id", "")), r["calculation_id"]))
    if data.max_entries is not None:
        passing = passing[: data.max_entries]
    for record in passing:
        members.setdefault(record["structure_id"], _member(record, record["structure_id"], structures, units))
    for record in sorted(_best_labels(labels), key=lambda r: r["calculation_id"]):
        identity = record.get("output_structure_id") or record["structure_id"]
        reason = distrust(record, data)
        if reason is None and identity not in structures:
            reason = "the labelled structure is not in the database"
        if reason is None and identity in members:
            reason = "the structure has a label already"
        if reason is None:
            members[identity] = _member(record, identity, structures, units)
        else:
            excluded.append(_excluded(record, reason))
    return [members[i] for i in sorted(members)], excluded


def passes_filter(
    record: Mapping[str, Any], structure: Mapping[str, Any] | None, data: DataConfig
) -> bool:  # fmt: skip
    """Return whether a reference label belongs to a campaign's data (the filter of Li et al. 2025, II A)."""
    from inv_design.structures.elements import expand_elements

    value = (record.get("results") or {}).get(PROPERTY)
    if structure is None or not _is_number(value):
        return False
    symbols = set(structure["elements"])
    if not symbols <= expand_elements(data.elements) or symbols & expand_elements(data.exclude):
        return False
    energy = record["results"].get("formation_energy_per_atom")
    if _is_number(energy) and energy > data.max_formation_energy:
        return False
    low, high = data.label_range
    return structure["nsites"] <= data.max_sites and low < value <= high


def distrust(record: Mapping[str, Any], data: DataConfig) -> str | None:
    """Return why a label must not be learned from, ``None`` if it may."""
    if record.get("state") != "completed":
        return f"calculation failed: {record.get('error') or 'no error recorded'}"
    value = (record.get("results") or {}).get(PROPERTY)
    if not _is_number(value):
        return "no bulk modulus in the results"
    flags = distrusted(record.get("flags") or ())
    if flags:
        return f"quality flags: {', '.join(flags)}"
    # not data.label_range: a loop that leaves the range it started from must learn from what it finds there
    high = max(LARGEST_LABEL, data.label_range[1])
    return None if 0.0 < value <= high else f"label {value:g} GPa is outside (0, {high:g}] GPa"


def _best_labels(labels: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one label per candidate structure: completed before failed, then the newest."""
    grouped: dict[str, list[Document]] = defaultdict(list)
    for record in labels:
        grouped[record["structure_id"]].append(dict(record))
    best: list[Mapping[str, Any]] = []
    for group in grouped.values():
        completed = [r for r in group if r.get("state") == "completed"]
        chosen = newest(completed or group)
        if chosen is not None:
            best.append(chosen)
    return best


def _excluded(record: Mapping[str, Any], reason: str) -> Document:
    identity = record.get("output_structure_id") or record["structure_id"]
    kept = {key: record[key] for key in ("calculation_id", "method")}
    return {"structure_id": identity, **kept, "reason": reason}


def _member(
    record: Mapping[str, Any], identity: str, structures: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]
) -> Document:
    chemsys = structures[identity]["chemsys"]
    labels = {
        name: {
            "value": float(record["results"][name]),
            "unit": unit,
            "calculation_id": record["calculation_id"],
            "method": record["method"],
        }
        for name, unit in units.items()
        if _is_number(record["results"].get(name))
    }
    return {"structure_id": identity, "labels": labels, "chemsys": chemsys, "split": split_of(chemsys)}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _source_name(source: str) -> str:
    """Return the source as ingested data names it."""
    from inv_design.datasets.mp_binaries import SOURCE

    return SOURCE if source == "mp-binaries" else source

"""What a record refers to, and what a campaign needs: the closure of its records under references."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stores.scan import batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stores.connection import Connection

BATCH = 1000
MODEL_ID = re.compile(r"m-[0-9a-f]{20}")
INPUTS = {"m-": "models", "t-": "training_sets", "k-": "calculations"}
"""Prefix of an id among provenance.inputs -> collection; the other inputs are named by fields of their own."""

FIELDS: dict[str, dict[str, str]] = {
    "structures": {},
    "campaigns": {},
    "candidates": {"campaign": "campaigns", "structure_id": "structures", "generator_model_id": "models"},
    "predictions": {"structure_id": "structures", "model_id": "models"},
    "calculations": {"structure_id": "structures", "output_structure_id": "structures"},
    "models": {"training_set_id": "training_sets", "parent_model_id": "models"},
    "training_sets": {"parent_training_set_id": "training_sets"},
    "evaluations": {"campaign": "campaigns", "generator_model_id": "models"},
    "steps": {"campaign": "campaigns"},
}
"""Collection -> field -> the collection whose record it names."""


LAST_WRITTEN_FIRST = (
    "steps", "evaluations", "predictions", "candidates", "models", "training_sets", "calculations", "campaigns",
    "structures",
)  # fmt: skip
"""The order in which a database is read that others write meanwhile: what a record needs was written before it."""


OF_A_CAMPAIGN = frozenset({"steps", "evaluations", "candidates", "models", "training_sets"})
"""The collections whose records name their campaign."""


def references(collection: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (collection, key) of every record that a record cannot be understood without.

    A training set must come with its members (:func:`stores.artifacts.unspill`).
    """
    for field, target in FIELDS[collection].items():
        if record.get(field):
            yield target, record[field]
    if collection in ("calculations", "models", "training_sets", "evaluations"):
        for identity in (record.get("provenance") or {}).get("inputs") or ():
            if isinstance(identity, str) and identity[:2] in INPUTS and len(identity) == 22:
                yield INPUTS[identity[:2]], identity
    if collection == "training_sets":
        for member in record.get("members") or ():
            yield "structures", member["structure_id"]
            for label in (member.get("labels") or {}).values():
                if label.get("calculation_id"):
                    yield "calculations", label["calculation_id"]
        for item in record.get("excluded") or ():
            if item.get("calculation_id"):
                yield "calculations", item["calculation_id"]


def key_of(collection: str, record: Mapping[str, Any]) -> str:
    """Return a record's unique key as text (its id; three fields with slashes for a prediction)."""
    from stores.records import _KEYS

    return "/".join(str(record[field]) for field in _KEYS[collection])


def everything(connection: Connection) -> dict[str, set[str]]:
    """Return collection -> keys of all authoritative records of a database (of the steps: the finished ones)."""
    from stores.records import _KEYS

    keys: dict[str, set[str]] = {}
    for collection in LAST_WRITTEN_FIRST:
        fields = _KEYS[collection]
        found = connection.db[collection].find({}, {"_id": 0, **dict.fromkeys(fields, 1)})
        keys[collection] = {key_of(collection, record) for record in found}
    keys["steps"] = {key for key in keys["steps"] if is_finished(key)}
    return keys


def of_campaigns(connection: Connection, names: Sequence[str]) -> dict[str, set[str]]:
    """Return collection -> keys of what campaigns consist of, closed under references.

    Raises
    ------
    LookupError
        If there is no such campaign.
    """
    known = {c["name"] for c in connection.db["campaigns"].find({}, {"name": 1})}
    for name in names:
        if name not in known:
            held = ", ".join(sorted(known)) or "none"
            raise LookupError(f"the database holds no campaign {name!r}; it holds {held}")
    return _Closure(connection, list(names)).keys


def is_finished(key: str) -> bool:
    """Return whether a step's key says that a piece of work is finished, not that a launchpad has it."""
    return key.endswith("/done")


class _Closure:
    """The records of campaigns, and of everything that they refer to."""

    def __init__(self, connection: Connection, names: list[str]) -> None:
        self.connection = connection
        self.db = connection.db
        self.keys: dict[str, set[str]] = {collection: set() for collection in FIELDS}
        self.pending: dict[str, set[str]] = {collection: set() for collection in FIELDS}
        self._roots(names)
        self._follow()
        self._add_predictions()
        self._follow()

    def _roots(self, names: list[str]) -> None:
        own = {"campaign": {"$in": names}}
        self.pending["campaigns"] |= set(names)
        for campaign in self.db["campaigns"].find({"name": {"$in": names}}, {"config": 1}):
            self.pending["models"] |= set(MODEL_ID.findall(str(campaign.get("config"))))  # a calculator of our own
        for collection in (c for c in LAST_WRITTEN_FIRST if c in OF_A_CAMPAIGN):
            field = {"steps": "key"}.get(collection, f"{collection.removesuffix('s')}_id")
            found = {record[field] for record in self.db[collection].find(own, {field: 1, "_id": 0})}
            self.pending[collection] |= {key for key in found if collection != "steps" or is_finished(key)}
        self.own_training_sets = set(self.pending["training_sets"])
        for model in self.db["models"].find(own, {"training_set_id": 1, "_id": 0}):
            if model.get("training_set_id"):
                self.own_training_sets.add(model["training_set_id"])
        # the models of further properties name no campaign, only the training set of a round
        further = {"campaign": None, "training_set_id": {"$in": sorted(self.own_training_sets)}}
        self.pending["models"] |= {m["model_id"] for m in self.db["models"].find(further, {"model_id": 1, "_id": 0})}
        if not self.own_training_sets:  # its first training set is still to be made, of all reference labels
            found = self.db["calculations"].find({"kind": "reference"}, {"calculation_id": 1, "_id": 0})
            self.pending["calculations"] |= {record["calculation_id"] for record in found}
        structures = (c["structure_id"] for c in self.db["candidates"].find(own, {"structure_id": 1, "_id": 0}))
        self.structures = sorted(set(structures))
        for part in batches(self.structures):
            found = self.db["calculations"].find({"structure_id": {"$in": part}}, {"calculation_id": 1, "_id": 0})
            self.pending["calculations"] |= {record["calculation_id"] for record in found}

    def _follow(self) -> None:
        """Read what is pending until nothing new is named."""
        while any(self.pending.values()):
            for collection, pending in self.pending.items():
                new = sorted(pending - self.keys[collection])
                pending.clear()
                for record in self._records(collection, new):
                    self.keys[collection].add(key_of(collection, record))
                    for target, key in references(collection, record):
                        if key not in self.keys[target]:
                            self.pending[target].add(key)

    def _records(self, collection: str, keys: list[str]) -> Iterator[dict[str, Any]]:
        """Yield records with what is needed to follow them; what the database does not have is left out."""
        if collection == "training_sets":
            yield from read(self.connection, collection, keys, whole=True)
            return
        from stores.records import _KEYS

        fields = {*_KEYS[collection], *FIELDS[collection], "provenance.inputs"}
        yield from read(self.connection, collection, keys, fields=fields)

    def _add_predictions(self) -> None:
        """Take the candidates' predictions by the campaigns' own models, and those by no known model."""
        known = {model["model_id"] for model in self.db["models"].find({}, {"model_id": 1, "_id": 0})}
        strangers = known - self.keys["models"]
        fields = {"_id": 0, "structure_id": 1, "property": 1, "protocol_id": 1, "model_id": 1}
        for part in batches(self.structures):
            for record in self.db["predictions"].find({"structure_id": {"$in": part}}, fields):
                if record.get("model_id") not in strangers:
                    self.pending["predictions"].add(key_of("predictions", record))


def read(
    connection: Connection,
    collection: str,
    keys: Iterable[str],
    *,
    fields: Iterable[str] | None = None,
    whole: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the records with given keys that are there, in the order of the keys, some at a time.

    Parameters
    ----------
    fields
        Only these.
    whole
        Put the parts back that are in GridFS.
    """
    from stores.artifacts import unspill
    from stores.records import _KEYS

    first = _KEYS[collection][0]
    projection = None if fields is None else dict.fromkeys(sorted(fields), 1)
    for part in batches(sorted(keys), 50 if collection == "training_sets" else BATCH):
        wanted = set(part)
        values = sorted({key.split("/")[0] if collection == "predictions" else key for key in part})
        found = {}
        for record in connection.db[collection].find({first: {"$in": values}}, projection):
            key = key_of(collection, record)
            if key in wanted:
                found[key] = record
        for key in part:
            if key in found:
                yield unspill(found[key], connection=connection) if whole else found[key]

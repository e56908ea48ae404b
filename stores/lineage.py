"""The lineage walk, both ways: what a document came from, and what came of it.

Up from a candidate: its generator model, the training set that model learned from, the calculations that labelled it,
the structures those were made on, the earlier candidates those structures were. Down from a calculation: the training
sets that contain it, the models trained on them, what those generated and predicted.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stores.connection import Connection

Node = dict[str, Any]
Step = tuple[str, str]  # (relation, id)

COLLECTIONS = {
    "s": ("structures", "structure_id", "structure"),
    "c": ("candidates", "candidate_id", "candidate"),
    "m": ("models", "model_id", "model"),
    "t": ("training_sets", "training_set_id", "training_set"),
    "k": ("calculations", "calculation_id", "calculation"),
    "e": ("evaluations", "evaluation_id", "evaluation"),
}
MANY = 20  # outputs of one kind beyond this are counted, not listed


def lineage(
    id: str,
    *,
    direction: Literal["up", "down"] = "up",
    depth: int | None = None,
    everything: bool = False,
    connection: Connection | None = None,
) -> Node:
    """Return the tree of what a document came from (``up``) or of what came of it (``down``).

    Parameters
    ----------
    id
        A structure (``s-``), candidate (``c-``), model (``m-``), training set (``t-``), calculation (``k-``),
        evaluation (``e-``) or prediction (``structure_id/property/protocol_id``).
    depth
        How many steps to go; all by default.
    everything
        List also what is otherwise only counted: a training set's reference labels, a model's many candidates and
        predictions. A training set's members that come from campaign candidates are always listed.

    Returns
    -------
    dict
        A node ``{"id", "type", "label", "created_at", "round", "relation", "children": [nodes]}``; ``relation`` says
        what it is to its parent, ``round`` is only there where the record has one. A document that the tree has shown
        already is ``{"id", "type", "seen": True, ...}`` without children, members that are only counted are
        ``"counted": {name: number}``, ids that lead nowhere are ``"missing": True``.

    Raises
    ------
    KeyError
        If there is no such document.
    ValueError
        If ``direction`` is neither up nor down, or the id is of no known form.
    """
    from stores.connection import current

    if direction not in ("up", "down"):
        raise ValueError(f"direction {direction!r} is neither 'up' nor 'down'")
    walk = _Walk(connection or current(), direction, everything)
    if walk.document(id) is None:
        raise KeyError(f"there is no document {id!r} in this database; check the id")
    return walk.node(id, "", depth)


def related_ids(tree: Node) -> list[str]:
    """Return every id of a lineage tree once, in the order of the walk."""
    found = dict.fromkeys([tree["id"]])
    for child in tree.get("children", []):
        found.update(dict.fromkeys(related_ids(child)))
    return list(found)


class _Walk:
    """One walk over the records; remembers what it has shown."""

    def __init__(self, connection: Connection, direction: str, everything: bool) -> None:
        self.db = connection.db
        self.connection = connection
        self.direction = direction
        self.everything = everything
        self.shown: set[str] = set()

    def node(self, id: str, relation: str, depth: int | None) -> Node:
        """Return the node of a document with everything behind it, ``depth`` steps deep."""
        document = self.document(id)
        node: Node = {"id": id, "type": _type(id), "relation": relation}
        if document is None:
            return {**node, "missing": True, "children": []}
        node |= {"label": _label(_type(id), document), "created_at": document["provenance"].get("created_at")}
        if document.get("round") is not None:
            node["round"] = document["round"]
        if id in self.shown:
            return {**node, "seen": True, "children": []}
        self.shown.add(id)
        steps, counted = getattr(self, f"_{self.direction}_{_type(id)}")(document)
        if self.direction == "up":
            steps = [*steps, *(("input", i) for i in document["provenance"].get("inputs", []) if _is_id(i))]
        else:
            steps = [*steps, *(("used by", i) for i in self._users(id))]
        unique: dict[str, str] = {}
        for step_relation, step_id in steps:
            unique.setdefault(step_id, step_relation)
        if counted:
            node["counted"] = counted
        if depth is not None and depth <= 0:
            return {**node, "children": [], "more": len(unique)} if unique else {**node, "children": []}
        below = None if depth is None else depth - 1
        return {**node, "children": [self.node(i, r, below) for i, r in unique.items() if i != id]}

    def document(self, id: str) -> dict[str, Any] | None:
        """Return the record of an id without its bulky parts."""
        if "/" in id:
            structure_id, name, protocol_id = _split_prediction(id)
            key = {"structure_id": structure_id, "property": name, "protocol_id": protocol_id}
            return self.db["predictions"].find_one(key)
        collection, field, _ = _collection(id)
        return self.db[collection].find_one({field: id}, {"structure": 0, "members": 0, "protocol": 0})

    # -- up: what it came from -----------------------------------------------------------------------------------------

    def _up_candidate(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        generator = document.get("generator_model_id")
        return ([("generated by", generator)] if generator else []), {}

    def _up_evaluation(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        return [("evaluation of", document["generator_model_id"])], {}

    def _up_model(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        steps = [("trained on", document.get("training_set_id")), ("continued from", document.get("parent_model_id"))]
        return [(relation, id) for relation, id in steps if id], {}

    def _up_training_set(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        steps: list[Step] = []
        counted: Counter[str] = Counter()
        for member in self._members(document["training_set_id"]):
            for label in member.get("labels", {}).values():
                id, method = label.get("calculation_id"), label.get("method", "unknown")
                if id and (self.everything or method != "reference"):
                    steps.append((f"label by {method}", id))
                else:
                    counted[f"labels by {method}"] += 1
        parent = document.get("parent_training_set_id")
        if parent:
            steps.append(("grown from", parent))
        return steps, dict(counted)

    def _up_calculation(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        return [("computed on", document["structure_id"])], {}

    def _up_prediction(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        steps: list[Step] = [("predicted for", document["structure_id"])]
        if document.get("model_id"):
            steps.append(("predicted by", document["model_id"]))
        return steps, {}

    def _up_structure(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        """A structure came from where its first source says: a candidate, a relaxation, or the outside."""
        source = (document.get("sources") or [{}])[0]
        key = {"structure_id": document["structure_id"]}
        if source.get("kind") == "generated":
            first = _earliest(self.db["candidates"].find(key, {"candidate_id": 1, "provenance.created_at": 1}))
            if first:
                return [("generated as", first["candidate_id"])], {}
        if _is_id(str(source.get("id", ""))):
            return [(f"{source.get('kind', 'from')} as", source["id"])], {}
        if source.get("kind") == "relaxed":
            found = self.db["calculations"].find(
                {"output_structure_id": document["structure_id"]}, {"calculation_id": 1, "provenance.created_at": 1}
            )
            first = _earliest(found)
            return ([("relaxed by", first["calculation_id"])] if first else []), {}
        return [], {}

    # -- down: what came of it -----------------------------------------------------------------------------------------

    def _down_candidate(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        return [("is", document["structure_id"])], {}

    def _down_model(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        key = document["model_id"]
        steps = [("continued to", id) for id in self._ids("models", {"parent_model_id": key})]
        candidates = self._ids("candidates", {"generator_model_id": key})
        counted = {}
        if len(candidates) > MANY and not self.everything:
            counted["candidates generated"] = len(candidates)
        else:
            steps += [("generated", id) for id in candidates]
        predictions = self.db["predictions"].count_documents({"model_id": key})
        if predictions and self.everything:
            steps += [("predicted", _prediction_id(p)) for p in self.db["predictions"].find({"model_id": key})]
        elif predictions:
            counted["predictions"] = predictions
        return steps, counted

    def _down_training_set(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        key = document["training_set_id"]
        trained = [("trained", id) for id in self._ids("models", {"training_set_id": key})]
        grown = [("grew to", id) for id in self._ids("training_sets", {"parent_training_set_id": key})]
        return [*trained, *grown], {}

    def _down_calculation(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        steps: list[Step] = []
        if document.get("output_structure_id"):
            steps.append(("gave", document["output_structure_id"]))
        steps += [("label in", id) for id in self._label_use.get(document["calculation_id"], [])]
        return steps, {}

    def _down_evaluation(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:  # noqa: ARG002
        return [], {}

    def _down_prediction(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:  # noqa: ARG002
        return [], {}

    def _down_structure(self, document: dict[str, Any]) -> tuple[list[Step], dict[str, int]]:
        key = {"structure_id": document["structure_id"]}
        steps = [("met as", id) for id in self._ids("candidates", key)]
        steps += [("computed in", id) for id in self._ids("calculations", key)]
        predictions = list(self.db["predictions"].find(key))
        if len(predictions) > MANY and not self.everything:
            return steps, {"predictions": len(predictions)}
        return [*steps, *(("predicted in", _prediction_id(p)) for p in predictions)], {}

    # -- records -------------------------------------------------------------------------------------------------------

    def _ids(self, collection: str, filter: dict[str, Any]) -> list[str]:
        field = next(f for c, f, _ in COLLECTIONS.values() if c == collection)
        return [document[field] for document in self.db[collection].find(filter, {field: 1, "_id": 0})]

    def _users(self, id: str) -> Iterator[str]:
        """Yield the ids of records that name this one among their inputs."""
        for collection in ("calculations", "models", "training_sets", "evaluations"):
            yield from self._ids(collection, {"provenance.inputs": id})

    def _members(self, training_set_id: str) -> list[dict[str, Any]]:
        from stores.artifacts import unspill

        document = self.db["training_sets"].find_one({"training_set_id": training_set_id}) or {}
        return unspill(document, connection=self.connection).get("members", [])

    @cached_property
    def _label_use(self) -> dict[str, list[str]]:
        """Calculation id -> training sets that have it as a label; read once per walk."""
        use: dict[str, list[str]] = {}
        for training_set_id in self._ids("training_sets", {}):
            for member in self._members(training_set_id):
                for id in {label.get("calculation_id") for label in member.get("labels", {}).values()} - {None}:
                    use.setdefault(id, []).append(training_set_id)
        return use


def _is_id(text: str) -> bool:
    return len(text) > 2 and text[1] == "-" and text[0] in COLLECTIONS


def _collection(id: str) -> tuple[str, str, str]:
    if not _is_id(id):
        raise ValueError(f"{id!r} is no id; ids start with {', '.join(f'{p}-' for p in COLLECTIONS)}")
    return COLLECTIONS[id[0]]


def _type(id: str) -> str:
    return "prediction" if "/" in id else _collection(id)[2]


def _split_prediction(id: str) -> tuple[str, str, str]:
    parts = id.split("/")
    if len(parts) != 3:
        raise ValueError(f"{id!r} is no id of a prediction; it is STRUCTURE_ID/PROPERTY/PROTOCOL_ID")
    return parts[0], parts[1], parts[2]


def _prediction_id(document: dict[str, Any]) -> str:
    from stores.records import prediction_id

    return prediction_id(document["structure_id"], document["property"], document["protocol_id"])


def _earliest(documents: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return min(documents, key=lambda d: (str(d["provenance"].get("created_at")), str(d["_id"])), default=None)


def _label(type: str, document: dict[str, Any]) -> str:  # noqa: PLR0911 (one line per type)
    """Return one line that says what a document is."""
    if type == "structure":
        source = (document.get("sources") or [{}])[0]
        name = f"{document['formula']} {document['spacegroup'].get('symbol', '')} ({document['nsites']} sites)"
        return f"{name}, {source.get('kind', '')} {source.get('id', '')}".rstrip(" ,")
    if type == "candidate":
        return f"candidate of {document['campaign']}, round {document['round']}"
    if type == "calculation":
        outcome = document["state"] if document["state"] != "failed" else f"failed: {document.get('error', '')}"
        return f"{document['kind']} by {document['method']}, {outcome}"
    if type == "model":
        about = f" for {document['property']}" if document.get("property") else ""
        return f"{document['kind']} {document['name']}{about}"
    if type == "evaluation":
        return f"{document['property']} at {document['target']:g} {document['unit']}, {document['n']} samples"
    if type == "training_set":
        methods = ", ".join(f"{count} by {method}" for method, count in document.get("labels_by_method", {}).items())
        return f"{document['size']} members; labels: {methods or 'none'}"
    value = f"{document['value']:.6g} {document.get('unit', '')}" if document.get("value") is not None else "failed"
    return f"{document['property']} = {value}".rstrip()

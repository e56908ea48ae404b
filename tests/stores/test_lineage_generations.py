"""Six rounds of records: the walk up and down, diamonds, and its picture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from inv_design.report.lineage import MOST, cells, lineage_graph, places, write_lineage
from stores.lineage import lineage, related_ids
from stores.provenance import provenance
from stores.records import insert_calculation, insert_candidates, insert_documents, insert_model, insert_training_set

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

ROUNDS = 6
LABELLED = 9
"""Candidates of each round that are relaxed and labelled."""


@pytest.fixture
def rounds(connection: Connection) -> list[dict[str, Any]]:
    """Write six rounds; each has a training set of all labels before it, a model, candidates and their labels."""
    made = provenance(command="test")
    members: list[dict[str, Any]] = []
    parents: dict[str, str | None] = {"training_set": None, "model": None}
    written = []
    for number in range(ROUNDS):
        training_set, _ = insert_training_set(
            [*members, {"structure_id": "s-ref", "labels": {}, "chemsys": "x", "split": "train"}],
            provenance=made, campaign="x", round=number, parent_training_set_id=parents["training_set"],
        )  # fmt: skip
        model = insert_model(
            bytes([number]), kind="generator", name="con_cdvae", provenance=made, training_set_id=training_set,
            campaign="x", round=number, parent_model_id=parents["model"],
        ).model_id  # fmt: skip
        parents = {"training_set": training_set, "model": model}
        candidates, labels = [], []
        for i in range(LABELLED):
            raw, relaxed = f"s-{number}a{i}", f"s-{number}b{i}"
            [(candidate, _)] = insert_candidates(
                [
                    {
                        "campaign": "x", "round": number, "seed": number, "index": i, "structure_id": raw,
                        "generator_model_id": model, "provenance": made,
                    }
                ]
            )  # fmt: skip
            relaxation, _ = insert_calculation(
                structure_id=raw, kind="relax", method="mlip", protocol_id="p-mlip", state="completed",
                output_structure_id=relaxed, provenance=made,
            )  # fmt: skip
            label, _ = insert_calculation(
                structure_id=relaxed, kind="eos", method="surrogate", protocol_id="p-dft", state="completed",
                results={"bulk_modulus_vrh": 1.0}, provenance=provenance(inputs=[relaxation]),
            )  # fmt: skip
            insert_documents("structures", [crystal(raw, "generated", model), crystal(relaxed, "relaxed", relaxation)])
            value = {"value": 1.0, "unit": "GPa", "calculation_id": label, "method": "surrogate"}
            members.append(
                {"structure_id": relaxed, "labels": {"bulk_modulus_vrh": value}, "chemsys": "x", "split": "train"}
            )
            candidates.append(candidate)
            labels.append(label)
        written.append(
            {"training_set": training_set, "model": model, "candidates": candidates, "labels": labels}
        )  # fmt: skip
    return written


def crystal(identity: str, kind: str, source: str) -> dict[str, Any]:
    return {
        "structure_id": identity, "structure": {"x": 1}, "formula": "ReW", "chemsys": "Re-W", "elements": ["Re", "W"],
        "nsites": 2, "volume": 1.0, "density": 1.0, "spacegroup": {"number": 221, "symbol": "Pm-3m"},
        "fingerprint": "ReW|2|221", "sources": [{"kind": kind, "id": source}], "provenance": provenance(),
    }  # fmt: skip


def nodes(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [tree, *(node for child in tree["children"] for node in nodes(child))]


def test_up_from_the_last_candidate_to_the_first_round(rounds: list[dict[str, Any]]) -> None:
    tree = lineage(rounds[-1]["candidates"][0])
    found = set(related_ids(tree))
    for earlier in rounds[:-1]:
        assert {earlier["training_set"], earlier["model"], *earlier["candidates"], *earlier["labels"]} <= found
    assert not found & set(rounds[-1]["candidates"][1:]), "its siblings are no ancestors"
    assert not found & set(rounds[-1]["labels"])


def test_down_from_the_first_label_to_the_last_candidates(rounds: list[dict[str, Any]]) -> None:
    found = set(related_ids(lineage(rounds[0]["labels"][0], direction="down")))
    for later in rounds[1:]:
        assert {later["training_set"], later["model"], *later["candidates"], *later["labels"]} <= found
    assert not found & {rounds[0]["model"], rounds[0]["training_set"], *rounds[0]["candidates"]}


@pytest.mark.parametrize("direction", ["up", "down"])
def test_every_record_of_a_diamond_is_opened_once(rounds: list[dict[str, Any]], direction: Any) -> None:
    start = rounds[-1]["candidates"][0] if direction == "up" else rounds[0]["labels"][0]
    every = nodes(lineage(start, direction=direction))
    opened = [node["id"] for node in every if not node.get("seen")]
    assert len(opened) == len(set(opened))
    assert {node["id"] for node in every if node.get("seen")} <= set(opened)
    if direction == "up":  # a label is in all later training sets: each of those shows it, one of them opens it
        assert sum(node["id"] == rounds[0]["labels"][0] for node in every) == ROUNDS - 1


def test_the_picture_has_a_row_for_each_generation(rounds: list[dict[str, Any]]) -> None:
    graph = lineage_graph(lineage(rounds[-1]["candidates"][0]), direction="up")
    where = {identity: place[0] for identity, place in places(graph).items()}
    for number, written in enumerate(rounds):
        assert where[written["training_set"]] == where[written["model"]] == number
        if written is not rounds[-1]:
            assert {where[i] for i in (*written["candidates"], *written["labels"])} == {number}
    made = cells(graph)
    for lap in (0, 1):  # relaxations, then labels
        calculations = made[0, lap, "calculation"]
        assert len(calculations.shown) == MOST
        assert len(calculations.hidden) == LABELLED - MOST
    assert set(made[0, 1, "calculation"].shown) <= set(rounds[0]["labels"])
    assert made[ROUNDS - 1, 0, "candidate"].shown == [rounds[-1]["candidates"][0]]
    older, newer = rounds[0]["labels"][0], rounds[1]["training_set"]
    assert graph.edges[older, newer] == "label by surrogate"
    down = lineage_graph(lineage(older, direction="down"), direction="down")
    assert down.edges[older, newer] == "label in", "old leads to new in both directions"


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "html", "dot"])
def test_the_picture_is_written(rounds: list[dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    start = rounds[-1]["candidates"][0]
    path = tmp_path / "new" / f"lineage.{suffix}"
    counted = write_lineage(lineage(start), path, direction="up")
    assert counted["candidate"] == (ROUNDS - 1) * LABELLED + 1
    content = path.read_bytes()
    assert content.startswith(
        {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!doctype", "dot": b"digraph"}[suffix]
    )
    if suffix == "dot":
        text = content.decode()
        assert len(re.findall(r"^  \"[^\"]+\" \[label", text, re.MULTILINE)) == sum(counted.values())
        assert f'"{rounds[-1]["model"]}" -> "{start}" [label="generated by"]' in text
    if suffix == "html":
        assert start in content.decode()
        assert "http" not in content.decode().replace("http://www.w3.org", "")


def test_another_suffix_is_refused(rounds: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lineage\.txt ends in '\.txt'"):
        write_lineage(lineage(rounds[0]["model"]), tmp_path / "lineage.txt", direction="up")


def test_a_structure_generated_again_by_what_it_taught_is_no_endless_walk(rounds: list[dict[str, Any]]) -> None:
    [(again, _)] = insert_candidates(
        [
            {
                "campaign": "x", "round": ROUNDS - 1, "seed": 99, "index": 0, "structure_id": "s-0a0",
                "generator_model_id": rounds[-1]["model"], "provenance": provenance(),
            }
        ]
    )  # fmt: skip
    tree = lineage(again, direction="down")
    assert {"s-0a0", rounds[1]["training_set"], rounds[-1]["model"], rounds[0]["candidates"][0]} <= set(
        related_ids(tree)
    )
    graph = lineage_graph(tree, direction="down")
    assert set(places(graph)) == set(graph.nodes)

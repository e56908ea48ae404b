"""ScreeningQueueBuilder: what each stage has to do next, the candidates that lack its result."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from builders.base import CampaignBuilder
from inv_design.screening.priority import rank
from inv_design.screening.verdict import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Document = dict[str, Any]

FIELDS = ["candidate_id", "structure_id", "round", "stage", "status", "stages", "index", "seed"]


class ScreeningQueueBuilder(CampaignBuilder):
    """Derives ``screening_queue`` from the candidate summaries.

    Parameters
    ----------
    protocols
        Stage -> protocol id that the queue's items are labelled with.
    """

    version = "1"

    def __init__(
        self, campaign: str | None = None, protocols: dict[str, str | None] | None = None, chunk_size: int = 500
    ) -> None:
        self.protocols = protocols
        super().__init__(campaign, chunk_size)

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        return {"campaigns": "name", "candidate_summaries": "candidate_id"}

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        return "screening_queue", "candidate_id"

    def get_items(self) -> Iterator[Document]:
        """Yield the summaries of one round of one campaign at a time."""
        for name, config in self.campaigns():
            rounds: dict[int, list[Document]] = defaultdict(list)
            for summary in self.read["candidate_summaries"].query({"campaign": name}, properties=FIELDS):
                rounds[summary["round"]].append(summary)
            for item in self.target.query({"campaign": name}, properties=["round"]):
                rounds[item["round"]] += []  # a round whose last item is done must be cleared
            for number, summaries in sorted(rounds.items()):
                yield {
                    "campaign": name,
                    "round": number,
                    "summaries": summaries,
                    "target": config.target,
                    "budget": config.stages.dft.budget_per_round,
                }

    def process_item(self, item: Document) -> Document:
        """Return the queue of one round; a round whose queue cannot be told keeps the one it has."""
        try:
            queue = next_candidates(item["summaries"], target=item["target"], budget=item["budget"])
        except Exception as error:
            self.logger.error("the queue of %s, round %s, stays as it is: %s", item["campaign"], item["round"], error)
            return {**item, "queue": None}
        return {**item, "queue": queue}

    def write(self, items: list[Document]) -> int:
        """Write what is new or changed, then remove what is done: a reader never sees an empty queue in between."""
        written = 0
        for item in items:
            if item["queue"] is None:
                continue
            place = {"campaign": item["campaign"], "round": item["round"]}
            wanted = {(q["stage"], q["candidate_id"]): q for q in item["queue"]}
            present = {(q["stage"], q["candidate_id"]): q for q in self.target.query(place)}
            new = [
                {**place, **q, "protocol_id": (self.protocols or {}).get(q["stage"]), **self.stamp([q["candidate_id"]])}
                for key, q in wanted.items()
                if key not in present or present[key].get("priority") != q["priority"]
            ]
            self.upsert(new, ["campaign", "stage", "candidate_id"])
            gone: dict[str, list[str]] = defaultdict(list)
            for stage, candidate in present.keys() - wanted.keys():
                gone[stage].append(candidate)
            for stage, candidates in gone.items():
                self.target.remove_docs({**place, "stage": stage, "candidate_id": {"$in": candidates}})
            written += len(new)
        return written


def next_candidates(summaries: Iterable[Mapping[str, Any]], *, target: float, budget: int) -> list[Document]:
    """Return the queue of one round: stage, candidate and priority, best first in each stage.

    Parameters
    ----------
    summaries
        The round's candidate summaries.
    target
        Bulk modulus wanted, in GPa.
    budget
        Labels of the round. Every result of the dft stage counts against it, a failed one too; what is queued but not
        finished does not, so that a lost run is simply taken again.
    """
    rounds = list(summaries)
    queue: list[Document] = []
    for stage in STAGES:
        waiting = [
            {
                "stage": stage,
                "candidate_id": s["candidate_id"],
                "structure_id": s["structure_id"],
                "value": _number(s, "mlip") if stage == "dft" else _number(s, "predictor"),
                "std": (s["stages"].get("predictor") or {}).get("std"),
            }
            for s in rounds
            if s["stage"] == stage and s["status"] == "waiting"
        ]
        ranked = rank(waiting, target=target)
        if stage == "dft":
            ranked = ranked[: remaining_budget(rounds, budget)]
        queue += [
            {**{k: r[k] for k in ("stage", "candidate_id", "structure_id")}, "priority": _finite(r["priority"])}
            for r in ranked
        ]
    return queue


def remaining_budget(summaries: Iterable[Mapping[str, Any]], budget: int) -> int:
    """Return how many labels of a round are left: its budget less the structures that have a result, failed or not."""
    labelled = {s["structure_id"] for s in summaries if s["stage"] == "dft" and s["status"] != "waiting"}
    return max(budget - len(labelled), 0)


def _number(summary: Mapping[str, Any], stage: str) -> float | None:
    return (summary["stages"].get(stage) or {}).get("value")


def _finite(priority: float) -> float:
    return max(priority, -1e6)

"""ScreeningQueueBuilder: what each stage has to do next, the candidates that lack its result."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from builders.base import CampaignBuilder, one_line
from builders.state import digest
from inv_design.screening.acquisition import combine, judge_error
from inv_design.screening.audit import waiting
from inv_design.screening.priority import rank
from inv_design.screening.quality import distrusted
from inv_design.screening.verdict import STAGES
from stores.protocol import content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from inv_design.config import CampaignConfig

    Document = dict[str, Any]

FIELDS = ["candidate_id", "structure_id", "round", "stage", "status", "stages", "chemsys", "properties", "audit"]
QUEUED = ("stage", "candidate_id", "structure_id", "priority", "protocol_id", "attempts")
"""What an entry says."""

LEAST = -1e6
"""The priority of a candidate without a value: a number that every database stores."""


class ScreeningQueueBuilder(CampaignBuilder):
    """Derives ``screening_queue`` from the candidate summaries.

    A round is one item: who is next depends on all of its candidates, and on the labels of the rounds before it. It is
    processed when one of these summaries, the settings or this code changed, or when its entries are not those that
    were left there. A round that fails keeps its queue; its error is in the builder's state.

    Parameters
    ----------
    protocols
        Stage -> protocol id that the queue's items are labelled with.
    """

    version = "4"

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
        return {"campaigns": "name", "candidate_summaries": "candidate_id"}

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        return "screening_queue", "candidate_id"

    def items(self) -> Iterator[Document]:
        """Yield the summaries of one round of one campaign at a time, where its queue is not up to date."""
        for name, config in self.campaigns():
            stale = self._stale_rounds(name, config)
            if not stale:
                continue
            rounds: dict[int, list[Document]] = defaultdict(list)
            found = self.read["candidate_summaries"].query({"campaign": name}, properties=FIELDS)
            for summary in self.legible(found, "candidate_id"):
                if summary.get("round") is not None:
                    rounds[summary["round"]].append(summary)
            for summaries in rounds.values():
                summaries.sort(key=lambda s: s["candidate_id"])  # the order of arrival makes no difference
            for number, seen in stale.items():
                yield {
                    "campaign": name,
                    "round": number,
                    "summaries": rounds.get(number, []),
                    "earlier": [s for k, group in sorted(rounds.items()) if k < number for s in group],
                    "config": config,
                    "seen": seen,
                }

    def _stale_rounds(self, name: str, config: CampaignConfig) -> dict[int, str]:
        """Return round -> digest of what its queue is made of, for those that are not up to date."""
        settings = content_id("h", [self.version, config.model_dump(mode="json"), self.protocols or {}])
        inputs: dict[int, list[Any]] = defaultdict(list)
        light = ["candidate_id", "round", "input_hash"]
        summaries = self.read["candidate_summaries"].query({"campaign": name}, properties=light)
        for summary in self.legible(summaries, "candidate_id"):
            self.counts.read += 1
            if summary.get("round") is not None:
                inputs[summary["round"]].append([summary["candidate_id"], summary.get("input_hash")])
        present: dict[int, list[Any]] = defaultdict(list)
        entries = list(self.target.query({"campaign": name}, properties=["round", *QUEUED]))
        for entry in self.legible(entries, "stage", "candidate_id", own=True):
            present[entry["round"]].append(_row(entry))
        stale: dict[int, str] = {}
        seen = settings
        for number in sorted(inputs.keys() | present.keys()):  # a round whose last candidate is done must be cleared
            seen = digest([[seen]], inputs.get(number, []))
            if not self.up_to_date(f"{name}/{number}", seen, digest(present.get(number, []))):
                stale[number] = seen
        return stale

    def process_item(self, item: Document) -> Document:
        """Return the queue of one round; a round whose queue cannot be told keeps the one it has."""
        place = {k: item[k] for k in ("campaign", "round", "seen")}
        try:
            queue = next_candidates(item["summaries"], config=item["config"], earlier=item["earlier"])
        except Exception as error:
            return {**place, "state": "failed", "error": one_line(error)}
        protocols = self.protocols or {}
        return {**place, "queue": [{**entry, "protocol_id": protocols.get(entry["stage"])} for entry in queue]}

    def write(self, items: list[Document]) -> int:
        """Write what is new or changed, then remove what is done: a reader never sees an empty queue in between."""
        written = 0
        for item in items:
            name, number = item["campaign"], item["round"]
            place = {"campaign": name, "round": number}
            if item.get("error"):
                self.counts.failed += 1
                self.logger.error("the queue of %s, round %s, stays as it is: %s", name, number, item["error"])
                self.remember(f"{name}/{number}", item["seen"], "", error=item["error"])
                continue
            wanted = {(q["stage"], q["candidate_id"]): q for q in item["queue"]}
            present = {(q["stage"], q["candidate_id"]): q for q in self.target.query(place)}
            new = [
                {**place, **q, **self.stamp([q["candidate_id"]])}
                for key, q in wanted.items()
                if self.from_scratch or key not in present or _row(present[key]) != _row(q)
            ]
            self.upsert(new, ["campaign", "stage", "candidate_id"])
            self.delete({"campaign": name, "stage": s, "candidate_id": c} for s, c in present.keys() - wanted.keys())
            self.remember(f"{name}/{number}", item["seen"], digest(_row(q) for q in item["queue"]))
            written += len(new)
        return written


def _row(entry: Mapping[str, Any]) -> list[Any]:
    return [entry.get(name) for name in QUEUED]


def next_candidates(
    summaries: Iterable[Mapping[str, Any]], *, config: CampaignConfig, earlier: Iterable[Mapping[str, Any]] = ()
) -> list[Document]:
    """Return the queue of one round: stage, candidate and priority, best first in each stage.

    Everything that entered a stage is ranked, what is done too, so that an interrupted round goes on as it was planned.

    Parameters
    ----------
    summaries
        The round's candidate summaries.
    config
        Its objectives, tolerances, acquisition and budgets. Every result of a stage with a budget counts against it, a
        failed one too; what is queued but not finished does not, so that a lost run is simply taken again.
    earlier
        Summaries of earlier rounds: their labels tell how far the stage-II potential is off.
    """
    rounds = list(summaries)
    error = judge_error(judged_and_labelled(same_judge(rounds, earlier)))
    budgets = {"mlip": config.stages.mlip.budget_per_round, "dft": config.stages.dft.budget_per_round}
    first, *others = config.objectives
    queue: list[Document] = []
    for stage in STAGES:
        entered = [s for s in rounds if stage in (s.get("stages") or {})]
        ranked = rank(
            [_choice(s, stage, config.stages.predictor.acquisition, error) for s in entered],
            target=first,
            acquisition=config.stages.predictor.acquisition,
            tolerance=config.stages.dft.tolerance,
            others=others,
        )
        attempts = {s["candidate_id"]: s["stages"][stage].get("attempts", 0) for s in entered}
        lacking = {s["candidate_id"] for s in entered if s["stage"] == stage and s["status"] == "waiting"}
        chosen = [r for r in ranked if r["candidate_id"] in lacking]
        budget = budgets.get(stage)
        if budget is not None:
            chosen = chosen[: remaining_budget(rounds, budget, stage=stage)]
        queue += [
            {
                "stage": stage,
                **{k: r[k] for k in ("candidate_id", "structure_id")},
                "priority": max(r["priority"], LEAST),
                "attempts": attempts.get(r["candidate_id"], 0),
            }
            for r in chosen
        ]
    if not any(entry["stage"] == "mlip" for entry in queue):  # whom stage II rejects is then known
        queue += _audits(rounds, config)
    return queue


def _audits(summaries: Iterable[Mapping[str, Any]], config: CampaignConfig) -> list[Document]:
    """Return the entries of candidates that are labelled although stage II rejected them, after all others."""
    left = waiting(summaries, config.stages.dft.audit_per_round, seed=config.seed)
    return [
        {
            "stage": "dft",
            **{k: s[k] for k in ("candidate_id", "structure_id")},
            "priority": LEAST,
            "attempts": (s.get("audit") or {}).get("attempts", 0),
        }
        for s in left
    ]


def remaining_budget(summaries: Iterable[Mapping[str, Any]], budget: int, *, stage: str = "dft") -> int:
    """Return what is left of a stage's budget in a round: less the structures that have a result, failed or not."""
    done = {
        s["structure_id"]
        for s in summaries
        if ((s.get("stages") or {}).get(stage) or {}).get("status", "waiting") != "waiting"
    }
    return max(budget - len(done), 0)


def same_judge(summaries: Iterable[Mapping[str, Any]], earlier: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the earlier candidates whom the round's stage-II potential has judged, all where it has judged none yet.

    Labels tell nothing of how far a potential is off that has learned from them since.
    """
    judges = {_judge_of(s) for s in summaries} - {None}
    return [s for s in earlier if not judges or _judge_of(s) in judges]


def _judge_of(summary: Mapping[str, Any]) -> str | None:
    return ((summary.get("stages") or {}).get("mlip") or {}).get("protocol_id")


def judged_and_labelled(summaries: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (stage-II value, label) in GPa of the candidates that have both, neither in doubt."""
    pairs = []
    for summary in summaries:
        records = [(summary.get("stages") or {}).get(stage) or {} for stage in ("mlip", "dft")]
        if all(r.get("value") is not None and not distrusted(r.get("flags") or ()) for r in records):
            pairs.append((float(records[0]["value"]), float(records[1]["value"])))
    return pairs


def _choice(
    summary: Mapping[str, Any], stage: str, acquisition: str, judge: tuple[float, float]
) -> dict[str, Any]:  # fmt: skip
    """Return what a candidate is ranked by: the best value before the stage, and its standard deviation, in GPa."""
    predicted = summary["stages"].get("predictor") or {}
    value, std = predicted.get("value"), predicted.get("std")
    relaxed = (summary["stages"].get("mlip") or {}).get("value")
    if stage == "dft" and acquisition == "threshold":
        value = relaxed
    elif stage == "dft" and relaxed is not None and relaxed > 0:
        bias, spread = judge
        corrected = relaxed * math.exp(bias)
        estimates = [(corrected, corrected * math.sinh(spread))]
        value, std = combine([*estimates, (value, std)] if std else estimates)
    names = ("candidate_id", "structure_id", "chemsys", "properties")
    return {**{k: summary.get(k) for k in names}, "value": value, "std": std}

"""Failures that may pass are attempted again, up to the stage's retries; those that last are not; the loop goes on."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fireworks_specs import execution
from inv_design.config import CampaignConfig
from inv_design.mechanics.stages import failed
from inv_design.screening.retries import FAILURES, LASTING, PASSING, attempt_of, reason_of, retry_due

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stores.connection import Connection

SMALL = (
    "{name: small, targets: {bulk_modulus_vrh: 150 GPa}, rounds: 0, retrain: [],"
    " data: {elements: [Al, Cu, Ag, Au, Ni, Pd, Pt], exclude: [], max_entries: 30},"
    " generator: {name: substitution, samples_per_round: 14, chunk: 14, max_sites: 4},"
    " stages: {predictor: {model: extra_trees, tolerance: 0.9},"
    " mlip: {calculator: emt, tolerance: 0.9, chunk: 14, born_stable: false},"
    " dft: {backend: surrogate, calculator: emt, budget_per_round: 4, retries: 2}},"
    " evaluation: {targets: []}}"
)


def small(**dft: Any) -> CampaignConfig:
    settings = yaml.safe_load(SMALL)
    settings["stages"]["dft"] |= dft
    return CampaignConfig.model_validate(settings)


# -- the rule ---------------------------------------------------------------------------------------------------------


@given(
    reasons=st.lists(st.sampled_from([*FAILURES, None]), max_size=6),
    completed=st.booleans(),
    retries=st.integers(0, 4),
)
def test_a_retry_is_due_after_a_failure_that_may_pass(reasons: list[str | None], completed: bool, retries: int) -> None:
    attempts = [{"state": "failed", "reason": reason, "attempt": n} for n, reason in enumerate(reasons, start=1)]
    if completed:
        attempts.append({"state": "completed", "reason": None, "attempt": len(attempts) + 1})
    due = retry_due(reversed(attempts), retries)
    last = reasons[-1] if reasons else None
    assert due == (not completed and 0 < len(reasons) <= retries and last in PASSING)


def test_what_an_error_tells() -> None:
    assert reason_of("torch.OutOfMemoryError: CUDA out of memory. Tried") == "out_of_memory"
    assert reason_of("the worker process died twice (out of memory?)") == "out_of_memory"
    assert reason_of("OSError: [Errno 28] No space left on device") == "not_available"
    assert reason_of("OSError: [Errno 122] Disk quota exceeded: 'gpaw.txt'") == "not_available"
    assert reason_of("ValueError: no such element") == "error"
    assert set(PASSING).isdisjoint(LASTING)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.", "out_of_memory"),
        ("srun: error: n3: task 5: Out Of Memory", "out_of_memory"),
        ("slurmstepd: error: Exceeded job memory limit", "out_of_memory"),
        ("slurmstepd: error: Job 4 exceeded memory limit (9 > 8), being killed", "out_of_memory"),
        ("=>> PBS: job killed: mem 8396kb exceeded limit 8388kb", "out_of_memory"),
        ("WARNING: a locked memory limit of 64 kB is low", "error"),
        ("slurmstepd: error: *** STEP 1.0 ON n3 CANCELLED AT 2026-11-22T04:00 DUE TO TIME LIMIT ***", "out_of_time"),
        ("OSError: [Errno 30] Read-only file system: 'gpaw.txt'", "not_available"),
        ("OSError: [Errno 107] Transport endpoint is not connected: '/scratch/u'", "not_available"),
        ("PermissionError: [Errno 13] Permission denied: '/scratch/u/INCAR'", "not_available"),
        (None, "error"),
    ],
)
def test_what_slurm_and_file_systems_say_may_pass(said: str | None, reason: str) -> None:
    assert reason_of(said) == reason


# -- a campaign -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.chdir(tmp_path)


class Flaky:
    """The surrogate, that fails as it is told: for the n-th crystal it meets a list of reasons, one per attempt."""

    def __init__(self, plan: dict[int, list[str]]) -> None:
        self.plan = plan
        self.met: list[str] = []
        self.attempts: Counter[str] = Counter()

    def compute(self, structures: list[Any], config: CampaignConfig) -> Iterator[tuple[int, Any]]:
        from inv_design.structures.identity import structure_id

        ids = [structure_id(structure) for structure in structures]
        for identity in ids:
            if identity not in self.met:
                self.met.append(identity)
            self.attempts[identity] += 1
        good = []
        for index, identity in enumerate(ids):
            reasons = self.plan.get(self.met.index(identity), [])
            number = self.attempts[identity]
            if number <= len(reasons):
                yield index, failed(f"it was {reasons[number - 1]}") | {"reason": reasons[number - 1]}
            else:
                good.append(index)
        for index, record in self.original([structures[i] for i in good], config):
            yield good[index], record


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    from fireworks_specs.backends.surrogate import Surrogate

    flaky = Flaky({0: ["killed"], 1: ["killed", "out_of_memory", "killed"], 2: ["unphysical"]})
    flaky.original = Surrogate().compute  # type: ignore[attr-defined]
    monkeypatch.setattr(Surrogate, "compute", flaky.compute)
    return flaky


def labels(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Return structure id -> its stage-III calculations, the first attempt first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for calculation in connection.db["calculations"].find({"method": "surrogate"}):
        found.setdefault(calculation["structure_id"], []).append(calculation)
    return {identity: sorted(group, key=attempt_of) for identity, group in found.items()}


def test_a_campaign_retries_and_ends(connection: Connection, flaky: Flaky) -> None:
    from builders.run import build_campaign
    from stores.integrity import problems

    summary = execution.run(connection, small())
    assert summary.finished
    assert summary.fireworks_failed == 0
    histories = sorted(
        [[(c["state"], c.get("reason"), c.get("attempt")) for c in group] for group in labels(connection).values()],
        key=len,
    )
    assert histories[-1] == [
        ("failed", "killed", None), ("failed", "out_of_memory", 2), ("failed", "killed", 3),
    ]  # fmt: skip
    assert histories[-2] == [("failed", "killed", None), ("completed", None, 2)]
    assert [("failed", "unphysical", None)] in histories
    assert [("completed", None, None)] in histories
    assert len(histories) == 4  # the budget counts crystals, not attempts
    assert len({c["calculation_id"] for group in labels(connection).values() for c in group}) == 7
    stages = {s["structure_id"]: s["stages"]["dft"] for s in connection.db["candidate_summaries"].find()
              if "dft" in s["stages"] and s["stages"]["dft"]["status"] != "waiting"}  # fmt: skip
    for identity, group in labels(connection).items():
        stage = stages[identity]
        assert (stage["status"] == "failed") == (group[-1]["state"] == "failed")
        assert stage["calculation_id"] == group[-1]["calculation_id"]
        if len(group) > 1 or stage["status"] == "failed":
            assert (stage["attempts"], stage["failure"]) == (len(group), group[-1].get("reason"))
    assert list(problems(connection)) == []
    assert sum(build_campaign("small").values()) == 0
    assert execution.run(connection, small()).fireworks_run == 0


def test_without_retries_a_failure_stays(embedded_connection: Connection, flaky: Flaky) -> None:
    assert execution.run(embedded_connection, small(retries=0)).finished
    assert all(len(group) == 1 for group in labels(embedded_connection).values())
    assert set(flaky.attempts.values()) == {1}


def test_builders_see_a_retry_without_starting_over(embedded_connection: Connection, flaky: Flaky) -> None:
    """A success after a failure, written by another worker, changes this summary and no other."""
    from builders.candidates import CandidateBuilder
    from stores.provenance import provenance
    from stores.records import insert_calculation

    flaky.plan = {0: ["killed"] * 9}
    execution.run(embedded_connection, small(retries=1))
    (identity,) = [i for i, group in labels(embedded_connection).items() if len(group) > 1]
    first = labels(embedded_connection)[identity][0]
    fields = {k: first[k] for k in ("structure_id", "kind", "method", "protocol_id")}
    insert_calculation(**fields, attempt=3, state="completed", results={"bulk_modulus_vrh": 150.0},
                       provenance=provenance())  # fmt: skip
    builder = CandidateBuilder("small")
    builder.build()
    of_it = embedded_connection.db["candidate_summaries"].count_documents({"structure_id": identity})
    assert builder.counts.processed == of_it == builder.counts.written
    summary = embedded_connection.db["candidate_summaries"].find_one({"structure_id": identity})
    assert summary["status"] == "passed"
    assert summary["hit"] is True


def test_why_and_status_say_what_failed(tmp_path: Path, embedded_connection: Connection, flaky: Flaky) -> None:
    from inv_design.cli import main

    execution.run(embedded_connection, small())
    (killed,) = [i for i, group in labels(embedded_connection).items() if len(group) == 3]
    candidate = embedded_connection.db["candidate_summaries"].find_one({"structure_id": killed})["candidate_id"]
    embedded_connection.close()
    (tmp_path / "campaign.yaml").write_text(SMALL)
    place = ["-c", str(tmp_path / "campaign.yaml")]
    result = CliRunner().invoke(main, ["why", candidate, *place])
    assert result.exit_code == 0, result.output
    assert "killed, 3 attempts" in result.output
    answer = json.loads(CliRunner().invoke(main, ["why", candidate, "--json", *place]).output)
    assert answer["first_failure"]["rule"] == "calculation:killed"
    assert "calculation:killed 1" in " ".join(CliRunner().invoke(main, ["status", *place]).output.split())


def test_a_candidate_between_two_attempts_waits_and_says_why(embedded_connection: Connection, flaky: Flaky) -> None:
    from builders.run import build_campaign
    from fireworks_specs.steps import next_step
    from inv_design.cli.why import explain

    config = small()
    execution.run(embedded_connection, config)
    (identity,) = [i for i, group in labels(embedded_connection).items() if len(group) == 2]
    embedded_connection.db["calculations"].delete_one({"structure_id": identity, "attempt": 2})
    embedded_connection.db["evaluations"].delete_many({})
    build_campaign("small")
    summary = embedded_connection.db["candidate_summaries"].find_one({"structure_id": identity})
    assert (summary["stage"], summary["status"]) == ("dft", "waiting")
    (reason,) = [r for stage in explain(summary)["stages"] for r in stage["reasons"]]
    assert reason["message"] == "attempt 1 of 3 failed (killed): it was killed"
    step = next_step("small", config, rounds=0)
    assert step is not None
    assert (step.name, step.items, step.attempts) == ("dft", ((identity,),), 1)
    before = type(step)(step.campaign, step.round, step.name, step.items)
    assert before.key != step.key  # the first attempt's claim does not stand in the way


# -- late results -----------------------------------------------------------------------------------------------------


def test_a_result_that_comes_late_is_kept_unless_there_is_one(connection: Connection) -> None:
    from fireworks_specs.firetasks.elastic import insert_result
    from stores.attempts import attempts_at
    from stores.protocol import protocol_id
    from stores.provenance import provenance

    protocol = {"code": "test"}
    where: dict[str, Any] = {"kind": "elastic", "method": "mlip", "protocol": protocol, "provenance": provenance()}
    good = {"state": "completed", "results": {"bulk_modulus_vrh": 1.0}, "flags": [], "error": None, "structure": None}
    assert insert_result(failed("killed") | {"reason": "killed"}, "s-1", **where)
    assert not insert_result(failed("killed") | {"reason": "killed"}, "s-1", **where)  # of the same attempt
    assert insert_result(good, "s-1", **where)
    assert not insert_result(good, "s-1", **where)
    found = attempts_at(["s-1"], "elastic", protocol_id(protocol))["s-1"]
    assert [(a["state"], attempt_of(a)) for a in found] == [("failed", 1), ("completed", 2)]

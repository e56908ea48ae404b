"""Which calculations are a campaign's labels, and which attempts at one count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.candidates import attempts_that_count
from builders.labels import is_label, label_kind
from fireworks_specs.backends import get_backend
from inv_design.config import CampaignConfig
from inv_design.screening.retries import FAILURES, retry_due


def campaign(**dft: Any) -> CampaignConfig:
    stages = {"dft": {"calculator": "emt", **dft}}
    return CampaignConfig.model_validate({"name": "x", "targets": {"bulk_modulus_vrh": "350 GPa"}, "stages": stages})


BACKENDS: list[dict[str, Any]] = [
    {"backend": "surrogate"},
    {"backend": "gpaw", "gpaw": {"kind": "eos", "cutoff": 400}},
    {"backend": "gpaw"},
    {"backend": "vasp"},
]


@pytest.fixture(autouse=True)
def _without_gpaw(monkeypatch: pytest.MonkeyPatch) -> None:
    from inv_design.calculators import gpaw_settings

    monkeypatch.setattr(gpaw_settings, "gpaw_versions", lambda: {"version": "26.7.0", "setups": "1.2.1"})


@pytest.mark.parametrize("dft", BACKENDS)
def test_what_a_worker_stores_is_a_label_of_its_campaign_and_of_no_other(dft: dict[str, Any]) -> None:
    config = campaign(**dft)
    backend = get_backend(config.stages.dft)
    protocol = backend.protocol(config)
    record = {"method": backend.method, "kind": backend.kind}
    assert label_kind(config.stages.dft) == backend.kind
    found = [is_label(record, protocol, campaign(**other).stages.dft) for other in BACKENDS]
    assert found == [other == dft for other in BACKENDS]
    assert is_label(record, protocol | {"version": "0.1", "atomate2": "0.1", "setups": "0.1"}, config.stages.dft)
    assert is_label(record, None, config.stages.dft)


@pytest.mark.parametrize(
    ("dft", "change"),
    [
        ({"backend": "surrogate"}, {"calculator": "chgnet"}),
        ({"backend": "surrogate"}, {"strain": 0.02}),
        ({"backend": "gpaw"}, {"gpaw": {"cutoff": 700}}),
        ({"backend": "gpaw"}, {"gpaw": {"k_density": 9.0}}),
        ({"backend": "gpaw"}, {"gpaw": {"smearing": 0.1}}),
        ({"backend": "gpaw"}, {"gpaw": {"spin": "on"}}),
        ({"backend": "gpaw", "gpaw": {"kind": "eos"}}, {"strain": 0.02}),
    ],
)
def test_a_label_with_other_settings_is_another_campaigns(dft: dict[str, Any], change: dict[str, Any]) -> None:
    config = campaign(**dft)
    backend = get_backend(config.stages.dft)
    record = {"method": backend.method, "kind": backend.kind}
    assert not is_label(record, backend.protocol(config), campaign(**(dft | change)).stages.dft)


def test_on_how_many_ranks_gpaw_ran_makes_no_difference() -> None:
    config = campaign(backend="gpaw")
    stage = campaign(backend="gpaw", gpaw={"ranks": 8}, strain=0.02).stages.dft
    assert is_label({"method": "gpaw", "kind": "elastic"}, get_backend("gpaw").protocol(config), stage)


histories = st.lists(st.sampled_from(FAILURES), max_size=4)


@given(st.lists(histories, min_size=1, max_size=3), st.integers(0, 3))
def test_what_is_due_every_worker_lacks_whatever_its_versions(reasons: list[list[str]], retries: int) -> None:
    """A worker counts the attempts under its own protocol, which may be any of these or a new one."""
    groups = [
        [
            {
                "kind": "eos", "protocol_id": f"p-{n}", "calculation_id": f"k-{n}-{i}", "state": "failed",
                "reason": reason, "error": "x", "attempt": i, "provenance": {"created_at": f"{(7 * n + i) % 5}"},
            }
            for i, reason in enumerate(group, start=1)
        ]
        for n, group in enumerate(reasons)
    ]  # fmt: skip
    records = [r for group in groups for r in group]
    counted = attempts_that_count(records, retries)
    assert bool(counted) == bool(records)
    assert attempts_that_count(reversed(records), retries) == counted
    if retry_due(counted, retries):
        assert all(retry_due(group, retries) for group in groups if group)
        assert len(counted) == len(records)  # so that each attempt makes another step


def test_a_completed_label_counts_whatever_failed_since() -> None:
    def record(protocol: str, state: str, at: str) -> dict[str, Any]:
        return {
            "kind": "eos", "protocol_id": protocol, "calculation_id": f"k-{protocol}", "state": state,
            "reason": "killed" if state == "failed" else None, "provenance": {"created_at": at},
        }  # fmt: skip

    done, failed = record("p-old", "completed", "1"), record("p-new", "failed", "2")
    assert attempts_that_count([failed, done], 2) == [done]

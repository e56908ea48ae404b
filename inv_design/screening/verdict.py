"""Verdict and Reason: what a screening stage says about one candidate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Stage = Literal["predictor", "mlip", "dft"]
Status = Literal["passed", "rejected", "failed", "waiting"]

STAGES: tuple[Stage, ...] = ("predictor", "mlip", "dft")
"""The stages in order of rising cost."""


@dataclass(frozen=True)
class Reason:
    """Why a candidate did not pass: the rule, the value it was applied to, the threshold, and one line for people."""

    rule: str
    value: Any
    threshold: Any
    message: str


@dataclass(frozen=True)
class Verdict:
    """What one stage says about one candidate; the first reason is the headline.

    Attributes
    ----------
    status
        ``passed``; ``rejected`` by at least one rule; ``failed``: the computation failed; ``waiting``: no result yet.
    """

    stage: Stage
    status: Status
    reasons: tuple[Reason, ...] = ()

    @property
    def headline(self) -> str | None:
        """The message of the first reason, ``None`` if there is none."""
        return self.reasons[0].message if self.reasons else None

    def records(self) -> list[dict[str, Any]]:
        """Return the reasons as plain records, each with the stage."""
        return [{"stage": self.stage, **asdict(reason)} for reason in self.reasons]

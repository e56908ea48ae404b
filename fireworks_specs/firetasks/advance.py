"""Advance: when a step's work is done, put the campaign's next step on the launchpad."""

from __future__ import annotations

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask


@explicit_serialize
class AdvanceTask(CampaignTask):
    """Follows every piece of work; all but the last of a step find others unfinished and do nothing."""

    required_params = ("campaign", "round", "rounds")

    def work(self) -> None:
        """Add the next step's workflows unless work of this step is still waiting or running."""
        from fireworks_specs.execution import advance, work_in_progress

        if work_in_progress(self.launchpad, self["campaign"]):
            return
        advance(self.launchpad, self["campaign"], self.config, rounds=self["rounds"])

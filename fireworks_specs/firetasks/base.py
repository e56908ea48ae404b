"""What all firetasks share: the campaign's database, its configuration, and models loaded once per process."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from fireworks import FiretaskBase

if TYPE_CHECKING:
    from fireworks_specs.preemption import Preempted
    from inv_design.config import CampaignConfig
    from inv_design.generators.protocol import Generator
    from inv_design.predictors.protocol import Predictor

LOG = logging.getLogger(__name__)


class CampaignTask(FiretaskBase):
    """A firetask of a campaign: connects to the launchpad's own database, then calls :meth:`work`.

    The launchpad and the records share one database, so a worker needs no setting but ``my_launchpad.yaml``.
    """

    required_params: tuple[str, ...] = ("campaign", "round")

    def run_task(self, fw_spec: dict[str, Any]) -> None:  # noqa: ARG002 - the parameters say it all
        """Connect and work; work that an outage cut off goes on with what is left.

        A claim on the firework says that its worker is alive: FireWorks would have a lost one run for ever. A worker
        that is told to end gives its claims and the firework back, and the process ends here.
        """
        from fireworks_specs.preemption import Preempted, preemptible, stop_here

        with preemptible():
            launch = self._launch()
            try:
                stop_here()  # the firework before this one ended although the process was told to end
                self._connect_and_work(launch)
            except Preempted as stop:
                self._give_back(launch, stop)

    def _connect_and_work(self, launch: tuple[int, int] | None) -> None:
        from fireworks_specs.steps import firework_key
        from stores.claims import Claims
        from stores.connection import connect_from_launchpad
        from stores.outage import until_done

        connection = connect_from_launchpad(self.launchpad)
        with Claims(campaign=self["campaign"], stage="firework", connection=connection) as claims:
            claims.claim([] if launch is None else [firework_key(*launch)])
            self.fetch_models()
            until_done(self.work, connection.client)

    def _launch(self) -> tuple[int, int] | None:
        """Return the ids of the firework and of this launch; none outside of a launchpad's firework."""
        fw_id: int | None = getattr(self, "fw_id", None)
        if fw_id is None:
            return None
        launches = self.launchpad.launches.find({"fw_id": fw_id}, {"launch_id": 1}).sort("launch_id", -1).limit(1)
        return next(((fw_id, launch["launch_id"]) for launch in launches), None)

    def _give_back(self, launch: tuple[int, int] | None, stop: Preempted) -> NoReturn:
        """Make the firework READY for another worker and end this process."""
        from fireworks_specs import preemption

        preemption.ignore_signals()
        name = "firework" if launch is None else f"firework {launch[0]}"
        try:
            done = launch is not None and preemption.put_back(self.launchpad, *launch)
        except Exception as error:  # then it is given up when its lease is over
            LOG.warning("%s: %s; it could not be put back: %s", name, stop, type(error).__name__)
        else:
            LOG.warning("%s: %s%s", name, stop, "; it is READY again" if done else "")
        preemption.end_process(stop.number)

    def fetch_models(self) -> None:
        """Put the campaign's own potentials, which are models of the database, onto this machine."""
        from fireworks_specs.firetasks.train_mlip import fetch_calculator

        stages = self.config.stages
        for name in (stages.mlip.calculator, stages.dft.calculator):
            fetch_calculator(name)

    def work(self) -> None:
        """Do the task; ids in, records out."""
        raise NotImplementedError

    @property
    def config(self) -> CampaignConfig:
        """The campaign's stored configuration."""
        return campaign_config(self["campaign"])

    def provenance(self, inputs: list[str]) -> dict[str, Any]:
        """Return the provenance of a document that this firework writes."""
        from stores.provenance import provenance

        return provenance(inputs=inputs, fw_id=getattr(self, "fw_id", None))


def campaign_config(name: str) -> CampaignConfig:
    """Return the configuration that a campaign was registered with.

    Raises
    ------
    ValueError
        If the database has no such campaign.
    """
    from inv_design.config import CampaignConfig
    from stores.documents.campaign import Campaign

    document = Campaign.objects(name=name).first()
    if document is None:
        known = ", ".join(sorted(Campaign.objects.scalar("name"))) or "none"
        raise ValueError(f"the database has no campaign {name!r} (it has: {known}); `inv-design run` registers one")
    return CampaignConfig.model_validate(document.config)


@lru_cache(maxsize=4)
def load_predictor_model(model_id: str) -> Predictor:
    """Return the predictor of a ``models`` document."""
    from inv_design.predictors.registry import load_predictor

    return load_predictor(_weights(model_id))


@lru_cache(maxsize=2)
def load_generator_model(model_id: str) -> Generator:
    """Return the generator of a ``models`` document."""
    from inv_design.generators.registry import load_generator

    return load_generator(_weights(model_id))


def _weights(model_id: str) -> bytes:
    from stores.documents.model import Model

    document = Model.objects(model_id=model_id).first()
    if document is None:
        raise ValueError(f"the database has no model {model_id!r}")
    blob: bytes = document.load()
    return blob

"""The phases of one training of the Con-CDVAE, one after the other, and the checkpoint that leads back into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inv_design.checkpoint import Checkpoint, State, Within, load_tensors, named_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

    from inv_design.generators.networks import Networks
    from inv_design.generators.training import LatentBasis

NAMES = ("joint", "decoder", "prior")


class Phases:
    """Where a training stands: what is saved is all networks, what the phases before have measured, and the loop.

    Parameters
    ----------
    networks
        Filled from the checkpoint at once; their prior, whose size the phases before decide, by :meth:`fill_prior`.
    checkpoint
        Of the whole training; ``None`` keeps nothing.

    Attributes
    ----------
    metrics
        What the phases before have measured.
    """

    def __init__(self, networks: Networks, checkpoint: Checkpoint | None) -> None:
        self.networks, self.whole = networks, checkpoint or Checkpoint()
        self.metrics: dict[str, float] = {}
        self.reached, self.saved, self._part = NAMES[0], State(), None
        state = self.whole.resume()
        if state is not None:
            self.saved, self._part = Within.split(state)
            self.reached, self.metrics = self.saved.values["phase"], dict(self.saved.values["metrics"])
            self._fill(lambda name: not name.startswith("prior."))

    def is_over(self, phase: str) -> bool:
        """Return whether a phase was finished before the checkpoint."""
        return NAMES.index(phase) < NAMES.index(self.reached)

    def resumes(self, phase: str) -> bool:
        """Return whether the training goes on within a phase."""
        return self._part is not None and phase == self.reached

    def checkpoint(self, phase: str, further: Callable[[], State] = State) -> Checkpoint:
        """Return the checkpoint of a phase; ``further`` is what it needs beside the networks and the loop."""

        def around() -> State:
            more = further()
            values: dict[str, Any] = {"phase": phase, "metrics": self.metrics, **more.values}
            return State({**named_arrays("networks", self.networks.state_dict()), **more.tensors}, values)

        return Within(self.whole, around, self._part if self.resumes(phase) else None)

    def fill_prior(self) -> None:
        """Fill the prior, once it has its size, if the training goes on within its phase."""
        if self.resumes("prior"):
            self._fill(lambda name: name.startswith("prior."))

    def basis(self) -> LatentBasis | None:
        """Return the latent basis that the prior was begun with, if the training goes on within its phase."""
        from inv_design.generators.training import LatentBasis

        if not self.resumes("prior"):
            return None
        return LatentBasis(*(torch.from_numpy(self.saved.tensors[f"basis.{n}"]) for n in ("origin", "directions")))

    def _fill(self, wanted: Callable[[str], bool]) -> None:
        parameters = {name: tensor for name, tensor in self.networks.state_dict().items() if wanted(name)}
        load_tensors("networks", parameters, self.saved.tensors)

"""A worker of the tests with many writers: a campaign's stages by the project's own functions, with made-up numbers.

Every computation is first written to this worker's ledger, a line of its own that survives the worker.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymatgen.core import Structure

    from stores.claims import Claims

NAME = "many"
TARGET = 350.0
CHUNK = 20
MODEL = "m-made-up"
STAGES: dict[str, dict[str, str]] = {
    "mlip": {"kind": "elastic", "method": "mlip", "protocol_id": "p-mlip"},
    "dft": {"kind": "eos", "method": "surrogate", "protocol_id": "p-dft"},
}
METALS = re.findall(
    r"[A-Z][a-z]?",
    "LiBeNaMgAlKCaScTiVCrMnFeCoNiCuZnGaRbSrYZrNbMoRuRhPdAgCdInSnCsBaLaCePrNdSmGdTbDyHoErTmLuHfTaWReOsIrPtAuTlPbBi",
)


def config(dft_budget: int) -> Any:
    """Return the campaign's configuration."""
    from inv_design.config import CampaignConfig

    settings = {
        "name": NAME,
        "targets": {"bulk_modulus_vrh": f"{TARGET:g} GPa"},
        "chemistry": {"exclude": []},
        "stages": {"dft": {"budget_per_round": dft_budget}},
    }
    return CampaignConfig.model_validate(settings)


def crystals() -> Iterator[Structure]:
    """Yield crystals, no two of them alike: B2 and L1_2 of every pair of metals."""
    from pymatgen.core import Element, Lattice, Structure

    for a, b in combinations(METALS, 2):
        contact = 0.95 * float(Element(a).atomic_radius + Element(b).atomic_radius)
        face = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
        yield Structure(Lattice.cubic(contact * 2 / 3**0.5), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
        yield Structure(Lattice.cubic(contact * 2**0.5), [a, b, b, b], face)
        yield Structure(Lattice.cubic(contact * 2**0.5), [b, a, a, a], face)


def made_up(structure_id: str, stage: str) -> float:
    """Return a stage's number for a crystal, in GPa: the same whoever computes it."""
    digest = hashlib.sha256(f"{structure_id}/{stage}".encode()).digest()
    return TARGET * (0.6 + 0.8 * int.from_bytes(digest[:4], "big") / 2**32)


def compute(structure_id: str, stage: str) -> dict[str, Any]:
    """Return the record of a calculation; it takes some milliseconds, one in thirty fails."""
    value = made_up(structure_id, stage)
    time.sleep(0.002 + 0.010 * (value % 1))
    if int(1000 * value) % 30 == 0:
        return {"state": "failed", "error": "made up", "results": {}}
    results = {
        "bulk_modulus_vrh": value, "shear_modulus_vrh": 0.4 * value, "born_stable": True, "eigenvalues": [50.0],
        "relaxed": True, "structure_matched": True, "rms": 0.01, "volume_change": 0.01,
    }  # fmt: skip
    return {"state": "completed", "results": results}


class Worker:
    """Generates, predicts, computes what it claims, and builds, until nothing is left to do."""

    def __init__(self, number: int, count: int, folder: Path, lease: float) -> None:
        self.number, self.count, self.lease = number, count, lease
        self.ledger = (folder / f"ledger-{number}").open("a")
        self.builds = 0

    def run(self) -> None:
        """Work to the end."""
        with self._claims() as claims:
            self.generate(claims)
            self.predict(claims)
            pause = 0.1
            while True:
                if self.calculate(claims, "dft", 8) or self.calculate(claims, "mlip", 8):
                    pause = 0.1
                    if (self.builds + self.number) % 4 == 0:
                        self.build()
                    self.builds += 1
                    continue
                self.build()
                if not self.waiting():
                    return
                time.sleep(pause)
                pause = min(2 * pause, 1.0)

    def generate(self, claims: Claims) -> None:
        """Insert the chunks of crystals that nobody else inserts."""
        from stores.steps import step_exists

        keys = [f"{NAME}/0/generate/chunk-{i}/done" for i in range(-(-self.count // CHUNK))]
        keys = keys[self.number % len(keys) :] + keys[: self.number % len(keys)]
        lacking = lambda some: [k for k in some if not step_exists(k)]  # noqa: E731
        for share in claims.shares(keys, key=str, lacking=lacking, limit=1):
            self._generate(share[0])

    def _generate(self, key: str) -> None:
        from stores.provenance import provenance
        from stores.records import insert_candidates, insert_structures
        from stores.steps import claim_step

        self.note(key)
        chunk = int(key.removesuffix("/done").rpartition("-")[2])
        first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, self.count)
        made = list(islice(crystals(), first, last))
        ids = insert_structures(made, [{"kind": "generated", "id": MODEL}] * len(made), provenance())
        insert_candidates(
            {
                "campaign": NAME, "structure_id": s, "round": 0, "seed": chunk, "index": first + i,
                "generator_model_id": MODEL, "condition": {"bulk_modulus_vrh": TARGET}, "provenance": provenance(),
            }
            for i, s in enumerate(ids)
        )  # fmt: skip
        claim_step(key, {"campaign": NAME})

    def predict(self, claims: Claims) -> None:
        """Insert the predictions that nobody else makes."""
        from stores.claims import result_key
        from stores.documents import Candidate, Prediction
        from stores.provenance import provenance
        from stores.records import insert_predictions

        def lacking(ids: list[str]) -> list[str]:
            found = Prediction.objects(structure_id__in=ids, protocol_id="p-predictor").scalar("structure_id")
            known = set(found)
            return [i for i in ids if i not in known]

        ids = list(Candidate.objects(campaign=NAME, round=0).order_by("candidate_id").scalar("structure_id"))
        start = self.number * len(ids) // 8
        key = lambda i: result_key(i, "bulk_modulus_vrh", "p-predictor")  # noqa: E731
        for share in claims.shares(ids[start:] + ids[:start], key=key, lacking=lacking, limit=25):
            for structure_id in share:
                self.note(key(structure_id))
            insert_predictions(
                {
                    "structure_id": i, "property": "bulk_modulus_vrh", "value": made_up(i, "predictor"), "std": 10.0,
                    "unit": "GPa", "model_id": MODEL, "protocol_id": "p-predictor", "provenance": provenance(),
                }
                for i in share
            )  # fmt: skip

    def calculate(self, claims: Claims, stage: str, n: int) -> int:
        """Compute what it can take from a stage's queue; return how many that was."""
        from stores.provenance import provenance
        from stores.records import insert_calculation

        fields = STAGES[stage]
        taken = claims.take(stage, n, kind=fields["kind"], protocol_id=fields["protocol_id"], round=0)
        for item in taken:
            self.note(item["key"])
            record = compute(item["structure_id"], stage)
            insert_calculation(structure_id=item["structure_id"], **fields, **record, provenance=provenance())
            claims.release([item["key"]])
        return len(taken)

    def build(self) -> None:
        """Build the derived collections, whoever else is at it."""
        from builders.run import build_campaign

        build_campaign(NAME)

    def waiting(self) -> int:
        """Return how many items the queues have."""
        from stores.documents import ScreeningQueueItem

        return int(ScreeningQueueItem.objects(campaign=NAME, stage__in=list(STAGES)).count())

    def note(self, key: str) -> None:
        """Write that a computation begins, so that it is known even if this worker is killed in it."""
        self.ledger.write(json.dumps([key, time.time()]) + "\n")
        self.ledger.flush()

    def _claims(self) -> Claims:
        from stores.claims import Claims

        claims = Claims(campaign=NAME, lease=self.lease)
        # as on a machine of its own: a dead worker's claims are known to be free only when the lease is over
        claims.worker = {"host": f"node{self.number}", "pid": 1, "machine": f"machine {self.number}"}
        return claims


def main() -> None:
    """Run a worker: URI, its number, how many candidates, the folder of the ledgers, lease in seconds."""
    from stores.connection import connect

    uri, number, count, folder, lease = sys.argv[1:]
    connect(uri)
    Worker(int(number), int(count), Path(folder), float(lease)).run()


if __name__ == "__main__":
    main()

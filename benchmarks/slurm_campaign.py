"""A campaign on a real Slurm, with DFT labels by GPAW: two rounds, real generator, predictor, potential and DFT.

    python benchmarks/slurm_campaign.py                        # an hour or more on two cores; root, Slurm and GPAW
    python benchmarks/slurm_campaign.py --backend surrogate --output quick.json

A cluster of one node and the wire server of the tests are started here; the campaign is run as a user runs it, with
the shipped workers' files: `init --cluster slurm`, `launch`, one `qlaunch rapidfire` per kind of worker. Kept are the
funnel, the labelled candidates with their three numbers (predictor, MACE, DFT), and the trust report's figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LANE = HERE.parent / "tests" / "hpc"
OUTPUT = HERE / "results" / "slurm_campaign.json"

TEXT = """\
name: on-slurm
seed: 6
rounds: 1                     # and round 0
targets: {{bulk_modulus_vrh: 330 GPa}}
generator: {{name: con_cdvae, samples_per_round: {samples}, chunk: 40, sites: 2, finetune_budget: 0.2}}
stages:
  mlip: {{budget_per_round: 12, chunk: 6, fine_tune: {{enabled: true, min_frames: 10, epochs: 10}}}}
  dft: {{backend: {backend}, budget_per_round: {labels}, gpaw: {{kind: eos}}}}
evaluation: {{targets: [330], samples: 5}}
chemistry: {{exclude: [Tc, Os]}}
"""
"""PBE, 550 eV, 7 k points per 1/Å: the defaults; E(V) in place of the tensor, which takes five times as long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("gpaw", "surrogate"), default="gpaw")
    parser.add_argument("--samples", type=int, default=80, help="crystals generated per round")
    parser.add_argument("--labels", type=int, default=2, help="stage-III calculations per round")
    parser.add_argument("--hours", type=float, default=4.0, help="cut it off after so long; what is there is kept")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--report", type=Path, help="write the campaign's report here as well")
    parser.add_argument("--keep", type=Path, help="a new folder that the database and the jobs' folders stay in")
    options = parser.parse_args()
    cluster_module, campaign_module = _load("slurm_cluster"), _load("slurm_campaign")
    if reason := cluster_module.why_not():
        sys.exit(reason)
    cluster_module.sweep()
    cluster = cluster_module.SlurmCluster(cpus=2)
    if options.keep:
        options.keep.mkdir(parents=True)
    with nullcontext(options.keep.resolve()) if options.keep else tempfile.TemporaryDirectory() as folder:
        server = _server(Path(folder))
        server.start()
        try:
            cluster.start()
            result = run(cluster, campaign_module, server.uri, Path(folder) / "campaign", options)
        finally:
            cluster.stop()
            server.close()
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.output}")


def run(cluster: Any, module: Any, server: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a campaign that was run to its end on a cluster."""
    text = TEXT.format(backend=options.backend, samples=options.samples, labels=options.labels)
    edits = {"gpu": {"cpus_per_task": 1, "walltime": "04:00:00"}, "cpu": {"ntasks": 1, "walltime": "04:00:00"}}
    campaign = module.SlurmCampaign(cluster, folder, f"{server}/on_slurm", text, edits=edits)
    began = time.monotonic()
    print(campaign.call("launch").stderr.strip(), flush=True)
    shown = ""
    with campaign.fed():
        while not campaign.finished():
            if time.monotonic() - began > options.hours * 3600:
                print(campaign.diagnosis())
                break
            line = _line(campaign)
            if line != shown:
                print(f"{time.monotonic() - began:7.0f} s  {line}", flush=True)
                shown = line
            time.sleep(5)
    if campaign.finished():
        campaign.wait_for_jobs(300)
    wall = time.monotonic() - began
    result = figures(campaign, options.backend) | {"campaign": text, "wall_s": round(wall)}
    if options.report:
        campaign.call("report", "-o", str(options.report.resolve()))
    print(campaign.call("status").stdout)
    print(campaign.call("trust").stdout)
    campaign.end()
    return result


def figures(campaign: Any, backend: str) -> dict[str, Any]:
    """Return what a campaign has come to, whether it is finished or was cut off."""
    status = campaign.status()
    structures, calculations = campaign.db["structures"], campaign.db["calculations"]
    kept = ("calculation_id", "structure_id", "kind", "method", "state", "error", "flags", "protocol")
    return {
        "command": shlex.join(["python", "benchmarks/slurm_campaign.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "finished": campaign.finished(),
        "slurm_jobs": len(campaign.scripts()),
        "rounds": [{key: r[key] for key in ("round", "closed", "funnel")} for r in status["rounds"]],
        "fireworks": status["launchpad"]["fireworks"],
        "trust": json.loads(campaign.call("trust", "--json").stdout),
        "calculations": [
            {
                "formula": structures.find_one({"structure_id": c["structure_id"]})["formula"],
                **{key: c.get(key) for key in kept},
                "results": {k: v for k, v in c["results"].items() if k != "frames"},
            }
            for c in calculations.find({"method": backend})
        ],
    }


def _line(campaign: Any) -> str:
    counts = {
        name: campaign.db[name].count_documents({}) for name in ("candidates", "predictions", "models", "evaluations")
    }
    labels = campaign.db["calculations"].count_documents({"method": {"$nin": ["reference", "mlip"]}})
    mlip = campaign.db["calculations"].count_documents({"method": "mlip"})
    jobs = len(campaign.slurm.jobs("RUNNING"))
    return f"{jobs} jobs, " + ", ".join(f"{n} {k}" for k, n in counts.items()) + f", {mlip} tensors, {labels} labels"


def _server(folder: Path) -> Any:
    from inv_design.testing import WireServer

    return WireServer(folder)


def _load(name: str) -> Any:
    spec = spec_from_file_location(name, LANE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()

"""What fine-tuning of mace-alloy-small gains on new alloys and costs on others, with and without replay.

    python benchmarks/train_mlip.py                     # about 10 minutes on one core
    python benchmarks/train_mlip.py --seeds 0 --steps 60 --output /tmp/quick.json

Alloys of chemical systems that the parent has not seen are labelled by CHGNet's E(V), as stage III does it: 12 to learn
from (of which some systems validate and some are held out), 20 others of yet other systems. Errors of the bulk modulus
are against CHGNet there; on 40 packaged alloys that the parent was trained on they are against PBE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "mace_alloy_small"))

from holdout import held_out_systems

from inv_design.calculators.finetune import FinetuneSettings, finetune
from inv_design.calculators.frames import frames_of_calculation
from inv_design.calculators.registry import get_calculator, network_weights
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.eos import equation_of_state
from inv_design.mechanics.stages import measure_equation_of_state
from inv_design.screening.quality import distrusted
from inv_design.weights import sha256

OUTPUT = Path(__file__).parent / "results" / "train_mlip.json"
PARENT = "mace-alloy-small"
LEARNED, OTHERS, OLD, MAX_SITES = 12, 20, 40, 8


def by_hash(alloys: list[Any]) -> list[Any]:
    """Return alloys in an order of their ids' hashes, one per chemical system, with small cells."""
    ranked = sorted(alloys, key=lambda alloy: hashlib.sha256(alloy.source_id.encode()).hexdigest())
    first: dict[str, Any] = {}
    for alloy in ranked:
        if len(alloy.structure.get_primitive_structure()) <= MAX_SITES:
            first.setdefault(alloy.chemsys, alloy)
    return list(first.values())


def label(alloys: list[Any], count: int) -> list[dict[str, Any]]:
    """Return CHGNet's stage-III records of the first ``count`` alloys that have a trusted one."""
    records = []
    for alloy in alloys:
        crystal = alloy.structure.get_primitive_structure()
        record = measure_equation_of_state(crystal, calculator="chgnet", strain=0.04)
        if record["state"] == "completed" and not distrusted(record["flags"]):
            records.append(
                {**record, "calculation_id": alloy.source_id, "protocol_id": "chgnet", "chemsys": alloy.chemsys}
            )
            print(f"{len(records)} {alloy.source_id} {record['results']['bulk_modulus_vrh']:.1f} GPa", flush=True)
        if len(records) == count:
            break
    return records


def crystal_of(record: dict[str, Any]) -> Any:
    from pymatgen.core import Structure

    return Structure.from_dict(record["structure"])


def error(pairs: list[tuple[Any, float]], weights: bytes) -> dict[str, float]:
    """Return mean and median absolute error in % of a network's E(V) moduli on (crystal, K in GPa) pairs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{sha256(weights)[:12]}.safetensors"
        path.write_bytes(weights)
        calculator = get_calculator(str(path))
    fits = [equation_of_state(crystal, calculator) for crystal, _ in pairs]
    errors = [
        100 * abs(fit.bulk_modulus / modulus - 1)
        for fit, (_, modulus) in zip(fits, pairs, strict=True)
        if fit.error is None
    ]
    return {"n": len(errors), "mean": round(float(np.mean(errors)), 2), "median": round(float(np.median(errors)), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=FinetuneSettings.steps)
    parser.add_argument("--replay", type=int, nargs="+", default=[0, 200])
    parser.add_argument("--labels", type=Path, default=None, help="keep the labels here, and reuse them")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    alloys = load_alloys()
    held = held_out_systems(alloy.chemsys for alloy in alloys)
    if arguments.labels is not None and arguments.labels.is_file():
        records = json.loads(arguments.labels.read_text())
    else:
        records = label(by_hash([alloy for alloy in alloys if alloy.chemsys in held]), LEARNED + OTHERS)
        if arguments.labels is not None:
            arguments.labels.write_text(json.dumps(records))
    frames = [frame for record in records[:LEARNED] for frame in frames_of_calculation(record, crystal_of(record))]
    seen = [alloy for alloy in by_hash(alloys) if alloy.chemsys not in held and "-" in alloy.chemsys][:OLD]
    old = [(alloy.structure.get_primitive_structure(), alloy.labels["bulk_modulus_vrh"]) for alloy in seen]
    parent = network_weights(PARENT)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/train_mlip.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "parent": PARENT,
        "parent_sha256": sha256(parent),
        "frames": len(frames),
        "learned_from": {r["calculation_id"]: r["chemsys"] for r in records[:LEARNED]},
        "others": {r["calculation_id"]: r["chemsys"] for r in records[LEARNED:]},
        "rows": [],
    }

    def judged(weights: bytes, learned: set[str]) -> dict[str, Any]:
        groups = {
            "learned": [r for r in records[:LEARNED] if r["chemsys"] in learned],
            "given, not learned": [r for r in records[:LEARNED] if r["chemsys"] not in learned],
            "others": records[LEARNED:],
        }
        pairs = {k: [(crystal_of(r), r["results"]["bulk_modulus_vrh"]) for r in v] for k, v in groups.items()}
        return {name: error(group, weights) for name, group in {**pairs, "old, against PBE": old}.items()}

    def keep(row: dict[str, Any]) -> None:
        report["rows"].append(row)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
        cells = [
            f"{name} {row[name]['mean']:5.1f} % of {row[name]['n']}" for name in row if isinstance(row[name], dict)
        ]
        print(f"{row['row']:<24}{'  '.join(cells)}", flush=True)

    before: dict[str, Any] | None = None
    for seed in arguments.seeds:
        for replay in arguments.replay:
            start = time.process_time()
            settings = FinetuneSettings(steps=arguments.steps, replay=replay, seed=seed)
            result = finetune(frames, parent, settings)
            seconds = time.process_time() - start
            learned = set(result.splits["train"])
            if before is None:
                before = judged(parent, learned)
                keep({"row": "parent", **before})
            steps = {"steps": result.done["steps_taken"], "kept_step": result.done["best_step"]}
            drift = result.errors["after"]["replay"].get("bulk_modulus")
            extra = {**steps, "cpu_s": round(seconds), "drift_from_parent_percent": round(float(drift or 0), 2)}
            keep({"row": f"replay {replay}, seed {seed}", **judged(result.blob, learned), **extra})


if __name__ == "__main__":
    main()

"""Train the packaged Con-CDVAE on the 1,309 packaged alloys (about eight minutes on one free core).

OMP_NUM_THREADS=1 python models/con_cdvae/train.py
OMP_NUM_THREADS=1 python models/con_cdvae/train.py --seed 1 --output other.safetensors
OMP_NUM_THREADS=1 python models/con_cdvae/train.py --conditions-only
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

OUTPUT = Path(__file__).parents[2] / "inv_design" / "generators" / "weights" / "con_cdvae.safetensors"


def main() -> None:
    """Train, write the weights, print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=None, help="multiplies the training steps")
    parser.add_argument(
        "--conditions-only", action="store_true", help="keep the packaged networks, train the prior on all conditions"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.generators.con_cdvae import ConCDVAE

    torch.set_num_threads(1)
    alloys = load_alloys()
    further = {"shear_modulus_vrh": [alloy.labels["shear_modulus_vrh"] for alloy in alloys]}
    started = time.process_time()

    def progress(done: int, total: int, part: str) -> None:
        print(f"{done:6d} / {total}  {part}", flush=True)

    if arguments.conditions_only:
        generator = ConCDVAE.load(OUTPUT)
        metrics = generator.learn_conditions(further, seed=arguments.seed, budget=arguments.budget, progress=progress)
    else:
        generator = ConCDVAE()
        metrics = generator.fit(
            [alloy.structure for alloy in alloys],
            [alloy.labels["bulk_modulus_vrh"] for alloy in alloys],
            further=further,
            seed=arguments.seed,
            budget=arguments.budget,
            progress=progress,
        )
    metrics["processor_seconds"] = time.process_time() - started
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    generator.save(arguments.output)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()

"""How well does the packaged generator put atoms back? Crystals held out of its training, decoded once each.

The composition and the lattice are the crystal's own, the latent vector is its encoding (Xie et al. 2022, section 5.1);
30 decoder calls. Match by StructureMatcher with the tolerances of the CDVAE paper (0.3, 0.5, 10 degrees) and with those
of this project (0.2, 0.3, 5 degrees); the RMSE is that of matched crystals, in units of (V/N)^(1/3). The held-out 8 %
are a random split, as there, and stopped the training of the heads; the decoder never saw them.

    OMP_NUM_THREADS=1 python benchmarks/reconstruction.py
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).parent / "results" / "reconstruction.json"
TOLERANCES = {
    "cdvae": {"ltol": 0.3, "stol": 0.5, "angle_tol": 10},
    "inv_design": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5},
}
BOUNDS = (4, 8, 20)


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from inv_design.generators.con_cdvae import ConCDVAE, held_out
    from inv_design.generators.registry import default_weights

    torch.set_num_threads(1)
    generator = ConCDVAE.from_bytes(default_weights())
    rows = held_out(len(generator.crystals), generator.settings.validation, 0)
    truth = [generator.crystals[i].to_structure() for i in rows]
    found = generator.reconstruct(truth, generator.values[rows])
    sizes = np.array([len(structure) for structure in truth])
    result: dict[str, Any] = {"command": "python benchmarks/reconstruction.py", "crystals": len(truth)}
    for name, tolerances in TOLERANCES.items():
        matcher = StructureMatcher(**tolerances)
        pairs = zip(truth, found, strict=True)
        distances = [None if (rms := matcher.get_rms_dist(a, b)) is None else float(rms[0]) for a, b in pairs]
        matched = np.array([d is not None for d in distances])
        result[name] = {"tolerances": tolerances, "match_rate": float(matched.mean())}
        result[name]["rmse"] = float(np.mean([d for d in distances if d is not None]))
        low = 0
        for high in BOUNDS:
            inside = (sizes > low) & (sizes <= high)
            result[name][f"match_rate_{low + 1}_to_{high}_sites"] = float(matched[inside].mean())
            low = high
        print(name, {key: value for key, value in result[name].items() if key != "tolerances"})
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

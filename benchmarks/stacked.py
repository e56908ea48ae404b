"""What a potential's modulus adds to the predictor: the committee alone, CHGNet alone, and the two stacked.

    python benchmarks/predictor.py            # first: the committee's out-of-fold predictions
    python benchmarks/stacked.py              # then: seconds, with the CHGNet moduli of results/chgnet_moduli.json
    python benchmarks/stacked.py --compute    # computes the moduli that the file lacks, about a second each

The packaged alloys, five folds, chemical systems kept together. In each fold the correction is fitted on the other
four, its penalties chosen on inner folds of those. The committee's values are out of fold throughout; those of the
crystals that the correction is fitted on come from committees that saw labels of the judged fold (a strict nesting
would train ten more committees), which can reach the judged crystals only through the few coefficients of a linear
model. Alloys without a modulus are left out of every row.

CHGNet's moduli: a third-order Birch-Murnaghan fit to seven volumes, -6 to +6 % linear strain about the PBE cell.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from inv_design.datasets.mp_binaries import LabelledStructure, load_alloys
from inv_design.predictors.folds import grouped_folds
from inv_design.predictors.stacked import StackedPredictor
from inv_design.predictors.target import Target

RESULTS = Path(__file__).parent / "results"
MODULI = RESULTS / "chgnet_moduli.json"
PROPERTY = "bulk_modulus_vrh"
STRAIN, N_POINTS = 0.06, 7
N_FOLDS, SEED = 5, 0


def compute(alloys: list[LabelledStructure], path: Path, *, every: int = 10) -> None:
    """Add the missing moduli (GPa) and volumes (Å^3 per atom) to ``path``; interrupted, it goes on where it was."""
    import torch

    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.eos import equation_of_state

    torch.set_num_threads(1)
    calculator = get_calculator("chgnet")
    found = json.loads(path.read_text()) if path.exists() else {"moduli": {}, "failed": {}}
    todo = [a for a in alloys if a.source_id not in found["moduli"] and a.source_id not in found["failed"]]
    for number, alloy in enumerate(todo, 1):
        crystal = alloy.structure.get_primitive_structure()
        fit = equation_of_state(crystal, calculator, strain=STRAIN, n_points=N_POINTS)
        if fit.error is None:
            found["moduli"][alloy.source_id] = [round(fit.bulk_modulus, 4), round(fit.v0, 5)]
        else:
            found["failed"][alloy.source_id] = fit.error
        if number % every == 0 or number == len(todo):
            path.write_text(json.dumps(found) + "\n")
            print(f"  {number}/{len(todo)} moduli", file=sys.stderr, flush=True)


def row(label: str, log: np.ndarray, logs: np.ndarray, folds: list[np.ndarray]) -> dict[str, Any]:
    """Return the errors of log10 values (n,) against ``logs`` (n,)."""
    error = np.abs(log - logs)
    per_fold = [float(error[test].mean()) for test in folds]
    return {
        "predictor": label,
        "mae_log10": float(np.mean(per_fold)),
        "fold_std": float(np.std(per_fold, ddof=1)),
        "median_log10": float(np.median(error)),
        "rmse_log10": float(np.sqrt((error**2).mean())),
        "mae_gpa": float(np.abs(10.0**log - 10.0**logs).mean()),
        "folds": per_fold,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=RESULTS / "predictor_out_of_fold.json")
    parser.add_argument("--moduli", type=Path, default=MODULI)
    parser.add_argument("--output", type=Path, default=RESULTS / "stacked.json")
    parser.add_argument("--compute", action="store_true", help="compute the moduli that the file lacks, with CHGNet")
    arguments = parser.parse_args()
    alloys = load_alloys()
    if arguments.compute:
        compute(alloys, arguments.moduli)
    pairs = json.loads(arguments.pairs.read_text())[PROPERTY]
    of_id = {name: i for i, name in enumerate(pairs["ids"])}
    moduli = json.loads(arguments.moduli.read_text())["moduli"]
    every = grouped_folds([a.chemsys for a in alloys], N_FOLDS, SEED)  # the folds of the committee
    kept = [i for i, a in enumerate(alloys) if a.source_id in of_id and moduli.get(a.source_id, [0.0])[0] > 0]
    place = {i: position for position, i in enumerate(kept)}
    folds = [np.array([place[i] for i in test if i in place]) for _, test in every]
    used = [alloys[i] for i in kept]
    logs = np.log10([a.labels[PROPERTY] for a in used])
    index = [of_id[a.source_id] for a in used]
    values, std = np.array(pairs["predictions"])[index], np.array(pairs["std"])[index]
    committee, committee_std = np.log10(values), Target.of(PROPERTY).encoded_deviation(values, std)
    potential, volumes = np.array([moduli[a.source_id] for a in used]).T
    compositions = [a.structure.composition for a in used]
    stacked, covered, choices = np.full(len(used), np.nan), [], []
    for test in folds:
        train = np.setdiff1d(np.arange(len(used)), test)
        predictor = StackedPredictor(mlip="chgnet")
        metrics = predictor.fit(
            committee[train],
            potential[train],
            volumes[train],
            [compositions[i] for i in train],
            10.0 ** logs[train],
            committee_std=committee_std[train],
        )
        prediction = predictor.predict(
            committee[test],
            potential[test],
            volumes[test],
            [compositions[i] for i in test],
            committee_std=committee_std[test],
        )
        stacked[test] = np.log10(prediction.values)
        deviation = predictor.target.encoded_deviation(prediction.values, prediction.std)
        covered.append(float((np.abs(stacked[test] - logs[test]) <= deviation).mean()))
        choices.append({name: metrics[name] for name in ("composition_weight", "penalty")})
    rows = [
        row("CHGNet E(V)", np.log10(potential), logs, folds),
        row("CGCNN ensemble", committee, logs, folds),
        row("stacked (CHGNet)", stacked, logs, folds) | {"coverage_68": float(np.mean(covered)), "choices": choices},
    ]
    print(f"{'predictor':<20}{'MAE log10':>18}{'median':>9}{'MAE GPa':>9}")
    for r in rows:
        error = f"{r['mae_log10']:.4f} ± {r['fold_std']:.4f}"
        print(f"{r['predictor']:<20}{error:>18}{r['median_log10']:>9.4f}{r['mae_gpa']:>9.1f}")
    result = {
        "command": shlex.join(["python", "benchmarks/stacked.py", *sys.argv[1:]]),
        "data": f"{len(used)} of {len(alloys)} packaged alloys, those with a CHGNet modulus; {pairs['origin']}",
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

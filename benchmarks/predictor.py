"""Error of the bulk-modulus predictors on the 1,309 packaged alloys, side by side on the same grouped folds.

    python benchmarks/predictor.py                    # all rows, about 15 minutes on one core
    python benchmarks/predictor.py --folds 2 --epochs 10 --output /tmp/quick.json

Five folds, chemical systems kept together. Every row trains on four folds and is judged on the fifth; "distorted" rows
predict the label of the undistorted crystal from a strained or rattled copy. Uncertainties are scaled with the other
folds' errors only. Seconds are processor seconds of one thread, because a benchmark may share its machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.predictors import calibration
from inv_design.predictors.ensemble import CGCNNEnsemble
from inv_design.predictors.folds import grouped_folds
from inv_design.predictors.graph import build_graph, clear_cache
from inv_design.predictors.registry import make_predictor

if TYPE_CHECKING:
    from pymatgen.core import Structure

OUTPUT = Path(__file__).parent / "results" / "predictor.json"
DISTORTIONS = {"volume +5 %": (0.05, 0.0), "volume -5 %": (-0.05, 0.0), "rattled 0.05 Å": (0.0, 0.05)}
LABELS = {"forest": "random forest", "extra_trees": "extra trees", "cgcnn": "CGCNN ensemble"}


def distort(crystal: Structure, volume: float, rattle: float, rng: np.random.Generator) -> Structure:
    """Return a copy with a relative change of volume and normal displacements of every Cartesian component in Å."""
    from pymatgen.core import Structure

    copy = crystal.copy()
    copy.scale_lattice(crystal.volume * (1.0 + volume))
    shifted = copy.cart_coords + rng.normal(0.0, rattle, (len(copy), 3)) if rattle else copy.cart_coords
    return Structure(copy.lattice, copy.species, shifted, coords_are_cartesian=True)


class Trial:
    """Out-of-fold predictions of one predictor: log10 values, raw spreads, distorted inputs, and the time they took."""

    def __init__(self, n: int) -> None:
        self.log = np.full(n, np.nan)
        self.raw = np.full(n, np.nan)
        self.members: np.ndarray | None = None
        self.distorted = {name: np.full(n, np.nan) for name in DISTORTIONS}
        self.fit_s = 0.0
        self.predict_s = 0.0


def run(
    name: str, crystals: list[Structure], logs: np.ndarray, folds: list, *, seed: int, settings: dict[str, Any]
) -> Trial:
    """Return the out-of-fold predictions of predictor ``name``."""
    trial = Trial(len(logs))
    rng = np.random.default_rng(seed)
    warped = {key: [distort(s, *how, rng) for s in crystals] for key, how in DISTORTIONS.items()}
    for number, (train, test) in enumerate(folds):
        predictor = make_predictor(name, holdout=0.0, **settings)
        began = time.process_time()
        predictor.fit([crystals[i] for i in train], 10.0 ** logs[train], seed=seed)
        trial.fit_s += time.process_time() - began
        clear_cache()
        own = [crystals[i] for i in test]
        began = time.process_time()
        prediction = predictor.predict(own)
        trial.predict_s += time.process_time() - began
        trial.log[test] = np.log10(prediction.values)
        if name == "cgcnn":
            members = predictor.predict_members([build_graph(s) for s in own])
            if trial.members is None:
                trial.members = np.full((len(members), len(logs)), np.nan)
            trial.members[:, test] = members
            trial.raw[test] = calibration.spread(members, predictor.floor)
        else:
            trial.raw[test] = np.arcsinh(prediction.std / prediction.values) / np.log(10.0) / predictor.scale
        for key, copies in warped.items():
            trial.distorted[key][test] = np.log10(predictor.predict([copies[i] for i in test]).values)
        error = np.abs(trial.log[test] - logs[test]).mean()
        print(f"  {name} fold {number + 1}/{len(folds)}: {error:.4f} log10(GPa)", file=sys.stderr, flush=True)
    return trial


def row(label: str, log: np.ndarray, logs: np.ndarray, folds: list, trial: Trial | None = None) -> dict[str, Any]:
    """Return the figures of one line of the table."""
    error = np.abs(log - logs)
    per_fold = [float(error[test].mean()) for _, test in folds]
    tested = np.concatenate([test for _, test in folds])
    figures: dict[str, Any] = {
        "predictor": label,
        "mae_log10": float(np.mean(per_fold)),
        "fold_std": float(np.std(per_fold, ddof=1)),
        "rmse_log10": float(np.sqrt((error[tested] ** 2).mean())),
        "mae_gpa": float(np.abs(10.0 ** log[tested] - 10.0 ** logs[tested]).mean()),
        "within_30_percent": float((np.abs(10.0 ** (log - logs)[tested] - 1.0) <= 0.3).mean()),
        "folds": per_fold,
    }
    if trial is not None:
        scales, covered = [], []
        for _, test in folds:
            others = np.setdiff1d(tested, test)
            scales.append(calibration.scale_factor((log - logs)[others], trial.raw[others]))
            covered.append(calibration.coverage((log - logs)[test], scales[-1] * trial.raw[test]))
        figures |= {
            "std_scale": calibration.scale_factor((log - logs)[tested], trial.raw[tested]),
            "coverage_68": float(np.mean(covered)),
            "distorted_mae_log10": {
                key: float(np.abs(values - logs)[tested].mean()) for key, values in trial.distorted.items()
            },
            "fit_s_per_fold": trial.fit_s / len(folds),
            "structures_per_s": len(tested) / trial.predict_s,
        }
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as an aligned text table."""
    head = f"{'predictor':<28}{'MAE log10 K':>16}{'MAE GPa':>9}{'68 % holds':>11}"
    head += "".join(f"{name:>16}" for name in DISTORTIONS) + f"{'fit s':>8}{'per s':>8}"
    lines = [head]
    for r in rows:
        line = f"{r['predictor']:<28}{r['mae_log10']:>8.4f} ± {r['fold_std']:.4f}{r['mae_gpa']:>8.1f}"
        line += f"{100 * r['coverage_68']:>9.1f} %" if "coverage_68" in r else f"{'':>11}"
        line += "".join(
            f"{r['distorted_mae_log10'][k]:>16.4f}" if "fit_s_per_fold" in r else " " * 16 for k in DISTORTIONS
        )
        line += f"{r['fit_s_per_fold']:>8.0f}{r['structures_per_s']:>8.0f}" if "fit_s_per_fold" in r else ""
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5, choices=(2, 3, 4, 5), help="how many of the five folds to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="epochs of the CGCNN; its default otherwise")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    alloys = load_alloys()
    crystals = [a.structure for a in alloys]
    logs = np.log10([a.labels["bulk_modulus_vrh"] for a in alloys])
    folds = grouped_folds([a.chemsys for a in alloys], 5, arguments.seed)[: arguments.folds]

    dummy = np.full(len(logs), np.nan)
    for train, test in folds:
        dummy[test] = np.median(logs[train])
    rows = [row("dummy (median)", dummy, logs, folds)]
    trials = {}
    for name in ("forest", "extra_trees", "cgcnn"):
        settings = {"epochs": arguments.epochs} if name == "cgcnn" and arguments.epochs else {}
        trials[name] = trial = run(name, crystals, logs, folds, seed=arguments.seed, settings=settings)
        if name == "cgcnn":
            assert trial.members is not None
            singles = [row("", member, logs, folds) for member in trial.members]
            mean = {
                key: float(np.mean([s[key] for s in singles]))
                for key in singles[0]
                if key not in ("predictor", "folds")
            }
            rows.append({"predictor": "CGCNN single (mean of 4)", **mean})
        rows.append(row(LABELS[name], trial.log, logs, folds, trial))
    stacked = 0.5 * (trials["cgcnn"].log + trials["extra_trees"].log)
    rows.append(row("CGCNN + extra trees, mean", stacked, logs, folds))
    print(table(rows))
    cgcnn = CGCNNEnsemble(**({"epochs": arguments.epochs} if arguments.epochs else {}))
    result = {
        "command": shlex.join(["python", "benchmarks/predictor.py", *sys.argv[1:]]),
        "data": f"{len(alloys)} packaged alloys, {len(folds)} of 5 folds, chemical systems kept together",
        "seed": arguments.seed,
        "python": platform.python_version(),
        "cgcnn_settings": cgcnn.settings,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

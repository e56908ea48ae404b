"""Error of the predictors of bulk and shear modulus on the packaged alloys, side by side on the same grouped folds.

    python benchmarks/predictor.py                    # both moduli, all rows, about 15 minutes on one core
    python benchmarks/predictor.py --property bulk_modulus_vrh --folds 2 --epochs 10 --output /tmp/quick.json

Five folds, chemical systems kept together. Every row trains on four folds and is judged on the fifth; "distorted" rows
predict the label of the undistorted crystal from a strained or rattled copy. Uncertainties are scaled with the other
folds' errors only. Seconds are processor seconds of one thread, because a benchmark may share its machine. Rows are
written as they are ready, and the committee's out-of-fold predictions beside them, for the packaged model files.
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

from inv_design.predictors import calibration
from inv_design.predictors.descriptors import descriptors
from inv_design.predictors.ensemble import CGCNNEnsemble
from inv_design.predictors.folds import grouped_folds
from inv_design.predictors.graph import build_graph, clear_cache
from inv_design.predictors.packaged import PROPERTIES, packaged_training_set
from inv_design.predictors.registry import make_predictor
from inv_design.predictors.target import Target
from inv_design.predictors.validation import Validation

if TYPE_CHECKING:
    from pymatgen.core import Structure

OUTPUT = Path(__file__).parent / "results" / "predictor.json"
DISTORTIONS = {"volume +5 %": (0.05, 0.0), "volume -5 %": (-0.05, 0.0), "rattled 0.05 Å": (0.0, 0.05)}
LABELS = {"forest": "random forest", "extra_trees": "extra trees", "cgcnn": "CGCNN ensemble"}
N_FOLDS = 5


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
    name: str, crystals: list[Structure], logs: np.ndarray, folds: list, *, property: str, seed: int, settings: dict
) -> Trial:
    """Return the out-of-fold predictions of predictor ``name``."""
    trial = Trial(len(logs))
    rng = np.random.default_rng(seed)
    warped = {key: [distort(s, *how, rng) for s in crystals] for key, how in DISTORTIONS.items()}
    for number, (train, test) in enumerate(folds):
        predictor = make_predictor(name, property=property, holdout=0.0, **settings)
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
            trial.raw[test] = predictor.spread(members)
        else:
            trial.raw[test] = predictor.target.encoded_deviation(prediction.values, prediction.std) / predictor.scale
        for key, copies in warped.items():
            trial.distorted[key][test] = np.log10(predictor.predict([copies[i] for i in test]).values)
        error = np.abs(trial.log[test] - logs[test]).mean()
        print(
            f"  {property} {name} fold {number + 1}/{len(folds)}: {error:.4f} log10(GPa)", file=sys.stderr, flush=True
        )
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
        clean = float(error[tested].mean())
        distorted = {key: float(np.abs(values - logs)[tested].mean()) for key, values in trial.distorted.items()}
        figures |= {
            "std_scale": calibration.scale_factor((log - logs)[tested], trial.raw[tested]),
            "distorted_mae_log10": distorted,
            "distorted_over_clean": max(distorted.values()) / clean,
            "fit_s_per_fold": trial.fit_s / len(folds),
            "structures_per_s": len(tested) / trial.predict_s,
        }
    return figures


def support_vectors(crystals: list[Structure], logs: np.ndarray, folds: list) -> np.ndarray:
    """Return out-of-fold log10 values of support vector regression on the descriptors: smooth, but no graph."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    features, log = descriptors(crystals), np.full(len(logs), np.nan)
    for train, test in folds:
        model = make_pipeline(StandardScaler(), SVR(C=3.0, gamma=0.005, epsilon=0.01))
        log[test] = model.fit(features[train], logs[train]).predict(features[test])
    return log


def validate(property: str, trial: Trial, logs: np.ndarray, folds: list) -> tuple[Validation, np.ndarray]:
    """Return the out-of-fold validation of a trial and the indices (n,) of its crystals, in their order."""
    tested = np.sort(np.concatenate([test for _, test in folds]))
    validation = Validation.of(
        Target.of(property),
        10.0 ** logs[tested],
        trial.log[tested],
        trial.raw[tested],
        parts=[np.searchsorted(tested, test) for _, test in folds],
        scale=1.0,
        origin=f"{len(folds)} of {N_FOLDS} folds, chemical systems kept together",
    )
    return validation, tested


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as an aligned text table."""
    head = f"{'predictor':<28}{'MAE log10':>16}{'MAE GPa':>9}{'68 % holds':>11}"
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


def measure(property: str, arguments: argparse.Namespace, report: Report) -> None:
    """Measure all predictors of one property and write each row when it is ready."""
    alloys = packaged_training_set(property)
    crystals = [a.structure for a in alloys]
    logs = np.log10([a.labels[property] for a in alloys])
    folds = grouped_folds([a.chemsys for a in alloys], N_FOLDS, arguments.seed)[: arguments.folds]
    kept = f"{len(folds)} of {N_FOLDS} folds, chemical systems kept together"
    report.start(property, f"{len(alloys)} packaged alloys, {kept}")
    dummy = np.full(len(logs), np.nan)
    for train, test in folds:
        dummy[test] = np.median(logs[train])
    report.add(property, row("dummy (median)", dummy, logs, folds))
    report.add(property, row("support vectors", support_vectors(crystals, logs, folds), logs, folds))
    trials = {}
    for name, label in LABELS.items():
        settings = {"epochs": arguments.epochs} if name == "cgcnn" and arguments.epochs else {}
        trials[name] = trial = run(
            name, crystals, logs, folds, property=property, seed=arguments.seed, settings=settings
        )
        validation, tested = validate(property, trial, logs, folds)
        if name == "cgcnn":
            assert trial.members is not None
            singles = [row("", member, logs, folds) for member in trial.members]
            mean = {
                key: float(np.mean([s[key] for s in singles]))
                for key in singles[0]
                if key not in ("predictor", "folds")
            }
            report.add(property, {"predictor": "CGCNN single (mean of 4)", **mean})
            report.out_of_fold(property, [alloys[i].source_id for i in tested], validation)
        honest = {key: validation.metrics()[key] for key in ("coverage_68", "reliability")}
        report.add(property, row(label, trial.log, logs, folds, trial) | honest)
    mixed = 0.5 * (trials["cgcnn"].log + trials["extra_trees"].log)
    report.add(property, row("CGCNN + extra trees, mean", mixed, logs, folds))


class Report:
    """The result file; written anew after each row, figures of properties that are not run again are kept."""

    def __init__(self, path: Path, **head: Any) -> None:
        self.path = path
        old = json.loads(path.read_text()) if path.exists() else {}
        same = old.get("cgcnn_settings") == head["cgcnn_settings"] and old.get("seed") == head["seed"]
        self.content: dict[str, Any] = {**head, "properties": old.get("properties", {}) if same else {}}
        self.pairs = path.with_name(f"{path.stem}_out_of_fold.json")

    def start(self, property: str, data: str) -> None:
        """Forget the rows of a property."""
        command = shlex.join(["python", "benchmarks/predictor.py", *sys.argv[1:]])
        self.content["properties"][property] = {"command": command, "data": data, "rows": []}

    def add(self, property: str, figures: dict[str, Any]) -> None:
        """Write one more row."""
        self.content["properties"][property]["rows"].append(figures)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")

    def out_of_fold(self, property: str, ids: list[str], validation: Validation) -> None:
        """Write the committee's predictions of crystals it was not trained on, with the crystals' ids."""
        content = json.loads(self.pairs.read_text()) if self.pairs.exists() else {}
        columns = {name: getattr(validation, name) for name in ("values", "predictions", "std")}
        rounded = {name: [float(f"{x:.6g}") for x in column] for name, column in columns.items()}
        content[property] = {"origin": validation.origin, "unit": validation.target.unit, "ids": ids, **rounded}
        self.pairs.write_text(json.dumps(content) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--property", action="append", choices=PROPERTIES, help="repeatable; all by default")
    parser.add_argument("--folds", type=int, default=5, choices=(2, 3, 4, 5), help="how many of the five folds to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="epochs of the CGCNN; its default otherwise")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    cgcnn = CGCNNEnsemble(**({"epochs": arguments.epochs} if arguments.epochs else {}))
    report = Report(
        arguments.output, seed=arguments.seed, python=platform.python_version(), cgcnn_settings=cgcnn.settings
    )
    for property in arguments.property or PROPERTIES:
        measure(property, arguments, report)
        print(f"{property}: {report.content['properties'][property]['data']}")
        print(table(report.content["properties"][property]["rows"]))


if __name__ == "__main__":
    main()

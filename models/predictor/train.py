"""Train the packaged predictors on all trusted labels of the packaged alloys; write their weights and model cards.

    python benchmarks/predictor.py       # the cross-validation: error on unseen chemical systems, uncertainty scale
    python models/predictor/train.py     # the models: same settings and seed, all alloys, about a minute each

No alloy is left to judge a packaged model, so its card, its uncertainty scale, and the out-of-fold pairs in its file
come from the cross-validation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from inv_design.datasets.mp_binaries import SOURCE
from inv_design.predictors.ensemble import CGCNNEnsemble
from inv_design.predictors.packaged import MAX_SHEAR_RATIO, MIN_SHEAR, PROPERTIES, packaged_training_set
from inv_design.predictors.target import Target
from inv_design.predictors.validation import Validation
from inv_design.weights import sha256

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "inv_design" / "predictors" / "weights"
RESULTS = ROOT / "benchmarks" / "results"
ROW = "CGCNN ensemble"
NAMES = {"bulk_modulus_vrh": ("bulk modulus", "K"), "shear_modulus_vrh": ("shear modulus", "G")}
FILTERS = {
    "bulk_modulus_vrh": "0 < K <= 500 GPa",
    "shear_modulus_vrh": f"0 < K <= 500 GPa and {MIN_SHEAR:g} GPa <= G <= {MAX_SHEAR_RATIO:g} K",
}


def out_of_fold(property: str, columns: dict[str, Any]) -> Validation:
    """Return the validation that the benchmark wrote."""
    values, predictions, std = (np.array(columns[name]) for name in ("values", "predictions", "std"))
    return Validation(Target.of(property), values, predictions, std, columns["origin"])


def card(
    property: str, validation: dict[str, Any], *, metrics: dict[str, Any], digest: str, size: int, seconds: float
) -> dict[str, Any]:
    """Return the model card as plain values."""
    section = validation["properties"][property]
    row = next(r for r in section["rows"] if r["predictor"] == ROW)
    long, _ = NAMES[property]
    return {
        "name": f"{property}-cgcnn",
        "property": property,
        "unit": "GPa",
        "what": f"A committee of CGCNNs for the Voigt-Reuss-Hill {long} of ordered metallic alloys.",
        "data": f"{SOURCE}; {section['data'].split(',')[0]}: no actinides, at most 20 sites, {FILTERS[property]}",
        "licence_of_data": "CC BY 4.0 (inv_design/datasets/data/LICENSE.md)",
        "script": "models/predictor/train.py",
        "seed": validation["seed"],
        "settings": validation["cgcnn_settings"] | {"holdout": 0.0, "scale": row["std_scale"]},
        "train_mae_log10": metrics["train_mae_log10"],
        "cross_validation": {"command": section["command"], "data": section["data"], **row},
        "training_cpu_s": round(seconds),
        "sha256": digest,
        "bytes": size,
        "limits": (
            "Binary alloys of 60 metals only: other chemistries, ternaries and strained or defective cells are "
            "extrapolation. The label is the PBE value of the relaxed crystal, also for a distorted input."
        ),
    }


def markdown(c: dict[str, Any]) -> str:
    """Return the model card for readers."""
    v = c["cross_validation"]
    distorted = "\n".join(f"| {k} | {x:.4f} |" for k, x in v["distorted_mae_log10"].items())
    error = f"{v['mae_log10']:.4f} ± {v['fold_std']:.4f} over {len(v['folds'])} folds ({v['mae_gpa']:.1f} GPa)"
    settings = ", ".join(f"{k} {x:.4g}" if isinstance(x, float) else f"{k} {x}" for k, x in c["settings"].items())
    shown = (0.5, 0.6827, 0.9, 0.95)
    levels = zip(v["reliability"]["nominal"], v["reliability"]["observed"], strict=True)
    reliability = "\n".join(f"| {100 * n:.1f} % | {100 * o:.1f} % |" for n, o in levels if n in shown)
    return f"""# {c["name"]}

{c["what"]} `inv_design.predictors.registry.default_predictor("{c["property"]}")` loads it.

- Data: {c["data"]}. Licence of the data: {c["licence_of_data"]}.
- Made by `python {c["script"]}`, seed {c["seed"]}, {c["training_cpu_s"]} s on one core. SHA-256 `{c["sha256"]}`.
- Settings: {settings}.

| input (unseen chemical systems) | mean absolute error of log10({NAMES[c["property"]][1]} / GPa) |
|---|---|
| as in the Materials Project | {error} |
{distorted}

| central interval of the normal distribution | holds of the values |
|---|---|
{reliability}

`{v["command"]}`: {v["data"]}. Of the values, {100 * v["within_30_percent"]:.1f} % lie within 30 % of the label.
Standard deviations were scaled with the errors of the other folds. The file holds the out-of-fold pairs
(`predictor.validation`).

{c["limits"]}
"""


def make(property: str, validation: dict[str, Any], pairs: dict[str, Any], output: Path) -> None:
    """Train the model of one property and write its file and cards."""
    row = next(r for r in validation["properties"][property]["rows"] if r["predictor"] == ROW)
    alloys = packaged_training_set(property)
    if sorted(pairs["ids"]) != sorted(a.source_id for a in alloys):
        raise SystemExit(
            f"{len(pairs['ids'])} out-of-fold pairs are not of the {len(alloys)} alloys; run the benchmark"
        )
    predictor = CGCNNEnsemble(property, **validation["cgcnn_settings"] | {"holdout": 0.0, "scale": row["std_scale"]})
    began = time.process_time()
    metrics = predictor.fit(
        [a.structure for a in alloys],
        [a.labels[property] for a in alloys],
        seed=validation["seed"],
        progress=lambda done, steps, text: print(f"{done}/{steps} {text}", flush=True),
    )
    seconds = time.process_time() - began
    predictor.validation = out_of_fold(property, pairs)
    predictor.metrics |= predictor.validation.metrics()
    blob = predictor.to_bytes()
    written = card(property, validation, metrics=metrics, digest=sha256(blob), size=len(blob), seconds=seconds)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{property}-cgcnn"
    path.with_suffix(".safetensors").write_bytes(blob)
    path.with_suffix(".json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    path.with_suffix(".md").write_text(markdown(written))
    print(f"{path}.safetensors: {len(blob) / 1e6:.2f} MB, train error {metrics['train_mae_log10']:.4f}")


def main() -> None:
    """Train, write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--property", action="append", choices=PROPERTIES, help="repeatable; all by default")
    parser.add_argument("--validation", type=Path, default=RESULTS / "predictor.json")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    validation = json.loads(arguments.validation.read_text())
    pairs = json.loads(arguments.validation.with_name(f"{arguments.validation.stem}_out_of_fold.json").read_text())
    if validation["cgcnn_settings"] != CGCNNEnsemble().settings:
        raise SystemExit(f"{arguments.validation} was made with other settings; run benchmarks/predictor.py again")
    for property in arguments.property or PROPERTIES:
        make(property, validation, pairs[property], arguments.output)


if __name__ == "__main__":
    main()

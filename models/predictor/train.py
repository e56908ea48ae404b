"""Train the packaged bulk-modulus predictor on all 1,309 packaged alloys and write its weights and model card.

    python benchmarks/predictor.py       # the cross-validation: error on unseen chemical systems, uncertainty scale
    python models/predictor/train.py     # the model: same settings and seed, all alloys, about a minute on one core

No alloy is left to judge the packaged model, so its card and its uncertainty scale come from the cross-validation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from inv_design.datasets.mp_binaries import SOURCE, load_alloys
from inv_design.predictors.ensemble import CGCNNEnsemble
from inv_design.weights import sha256

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "inv_design" / "predictors" / "weights"
ROW = "CGCNN ensemble"
NAME = "bulk_modulus_vrh-cgcnn"


def card(
    validation: dict[str, Any], metrics: dict[str, float], digest: str, size: int, seconds: float
) -> dict[str, Any]:
    """Return the model card as plain values."""
    row = next(r for r in validation["rows"] if r["predictor"] == ROW)
    return {
        "name": NAME,
        "property": "bulk_modulus_vrh",
        "unit": "GPa",
        "what": "A committee of CGCNNs for the Voigt-Reuss-Hill bulk modulus of ordered metallic alloys.",
        "data": f"{SOURCE}; {validation['data'].split(',')[0]}: no actinides, at most 20 sites, 0 < K <= 500 GPa",
        "licence_of_data": "CC BY 4.0 (inv_design/datasets/data/LICENSE.md)",
        "script": "models/predictor/train.py",
        "seed": validation["seed"],
        "settings": validation["cgcnn_settings"] | {"holdout": 0.0, "scale": row["std_scale"]},
        "train_mae_log10": metrics["train_mae_log10"],
        "cross_validation": {"command": validation["command"], "data": validation["data"], **row},
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
    return f"""# {c["name"]}

{c["what"]} `inv_design.predictors.registry.default_predictor()` loads it.

- Data: {c["data"]}. Licence of the data: {c["licence_of_data"]}.
- Made by `python {c["script"]}`, seed {c["seed"]}, {c["training_cpu_s"]} s on one core. SHA-256 `{c["sha256"]}`.
- Settings: {settings}.

| input (unseen chemical systems) | mean absolute error of log10(K / GPa) |
|---|---|
| as in the Materials Project | {error} |
{distorted}

`{v["command"]}`: {v["data"]}. Of the values, {100 * v["within_30_percent"]:.1f} % lie within 30 % of the label, and
{100 * v["coverage_68"]:.1f} % within one standard deviation, whose scale came from the other folds (68.3 % is honest).

{c["limits"]}
"""


def main() -> None:
    """Train, write, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validation", type=Path, default=ROOT / "benchmarks" / "results" / "predictor.json")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    validation = json.loads(arguments.validation.read_text())
    settings = CGCNNEnsemble().settings
    if validation["cgcnn_settings"] != settings:
        raise SystemExit(f"{arguments.validation} was made with other settings; run benchmarks/predictor.py again")
    row = next(r for r in validation["rows"] if r["predictor"] == ROW)
    predictor = CGCNNEnsemble(**settings | {"holdout": 0.0, "scale": row["std_scale"]})
    alloys = load_alloys()
    began = time.process_time()
    metrics = predictor.fit(
        [a.structure for a in alloys],
        [a.labels["bulk_modulus_vrh"] for a in alloys],
        seed=validation["seed"],
        progress=lambda done, steps, text: print(f"{done}/{steps} {text}", flush=True),
    )
    seconds = time.process_time() - began
    predictor.metrics |= {f"cv_{name}": row[name] for name in ("mae_log10", "rmse_log10", "coverage_68")}
    blob = predictor.to_bytes()
    written = card(validation, metrics, sha256(blob), len(blob), seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{NAME}.safetensors").write_bytes(blob)
    (arguments.output / f"{NAME}.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    (arguments.output / f"{NAME}.md").write_text(markdown(written))
    print(f"{arguments.output / NAME}.safetensors: {len(blob) / 1e6:.2f} MB, {metrics}")


if __name__ == "__main__":
    main()

"""Does fine-tuning at one end forget the other? The error at 100 GPa before and after a round of labels at 350 GPa.

A round: the packaged generator samples at 350 GPa, CHGNet labels the crystals (relaxation, then E(V)), the generator is
fine-tuned on them with a replay of what it carries. Then it samples at 100 GPa and at 350 GPa with the seeds used
before, and CHGNet judges.

    OMP_NUM_THREADS=1 python benchmarks/replay.py [--labels 20] [--judged 40]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "replay.json"
FAR, NEAR = 100.0, 350.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--judged", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch

    from inv_design.calculators.registry import get_calculator
    from inv_design.generators.con_cdvae import ConCDVAE
    from inv_design.generators.registry import default_weights

    torch.set_num_threads(1)
    calculator = get_calculator("chgnet")
    generator = ConCDVAE.from_bytes(default_weights())
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/replay.py", *sys.argv[1:]]),
        "before": {f"{t:g}": judged(generator, t, calculator, arguments) for t in (FAR, NEAR)},
    }
    structures, values = labelled(generator, calculator, arguments)
    generator.finetune(structures, values, seed=arguments.seed)
    result["labels"] = len(values)
    result["after"] = {f"{t:g}": judged(generator, t, calculator, arguments) for t in (FAR, NEAR)}
    before, after = (result[when][f"{FAR:g}"]["mean_error"] for when in ("before", "after"))
    result["relative_rise_at_100"] = after / before - 1
    for when in ("before", "after"):
        for target, row in result[when].items():
            print(f"{when:6s} {target:>4s} GPa  mean error {row['mean_error']:.3f}  median {row['median_error']:.3f}")
    print(f"error at {FAR:g} GPa: {100 * result['relative_rise_at_100']:+.0f} %")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def judged(generator: Any, target: float, calculator: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the calculator finds of the generator's crystals at a target."""
    from generator import judge

    from inv_design.generators.protocol import Condition

    samples = generator.sample(arguments.judged, Condition({"bulk_modulus_vrh": target}), seed=arguments.seed)
    return judge(samples, target, calculator)


def labelled(generator: Any, calculator: Any, arguments: argparse.Namespace) -> tuple[list[Any], list[float]]:
    """Return relaxed crystals near 350 GPa and their moduli."""
    from inv_design.generators.protocol import Condition
    from inv_design.mechanics.eos import equation_of_state
    from inv_design.mechanics.relax import relax_structure

    structures, values = [], []
    for sample in generator.sample(arguments.labels, Condition({"bulk_modulus_vrh": NEAR}), seed=arguments.seed + 1000):
        relaxed = relax_structure(sample.structure, calculator, fmax=0.03, max_steps=200)
        if relaxed.structure is None:
            continue
        curve = equation_of_state(relaxed.structure, calculator)
        if curve.error is None and curve.bulk_modulus > 0:
            structures.append(relaxed.structure)
            values.append(curve.bulk_modulus)
    return structures, values


if __name__ == "__main__":
    main()

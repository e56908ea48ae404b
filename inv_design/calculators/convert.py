"""Convert a trusted MACE ``.model`` pickle into safetensors: ``python -m inv_design.calculators.convert IN OUT``.

Reading the pickle runs whatever code is in it; only convert files whose origin you trust.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-6  # eV/atom between the pickled and the rebuilt network


def convert(source: Path, destination: Path) -> dict[str, Any]:
    """Write the network of a pickled ScaleShiftMACE as safetensors and return its configuration.

    The rebuilt network must give the pickled one's energies on test crystals; nothing is written otherwise.

    Raises
    ------
    ValueError
        If the network is of a kind or has options that the safetensors format cannot express.
    """
    from inv_design.calculators.mace_model import import_mace, load_network, network_tensors, unsafe_load_confined
    from inv_design.weights import pack

    import_mace("mace.calculators")
    import torch

    with unsafe_load_confined():
        network = torch.load(source, map_location="cpu", weights_only=False)
    network = network.double().eval()
    config = _configuration(network, source.stem)
    tensors = network_tensors(network)
    rebuilt = load_network(tensors, config)
    if (difference := _largest_difference(network, rebuilt)) > TOLERANCE:
        raise ValueError(
            f"{str(source)!r}: the rebuilt network differs by {difference:.2g} eV/atom; "
            "it uses an option of MACE that this format does not hold"
        )
    destination.write_bytes(pack(tensors, config))
    return config


def _configuration(network: torch.nn.Module, name: str) -> dict[str, Any]:
    """Return the JSON configuration of a network, from what MACE reads off it."""
    from inv_design.calculators.mace_model import KIND, import_mace

    settings = import_mace("mace.tools.scripts_utils").extract_config_mace_model(network)
    if "error" in settings:
        raise ValueError(f"{name!r}: {settings['error']}; only ScaleShiftMACE can be converted")
    heads = settings.get("heads") or ["Default"]
    if len(heads) > 1:
        raise ValueError(f"{name!r} has {len(heads)} heads; select one with mace_select_head first")
    scale, shift = np.ravel(settings["atomic_inter_scale"]), np.ravel(settings["atomic_inter_shift"])
    return {
        "kind": KIND,
        "name": name,
        "atomic_numbers": [int(z) for z in settings["atomic_numbers"]],
        "atomic_energies": np.ravel(settings["atomic_energies"]).tolist(),
        "scale": float(scale[0]),
        "shift": float(shift[0]),
        "avg_num_neighbors": float(settings["avg_num_neighbors"]),
        "r_max": float(settings["r_max"]),
        "num_bessel": int(settings["num_bessel"]),
        "num_polynomial_cutoff": int(settings["num_polynomial_cutoff"]),
        "max_ell": int(settings["max_ell"]),
        "num_interactions": int(settings["num_interactions"]),
        "hidden_irreps": str(settings["hidden_irreps"]),
        "MLP_irreps": str(settings["MLP_irreps"]),
        "correlation": settings["correlation"],
        "radial_MLP": list(settings["radial_MLP"]),
        "pair_repulsion": bool(settings["pair_repulsion"]),
        "interaction_first": settings["interaction_cls_first"].__name__,
        "interaction": settings["interaction_cls"].__name__,
        "distance_transform": str(settings["distance_transform"]),
    }


def _largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Return the largest difference in energy, eV/atom, over B2 crystals of neighbouring elements."""
    from inv_design.calculators.mace_model import MaceEvaluator

    evaluators = MaceEvaluator(one), MaceEvaluator(other)
    known = evaluators[0].atomic_numbers
    positions = np.array([[0.0, 0.0, 0.0], [1.5, 1.6, 1.45]])
    crystals = [((a, b), positions, np.eye(3) * 3.0) for a, b in zip(known, known[1:] + known[:1], strict=True)]
    energies = [np.array([energy for energy, _, _ in evaluator.evaluate(crystals)]) for evaluator in evaluators]
    return float(np.abs(energies[0] - energies[1]).max() / 2)


def main() -> None:
    """Convert the file named on the command line."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m inv_design.calculators.convert TRUSTED.model OUT.safetensors")
    source, destination = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        config = convert(source, destination)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{destination}: {len(config['atomic_numbers'])} elements, r_max {config['r_max']} Å")


if __name__ == "__main__":
    main()

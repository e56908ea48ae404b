"""Put trained weights into the package: model.safetensors, and its configuration as a readable config.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from inv_design.calculators.mace_model import load_network
from inv_design.weights import sha256, unpack

PACKAGE = Path(__file__).parents[2] / "inv_design" / "calculators" / "weights" / "mace-alloy-small"


def main() -> None:
    """Check that the weights load, then copy them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model.safetensors written by train.py")
    blob = parser.parse_args().model.read_bytes()
    tensors, config = unpack(blob)
    load_network(tensors, config)
    PACKAGE.mkdir(parents=True, exist_ok=True)
    (PACKAGE / "model.safetensors").write_bytes(blob)
    (PACKAGE / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    print(f"{PACKAGE.name}: {len(blob)} bytes, sha256 {sha256(blob)}")


if __name__ == "__main__":
    main()

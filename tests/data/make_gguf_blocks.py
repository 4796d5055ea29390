#!/usr/bin/env python3
"""Writes tests/data/gguf: every ggml type that is read as random blocks, with the weights that the
gguf package makes of them. Needs `pip install gguf`; scales are finite, all other bits any."""

import pathlib
import sys

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from command_line import write_safetensors  # noqa: E402

OUT = pathlib.Path(__file__).resolve().parent / "gguf"
# Offsets of the f16 numbers of a block.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
    "NVFP4": [],
}
NOT_READ = ["IQ2_XXS", "TQ1_0"]


def random_blocks(kind, rows, columns, rng):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for offset in HALVES.get(kind, []):
        halves = rng.standard_normal(len(blocks)).astype(np.float16) / 16
        halves[rng.integers(0, len(blocks))] = 2**-24  # subnormal
        blocks[:, offset : offset + 2] = halves.astype(np.float16).view(np.uint8).reshape(-1, 2)
    if kind == "MXFP4":
        blocks[:, 0] = rng.integers(60, 190, len(blocks))  # sums of 512 stay in float32
    if kind == "NVFP4":
        blocks[:, :4][blocks[:, :4] == 0xFF] = 0x7F
    return blocks.reshape(rows, -1)


def main():
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(20261120)
    writer = gguf.GGUFWriter(OUT / "all-types.gguf", "llama")
    golden = {}
    for kind in [*HALVES, *NOT_READ]:
        name = f"{kind.lower()}.weight"
        data = random_blocks(kind, 3, 512, rng)
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, data, raw_dtype=dtype)
        if kind not in NOT_READ:
            values = gguf.quants.dequantize(data, dtype).astype(np.float32)
            golden[name] = ("F32", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_safetensors(OUT / "all-types.safetensors", golden)


if __name__ == "__main__":
    main()

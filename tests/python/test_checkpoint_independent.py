"""Checkpoints that we write, decoded by code that shares nothing with the library."""

import json
import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest

pytest.importorskip("ml_dtypes")
import checkpoint_reference as reference  # noqa: E402
import ml_dtypes  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))
CLI = pathlib.Path(os.environ.get("NIBBLE_CLI", BUILD / "nibble"))

# Largest relative error of Gaussian weights that a right decode may have.
FORMATS = {
    "int4-g32": 0.11,
    "int4-g128": 0.13,
    "int4-channel": 0.16,
    "uint4-g64": 0.12,
    "uint4-g128": 0.13,
    "int8-channel": 0.012,
    "int8-g128": 0.01,
    "nvfp4": 0.11,
    "mxfp4": 0.13,
    "fp4-g32": 0.12,
    "nf4-g64": 0.11,
}
# N that fill no word of zero points; K = 4304 = 16 * 269 gets group 16 where the format has one.
SHAPES = [(96, 256), (13, 128), (50, 384), (3, 4304)]
DIVISOR = {"nf4-g64": 64, "mxfp4": 32}  # formats without another group
# Shapes where every group divides: other tools decode these too.
EVEN_SHAPES = [(96, 256), (13, 128), (50, 384)]


def nibble(*args):
    if not CLI.is_file():
        pytest.fail(f"{CLI} is not built; run: make build")
    done = subprocess.run([CLI, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_model(folder, shapes, dtype="BF16", seed=0):
    """A checkpoint with linear layers blocks.I.proj, biases, a norm and an embedding."""
    rng = np.random.default_rng(seed)
    kind = reference.DTYPES[dtype]
    tensors = {"embed_tokens.weight": rng.standard_normal((7, 16)).astype(kind)}
    for i, (n, k) in enumerate(shapes):
        spread = np.exp(rng.standard_normal((n, 1)))
        weight = rng.standard_normal((n, k)) * spread
        weight[0, : min(k, 128)] = 0  # groups of zeros
        tensors[f"blocks.{i}.proj.weight"] = weight.astype(kind)
        tensors[f"blocks.{i}.proj.bias"] = rng.standard_normal(n).astype(kind)
    tensors["norm.weight"] = np.ones(16, kind)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    body = b"".join(array.tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "config.json").write_text('{"model_type": "test", "limit": [0.0, Infinity]}')
    return tensors


def relative_error(a, b):
    return np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("name", FORMATS)
def test_independent_decode_gives_the_error_that_verify_reports(name, dtype, tmp_path):
    shapes = [shape for shape in SHAPES if shape[1] % DIVISOR.get(name, 1) == 0]
    source = write_model(tmp_path / "in", shapes, dtype)
    nibble("quantize", tmp_path / "in", tmp_path / "out", "--format", name)
    decoded = reference.decode(tmp_path / "out")
    assert sorted(decoded) == [f"blocks.{i}.proj" for i in range(len(shapes))]
    report = json.loads(nibble("verify", tmp_path / "out", "--against", tmp_path / "in", "--json"))
    reported = {layer["name"]: layer["relative_error"] for layer in report["layers"]}
    for layer, weight in decoded.items():
        want = source[f"{layer}.weight"].astype(np.float64)
        error = relative_error(weight, want)
        assert error < FORMATS[name], layer
        # The library's own decode of the same file: an element decoded otherwise would show.
        assert abs(error - reported[layer]) < 1e-9 + 1e-7 * error, layer


@pytest.mark.parametrize("name", FORMATS)
def test_everything_else_is_carried_over(name, tmp_path):
    source = write_model(tmp_path / "in", [(64, 128)])
    nibble("quantize", tmp_path / "in", tmp_path / "out", "--format", name)
    tensors = reference.read_checkpoint(tmp_path / "out")
    for key in ("embed_tokens.weight", "blocks.0.proj.bias", "norm.weight"):
        assert tensors[key].dtype == ml_dtypes.bfloat16
        assert tensors[key].tobytes() == source[key].tobytes()
    config = (tmp_path / "out" / "config.json").read_text()
    assert config.startswith('{"model_type": "test", "limit": [0.0, Infinity]')


def test_short_groups_are_written_as_ceilings(tmp_path):
    source = write_model(tmp_path / "in", [(5, 200)])
    nibble(
        "quantize",
        tmp_path / "in",
        tmp_path / "out",
        "--format",
        "uint4-g128",
        "--allow-short-group",
    )
    tensors = reference.read_checkpoint(tmp_path / "out")
    assert tensors["blocks.0.proj.weight_scale"].shape == (5, 2)
    assert tensors["blocks.0.proj.weight_zero_point"].shape == (1, 2)
    weight = reference.decode(tmp_path / "out")["blocks.0.proj"]
    assert relative_error(weight, source["blocks.0.proj.weight"].astype(np.float64)) < 0.13

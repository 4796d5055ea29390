"""GPTQ (versions 1 and 2) and AWQ gemm layers, packed here by the formats' rules with NumPy alone
and decoded by us: more shapes than the tools' own fixtures have."""

import json

import numpy as np
import pytest
from command_line import CORRUPT, UNSUPPORTED, run, run_json, write_safetensors
from decoded_layers import decoded

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
# n, k, group: words, tiles and groups that are full, short, long, or one for the row.
SHAPES = [(32, 64, 32), (40, 96, 16), (13, 50, 16), (136, 260, 128), (9, 600, 256), (1030, 40, -1)]


def words(fields, bits, axis):
    """Fields packed low first along an axis, the last word padded with zero bits."""
    fields = np.moveaxis(fields.astype(np.uint32), axis, -1)
    per_word = 32 // bits
    padding = -fields.shape[-1] % per_word
    fields = np.pad(fields, [(0, 0), (0, padding)])
    fields = fields.reshape(fields.shape[0], -1, per_word)
    packed = np.bitwise_or.reduce(fields << (bits * np.arange(per_word, dtype=np.uint32)), axis=-1)
    return np.ascontiguousarray(np.moveaxis(packed.astype(np.uint32), -1, axis)).view(np.int32)


class Layer:
    def __init__(self, n, k, group, bits=4, symmetric=False, act_order=False):
        rng = np.random.default_rng(n * k + bits)
        self.bits, self.symmetric = bits, symmetric
        self.group = group
        self.index = np.arange(k, dtype=np.int32) // (group if group > 0 else k)
        groups = int(self.index.max()) + 1
        if act_order:
            rng.shuffle(self.index)
        self.q = rng.integers(0, 1 << bits, (k, n))
        self.z = rng.integers(0, 1 << bits, (groups, n))
        if symmetric:
            self.z[:] = 1 << (bits - 1)
        self.s = (rng.standard_normal((groups, n)) * 0.01).astype(np.float16)

    def weight(self):
        """[n, k], one rounding: the difference is exact."""
        difference = (self.q - self.z[self.index]).astype(np.float32)
        return (difference * self.s[self.index].astype(np.float32)).T

    def gptq(self, version):
        zeros = words(self.z, self.bits, 1).view(np.uint32)
        if version == 1:
            zeros = zeros - np.uint32(0x11111111 if self.bits == 4 else 0x01010101)
        return {
            "qweight": ("I32", words(self.q, self.bits, 0)),
            "qzeros": ("I32", zeros.view(np.int32)),
            "scales": ("F16", self.s),
            "g_idx": ("I32", self.index),
        }

    def gptq_config(self, version):
        config = {"quant_method": "gptq", "bits": self.bits, "group_size": self.group}
        config |= {"sym": self.symmetric, "desc_act": False}
        return config | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})

    def awq(self):
        def interleaved(fields):
            padded = np.pad(fields, [(0, 0), (0, -fields.shape[1] % 8)])
            return padded.reshape(len(fields), -1, 8)[..., AWQ_ORDER].reshape(len(fields), -1)

        return {
            "qweight": ("I32", words(interleaved(self.q), 4, 1)),
            "qzeros": ("I32", words(interleaved(self.z), 4, 1)),
            "scales": ("F16", self.s),
        }


def write(folder, parts, quantization):
    folder.mkdir()
    tensors = {f"model.up_proj.{suffix}": tensor for suffix, tensor in parts.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    if quantization is not None:
        config = {"model_type": "test", "quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_same(folder, layer):
    got = decoded(folder)["model.up_proj"]
    np.testing.assert_array_equal(got, layer.weight())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_decodes_by_its_rule(version, bits, symmetric, act_order, shape, tmp_path):
    layer = Layer(*shape, bits, symmetric, act_order)
    folder = write(tmp_path / "in", layer.gptq(version), layer.gptq_config(version))
    assert_same(folder, layer)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_awq_decodes_by_its_rule(shape, tmp_path):
    layer = Layer(*shape)
    config = {"quant_method": "awq", "bits": 4, "group_size": shape[2], "version": "GEMM"}
    assert_same(write(tmp_path / "in", layer.awq(), config), layer)


def test_both_are_recognised_by_their_tensors_alone(tmp_path):
    layer = Layer(40, 96, 32)
    assert_same(write(tmp_path / "gptq", layer.gptq(1), None), layer)
    assert_same(write(tmp_path / "awq", layer.awq(), None), layer)


def test_inspect_says_what_was_found(tmp_path):
    layer = Layer(40, 96, 32, act_order=True)
    folder = write(tmp_path / "in", layer.gptq(1), layer.gptq_config(1))
    (found,) = run_json("inspect", folder)["layers"]
    assert found["format"] == "uint4-g32:f16"
    assert "act-order" in json.dumps(found)


def test_what_is_not_read_is_refused_with_its_name(tmp_path):
    layer = Layer(32, 64, 32)
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}
    folder = write(tmp_path / "awq", layer.awq(), awq)
    done = run("convert", folder, tmp_path / "out", "--to", "dense")
    assert done.returncode == UNSUPPORTED and "gemv" in done.stderr
    folder = write(tmp_path / "three", layer.gptq(1), layer.gptq_config(1) | {"bits": 3})
    done = run("convert", folder, tmp_path / "out", "--to", "dense")
    assert done.returncode == UNSUPPORTED and "3 bits" in done.stderr
    folder = write(tmp_path / "sym", layer.gptq(1), layer.gptq_config(1) | {"sym": True})
    done = run("convert", folder, tmp_path / "out", "--to", "dense")
    assert done.returncode == CORRUPT and "sym" in done.stderr

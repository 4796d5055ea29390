"""Decodes the checkpoints that `nibble quantize` writes, with NumPy and ml_dtypes alone.

Written from the formats' own rules (docs/formats.md), sharing no code with the library: what both
agree on is unlikely to be wrong in both.
"""

import json
import pathlib
import struct

import ml_dtypes
import numpy as np

DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__")["format"] == "pt"
    assert (8 + size) % 8 == 0
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + begin : 8 + size + end], DTYPES[entry["dtype"]])
        out[name] = values.reshape(entry["shape"])
    return out


def read_checkpoint(folder):
    """Every tensor of a directory, sharded or not."""
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / "model.safetensors")
    tensors = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        tensors |= read_safetensors(folder / name)
    return tensors


def low_nibble_first(packed):
    """[n, bytes] → [n, 2 * bytes]"""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def fields(words, bits):
    """Little-endian fields of 32-bit words along the last axis."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    values = (words.astype(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return values.reshape(*words.shape[:-1], -1).astype(np.int32)


def spread(scale, k, group):
    """One scale a column from one a group."""
    return np.repeat(scale, group, axis=1)[:, :k]


def pack_quantized(tensors, layer, scheme):
    n, k = (int(extent) for extent in tensors[f"{layer}.weight_shape"])
    bits, offset = scheme["num_bits"], 1 << (scheme["num_bits"] - 1)
    q = fields(tensors[f"{layer}.weight_packed"], bits)[:, :k] - offset
    scale = tensors[f"{layer}.weight_scale"].astype(np.float32)
    assert q.shape == (n, k)
    group = scheme["group_size"] or k
    if not scheme["symmetric"]:
        zero = fields(tensors[f"{layer}.weight_zero_point"].T, bits).T[:n] - offset
        assert zero.shape == scale.shape
        q = q - spread(zero, k, group)
    return q.astype(np.float32) * spread(scale, k, group)


def nvfp4(tensors, layer):
    codes = low_nibble_first(tensors[f"{layer}.weight_packed"])
    scale = tensors[f"{layer}.weight_scale"].astype(np.float32)
    scale = scale / tensors[f"{layer}.weight_global_scale"][0]
    return E2M1[codes] * spread(scale, codes.shape[1], 16)


def mxfp4(tensors, layer):
    codes = low_nibble_first(tensors[f"{layer}.weight_packed"])
    exponent = tensors[f"{layer}.weight_scale"].astype(np.int32) - 127
    return E2M1[codes] * spread(np.ldexp(np.float32(1), exponent), codes.shape[1], 32)


def fp4(tensors, layer, group):
    codes = low_nibble_first(tensors[f"{layer}.weight_packed"])
    return E2M1[codes] * spread(tensors[f"{layer}.weight_scale"], codes.shape[1], group)


def nf4(tensors, layer):
    prefix = f"{layer}.weight"
    state = json.loads(tensors[f"{prefix}.quant_state.bitsandbytes__nf4"].tobytes())
    assert state["quant_type"] == "nf4"
    packed = tensors[prefix].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)  # high nibble first
    values = tensors[f"{prefix}.quant_map"][codes].reshape(-1, state["blocksize"])
    return (values * tensors[f"{prefix}.absmax"][:, None]).reshape(state["shape"])


def compressed_tensors(tensors, config):
    out = {}
    for group in config["config_groups"].values():
        scheme = group["weights"]
        for name in tensors:
            layer = name.removesuffix(".weight_packed")
            if layer == name or (group["targets"] != ["Linear"] and layer not in group["targets"]):
                continue
            assert layer not in config["ignore"] and layer not in out
            if group["format"] == "pack-quantized":
                out[layer] = pack_quantized(tensors, layer, scheme)
            elif group["format"] == "nvfp4-pack-quantized":
                out[layer] = nvfp4(tensors, layer)
            else:
                assert group["format"] == "mxfp4-pack-quantized"
                out[layer] = mxfp4(tensors, layer)
    return out


def decode(folder):
    """layer → float32 [n, k] for every quantized layer of a checkpoint."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())["quantization_config"]
    tensors = read_checkpoint(folder)
    if config["quant_method"] == "compressed-tensors":
        return compressed_tensors(tensors, config)
    if config["quant_method"] == "bitsandbytes":
        suffix = ".weight.absmax"
        layers = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
        return {layer: nf4(tensors, layer) for layer in layers}
    assert config["quant_method"] == "nibble"
    out = {}
    for name in tensors:
        layer = name.removesuffix(".weight_packed")
        if layer == name:
            continue
        form = config.get("layers", {}).get(layer, config["format"])
        out[layer] = fp4(tensors, layer, int(form.removeprefix("fp4-g")))
    return out

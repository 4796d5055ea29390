#!/usr/bin/env python3
"""Writes the seeds of src/checkpoint/safetensors_fuzz.cc beside this file: small checkpoints in
every spelling that is read, and files that break one rule each."""

import json
import pathlib
import struct

OUT = pathlib.Path(__file__).resolve().parent / "safetensors_fuzz"


def container(tensors, metadata=None):
    """A safetensors file from [(name, dtype, shape, bytes)]."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, content in tensors:
        end = len(data) + len(content)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += content
    return raw(json.dumps(header, separators=(",", ":")), data)


def raw(header, data=b""):
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


def seed(name, file, config=None):
    text = json.dumps(config, separators=(",", ":")).encode() if config is not None else b""
    (OUT / name).write_bytes(struct.pack("<H", len(text)) + text + file)


def scheme(bits, kind, group, symmetric=True):
    weights = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "group_size": group,
        "strategy": "group" if group else "channel",
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


def integer_layer(n, k, bits, group, symmetric=True, g_idx=None, dtype="F16"):
    words, columns = -(-k * bits // 32), -(-k // group) if group else 1
    scale = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}[dtype]
    tensors = [
        ("l.weight_packed", "I32", [n, words], bytes(range(4 * words)) * n),
        ("l.weight_scale", dtype, [n, columns], scale * (n * columns)),
        ("l.weight_shape", "I64", [2], struct.pack("<qq", n, k)),
    ]
    if not symmetric:
        rows = -(-n * bits // 32)
        tensors.append(
            ("l.weight_zero_point", "I32", [rows, columns], b"\x78\x56\x34\x12" * (rows * columns))
        )
    if g_idx:
        tensors.append(("l.weight_g_idx", "I32", [k], struct.pack(f"<{k}i", *g_idx)))
    return tensors


def main():
    OUT.mkdir(exist_ok=True)
    seed("int4-g16", container(integer_layer(3, 32, 4, 16), {"format": "pt"}), scheme(4, "int", 16))
    seed("int4-channel-ragged", container(integer_layer(2, 13, 4, 0)), scheme(4, "int", None))
    seed("uint4-g16", container(integer_layer(9, 32, 4, 16, False)), scheme(4, "int", 16, False))
    seed("int8-g16", container(integer_layer(2, 32, 8, 16, dtype="F32")), scheme(8, "int", 16))
    seed(
        "uint8-channel", container(integer_layer(5, 9, 8, 0, False)), scheme(8, "int", None, False)
    )
    mixed = [1, 0] * 16
    seed("int4-g-idx", container(integer_layer(2, 32, 4, 16, g_idx=mixed)), scheme(4, "int", 16))
    seed("int8-g-idx", container(integer_layer(2, 32, 8, 16, g_idx=mixed)), scheme(8, "int", 16))
    seed("no-config", container(integer_layer(2, 64, 4, 32, dtype="BF16")))
    nvfp4 = [
        ("l.weight_packed", "U8", [2, 16], bytes(range(32))),
        ("l.weight_scale", "F8_E4M3", [2, 2], b"\x38\x40\x01\x7e"),
        ("l.weight_global_scale", "F32", [1], b"\x00\x00\x80\x43"),
    ]
    seed("nvfp4", container(nvfp4), scheme(4, "float", 16))
    mxfp4 = [
        ("l.weight_packed", "U8", [2, 16], bytes(range(32))),
        ("l.weight_scale", "U8", [2, 1], b"\x7f\x00"),
    ]
    seed("mxfp4", container(mxfp4), scheme(4, "float", 32))
    own = [
        ("l.weight_packed", "U8", [2, 16], bytes(range(32))),
        ("l.weight_scale", "F32", [2, 1], b"\x00\x00\x80\x3f" * 2),
        ("m.weight_packed", "U8", [1, 16], bytes(range(16))),
        ("m.weight_scale", "F32", [1, 2], b"\x00\x00\x80\x3f" * 2),
    ]
    method = {"quant_method": "nibble", "format": "fp4-g32", "layers": {"m": "fp4-g16"}}
    seed("fp4-g32", container(own), {"quantization_config": method})
    state = b'{"quant_type": "nf4", "blocksize": 16, "dtype": "float16", "shape": [2, 32]}'
    nf4 = [
        ("l.weight", "U8", [32, 1], bytes(range(32))),
        ("l.weight.absmax", "F32", [4], b"\x00\x00\x80\x3f" * 4),
        ("l.weight.quant_map", "F32", [16], struct.pack("<16f", *[i / 8 - 1 for i in range(16)])),
        ("l.weight.quant_state.bitsandbytes__nf4", "U8", [len(state)], state),
    ]
    seed("nf4", container(nf4), {"quantization_config": {"quant_method": "bitsandbytes"}})
    plain = [
        ("a.weight", "BF16", [2, 2], bytes(8)),
        ("a.bias", "F32", [], bytes(4)),
        ("e", "F4", [3], b"ab"),
    ]
    seed("plain", container(plain), {"limit": [0.0, float("inf")]})
    seed("empty", container([]))
    seed(
        "duplicate",
        raw(
            '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            '"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"ab",
        ),
    )
    seed(
        "overlap",
        raw(
            '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
            '"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            b"abc",
        ),
    )
    seed(
        "overflow",
        raw('{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8]}}', bytes(8)),
    )
    seed("deep", raw('{"a":' + "[" * 200))
    (OUT / "header-length").write_bytes(b"\0\0" + b"\xff" * 8 + b"{}")


if __name__ == "__main__":
    main()

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


ONE, TWO = b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40"


def bitsandbytes(n, k, block, kind="nf4", nested=None):
    state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": [n, k]}
    size, blocks = -(-n * k // 2), -(-n * k // block)
    tensors = [
        ("l.weight", "U8", [size, 1], bytes(i % 256 for i in range(size))),
        ("l.weight.quant_map", "F32", [16], struct.pack("<16f", *[i / 8 - 1 for i in range(16)])),
    ]
    if nested:
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.25}
        outer = -(-blocks // nested)
        tensors += [
            ("l.weight.absmax", "U8", [blocks], bytes(i % 256 for i in range(blocks))),
            ("l.weight.nested_absmax", "F32", [outer], ONE * outer),
            ("l.weight.nested_quant_map", "F32", [256], ONE * 256),
        ]
    else:
        tensors.append(("l.weight.absmax", "F32", [blocks], ONE * blocks))
    text = json.dumps(state).encode()
    tensors.append((f"l.weight.quant_state.bitsandbytes__{kind}", "U8", [len(text)], text))
    return container(tensors)


def hqq(n, k, group, axis=1, bits=4, codes="U8", one_tensor=False):
    rows = n * k // group if axis == 1 else group
    columns = n * k // rows
    width = {"U8": 1, "F16": 2, "F32": 4}[codes]
    stored = rows * bits // 8
    scales = [rows, 1] if axis == 1 else [1, columns]
    count = max(scales)
    half = b"\x00\x3c"
    tensors = [
        (
            "l.W_q",
            codes,
            [stored, columns // width],
            bytes(i % 256 for i in range(stored * columns)),
        ),
        ("l.shape", "I64", [2], struct.pack("<qq", n, k)),
        ("l.axis", "I32", [], struct.pack("<i", axis)),
        ("l.nbits", "I32", [], struct.pack("<i", bits)),
        ("l.packing", "U8", [7], f"{bits}bit_u8".encode()),
        ("l.quant_scale", "U8", [], b"\0"),
    ]
    if one_tensor:
        tensors.append(("l.zero_scale", "F16", [2, *scales], half * (2 * count)))
    else:
        tensors.append(("l.scale", "F16", scales, half * count))
        tensors.append(("l.zero", "F16", scales, half * count))
    return container(tensors)


def modelopt(weight, scale, *more):
    return container([("l.weight", *weight), ("l.weight_scale", *scale), *more])


def write_bitsandbytes():
    method = {"quantization_config": {"quant_method": "bitsandbytes"}}
    seed("bnb-fp4", bitsandbytes(2, 64, 64, "fp4"), method)
    seed("bnb-nested", bitsandbytes(3, 64, 16, nested=4), method)
    seed("bnb-crosses-rows", bitsandbytes(3, 48, 32))
    seed("bnb-dense", bitsandbytes(3, 36, 16))
    seed("bnb-odd-rows", bitsandbytes(3, 33, 4096, nested=256))


def write_hqq():
    method = {"quantization_config": {"quant_method": "hqq"}}
    seed("hqq", hqq(4, 32, 16), method)
    seed("hqq-crosses-rows", hqq(4, 48, 32))
    seed("hqq-axis-0", hqq(16, 12, 16, axis=0), method)
    seed("hqq-8-bit", hqq(2, 32, 32, bits=8), method)
    seed("hqq-as-float", hqq(4, 32, 16, codes="F16", one_tensor=True))
    seed("hqq-odd-rows", hqq(2, 9, 9))


def write_modelopt():
    nvfp4 = modelopt(
        ("U8", [2, 16], bytes(range(32))),
        ("F8_E4M3", [2, 2], b"\x38\x40\x01\x7e"),
        ("l.weight_scale_2", "F32", [], TWO),
        ("l.pre_quant_scale", "F16", [32], b"\x00\x3c" * 32),
    )
    seed("modelopt-nvfp4", nvfp4)
    method = {"quant_method": "modelopt", "quant_algo": "mxfp4"}
    mxfp4 = modelopt(("U8", [2, 16], bytes(range(32))), ("U8", [2, 1], b"\x7f\x00"))
    seed("modelopt-mxfp4", mxfp4, {"quantization_config": method})
    int4 = modelopt(("U8", [1, 32], bytes(range(32))), ("F32", [2, 2], ONE * 4))
    seed("modelopt-int4", int4)
    dense = modelopt(("U8", [1, 18], bytes(range(18))), ("F32", [2, 2], ONE * 4))
    seed("modelopt-int4-dense", dense)
    mixed = {"l": {"quant_algo": "FP8"}}
    method = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    fp8 = modelopt(("F8_E4M3", [2, 40], bytes(range(80))), ("F32", [1, 1, 2, 1], ONE * 2))
    seed("modelopt-fp8", fp8, {"quantization_config": {**method, "quantized_layers": mixed}})
    mxfp8 = modelopt(("F8_E4M3", [1, 40], bytes(range(40))), ("U8", [1, 2], b"\x7f\x80"))
    seed("modelopt-mxfp8", mxfp8, {"quantization_config": {"quant_method": "modelopt"}})
    int8 = modelopt(("I8", [2, 5], bytes(range(10))), ("F32", [2], TWO * 2))
    seed("modelopt-int8", int8, {"quantization_config": {"quant_method": "modelopt"}})


def qweight_seeds():
    """GPTQ and AWQ: both versions and widths, act-order, ragged and unequal groups."""

    def gptq(n, k, bits, groups, index=None, zeros=b"\x77"):
        words = [-(-k * bits // 32), -(-n * bits // 32)]
        tensors = [
            ("l.qweight", "I32", [words[0], n], bytes(i % 251 for i in range(4 * words[0] * n))),
            ("l.qzeros", "I32", [groups, words[1]], zeros * (4 * groups * words[1])),
            ("l.scales", "F16", [groups, n], b"\x00\x3c" * (groups * n)),
        ]
        if index:
            tensors.append(("l.g_idx", "I32", [k], struct.pack(f"<{k}i", *index)))
        return container(tensors)

    def config(method, **keys):
        return {"quantization_config": {"quant_method": method, **keys}}

    mixed = [1, 0] * 16
    sym = {"bits": 4, "group_size": 16, "sym": True}
    seed("gptq-sym", gptq(8, 32, 4, 2, [0] * 16 + [1] * 16), config("gptq", **sym))
    seed("gptq-act-order", gptq(8, 32, 4, 2, mixed), config("gptq", **sym, desc_act=True))
    seed(
        "gptq-v2",
        gptq(9, 32, 4, 2, zeros=b"\x50"),
        config("gptq", bits=4, group_size=16, sym=False, checkpoint_format="gptq_v2"),
    )
    seed("gptq-8-bit", gptq(5, 24, 8, 2, zeros=b"\x7f"), config("gptq", bits=8, group_size=16))
    seed("gptq-unequal", gptq(3, 21, 4, 2, [0] * 5 + [1] * 16), config("gptq", bits=4))
    seed("gptq-no-config", gptq(16, 512, 4, 2))
    seed("gptq-dynamic", gptq(16, 32, 4, 2), config("gptq", bits=8, dynamic={"+:l": {"bits": 4}}))

    def awq(n, k, groups):
        words = -(-n // 8)
        return container(
            [
                ("l.qweight", "I32", [k, words], bytes(i % 251 for i in range(4 * k * words))),
                ("l.qzeros", "I32", [groups, words], b"\x58" * (4 * groups * words)),
                ("l.scales", "F16", [groups, n], b"\x00\x3c" * (groups * n)),
            ]
        )

    seed("awq", awq(16, 32, 2), config("awq", bits=4, group_size=16, version="GEMM"))
    seed("awq-dense", awq(10, 40, 2), config("awq", bits=4, group_size=20, version="gemm"))
    seed("awq-no-config", awq(16, 512, 2))


def main():
    OUT.mkdir(exist_ok=True)
    qweight_seeds()
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
    write_bitsandbytes()
    write_hqq()
    write_modelopt()
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

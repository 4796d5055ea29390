#!/usr/bin/env python3
"""Writes the seeds of src/checkpoint/onnx_fuzz.cc beside this file: small models with every
operator and place of data that is read, and files that break one rule each. Needs onnx."""

import pathlib

import numpy as np
from onnx import TensorProto, helper

OUT = pathlib.Path(__file__).resolve().parent / "onnx_fuzz"
RNG = np.random.default_rng(1)
BITS = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4}
ONE = {  # the bytes of 1.0
    TensorProto.FLOAT: b"\0\0\x80\x3f",
    TensorProto.FLOAT16: b"\0\x3c",
    TensorProto.BFLOAT16: b"\x80\x3f",
    TensorProto.FLOAT8E4M3FN: b"\x38",
    TensorProto.FLOAT8E8M0: b"\x7f",
}


def field(number, content):
    """A field of bytes."""
    size, length = len(content), b""
    while size >= 128:
        length += bytes([size % 128 + 128])
        size //= 128
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def tensor(name, dtype, dims, value=None):
    """Scales of 1.0, or random codes."""
    count = int(np.prod(dims))
    raw = ONE[dtype] * count if dtype in ONE else RNG.bytes(-(-count * BITS.get(dtype, 8) // 8))
    return helper.make_tensor(name, dtype, dims, value or raw, raw=True)


def model(name, nodes, tensors, **properties):
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    for key, value in properties.items():
        helper.set_model_props(made, {key: value})
    (OUT / name).write_bytes(made.SerializeToString())


def matmul_nbits(
    name, n=3, k=32, bits=4, block=16, scale=TensorProto.FLOAT, zeros=None, g_idx=None
):
    blocks = -(-k // block)
    inputs = ["x", "l.weight_Q4", "l.weight_scales"]
    tensors = [
        tensor("l.weight_Q4", TensorProto.UINT8, [n, blocks, block * bits // 8]),
        tensor("l.weight_scales", scale, [n, blocks]),
    ]
    if zeros is not None:
        columns = blocks if zeros in ONE else -(-blocks * bits // 8)
        tensors.append(tensor("l.zeros", zeros, [n * columns]))
        inputs.append("l.zeros")
    if g_idx is not None:
        inputs += [""] * (4 - len(inputs)) + ["l.g_idx"]
        tensors.append(helper.make_tensor("l.g_idx", TensorProto.INT32, [k], g_idx))
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        "l.MatMul_Q4",
        domain="com.microsoft",
        K=k,
        N=n,
        bits=bits,
        block_size=block,
    )
    model(name, [node], tensors)


def dequantize(name, dtype, dims, scale, scale_dims, zeros=False, product="MatMul", **attributes):
    inputs = ["l.weight_DQ_Q4", "l.scales"] + (["l.zeros"] if zeros else [])
    tensors = [tensor(inputs[0], dtype, dims), tensor(inputs[1], scale, scale_dims)]
    if zeros:
        tensors.append(tensor("l.zeros", dtype, scale_dims))
    nodes = [helper.make_node("DequantizeLinear", inputs, ["w"], "l.DQ", **attributes)]
    if product == "Transpose":
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["x", "wt"], ["y"]))
    elif product == "Gemm":
        nodes.append(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    model(name, nodes, tensors)


def nvfp4(name):
    tensors = [
        tensor("l.weight", TensorProto.FLOAT4E2M1, [3, 32]),
        tensor("l.scales", TensorProto.FLOAT8E4M3FN, [3, 2]),
        tensor("l.scale", TensorProto.FLOAT, []),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["l.scales", "l.scale"], ["s"]),
        helper.make_node("DequantizeLinear", ["l.weight", "s"], ["w"], axis=-1, block_size=16),
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["x", "c"], ["y"], transB=1),
    ]
    model(name, nodes, tensors)


def main():
    OUT.mkdir(exist_ok=True)
    types = TensorProto
    matmul_nbits("nbits-int4")
    matmul_nbits("nbits-tail", k=37, zeros=types.UINT8)
    matmul_nbits("nbits-int8", bits=8, zeros=types.UINT8, scale=types.FLOAT16)
    matmul_nbits("nbits-float-zero", zeros=types.FLOAT, scale=types.BFLOAT16)
    matmul_nbits("nbits-long-block", n=1, k=300, block=256)
    matmul_nbits("nbits-g-idx", g_idx=[1, 0] * 16, zeros=types.UINT8)
    matmul_nbits("nbits-dense", g_idx=[1, 0, 0] * 10 + [0, 0])
    matmul_nbits("nbits-two-bits", bits=2)
    dequantize("dq-columns", types.INT4, [32, 6], types.FLOAT, [2, 6], axis=0, block_size=16)
    dequantize(
        "dq-columns-odd", types.UINT4, [33, 5], types.FLOAT, [3, 5], True, axis=0, block_size=16
    )
    dequantize("dq-rows", types.INT4, [3, 32], types.FLOAT16, [3, 2], True, "Gemm", block_size=16)
    dequantize(
        "dq-rows-odd", types.UINT4, [3, 33], types.FLOAT, [3, 3], False, "Gemm", block_size=16
    )
    dequantize("dq-axis", types.INT8, [3, 32], types.BFLOAT16, [3], True, "Transpose", axis=0)
    dequantize("dq-tensor", types.UINT8, [16, 3], types.FLOAT, [], True)
    dequantize("dq-dense-axis", types.INT4, [3, 20], types.FLOAT, [20], False, "Gemm", axis=1)
    dequantize(
        "dq-dense-blocks",
        types.INT4,
        [4, 6],
        types.FLOAT,
        [2, 6],
        True,
        "Gemm",
        axis=0,
        block_size=2,
    )
    dequantize(
        "dq-mxfp4",
        types.FLOAT4E2M1,
        [2, 64],
        types.FLOAT8E8M0,
        [2, 2],
        False,
        "Gemm",
        block_size=32,
    )
    nvfp4("dq-nvfp4")
    gather = helper.make_node(
        "GatherBlockQuantized",
        ["e.weight_Q4", "ids", "e.scales", "e.zeros"],
        ["y"],
        domain="com.microsoft",
        block_size=16,
        quantize_axis=1,
    )
    model(
        "gather",
        [gather],
        [
            tensor("e.weight_Q4", types.UINT8, [4, 16]),
            tensor("e.scales", types.FLOAT, [4, 2]),
            tensor("e.zeros", types.UINT8, [4, 1]),
        ],
    )
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0])],
        "b",
        [],
        [],
        [helper.make_tensor("w", types.FLOAT16, [2], [1.0, 2.0])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["t"], value=tensor("", types.UINT8, [3])),
        helper.make_node("Constant", [], ["i"], value_int=-1),
    ]
    model("subgraphs", nodes, [tensor("w", types.INT8, [2, 2])], license="MIT")
    external = helper.make_tensor("w", types.FLOAT, [2], [1.0, 2.0])
    external.ClearField("float_data")
    external.data_location = TensorProto.EXTERNAL
    entry = external.external_data.add()
    entry.key, entry.value = "location", "../data"
    model("external", [], [external])
    whole = (OUT / "nbits-tail").read_bytes()
    (OUT / "truncated").write_bytes(whole[: len(whole) // 2])
    deep = b""  # deeper than protobuf's own package writes
    for _ in range(40):
        attribute = field(1, b"g") + field(6, deep)
        deep = field(1, field(4, b"If") + field(5, attribute))
    (OUT / "deep").write_bytes(field(7, deep))
    (OUT / "varint").write_bytes(b"\x08" + b"\xff" * 11)


if __name__ == "__main__":
    main()

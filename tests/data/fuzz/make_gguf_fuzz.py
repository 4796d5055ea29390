#!/usr/bin/env python3
"""Writes the seeds of src/checkpoint/gguf_fuzz.cc beside this file: small GGUF files with all types
of values and blocks, and files that break one rule each."""

import pathlib
import struct

OUT = pathlib.Path(__file__).resolve().parent / "gguf_fuzz"

# Number and bytes of a block; None: plain values.
BLOCKS = {
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "iq2_xxs": (16, 256, 66),
    "iq4_nl": (20, 32, 18),
    "iq4_xs": (23, 256, 136),
    "mxfp4": (39, 32, 17),
    "nvfp4": (40, 64, 36),
}
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def array(kind, count, values):
    return struct.pack("<IQ", kind, count) + values


def tensor(name, extents, kind, offset):
    dims = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def file(pairs, infos, data=b"", version=3, counts=None, alignment=32):
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs + infos)
    return head + b"\0" * (-len(head) % alignment) + data


def seed(name, content):
    (OUT / name).write_bytes(content)


def main():
    OUT.mkdir(exist_ok=True)
    architecture = pair("general.architecture", STRING, text("llama"))
    for name, (kind, values, size) in BLOCKS.items():
        block = bytes((7 * i + 1) % 120 for i in range(size))
        infos = [tensor("w.weight", [values, 2], kind, 0)]
        seed(name, file([architecture], infos, 2 * block))
    nested = array(ARRAY, 2, array(U8, 2, b"\1\2") + array(STRING, 1, text("x")))
    kinds = [
        pair("u8", U8, b"\1"),
        pair("i8", I8, b"\xff"),
        pair("u16", U16, b"\1\0"),
        pair("i16", I16, b"\xff\xff"),
        pair("u32", U32, b"\1\0\0\0"),
        pair("i32", I32, b"\xff\xff\xff\xff"),
        pair("f32", F32, struct.pack("<f", 1e-5)),
        pair("bool", BOOL, b"\1"),
        pair("text", STRING, text("a\u20acb")),
        pair("u64", U64, b"\1" + bytes(7)),
        pair("i64", I64, b"\xff" * 8),
        pair("f64", F64, struct.pack("<d", float("nan"))),
        pair("tokens", ARRAY, array(STRING, 20, b"".join(text(f"t{i}") for i in range(20)))),
        pair("scores", ARRAY, array(F32, 20, bytes(80))),
        pair("nested", ARRAY, nested),
    ]
    seed("pairs", file(kinds, []))
    plain = [
        tensor("f32", [3], 0, 0),
        tensor("f16", [2, 2], 1, 32),
        tensor("bf16", [2, 2], 30, 64),
        tensor("i32", [], 26, 96),
        tensor("empty", [0, 3], 0, 128),
    ]
    seed("plain", file([architecture], plain, bytes(range(128)), version=2))
    scaled = [
        tensor("w.weight", [64, 1, 2], 40, 0),
        tensor("w.scale", [2], 0, 96),
        tensor("w.input_scale", [1], 0, 128),
    ]
    values = bytes(range(72)) + bytes(24) + struct.pack("<ff", 0.5, 2) + bytes(24) + bytes(4)
    seed("nvfp4-experts", file([architecture], scaled, values))
    many = [tensor("w.weight", [64, 1, 9], 40, 0), tensor("w.weight.scale", [9], 0, 352)]
    seed("nvfp4-nine", file([], many, bytes(i % 100 for i in range(352)) + bytes(36)))
    aligned = pair("general.alignment", U32, struct.pack("<I", 8))
    seed("alignment-8", file([aligned], [tensor("t", [2], 0, 0)], bytes(8), alignment=8))
    zero = pair("general.alignment", U32, bytes(4))
    seed("alignment-0", file([zero], [tensor("t", [2], 0, 0)], bytes(8)))
    split = [pair("split.no", U16, b"\0\0"), pair("split.count", U16, b"\3\0")]
    seed("split", file(split, [tensor("t", [2], 0, 0)], bytes(8)))
    twins = [tensor("w", [32], 2, 0), tensor("w.weight", [32], 2, 32)]
    seed("twins", file([], twins, bytes(64)))
    seed("big-endian", file([architecture], [], version=3 << 24))
    seed("counts", file([], [], counts=(1 << 60, 1 << 61)))
    seed("string-length", file([text("k") + struct.pack("<IQ", STRING, 1 << 63)], []))
    seed("array-count", file([pair("k", ARRAY, array(U64, 1 << 61, b""))], []))
    deep = array(U8, 1, b"\7")
    for _ in range(40):
        deep = array(ARRAY, 1, deep)
    seed("deep", file([pair("k", ARRAY, deep)], []))
    seed("overflow", file([], [tensor("t", [1 << 40, 1 << 40], 2, 0)], bytes(64)))
    overlap = [tensor("t", [16], 0, 0), tensor("u", [8], 0, 32)]
    seed("overlap", file([], overlap, bytes(64)))
    seed("duplicate", file([architecture, architecture], []))


if __name__ == "__main__":
    main()

"""Quantized tensors against rules written in NumPy, with the rounding of ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
from dump import dump

BF16, E4M3, E2M1 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
F32 = np.float32
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    F32,
)  # fmt: skip


class Parts:
    """The parts of a quantized tensor [n, k], as dump_numbers writes them."""

    def __init__(self, w, name, group, scale_dtype, *, scales="mse", rule="smallest", zero=None,
                 bits=4, tensor_scale=False):  # fmt: skip
        n, k = w.shape
        raw = dump(w.astype(F32), "quantize", name, scales, rule, k)
        groups = -(-k // group)
        sizes = [
            4 * tensor_scale,
            n * groups * np.dtype(scale_dtype).itemsize,
            n * groups * (np.dtype(zero).itemsize if zero else 0),
            n * -(-k * bits // 8),
            4 * n * k,
        ]
        assert len(raw) == sum(sizes)
        pieces = np.split(np.frombuffer(raw, np.uint8), np.cumsum(sizes)[:-1])
        self.t = pieces[0].copy().view(F32)[0] if tensor_scale else None
        self.scales = pieces[1].copy().view(scale_dtype).reshape(n, groups)
        self.zeros = pieces[2].copy().view(zero).reshape(n, groups) if zero else None
        codes = pieces[3].reshape(n, -1)
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(n, -1)[:, :k]
        self.codes = codes
        self.decoded = pieces[4].copy().view(F32).reshape(n, k)
        self.group = group

    def per_weight(self, values):
        return np.repeat(values.astype(F32), self.group, axis=1)[:, : self.codes.shape[1]]


def weights(n, k, kind="gauss"):
    random = np.random.default_rng(3)
    w = random.standard_t(4, (n, k)) if kind == "heavy" else random.standard_normal((n, k))
    w = (0.02 * w).astype(F32)
    w[0, :128] = 0  # groups of zeros
    return w


def group_amax(w, group):
    n, k = w.shape
    padded = np.zeros((n, -(-k // group) * group), F32)
    padded[:, :k] = np.abs(w)
    return padded.reshape(n, -1, group).max(axis=-1)


def e2m1_codes(y):
    return np.clip(y, F32(-6), F32(6)).astype(E2M1).view(np.uint8) & 15


def e2m1_values(codes):
    return codes.astype(np.uint8).view(E2M1).astype(F32)


def int4_values(codes):
    return ((codes.astype(np.int32) ^ 8) - 8).astype(F32)


def squared_error_by_group(w, decoded, group):
    n, k = w.shape
    padded = np.zeros((n, -(-k // group) * group))
    padded[:, :k] = (w.astype(np.float64) - decoded.astype(np.float64)) ** 2
    return padded.reshape(n, -1, group).sum(axis=-1)


SHAPES = [(8, 256), (3, 4304), (5, 271), (1, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_nvfp4_plain_rule(shape):
    w = weights(*shape)
    w[-1, -1] = 0.07
    q = Parts(w, "nvfp4", 16, np.uint8, scales="absmax", tensor_scale=True)
    amax = group_amax(w, 16)
    t = F32(np.abs(w).max() / F32(2688))
    assert q.t == t
    s = np.clip((amax / F32(6)) / t, F32(2.0**-9), F32(448)).astype(E4M3).view(np.uint8)
    s[amax == 0] = 0x38
    assert np.array_equal(q.scales, s)
    effective = q.per_weight(s.view(E4M3).astype(F32) * t)
    codes = e2m1_codes(w / effective)
    codes[np.repeat(amax == 0, 16, axis=1)[:, : w.shape[1]]] = 0
    assert np.array_equal(q.codes, codes)
    assert np.array_equal(q.decoded, e2m1_values(codes) * effective)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["ocp", "modelopt", "compressed-tensors"])
def test_mxfp4_rules(shape, rule):
    w = weights(*shape)
    q = Parts(w, "mxfp4", 32, np.uint8, rule=rule)
    amax = group_amax(w, 32).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log2(amax))
        if rule == "ocp":
            e = exponent - 2
        elif rule == "modelopt":
            e = np.ceil(np.log2(amax / 6))
        else:
            e = exponent - 2 + (amax / 2.0**exponent >= 1.75)
    byte = np.where(amax == 0, 127, e + 127).astype(np.uint8)
    assert np.array_equal(q.scales, byte)
    effective = q.per_weight(2.0 ** (byte.astype(np.float64) - 127))
    want = e2m1_codes(w / effective)
    want[np.repeat(amax == 0, 32, axis=1)[:, : w.shape[1]]] = 0
    assert np.array_equal(q.codes, want)
    assert np.array_equal(q.decoded, e2m1_values(want) * effective)


@pytest.mark.parametrize("kind", ["gauss", "heavy"])
def test_mxfp4_default_is_the_best_of_the_rules(kind):
    w = weights(32, 512, kind)
    ours = squared_error_by_group(w, Parts(w, "mxfp4", 32, np.uint8).decoded, 32)
    for rule in ("ocp", "modelopt", "compressed-tensors"):
        theirs = Parts(w, "mxfp4", 32, np.uint8, rule=rule).decoded
        assert np.all(ours <= squared_error_by_group(w, theirs, 32) * (1 + 1e-5))


@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", ["gauss", "heavy"])
def test_int4_plain_rule(group, kind):
    w = weights(12, 320, kind)
    q = Parts(w, f"int4-g{group}", group, BF16, scales="absmax")
    amax = group_amax(w, group)
    candidates, errors = [], []
    for divisor in (7, 8):
        s = (amax / F32(divisor)).astype(BF16)
        s[amax == 0] = 1
        per_weight = q.per_weight(s)
        codes = np.clip(np.rint(w / per_weight), -8, 7)
        candidates.append(s.astype(F32))
        errors.append(squared_error_by_group(w, codes * per_weight, group))
    clear = np.abs(errors[0] - errors[1]) > 1e-5 * errors[0]
    clear |= errors[0] == 0
    assert np.mean(clear) > 0.95
    best = np.where(errors[1] < errors[0], candidates[1], candidates[0])
    assert np.array_equal(q.scales.astype(F32)[clear], best[clear])
    per_weight = q.per_weight(q.scales)
    want = np.clip(np.rint(w / per_weight), -8, 7)
    assert np.array_equal(int4_values(q.codes), want)
    assert np.array_equal(q.decoded, want.astype(F32) * per_weight)


def test_uint4_integer_zero_plain_rule():
    w = weights(12, 320) + F32(0.01)
    q = Parts(w, "uint4-g32", 32, BF16, scales="absmax", zero=np.uint8)
    low = np.minimum(w.reshape(12, -1, 32).min(axis=-1), 0)
    high = np.maximum(w.reshape(12, -1, 32).max(axis=-1), 0)
    width = (high.astype(np.float64) - low) / 15
    s = width.astype(F32).astype(BF16)
    assert np.array_equal(q.scales, s)
    zero = np.clip(np.rint(-low / s.astype(F32)), 0, 15)
    assert np.array_equal(q.zeros, zero.astype(np.uint8))
    per_weight = q.per_weight(s)
    codes = np.clip(np.rint(w / per_weight + q.per_weight(zero)), 0, 15)
    assert np.array_equal(q.codes, codes.astype(np.uint8))
    assert np.array_equal(q.decoded, (codes - q.per_weight(zero)).astype(F32) * per_weight)


def test_fp4_group_32_plain_rule():
    w = weights(6, 288)
    q = Parts(w, "fp4-g32", 32, F32, scales="absmax")
    amax = group_amax(w, 32)
    s = np.where(amax == 0, F32(1), amax / F32(6))
    assert np.array_equal(q.scales, s)
    assert np.array_equal(q.decoded, e2m1_values(e2m1_codes(w / q.per_weight(s))) * q.per_weight(s))


def test_nf4_plain_rule():
    w = weights(6, 320)
    q = Parts(w, "nf4-g64", 64, F32, scales="absmax")
    amax = group_amax(w, 64)
    s = np.where(amax == 0, F32(1), amax)
    assert np.array_equal(q.scales, s)
    y = w / q.per_weight(s)
    nearest = np.abs(y[..., None].astype(np.float64) - NF4.astype(np.float64)).argmin(axis=-1)
    assert np.array_equal(q.codes, nearest)
    assert np.array_equal(q.decoded, NF4[q.codes] * q.per_weight(s))


SEARCHED = [
    ("int4-g128", 128, BF16, None),
    ("int4-g32", 32, BF16, None),
    ("fp4-g32", 32, F32, None),
    ("nf4-g64", 64, F32, None),
    ("uint4-g64", 64, BF16, np.uint8),
]


@pytest.mark.parametrize("name,group,scale,zero", SEARCHED)
@pytest.mark.parametrize("kind", ["gauss", "heavy"])
def test_searched_scales_are_better_than_plain_ones(name, group, scale, zero, kind):
    w = weights(16, 1024, kind)
    plain = Parts(w, name, group, scale, scales="absmax", zero=zero).decoded
    searched = Parts(w, name, group, scale, zero=zero).decoded
    with_search = squared_error_by_group(w, searched, group)
    without = squared_error_by_group(w, plain, group)
    assert np.all(with_search <= without * (1 + 1e-4))
    assert with_search.sum() < 0.97 * without.sum()

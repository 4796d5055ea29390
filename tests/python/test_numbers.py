"""The library's number formats against NumPy and ml_dtypes, over all bit patterns."""

import ml_dtypes
import numpy as np
import pytest
from dump import dump

TYPES = {
    "bf16": (ml_dtypes.bfloat16, np.uint16, 1 << 16),
    "f16": (np.float16, np.uint16, 1 << 16),
    "e4m3": (ml_dtypes.float8_e4m3fn, np.uint8, 1 << 8),
    "e8m0": (ml_dtypes.float8_e8m0fnu, np.uint8, 1 << 8),
    "e2m1": (ml_dtypes.float4_e2m1fn, np.uint8, 1 << 4),
}
ENCODED = ["bf16", "f16", "e4m3", "e2m1"]


def all_codes(name):
    _, storage, count = TYPES[name]
    return np.arange(count, dtype=storage)


def bits(values):
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def encode(name, values):
    return np.frombuffer(dump(values.astype(np.float32), "encode", name), dtype=TYPES[name][1])


def expected_codes(name, values):
    dtype, storage, _ = TYPES[name]
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(dtype).view(storage)


@pytest.mark.parametrize("name", TYPES)
def test_every_code_decodes_to_the_same_bits(name):
    codes = all_codes(name)
    got = np.frombuffer(dump(codes, "decode", name), dtype=np.float32)
    want = codes.view(TYPES[name][0]).astype(np.float32)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(bits(got)[~nan], bits(want)[~nan])


@pytest.mark.parametrize("name", ENCODED)
def test_every_value_of_a_format_encodes_to_its_code(name):
    codes = all_codes(name)
    values = codes.view(TYPES[name][0]).astype(np.float32)
    finite = ~np.isnan(values)
    if name == "e4m3":  # saturates, so infinities of other formats have no code
        assert np.all(np.isfinite(values[finite]))
    assert np.array_equal(encode(name, values)[finite], codes[finite])


def values_to_round(name):
    """Random bit patterns, all values of 16-bit formats, and every tie with its neighbours."""
    random = np.random.default_rng(5)
    patterns = random.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    spread = (random.standard_normal(1 << 18) * 2.0 ** random.integers(-30, 20, 1 << 18)).astype(
        np.float32
    )
    half = np.arange(1 << 16, dtype=np.uint16)
    wide = np.concatenate(
        [half.view(np.float16).astype(np.float32), half.view(ml_dtypes.bfloat16).astype(np.float32)]
    )
    with np.errstate(invalid="ignore"):  # NaN codes
        own = all_codes(name).view(TYPES[name][0]).astype(np.float64)
    own = np.unique(own[np.isfinite(own)])
    ties = ((own[1:] + own[:-1]) / 2).astype(np.float32)
    around = np.concatenate(
        [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    )
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([patterns, spread, wide, around, special])


@pytest.mark.parametrize("name", ENCODED)
def test_rounding_is_to_nearest_with_ties_to_even(name):
    values = values_to_round(name)
    values = values[~np.isnan(values)]
    if name == "e4m3":  # ml_dtypes gives NaN past 464; a test of its own is below
        values = values[np.abs(values) <= 464]
    got, want = encode(name, values), expected_codes(name, values)
    wrong = np.flatnonzero(got != want)
    assert wrong.size == 0, [(values[i], got[i], want[i]) for i in wrong[:5]]


def test_e4m3_saturates_at_448():
    values = np.array([448, 464, 465, 480, 1e9, np.inf], np.float32)
    assert np.all(encode("e4m3", values) == 0x7E)
    assert np.all(encode("e4m3", -values) == 0xFE)


def test_e2m1_saturates_at_6_and_keeps_the_sign_of_zero():
    values = np.array([6, 7, 1e9, np.inf, 0.0, 0.2], np.float32)
    assert encode("e2m1", values).tolist() == [7, 7, 7, 7, 0, 0]
    assert encode("e2m1", -values).tolist() == [15, 15, 15, 15, 8, 8]


def test_nan_stays_nan_where_the_format_has_one():
    patterns = np.array([0x7F800001, 0x7FC00000, 0xFFC00000, 0xFFFFFFFF, 0x7F80FFFF], np.uint32)
    values = patterns.view(np.float32)
    negative = patterns >> 31 == 1
    for name in ("bf16", "f16", "e4m3"):
        codes = encode(name, values)
        decoded = codes.view(TYPES[name][0]).astype(np.float32)
        assert np.all(np.isnan(decoded)), name
        assert np.array_equal(bits(decoded) >> 31 == 1, negative), name
    assert np.all(encode("e2m1", values) == 0)

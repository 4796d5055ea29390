"""Checkpoints that we write, loaded and decompressed by the compressed-tensors package itself."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
pytest.importorskip("transformers", reason="compressed-tensors' loader needs transformers")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
import checkpoint_reference as reference  # noqa: E402
from compressed_tensors.compressors import ModelCompressor  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationConfig,
    apply_quantization_config,
)
from safetensors.torch import load_file  # noqa: E402
from test_checkpoint_independent import EVEN_SHAPES, FORMATS, nibble, write_model  # noqa: E402

WRITTEN = [name for name in FORMATS if not name.startswith(("fp4", "nf4"))]
TORCH = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}


class Block(torch.nn.Module):
    def __init__(self, n, k, dtype):
        super().__init__()
        self.proj = torch.nn.Linear(k, n, dtype=dtype)


class Model(torch.nn.Module):
    """The modules that write_model's tensors belong to, and a Linear that shares no tensor."""

    def __init__(self, shapes, dtype):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(7, 16, dtype=dtype)
        self.blocks = torch.nn.ModuleList(Block(n, k, dtype) for n, k in shapes)
        self.norm = torch.nn.LayerNorm(16, bias=False, dtype=dtype)


def decompressed(folder, shapes, dtype):
    """The steps by which Transformers loads such a checkpoint and dequantizes it."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(
        {k: v for k, v in config.items() if k not in ("transform_config", "sparsity_config")}
    )
    model = Model(shapes, dtype)
    apply_quantization_config(model, config)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    compressor.decompress_model(model)
    return {f"blocks.{i}.proj": block.proj.weight for i, block in enumerate(model.blocks)}


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_package_decodes_what_the_rules_say(name, dtype, tmp_path):
    write_model(tmp_path / "in", EVEN_SHAPES, dtype)
    nibble("quantize", tmp_path / "in", tmp_path / "out", "--format", name)
    ours = reference.decode(tmp_path / "out")
    theirs = decompressed(tmp_path / "out", EVEN_SHAPES, TORCH[dtype])
    assert sorted(ours) == sorted(theirs)
    for layer, weight in theirs.items():
        expected = torch.from_numpy(np.ascontiguousarray(ours[layer]))
        # The package computes in the model's dtype (scales are cast to it), FP4 in bf16 whatever
        # that is; the exact value rounded once is what it must give, bit for bit.
        expected = expected.to(torch.bfloat16 if "fp4" in name else TORCH[dtype])
        assert weight.shape == expected.shape
        wrong = (weight.to(torch.float32) != expected.to(torch.float32)).sum().item()
        assert wrong == 0, f"{layer}: {wrong} of {weight.numel()} elements differ"


def test_layers_of_two_groups_load_by_name(tmp_path):
    shapes = [(32, 256), (24, 208)]  # 208 = 13 * 16: its group is 16
    write_model(tmp_path / "in", shapes)
    nibble("quantize", tmp_path / "in", tmp_path / "out", "--format", "int4-g128")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2
    ours = reference.decode(tmp_path / "out")
    for layer, weight in decompressed(tmp_path / "out", shapes, torch.bfloat16).items():
        expected = torch.from_numpy(ours[layer]).to(torch.bfloat16)
        assert torch.equal(weight, expected), layer


def test_excluded_layers_stay_float(tmp_path):
    shapes = [(32, 256), (24, 128)]
    source = write_model(tmp_path / "in", shapes)
    nibble(
        "quantize",
        tmp_path / "in",
        tmp_path / "out",
        "--format",
        "nvfp4",
        "--exclude",
        r"blocks\.1\.",
    )
    weights = decompressed(tmp_path / "out", shapes, torch.bfloat16)
    want = torch.from_numpy(source["blocks.1.proj.weight"].view(np.int16)).view(torch.bfloat16)
    assert torch.equal(weights["blocks.1.proj"], want)

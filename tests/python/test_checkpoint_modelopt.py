"""Weights that ModelOpt packs, decoded by us as its own classes decode them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")
from decoded_layers import decoded, write_layers  # noqa: E402
from modelopt.torch.export import quant_utils  # noqa: E402

SHAPES = [(48, 96), (10, 160), (3, 512), (130, 64)]


def check(folder, layers, want, algorithm, exact=True):
    write_layers(folder, layers, {"quant_method": "modelopt", "quant_algo": algorithm})
    ours = decoded(folder)
    assert sorted(ours) == sorted(want)
    for name, weight in want.items():
        if exact:
            np.testing.assert_array_equal(ours[name], weight.numpy(), err_msg=name)
        else:
            atol = 2e-6 * weight.abs().max().item()
            np.testing.assert_allclose(ours[name], weight.numpy(), rtol=0, atol=atol)


def weights():
    torch.manual_seed(3)
    for n, k in SHAPES:
        weight = torch.randn(n, k) * torch.rand(n, 1)
        weight[0, :32] = 0
        yield f"l{n}x{k}", weight


@pytest.mark.parametrize("block", [16, 32])
def test_nvfp4(block, tmp_path):
    layers, want = {}, {}
    for name, weight in weights():
        packed, scale, scale_2 = qtensor.NVFP4QTensor.quantize(weight, block)
        layers[name] = {
            "weight": packed._quantized_data,
            "weight_scale": scale,
            "weight_scale_2": scale_2,
        }
        want[name] = packed.dequantize(
            torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: block}
        )
    check(tmp_path / "model", layers, want, "W4A8_NVFP4_FP8" if block == 32 else "NVFP4")


def test_mxfp4(tmp_path):
    layers, want = {}, {}
    for name, weight in weights():
        packed, scale = qtensor.MXFP4QTensor.quantize(weight, 32)
        rows = scale.reshape(weight.shape[0], -1)
        layers[name] = {"weight": packed._quantized_data, "weight_scale": rows}
        want[name] = packed.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})
    check(tmp_path / "model", layers, want, "mxfp4")


@pytest.mark.parametrize("block", [16, 32, 64])
def test_int4_packed_along_n(block, tmp_path):
    layers, want = {}, {}
    for name, weight in weights():
        n, k = weight.shape
        if n % 2 != 0 or k % block != 0:
            continue
        scale = weight.reshape(n, -1, block).abs().amax(-1).clamp(min=1e-6) / 7
        packed = quant_utils.pack_int4_in_uint8(weight, scale, block)
        layers[name] = {"weight": packed, "weight_scale": scale}
        wide = scale.repeat_interleave(block, dim=1)
        want[name] = (weight / wide).round().clamp(-8, 7) * wide
    check(tmp_path / "model", layers, want, "W4A16_AWQ")


@pytest.mark.parametrize("scales", ["tensor", "row", "blocks"])
def test_fp8(scales, tmp_path):
    layers, want = {}, {}
    for name, weight in weights():
        if scales == "blocks":
            sizes = {-1: 128, -2: 128}
            packed, scale = qtensor.FP8QTensor.quantize(weight, block_sizes=sizes)
            want[name] = packed.dequantize(torch.float32, scale=scale, block_sizes=sizes)
            stored = scale
        else:
            amax = weight.abs().amax() if scales == "tensor" else weight.abs().amax(1, keepdim=True)
            scale = amax.clamp(min=1e-6) / 448
            packed, _ = qtensor.FP8QTensor.quantize(weight, scale)
            want[name] = packed.dequantize(torch.float32, scale=scale)
            stored = scale.squeeze()
        layers[name] = {"weight": packed._quantized_data, "weight_scale": stored}
    names = {"tensor": "FP8", "row": "FP8_PER_CHANNEL_PER_TOKEN", "blocks": "fp8_pb_wo"}
    check(tmp_path / "model", layers, want, names[scales])


def test_mxfp8(tmp_path):
    layers, want = {}, {}
    for name, weight in weights():
        packed, scale = qtensor.MXFP8QTensor.quantize(weight)
        layers[name] = {"weight": packed._quantized_data, "weight_scale": scale}
        want[name] = packed.dequantize(torch.float32, scale=scale)
    check(tmp_path / "model", layers, want, "MXFP8")

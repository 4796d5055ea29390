"""Weights that bitsandbytes packs, decoded by us as its generic implementation decodes them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
from bitsandbytes.backends.default import ops  # noqa: E402
from decoded_layers import decoded, write_layers  # noqa: E402

# Blocks that divide rows, cross them, are longer than them; short last blocks; odd sizes.
SHAPES = [(48, 256), (56, 144), (9, 136), (33, 96), (7, 40), (4, 1024), (5, 33), (1, 200)]


def expected(packed, state, shape):
    # The package's own CPU kernel is wrong for some k: its generic code is the reference.
    absmax = state.absmax
    with torch.compiler.set_stance("force_eager"):
        if state.nested:
            inner = state.state2
            absmax = ops._dequantize_blockwise_compute(
                state.absmax.reshape(-1), inner.absmax, inner.code, inner.blocksize, torch.float32
            )
            absmax = absmax + state.offset
        weight = ops._dequantize_4bit_compute(
            packed.view(torch.uint8).reshape(-1),
            absmax,
            state.code,
            state.blocksize,
            shape,
            torch.float32,
        )
    return weight.reshape(shape).numpy()


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_every_shape_and_block_decodes_as_the_package_does(kind, nested, storage, tmp_path):
    torch.manual_seed(7)
    layers, want = {}, {}
    for n, k in SHAPES:
        if storage != torch.uint8 and n * k % 4 != 0:
            continue
        for block in (64, 128, 256, 4096):
            weight = torch.randn(n, k) * torch.rand(n, 1)
            packed, state = bnb.functional.quantize_4bit(
                weight,
                blocksize=block,
                compress_statistics=nested,
                quant_type=kind,
                quant_storage=storage,
            )
            name = f"layer.{n}x{k}-{block}"
            parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
            layers[name] = {"weight": packed, **parts}
            want[name] = expected(packed, state, (n, k))
    write_layers(tmp_path / "model", layers, {"quant_method": "bitsandbytes"})
    ours = decoded(tmp_path / "model")
    assert sorted(ours) == sorted(want)
    for name, weight in want.items():
        np.testing.assert_array_equal(ours[name], weight, err_msg=name)

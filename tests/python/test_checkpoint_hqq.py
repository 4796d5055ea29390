"""Layers that HQQ packs and saves, decoded by us as HQQLinear.dequantize decodes them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
hqq = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
from command_line import UNSUPPORTED, run  # noqa: E402
from decoded_layers import decoded, write_layers  # noqa: E402

# (n, k, group; None: the whole row, or column): groups that divide rows, cross them, are longer.
CASES = [(48, 192, 64), (56, 144, 64), (40, 96, 128), (8, 72, 16), (16, 72, 64), (24, 80, None)]


def layer(n, k, group, nbits=4, axis=1, dtype=torch.float32, view_as_float=False):
    torch.manual_seed(n + k)
    linear = torch.nn.Linear(k, n, bias=True)
    config = hqq.BaseQuantizeConfig(
        nbits=nbits, group_size=group, axis=axis, view_as_float=view_as_float
    )
    return hqq.HQQLinear(linear, config, compute_dtype=dtype, device="cpu")


def check(folder, layers, dtype=torch.float32):
    write_layers(
        folder, {name: each.state_dict() for name, each in layers.items()}, {"quant_method": "hqq"}
    )
    ours = decoded(folder)
    assert sorted(ours) == sorted(layers)
    for name, each in layers.items():
        want = each.dequantize().to(torch.float32).numpy()
        if dtype == torch.float32:
            np.testing.assert_array_equal(ours[name], want, err_msg=name)
        else:  # the package rounds twice; ours rounds the exact scale and zero once
            eps = 2.0 ** (-10 if dtype == torch.float16 else -7)
            np.testing.assert_allclose(ours[name], want, rtol=0, atol=eps * np.abs(want).max())


@pytest.mark.parametrize("view_as_float", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", [4, 8])
def test_every_shape_decodes_as_the_package_does(nbits, axis, view_as_float, tmp_path):
    layers = {}
    for n, k, group in CASES:
        group_count = n * k // group if group else (n if axis == 1 else k)
        if axis == 1 and group_count % 2 != 0:
            continue  # the package cannot pack an odd number of rows
        if axis == 0 and view_as_float and group_count % 4 != 0:
            continue  # nor view them as floats
        layers[f"l{n}x{k}"] = layer(n, k, group, nbits, axis, view_as_float=view_as_float)
    check(tmp_path / "model", layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_scales_and_zeros(dtype, tmp_path):
    layers = {
        f"a{axis}v{view}": layer(48, 192, 64, axis=axis, dtype=dtype, view_as_float=view)
        for axis in (0, 1)
        for view in (False, True)
    }
    check(tmp_path / "model", layers, dtype)


@pytest.mark.parametrize("nbits", [3, 2, 1])
def test_other_widths_are_refused_by_name(nbits, tmp_path):
    made = {"l": layer(48, 192, 64, nbits).state_dict()}
    write_layers(tmp_path / "model", made, {"quant_method": "hqq"})
    done = run("inspect", tmp_path / "model")
    assert f"weights of {nbits} bits" in done.stdout + done.stderr
    assert done.returncode in (0, UNSUPPORTED)

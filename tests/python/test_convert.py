"""nibble convert over every fixture that a tool wrote: dense truth, lossless output, refusals."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from command_line import (
    CHECK_FAILED,
    CLI,
    ROOT,
    UNSUPPORTED,
    USAGE,
    assert_fails,
    bf16,
    read_safetensors,
    run,
    run_json,
    run_ok,
    tree,
    write_safetensors,
)

FIXTURES = ROOT / "tests/data/fixtures"
NAMES = sorted(str(path.parent.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*/fixture.json"))
# The tool's own order of operations is not the format's: 2e-6 of the largest weight.
NEARLY = ("modelopt/int4-awq", "onnx-matmulnbits/hqq-b64-float-zero")

# What becomes of each fixture, decided by computing it: here so that a change is noticed.
LOSSLESS = {
    "compressed-tensors": [
        "awq/*", "gptq/v1-sym-g128", "gptq/v1-asym-g32-bias", "gptq/v1-sym-8bit-g32",
        "gptq/v1-sym-channel", "gptq/v1-autogptq-asym-g32", "gptq/v2-asym-g64",
        "gguf/q4_0", "gguf/q8_0", "gguf/mxfp4",
        "modelopt/mxfp4-llama", "modelopt/int4-awq-g128-mlp", "modelopt/qtensor-mxfp4",
        "onnx-matmulnbits/sym-*", "onnx-matmulnbits/asym-*",
        "onnx-matmulnbits/dequantizelinear-asym-b32",
        "compressed-tensors/int4-asym-*", "compressed-tensors/int4-sym-[!g]*",
        "compressed-tensors/int4-sym-g128-bf16", "compressed-tensors/int4-sym-g32-sharded",
        "compressed-tensors/int8-*", "compressed-tensors/*fp4*",
    ],
    "gguf": ["gguf/q4_0", "gguf/q8_0", "gguf/mxfp4", "gptq/v1-sym-g128", "modelopt/mxfp4-llama"],
    "modelopt": ["modelopt/*", "compressed-tensors/mxfp4a16-bf16"],
}  # fmt: skip
LOSSY = {
    "compressed-tensors": [
        "bitsandbytes/*", "gptq/v1-sym-g32-desc-act", "gguf/q4_k", "gguf/q4_1",
        "modelopt/int4-awq-g32-llama", "compressed-tensors/int4-sym-g32-g-idx",
    ],
    "gguf": ["bitsandbytes/*", "awq/*", "gptq/*asym*", "modelopt/nvfp4-llama"],
    "modelopt": ["bitsandbytes/*", "awq/*", "gptq/v2-asym-g64", "gptq/v1-sym-8bit-g32"],
}  # fmt: skip


def matching(patterns):
    return sorted({n for p in patterns for n in NAMES if pathlib.PurePath(n).match(p)})


def cases(table):
    return [(target, name) for target in table for name in matching(table[target])]


def read_tensors(path):
    """name → float32 array, of the plain types alone."""
    out = {}
    for name, (dtype, shape, data) in read_safetensors(path).items():
        if dtype == "F32":
            values = np.frombuffer(data, np.float32)
        elif dtype == "F16":
            values = np.frombuffer(data, np.float16).astype(np.float32)
        elif dtype == "BF16":
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            continue
        out[name] = values.reshape(shape)
    return out


def rounded(values, dtype):
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32)


def source_of(name, tmp_path):
    """A copy without the test's own files, which are no part of the checkpoint."""
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / name, source)
    (source / "golden.safetensors").unlink()
    (source / "fixture.json").unlink()
    return source


@pytest.mark.parametrize("name", NAMES)
def test_dense_output_is_the_tools_own_weight(name, tmp_path):
    source, out = source_of(name, tmp_path), tmp_path / "out"
    summary = run_json("convert", source, out, "--to", "dense")
    assert summary["spelling"] == "dense" and summary["layers"]
    assert all(layer["relative_error"] == 0 for layer in summary["layers"])
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert not (out / "hf_quant_config.json").exists()
    about = json.loads((FIXTURES / name / "fixture.json").read_text())
    stored = read_tensors(out / "model.safetensors")
    golden = read_tensors(FIXTURES / name / "golden.safetensors")
    scales = {}
    if (source / "model.safetensors").is_file():
        scales = {
            key.removesuffix(".pre_quant_scale"): value
            for key, value in read_tensors(source / "model.safetensors").items()
            if key.endswith(".pre_quant_scale")
        }
    assert {layer["name"] for layer in summary["layers"] if "pre_scale_folded" in layer} == set(
        scales
    )
    for layer in summary["layers"]:
        want = golden[layer["name"] + ".weight"]
        got = stored[layer["name"] + ".weight"]
        assert got.shape == want.shape
        if layer["name"] in scales:
            want = want * scales[layer["name"]]
        tolerance = 0
        if name.startswith(NEARLY):
            tolerance = 2e-6 * np.abs(want).max()
        elif about.get("rounded_after_each_step"):
            # The tool rounded the difference too; the dense weight is the exact one.
            tolerance = np.abs(want).max() * {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(
                about["golden_rounding"], 2e-6
            )
        else:
            got = rounded(got, about["golden_rounding"])
        assert np.all(np.abs(got - want) <= tolerance), layer["name"]
    # And it is what `verify` compares with.
    verified = run_json("verify", out, "--against", source, "--max-error", "0")
    assert verified["identical_layers"] == len(summary["layers"])


@pytest.mark.parametrize(("target", "name"), cases(LOSSLESS))
def test_lossless_conversions_decode_to_the_same_bits(target, name, tmp_path):
    source, out = source_of(name, tmp_path), tmp_path / "out"
    done = run("convert", source, out, "--to", target, "--json")
    if "nvfp4" in name and done.returncode == UNSUPPORTED and target != name.split("/")[0]:
        assert "near its reciprocal" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["spelling"] == target
    assert {layer["result"] for layer in summary["layers"]} == {"identical"}
    verified = run_json("verify", out, "--against", source, "--max-error", "0")
    assert verified["identical_layers"] == len(summary["layers"]) == len(verified["layers"])
    listed = {layer["name"]: layer for layer in run_json("inspect", out)["layers"]}
    for layer in summary["layers"]:
        assert listed[layer["name"]]["format"] == layer["to"]


@pytest.mark.parametrize(("target", "name"), cases(LOSSY))
def test_lossy_conversions_are_refused_and_reported_when_allowed(target, name, tmp_path):
    source, out = source_of(name, tmp_path), tmp_path / "out"
    done = assert_fails(
        UNSUPPORTED, "convert", source, out, "--to", target, says="without changing its weights"
    )
    assert "--allow-requantize" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["source"]
    done = run("convert", source, out, "--to", target, "--allow-requantize", "--json")
    if done.returncode == UNSUPPORTED:  # a shape that the target has no format for
        assert "cannot be quantized anew either" in done.stderr
        assert not out.exists()
        return
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    lossy = [layer for layer in summary["layers"] if layer["result"] == "requantized"]
    assert lossy and all(layer["reason"] for layer in lossy)
    errors = {layer["name"]: layer["relative_error"] for layer in summary["layers"]}
    assert all(0 < errors[layer["name"]] < 0.3 for layer in lossy)
    verified = run_json("verify", out, "--against", source)
    for layer in verified["layers"]:
        assert layer["relative_error"] == pytest.approx(errors[layer["name"]], rel=1e-9)
    text = run_ok("convert", source, tmp_path / "text", "--to", target, "--allow-requantize").stdout
    assert f"{errors[lossy[0]['name']]:.5f}" in text


def test_the_format_of_what_is_quantized_anew_can_be_chosen(tmp_path):
    source = FIXTURES / "bitsandbytes/nf4/model.safetensors"
    for form, stored in (("int8-g64", "int8-g64"), ("uint4-g16", "uint4-g16")):
        out = tmp_path / form
        done = run_json(
            "convert", source, out, "--to", "compressed-tensors", "--allow-requantize", form
        )
        assert {layer["to"] for layer in done["layers"]} == {stored}
    done = run_json(
        "convert", source, tmp_path / "x.gguf", "--to", "gguf", "--allow-requantize", "int8-g32"
    )
    assert {layer["to"] for layer in done["layers"]} == {"int8-g32:f16"}
    assert_fails(
        USAGE, "convert", source, tmp_path / "y", "--to", "gguf", "--allow-requantize", "int5",
        says="int5",
    )  # fmt: skip


def test_bf16_is_announced_as_rounding(tmp_path):
    source = FIXTURES / "awq/gemm-g128/model.safetensors"
    exact = run_ok("convert", source, tmp_path / "f32", "--to", "dense").stdout
    assert "rounded" not in exact
    done = run_ok("convert", source, tmp_path / "bf16", "--to", "dense", "--dtype", "bf16")
    assert "rounded to bf16" in done.stdout
    error = run_json("convert", source, tmp_path / "again", "--to", "dense", "--dtype", "bf16")[
        "layers"
    ][0]["relative_error"]
    assert 1e-4 < error < 2.0**-8
    a, b = (read_tensors(tmp_path / d / "model.safetensors") for d in ("f32", "bf16"))
    layer = run_json("inspect", source)["layers"][0]["name"] + ".weight"
    assert np.array_equal(rounded(a[layer], "bfloat16"), b[layer])


def test_excluded_layers_become_floats(tmp_path):
    source = FIXTURES / "awq/gemm-g32-bias-multi/model.safetensors"
    names = [layer["name"] for layer in run_json("inspect", source)["layers"]]
    out = tmp_path / "out"
    done = run_json(
        "convert", source, out, "--to", "compressed-tensors", "--exclude", names[0] + "$"
    )
    results = {layer["name"]: layer["result"] for layer in done["layers"]}
    assert results == {name: "dense" if name == names[0] else "identical" for name in names}
    stored = read_safetensors(out / "model.safetensors")
    assert stored[names[0] + ".weight"][0] == "F32"
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert names[0] in config["ignore"]
    assert run_json("verify", out, "--against", source, "--max-error", "0")["passed"]


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    source, out = FIXTURES / "awq/gemm-g128/model.safetensors", tmp_path / "out"
    assert_fails(USAGE, "convert", source, out, "--to", "gptq", says="gptq")
    assert_fails(USAGE, "convert", source, out, says="--to")
    assert_fails(
        USAGE, "convert", source, tmp_path / "x.gguf", "--to", "dense", says="looks like a file"
    )
    assert_fails(
        USAGE, "convert", source, out, "--to", "dense", "--allow-requantize", says="no meaning"
    )
    assert_fails(USAGE, "convert", source, out, "--to", "gguf", "--include", "(", says="include")
    plain = tmp_path / "plain.safetensors"
    write_safetensors(plain, {"a.weight": ("F32", np.ones((4, 32), np.float32))})
    assert_fails(
        USAGE, "convert", plain, out, "--to", "compressed-tensors", says="no quantized layer"
    )
    assert not out.exists()


def test_float_checkpoints_change_their_container(tmp_path):
    values = np.arange(128, dtype=np.float32).reshape(4, 32)
    write_safetensors(
        tmp_path / "in.safetensors",
        {"a.weight": ("F32", values), "b.weight": ("BF16", bf16(values))},
    )
    run_ok("convert", tmp_path / "in.safetensors", tmp_path / "m.gguf", "--to", "gguf")
    run_ok("convert", tmp_path / "m.gguf", tmp_path / "back", "--to", "dense")
    stored = read_safetensors(tmp_path / "back/model.safetensors")
    source = read_safetensors(tmp_path / "in.safetensors")
    assert stored == source


def test_an_existing_output_needs_overwrite(tmp_path):
    source = FIXTURES / "awq/gemm-g128/model.safetensors"
    for out, target in ((tmp_path / "out", "compressed-tensors"), (tmp_path / "m.gguf", "gguf")):
        options = ("--to", target, "--allow-requantize")
        run_ok("convert", source, out, *options)
        assert_fails(
            USAGE, "convert", source, out, *options, "--json", says="overwriting was not asked"
        )
        run_ok("convert", source, out, *options, "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "out"]


def test_verify_sees_what_a_conversion_lost(tmp_path):
    source = FIXTURES / "gguf/q4_1/model.gguf"
    out = tmp_path / "out"
    run_ok("convert", source, out, "--to", "compressed-tensors", "--allow-requantize")
    assert run("verify", out, "--against", source, "--max-error", "0").returncode == CHECK_FAILED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_convert_leaves_the_old_output(number, tmp_path):
    weight = bf16(np.random.default_rng(1).standard_normal((2048, 2048)) * 0.02)
    write_safetensors(
        tmp_path / "float.safetensors", {f"l.{i}.weight": ("BF16", weight) for i in range(8)}
    )
    run_ok(
        "quantize", tmp_path / "float.safetensors", tmp_path / "model", "--format", "int8-channel",
        "--scales", "absmax",
    )  # fmt: skip
    (tmp_path / "float.safetensors").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("old")
    command = [CLI, "convert", tmp_path / "model", out, "--to", "dense", "--overwrite"]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert tree(out) == {"precious.txt": b"old"}
    if number != signal.SIGKILL:
        assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    run_ok(*command[1:])
    assert "precious.txt" not in tree(out)


def test_quantize_writes_the_modelopt_spelling(model, tmp_path):
    for form, algorithm in (("nvfp4", "W4A16_NVFP4"), ("int4-g16", "W4A16_AWQ")):
        out = tmp_path / form
        done = run_json("quantize", model, out, "--format", form, "--to", "modelopt")
        assert done["spelling"] == "modelopt"
        hf = json.loads((out / "hf_quant_config.json").read_text())
        assert hf["quantization"]["quant_algo"] == algorithm
        assert run_json("inspect", out)["spelling"] == "modelopt"
        verified = run_json("verify", out, "--against", model)
        errors = {layer["name"]: layer["relative_error"] for layer in verified["layers"]}
        for layer in done["layers"]:
            assert errors[layer["name"]] == pytest.approx(layer["relative_error"], rel=1e-9)
    assert_fails(
        UNSUPPORTED, "quantize", model, tmp_path / "x", "--format", "nf4-g64", "--to", "modelopt",
        "--include", "up_proj", says="modelopt has no form for nf4-g64",
    )  # fmt: skip


def test_the_examples_of_the_howto_run(tmp_path):
    text = (ROOT / "docs/howto/convert-a-checkpoint.md").read_text()
    commands = re.findall(r"^build/nibble (.*)$", text, re.M)
    assert len(commands) >= 9
    for command in commands:
        words = [word.replace("build/", f"{tmp_path}/", 1) for word in shlex.split(command)]
        done = run(*words, cwd=ROOT)
        assert done.returncode == 0, (command, done.stderr)


# --- the tools' own packages ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "mxfp4"])
def test_written_gguf_loads_and_decodes_in_the_gguf_package(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "m.gguf"
    run_ok("convert", FIXTURES / f"gguf/{name}/model.gguf", out, "--to", "gguf")
    golden = read_tensors(FIXTURES / f"gguf/{name}/golden.safetensors")
    seen = 0
    for tensor in gguf.GGUFReader(out).tensors:
        if tensor.name not in golden:
            continue
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(got.reshape(golden[tensor.name].shape), golden[tensor.name])
        seen += 1
    assert seen >= 2


def test_written_gguf_of_another_spelling_loads_in_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "m.gguf"
    run_ok("convert", FIXTURES / "gptq/v1-sym-g128/model.safetensors", out, "--to", "gguf")
    run_ok("convert", out, tmp_path / "dense", "--to", "dense")
    dense = read_tensors(tmp_path / "dense/model.safetensors")
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.architecture"] is not None
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "Q4_0" in types.values()
    for tensor in reader.tensors:
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        want = dense[tensor.name]
        assert np.array_equal(np.asarray(got, np.float32).reshape(want.shape), want), tensor.name


@pytest.mark.parametrize(
    "name", ["awq/gemm-g128", "gptq/v1-sym-g128", "gptq/v1-asym-g32-bias", "gguf/mxfp4"]
)
def test_written_compressed_tensors_decode_in_the_package(name, tmp_path):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    safetensors = pytest.importorskip("safetensors.torch")
    source, out = source_of(name, tmp_path), tmp_path / "out"
    layers = run_json("convert", source, out, "--to", "compressed-tensors")["layers"]
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(
        {k: v for k, v in config.items() if k not in ("transform_config", "sparsity_config")}
    )
    model = torch.nn.Module()
    for layer in layers:
        module = model
        *path, last = layer["name"].split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        linear = torch.nn.Linear(layer["k"], layer["n"], bias=False, dtype=torch.float32)
        module.add_module(last, linear)
    quantization.apply_quantization_config(model, config)
    compressor = compressors.ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    stored = safetensors.load_file(out / "model.safetensors")
    wanted = model.state_dict()
    assert wanted.keys() <= stored.keys()
    model.load_state_dict({key: stored[key] for key in wanted}, strict=True)
    compressor.decompress_model(model)
    run_ok("convert", source, tmp_path / "dense", "--to", "dense")
    dense = read_tensors(tmp_path / "dense/model.safetensors")
    for layer in layers:
        weight = model.get_submodule(layer["name"]).weight
        want = torch.from_numpy(dense[layer["name"] + ".weight"].copy()).to(weight.dtype)
        # FP4 is decoded in bf16 there, whatever the model's dtype.
        want = want.to(torch.bfloat16) if "fp4" in layer["to"] else want
        assert torch.equal(weight.to(torch.float32), want.to(torch.float32)), layer["name"]

"""ONNX models written by the onnx and onnxruntime packages, read by us: decoded weights are those
of onnx's reference evaluator and of an onnxruntime session."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
import ml_dtypes  # noqa: E402
from command_line import (  # noqa: E402
    CORRUPT,
    assert_fails,
    read_safetensors,
    run_json,
    run_ok,
)
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

SCALES = {
    "f32": (TensorProto.FLOAT, np.float32),
    "f16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
CODES = {
    "int4": (TensorProto.INT4, ml_dtypes.int4, -8, 7),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4, 0, 15),
    "int8": (TensorProto.INT8, np.int8, -128, 127),
    "uint8": (TensorProto.UINT8, np.uint8, 0, 255),
    "fp4": (TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn, None, None),
}


def model_of(nodes, tensors, inputs=(), outputs=()):
    graph = helper.make_graph(nodes, "graph", list(inputs), list(outputs), list(tensors))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="a test")


def save(path, model, external=None):
    """external: None, "one" file for all tensors, or a file for each ("many")."""
    path.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        model,
        path / "model.onnx",
        save_as_external_data=external is not None,
        all_tensors_to_one_file=external == "one",
        location="weights.bin" if external == "one" else None,
        size_threshold=0,
    )
    return path


def dense(path):
    """Our own values of every float tensor and decoded weight."""
    out = path.with_name(path.name + "-dense")
    run_ok("convert", path, out, "--to", "dense", "--dtype", "f32")
    return {
        name: np.frombuffer(data, np.float32).reshape(shape)
        for name, (dtype, shape, data) in read_safetensors(out / "model.safetensors").items()
        if dtype == "F32"
    }


def floats(name, shape, dtype, rng):
    kind, numpy_type = SCALES[dtype]
    values = (rng.standard_normal(shape) * 0.05).astype(np.float32).astype(numpy_type)
    return helper.make_tensor(name, kind, shape, values.tobytes(), raw=True)


# --- DequantizeLinear ----------------------------------------------------------------------------


def codes(name, shape, dtype, rng):
    kind, numpy_type, low, high = CODES[dtype]
    if low is None:
        count = int(np.prod(shape))
        return helper.make_tensor(name, kind, shape, rng.bytes(-(-count // 2)), raw=True)
    values = rng.integers(low, high + 1, shape).astype(numpy_type)
    return numpy_helper.from_array(values, name)


def dequantize_model(shape, dtype, scale, axis, block, zero, transposed, rng):
    """x · W with W [K, N], or x · Wᵀ with W [N, K]; the matrix itself is an output."""
    if block:
        extents = list(shape)
        extents[axis] = -(-shape[axis] // block)
    else:
        extents = [] if axis is None else [shape[axis]]
    tensors = [codes("up.weight", shape, dtype, rng), floats("up.scales", extents, scale, rng)]
    inputs = ["up.weight", "up.scales"]
    if zero:
        tensors.append(codes("up.zeros", extents, dtype, rng))
        inputs.append("up.zeros")
    attributes = {"axis": axis} if axis is not None else {}
    if block:
        attributes["block_size"] = block
    nodes = [helper.make_node("DequantizeLinear", inputs, ["w"], **attributes)]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "wt" if transposed else "w"], ["y"]))
    kind = SCALES[scale][0]
    x = helper.make_tensor_value_info("x", kind, [None, shape[1 if transposed else 0]])
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in ("w", "y")]
    return model_of(nodes, tensors, [x], outputs)


def reference_matrix(model, columns, scale):
    x = np.zeros((1, columns), SCALES[scale][1])
    return np.asarray(ReferenceEvaluator(model).run(["w"], {"x": x})[0])


@pytest.mark.parametrize("external", [None, "one", "many"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", list(CODES))
def test_dequantize_linear_is_the_reference_evaluators(dtype, transposed, external, tmp_path):
    rng = np.random.default_rng(11)
    shapes = [(24, 96), (33, 130), (256, 48)] if external is None else [(40, 80)]
    for shape in shapes:
        for block in (16, 32, 64, 128, 256, 20, 0, None):
            for scale in ("f32", "f16", "bf16") if block == 32 else ("f32",):
                axis = None if block is None else (1 if transposed else 0)
                if block == 0:
                    axis = 1 - axis  # a scale for each output
                zero = dtype != "fp4" and bool(rng.integers(2))
                model = dequantize_model(shape, dtype, scale, axis, block, zero, transposed, rng)
                expected = reference_matrix(model, shape[1 if transposed else 0], scale)
                folder = tmp_path / f"{shape[0]}-{block}-{scale}"
                ours = dense(save(folder, model, external))["up.weight"]
                # The reference rounds to the type of the scales, as the operator says.
                ours = ours.astype(SCALES[scale][1]) if scale != "f32" else ours
                expected = expected if transposed else expected.T
                np.testing.assert_array_equal(ours, expected, err_msg=str((shape, block, scale)))


@pytest.mark.parametrize("product", ["f32", "f16", "bf16"])
def test_nvfp4_is_two_nodes(product, tmp_path):
    rng = np.random.default_rng(12)
    shape, kind = (24, 80), SCALES[product][0]
    scales = (rng.standard_normal((24, 5)) * 20).astype(ml_dtypes.float8_e4m3fn)
    tensors = [
        codes("up.weight_q", shape, "fp4", rng),
        helper.make_tensor(
            "up.scales", TensorProto.FLOAT8E4M3FN, [24, 5], scales.tobytes(), raw=True
        ),
        floats("up.scale", [], product, rng),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["up.scales", "up.scale"], ["s"]),
        helper.make_node("DequantizeLinear", ["up.weight_q", "s"], ["w"], axis=-1, block_size=16),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", kind, [None, 80])
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in ("s", "w")]
    model = model_of(nodes, tensors, [x], outputs)
    zero = np.zeros((1, 80), SCALES[product][1])
    s, w = ReferenceEvaluator(model).run(["s", "w"], {"x": zero})
    layer = run_json("inspect", save(tmp_path / "m", model))["layers"][0]
    assert (
        layer["format"] == {"f32": "nvfp4", "f16": "fp4-g16:f16", "bf16": "fp4-g16:bf16"}[product]
    )
    ours = next(value for name, value in dense(tmp_path / "m").items() if "up" in name)
    np.testing.assert_array_equal(ours.astype(SCALES[product][1]), np.asarray(w))
    elements = onnx.numpy_helper.to_array(tensors[0]).astype(np.float32)
    exact = elements * np.repeat(np.asarray(s).astype(np.float32), 16, axis=1)
    np.testing.assert_array_equal(ours, exact)


# --- MatMulNBits ----------------------------------------------------------------------------------


def nbits_model(n, k, block, bits, zero, scale, rng, g_idx=None):
    blocks = -(-k // block)
    tensors = [
        helper.make_tensor(
            "up.weight_Q4",
            TensorProto.UINT8,
            [n, blocks, block * bits // 8],
            rng.bytes(n * blocks * block * bits // 8),
            raw=True,
        ),
        floats("up.weight_scales", [n, blocks], scale, rng),
    ]
    inputs = ["x", "up.weight_Q4", "up.weight_scales"]
    if zero == "packed":
        columns = -(-blocks * bits // 8)
        raw = rng.bytes(n * columns)
        tensors.append(helper.make_tensor("zeros", TensorProto.UINT8, [n, columns], raw, raw=True))
        inputs.append("zeros")
    elif zero == "float":
        kind, numpy_type = SCALES[scale]
        values = rng.uniform(0, 1 << bits, n * blocks).astype(np.float32).astype(numpy_type)
        tensors.append(helper.make_tensor("zeros", kind, [n * blocks], values.tobytes(), raw=True))
        inputs.append("zeros")
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        "up.MatMul_Q4",
        domain="com.microsoft",
        K=k,
        N=n,
        bits=bits,
        block_size=block,
    )
    if g_idx is not None:
        node.input.extend([""] * (4 - len(node.input)) + ["g_idx"])
        tensors.append(helper.make_tensor("g_idx", TensorProto.INT32, [k], g_idx))
    kind = SCALES[scale][0]
    x = helper.make_tensor_value_info("x", kind, [None, k])
    return model_of([node], tensors, [x], [helper.make_tensor_value_info("y", kind, [None, n])])


def session_outputs(model, feed, folder):
    """What a session without graph optimization makes of the inputs."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize(
    "bits, zero",
    [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")],  # all that it runs
)
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_matmul_nbits_is_onnxruntimes(block, bits, zero, tmp_path):
    rng = np.random.default_rng(block + bits)
    for n, k in [(24, 256), (33, 300), (16, 96)]:
        model = nbits_model(n, k, block, bits, zero, "f32", rng)
        folder = save(tmp_path / f"{n}", model)
        identity = {"x": np.eye(k, dtype=np.float32)}
        expected = session_outputs(model, identity, folder)["y"].T
        ours = dense(folder)["up.weight"]
        if zero == "float":  # the session computes q * s - z * s
            np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * abs(expected).max())
        else:
            np.testing.assert_array_equal(ours, expected)


def test_group_index_is_onnxruntimes(tmp_path):
    # Without zero points: with a group index, onnxruntime 1.31 does not read them at all.
    rng = np.random.default_rng(15)
    index = rng.permutation(np.arange(160) // 32).tolist()
    model = nbits_model(24, 160, 32, 4, "none", "f32", rng, index)
    folder = save(tmp_path / "m", model)
    identity = {"x": np.eye(160, dtype=np.float32)}
    expected = session_outputs(model, identity, folder)["y"].T
    ours = dense(folder)["up.weight"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * abs(expected).max())


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "uint8 of 4 bits", "uint8 of 8 bits"])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_gather_block_quantized_is_onnxruntimes(block, dtype, zero, tmp_path):
    rng = np.random.default_rng(block)
    rows, columns = 20, 192
    kind = dtype.split()[0]
    bits = 8 if dtype == "uint8 of 8 bits" else 4
    per_byte = 2 if dtype == "uint8 of 4 bits" else 1
    blocks = -(-columns // block)
    tensors = [
        codes("embed.weight_Q4", [rows, columns // per_byte], kind, rng),
        floats("embed.scales", [rows, blocks], "f32", rng),
    ]
    inputs = ["embed.weight_Q4", "ids", "embed.scales"]
    if zero:
        tensors.append(codes("embed.zeros", [rows, -(-blocks // per_byte)], kind, rng))
        inputs.append("embed.zeros")
    attributes = {"block_size": block, "quantize_axis": 1, "gather_axis": 0, "bits": bits}
    node = helper.make_node(
        "GatherBlockQuantized", inputs, ["y"], domain="com.microsoft", **attributes
    )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = model_of([node], tensors, [ids], [y])
    folder = save(tmp_path / "m", model)
    expected = session_outputs(model, {"ids": np.arange(rows)}, folder)["y"]
    np.testing.assert_array_equal(dense(folder)["embed.weight"], expected)


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_what_the_quantizer_makes(block, symmetric, form, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx_ir", reason="the quantizer needs onnx_ir")
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    rng = np.random.default_rng(13)
    shapes = {"layers.0.up": (288, 40), "layers.0.down": (40, 288)}
    tensors, nodes, inputs, outputs, feed = [], [], [], [], {}
    for name, (k, n) in shapes.items():
        w = (rng.standard_normal((k, n)) * 0.1).astype(np.float32)
        tensors.append(numpy_helper.from_array(w, f"{name}.weight"))
        parts = [f"{name}.x", f"{name}.weight"], [f"{name}.y"], f"{name}/MatMul"
        nodes.append(helper.make_node("MatMul", *parts))
        inputs.append(helper.make_tensor_value_info(f"{name}.x", TensorProto.FLOAT, [None, k]))
        outputs.append(helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [None, n]))
        feed[f"{name}.x"] = np.eye(k, dtype=np.float32)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block,
        is_symmetric=symmetric,
        quant_format=QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ,
    )
    model = model_of(nodes, tensors, inputs, outputs)
    model.opset_import[0].version = 21
    model.ir_version = 10
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    made = quantizer.model.model
    folder = save(tmp_path / "model", made, "one")
    report = run_json("inspect", folder)
    assert report["spelling"] == "onnx"
    assert {layer["name"] for layer in report["layers"]} == set(shapes)
    ours = dense(folder)
    theirs = session_outputs(made, feed, folder)
    for name in shapes:
        np.testing.assert_array_equal(ours[f"{name}.weight"], theirs[f"{name}.y"].T, err_msg=name)


# --- the container --------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [None, "one", "many"])
def test_every_type_of_tensor_keeps_its_bytes(external, tmp_path):
    rng = np.random.default_rng(14)
    tensors = [floats(f"f/{name}", [3, 5], name, rng) for name in SCALES]
    tensors += [codes(f"q/{name}", [3, 5], name, rng) for name in CODES]
    # Values in typed fields instead of raw_data.
    tensors += [
        helper.make_tensor("t/i8", TensorProto.INT8, [3], [-128, 0, 127]),
        helper.make_tensor("t/u4", TensorProto.UINT4, [3], [1, 15, 7]),
        helper.make_tensor("t/f16", TensorProto.FLOAT16, [2], [1.5, -2.0]),
        helper.make_tensor("t/i64", TensorProto.INT64, [2], [-1, 1 << 40]),
        helper.make_tensor("t/f64", TensorProto.DOUBLE, [1], [0.1]),
        helper.make_tensor("t/e4m3", TensorProto.FLOAT8E4M3FN, [2], [1.0, 448.0]),
        helper.make_tensor("t/bool", TensorProto.BOOL, [2], [True, False]),
    ]
    report = run_json("inspect", save(tmp_path / "m", model_of([], tensors), external))
    assert report["metadata"]["producer_name"] == "a test"
    assert report["metadata"]["opset.ai.onnx"] == "23"
    assert report["spelling"] in ("", None)
    found = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert set(found) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        entry = found[tensor.name]
        assert entry["dtype"] == TensorProto.DataType.Name(tensor.data_type)
        assert entry["shape"] == list(tensor.dims)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "a/../../outside.bin"])
def test_external_data_outside_the_directory_is_refused(location, tmp_path):
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.onnx").write_bytes(model_of([], [tensor]).SerializeToString())
    assert_fails(CORRUPT, "inspect", tmp_path / "m", says="not in this directory")

"""The command line as its users see it: help, exit codes, JSON, and files on disk."""

import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))
CLI = pathlib.Path(os.environ.get("NIBBLE_CLI", BUILD / "nibble"))
COMMANDS = ["quantize", "inspect", "verify", "plan", "kernels", "doctor", "bench"]
SANITIZED = "asan" in str(BUILD) or "tsan" in str(BUILD)

USAGE, CHECK_FAILED, UNSUPPORTED, CORRUPT, IO = 2, 1, 3, 4, 5


def run(*args, **options):
    if not CLI.is_file():
        pytest.fail(f"{CLI} is not built; run: make build")
    return subprocess.run(
        [CLI, *map(str, args)], capture_output=True, text=True, check=False, **options
    )


def run_ok(*args):
    done = run(*args)
    assert done.returncode == 0, done.stderr
    return done


def run_json(*args):
    return json.loads(run_ok(*args, "--json").stdout)


def assert_fails(code, *args, says=""):
    """The command fails with this exit code, one line on stderr and nothing on stdout."""
    done = run(*args)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if "warning:" not in line]
    assert len(lines) == 1 and lines[0].startswith("nibble: "), done.stderr
    assert re.search(says, lines[0]), done.stderr
    return done


# --- checkpoints ----------------------------------------------------------------------------------


def bf16(values):
    """BF16 bits of float32 values, truncated: any bits serve as a test model's weights."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


DTYPES = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16, "I64": np.int64}


def write_safetensors(path, tensors):
    """tensors: name -> (dtype name, array)."""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        assert array.dtype == DTYPES[dtype]
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(array.tobytes())


def read_safetensors(path):
    """name -> (dtype name, shape, bytes)."""
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def small_model(seed=0):
    rng = np.random.default_rng(seed)

    def weight(n, k):
        return ("BF16", bf16(rng.standard_normal((n, k)) * 0.02))

    tensors = {"model.embed_tokens.weight": weight(96, 256)}
    for i in range(2):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.self_attn.q_proj.weight"] = weight(256, 256)
        tensors[f"{layer}.self_attn.q_proj.bias"] = ("BF16", bf16(rng.standard_normal(256)))
        tensors[f"{layer}.mlp.up_proj.weight"] = weight(688, 256)
        tensors[f"{layer}.mlp.down_proj.weight"] = weight(256, 688)
        tensors[f"{layer}.input_layernorm.weight"] = ("BF16", bf16(np.ones(256)))
    tensors["lm_head.weight"] = weight(96, 256)
    return tensors


def write_model(folder, tensors):
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", small_model())


def tree(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- help and arguments ---------------------------------------------------------------------------


def test_help_lists_every_command_and_the_exit_codes():
    text = run_ok("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", text, re.MULTILINE), command
    assert "Exit codes: 0 ok; 1 a check failed; 2" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_json_and_exit_codes(command):
    text = run_ok(command, "--help").stdout
    assert f"nibble {command}" in text.split("Examples:")[1]
    assert "--json" in text
    assert "Exit codes: 0 ok" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_parse(command, tmp_path):
    """An example that the program would refuse as wrong usage is a wrong document."""
    text = run_ok(command, "--help").stdout
    examples = re.findall(rf"^  (nibble {command}.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        # An unknown option after the example's own is refused while parsing, before any work.
        line = example.split(">")[0].replace("nibble", str(CLI), 1) + " --no-such-option"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == USAGE
        assert "--no-such-option" in done.stderr, done.stderr


def test_version():
    assert re.fullmatch(r"nibble \d+\.\d+\.\d+\n", run_ok("--version").stdout)


def test_wrong_usage_is_exit_2_and_one_sentence():
    assert_fails(USAGE, says="subcommand")
    assert_fails(USAGE, "quantise", says="'quantise' is no command")
    assert_fails(USAGE, "inspect", says="PATH")
    assert_fails(USAGE, "doctor", "extra", says="extra")
    assert_fails(USAGE, "kernels", "--json", "--markdown")
    assert_fails(USAGE, "plan", "--n", 64, "--k", 64, "--format", "int4-g99", says="int4-g99")
    assert_fails(USAGE, "plan", "--n", 64, "--k", 64, "--format", "nvfp4", "--device", "abacus")
    assert_fails(USAGE, "plan", "--n", -1, "--k", 64, "--format", "nvfp4", says="-1")
    assert_fails(USAGE, "plan", "--n", 64, "--k", 64, "--format", "nvfp4", "--kernel", "nosuch")
    assert_fails(USAGE, "bench", "--threads", 100000, says="cores")
    assert_fails(USAGE, "bench", "--m", "0", says="0")
    assert_fails(UNSUPPORTED, "bench", "--device", "h200", says="h200")


def test_a_full_disk_under_stdout_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [CLI, "kernels", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == IO, done.stderr


# --- kernels, plan, doctor ------------------------------------------------------------------------


def test_kernels_lists_the_same_rows_as_text_and_json():
    rows = run_json("kernels")["rows"]
    assert len(rows) == len({row["name"] for row in rows})
    kinds = {row["kind"] for row in rows}
    assert {"matmul", "prepare_x"} <= kinds
    text = run_ok("kernels").stdout.splitlines()[1:]
    assert [line.split()[0] for line in text] == [row["name"] for row in rows]


def test_supported_md_is_current():
    """The CUDA rows come last: a build without CUDA prints a prefix of the page."""
    page = (ROOT / "docs/SUPPORTED.md").read_text()
    printed = run_ok("kernels", "--markdown").stdout
    if "\n## CUDA rows" not in printed:
        page = page.split("\n## CUDA rows")[0]
    assert printed == page, "run: nibble kernels --markdown > docs/SUPPORTED.md"


def plan_args(**options):
    args = ["plan"]
    for name, value in {"m": 1, "n": 4096, "k": 4304, "format": "int4-g16", **options}.items():
        args += [f"--{name.replace('_', '-')}", value]
    return args


def test_plan_of_this_machine_names_rows_of_the_table():
    names = {row["name"] for row in run_json("kernels")["rows"]}
    for compute in ("exact", "int8"):
        for m in (1, 64):
            result = run_json(*plan_args(m=m, compute=compute))
            assert result["found"]
            assert {step["kernel"] for step in result["steps"]} <= names
            assert result["steps"][-1]["kind"] == "multiply"
            # The same arguments give the same plan.
            assert run_json(*plan_args(m=m, compute=compute)) == result


def test_explain_gives_every_matmul_row_a_cost_or_a_reason():
    matmuls = [row["name"] for row in run_json("kernels")["rows"] if row["kind"] == "matmul"]
    result = run_json(*plan_args(), "--explain")
    assert [row["kernel"] for row in result["rows"]] == matmuls
    for row in result["rows"]:
        assert row["cost_us"] > 0 if row["accepted"] else len(row["reason"]) > 5
    chosen = result["steps"][-1]["kernel"]
    costs = {row["kernel"]: row["cost_us"] for row in result["rows"] if row["accepted"]}
    assert costs[chosen] == min(costs.values())


def test_explain_for_an_avx2_laptop_uses_and_rejects_by_instruction_set():
    rows = {row["name"]: row for row in run_json("kernels")["rows"]}
    if not any(row["architecture"] == "avx2" for row in rows.values()):
        pytest.skip("this build has no AVX2 rows")
    result = run_json(*plan_args(device="avx2-laptop", m=64), "--explain")
    assert rows[result["steps"][-1]["kernel"]]["architecture"] == "avx2"
    for row in result["rows"]:
        if rows[row["kernel"]]["architecture"].startswith("avx512"):
            assert not row["accepted"] and "avx512" in row["reason"]
    text = run_ok(*plan_args(device="avx2-laptop", m=64), "--explain").stdout
    assert "chosen" in text and "needs avx512" in text


@pytest.mark.parametrize("device", ["h200", "thor"])
def test_explain_for_a_gpu_that_is_not_here(device):
    rows = {row["name"]: row for row in run_json("kernels")["rows"]}
    has_cuda = any(row["backend"] == "cuda" for row in rows.values())
    done = run(*plan_args(device=device, format="nvfp4"), "--explain", "--json")
    result = json.loads(done.stdout)
    for row in result["rows"]:
        if rows[row["kernel"]]["backend"] == "cpu":
            assert not row["accepted"] and device in row["reason"]
    if has_cuda:
        assert done.returncode == 0, done.stderr
        assert rows[result["steps"][-1]["kernel"]]["backend"] == "cuda"
    else:
        assert done.returncode == UNSUPPORTED
        assert not result["found"] and result["steps"] == []
        assert device in done.stderr


def test_plan_is_limited_by_isa_kernel_and_workspace():
    scalar = run_json(*plan_args(isa="scalar"))
    rows = {row["name"]: row for row in run_json("kernels")["rows"]}
    assert rows[scalar["steps"][-1]["kernel"]]["architecture"] == "scalar"
    name = scalar["steps"][-1]["kernel"]
    forced = run_json(*plan_args(kernel=name))
    assert forced["steps"][-1]["kernel"] == name
    assert run_json(*plan_args(max_workspace=0, compute="int8"))["workspace_bytes"] == 0
    assert_fails(UNSUPPORTED, *plan_args(compute="fp8"), says="fp8")


def test_doctor_names_a_kernel_for_every_use_on_this_cpu():
    report = run_json("doctor")
    assert report["cpu"]["threads"] >= 1 and "scalar" in report["cpu"]["isas"]
    names = {row["name"] for row in run_json("kernels")["rows"]}
    for use in report["cpu"]["uses"]:
        assert use["m1"] in names and use["m64"] in names
    text = run_ok("doctor").stdout
    assert "CPU: " in text and "CUDA: " in text


# --- quantize, inspect, verify --------------------------------------------------------------------


def test_quantize_writes_layers_and_carries_the_rest_over(model, tmp_path):
    out = tmp_path / "out"
    summary = run_json("quantize", model, out, "--format", "int4-g128")
    assert summary["spelling"] == "compressed-tensors"
    layers = {layer["name"]: layer for layer in summary["layers"]}
    assert len(layers) == 6
    up = layers["model.layers.0.mlp.up_proj"]
    assert (up["n"], up["k"], up["format"]) == (688, 256, "int4-g128")
    assert up["bits_per_weight"] == pytest.approx(4 + 16 / 128)
    down = layers["model.layers.0.mlp.down_proj"]
    assert down["format"] == "int4-g16" and down["smaller_group"]  # 688 = 16 * 43
    assert all(0.05 < layer["relative_error"] < 0.15 for layer in layers.values())
    reasons = {entry["tensor"]: entry["reason"] for entry in summary["skipped"]}
    assert reasons["model.embed_tokens.weight"] == "embedding"
    assert reasons["lm_head.weight"] == "output head"
    assert reasons["model.layers.0.self_attn.q_proj.bias"] == "no matrix"
    assert summary["weights"] == sum(layer["n"] * layer["k"] for layer in summary["layers"])

    stored = read_safetensors(out / "model.safetensors")
    source = read_safetensors(model / "model.safetensors")
    for name in reasons:
        assert stored[name] == source[name], name
    assert "model.layers.0.mlp.up_proj.weight" not in stored
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]  # no temporary directory is left


def test_quantize_says_in_text_what_stays_and_what_shrinks(model, tmp_path):
    done = run_ok("quantize", model, tmp_path / "out", "--format", "int4-g128")
    assert "6 layers to int4-g128; 6 tensors stay as they are" in done.stdout
    assert "model.embed_tokens.weight [96, 256]" in done.stdout
    assert "2 layers with K = 688 get int4-g16" in done.stdout
    assert re.search(r"\d+ M weights/s.*worst layer model\.layers", done.stdout)
    assert "\r" not in done.stderr  # no progress bar: stderr is no terminal


FORMATS = ["int4-g128", "int4-g32", "uint4-g64", "int8-channel", "nvfp4", "mxfp4", "fp4-g32"]


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_and_verify_agree_with_quantize(name, model, tmp_path):
    out = tmp_path / "out"
    options = ["--allow-short-group"] if name == "mxfp4" else []
    summary = run_json("quantize", model, out, "--format", name, *options)
    report = run_json("inspect", out)
    written = {(entry["name"], entry["format"]) for entry in summary["layers"]}
    read = {(entry["name"], entry["format"].split(":")[0]) for entry in report["layers"]}
    assert {(n, f.split(":")[0]) for n, f in written} == read
    verified = run_json("verify", out, "--against", model)
    assert verified["passed"] and verified["problems"] == []
    errors = {entry["name"]: entry["relative_error"] for entry in verified["layers"]}
    for entry in summary["layers"]:
        # Written and read again: the same codes, so the same error but for a rounded reciprocal.
        assert errors[entry["name"]] == pytest.approx(entry["relative_error"], rel=1e-4)
    worst = max(verified["layers"], key=lambda entry: entry["relative_error"])
    assert verified["worst_layers"][0] == worst
    assert verified["identical_tensors"] == len(summary["skipped"])


def test_quantize_a_single_file(model, tmp_path):
    summary = run_json(
        "quantize", model / "model.safetensors", tmp_path / "out", "--format", "nvfp4"
    )
    assert len(summary["layers"]) == 6
    assert (tmp_path / "out/model.safetensors").is_file()


def test_include_and_exclude(model, tmp_path):
    def layers(*options):
        out = tmp_path / "out"
        done = run_json(
            "quantize", model, out, "--format", "int4-g32", "--overwrite", "--allow-short-group",
            *options,
        )  # fmt: skip
        return {layer["name"] for layer in done["layers"]}

    assert layers("--include", "lm_head") == {"lm_head"}
    assert layers("--include", "lm_head", "--include", r"layers\.1\.mlp\.up") == {
        "lm_head",
        "model.layers.1.mlp.up_proj",
    }
    assert layers("--exclude", "mlp") == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert_fails(USAGE, "quantize", model, tmp_path / "x", "--format", "nvfp4", "--include", "(")
    assert_fails(
        USAGE, "quantize", model, tmp_path / "x", "--format", "nvfp4", "--exclude", ".",
        "--json", says="no tensor",
    )  # fmt: skip


def test_a_layer_that_the_format_cannot_hold_stays_with_a_warning(model, tmp_path):
    done = run_ok("quantize", model, tmp_path / "out", "--format", "mxfp4")
    assert "2 linear layers stay in float" in done.stderr and "688" in done.stderr
    assert_fails(
        UNSUPPORTED, "quantize", model, tmp_path / "x", "--format", "mxfp4", "--include",
        "down_proj", says="down_proj.*688",
    )  # fmt: skip


def test_the_bits_do_not_depend_on_the_thread_count(model, tmp_path):
    for name in ("int4-g128", "nvfp4"):
        trees = []
        for threads in (1, 2, 3):
            out = tmp_path / f"{name}-{threads}"
            run_ok("quantize", model, out, "--format", name, "--threads", threads)
            trees.append(tree(out))
        assert trees[0] == trees[1] == trees[2]


def test_scale_rules_change_the_result_and_mse_is_better(model, tmp_path):
    def mean_error(*options):
        out = tmp_path / "out"
        done = run_json("quantize", model, out, "--overwrite", *options)
        return np.mean([layer["relative_error"] for layer in done["layers"]])

    assert mean_error("--format", "int4-g128") < mean_error(
        "--format", "int4-g128", "--scales", "absmax"
    )
    best = mean_error("--format", "mxfp4")
    for rule in ("ocp", "modelopt", "compressed-tensors"):
        assert best < mean_error("--format", "mxfp4", "--mxfp", rule, "--scales", "absmax")
    assert_fails(USAGE, "quantize", model, tmp_path / "x", "--format", "nvfp4", "--scales", "huge")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_refused_by_name_and_index(bad, tmp_path):
    tensors = small_model()
    name = "model.layers.1.mlp.up_proj.weight"
    values = np.zeros((688, 256), np.float32)
    values[5, 7] = bad
    tensors[name] = ("F32", values)
    model = write_model(tmp_path / "model", tensors)
    done = assert_fails(CLI_INVALID, "quantize", model, tmp_path / "out", "--format", "nvfp4",
                        "--json", says=re.escape(name))  # fmt: skip
    assert re.search(r"\b5\b.*\b7\b|\b1287\b", done.stderr), done.stderr
    assert sorted(os.listdir(tmp_path)) == ["model"]


CLI_INVALID = USAGE  # a wrong value in the input is Code::kInvalidArgument


def test_an_existing_output_needs_overwrite(model, tmp_path):
    out = tmp_path / "out"
    run_ok("quantize", model, out, "--format", "int4-g128")
    before = tree(out)
    assert_fails(USAGE, "quantize", model, out, "--format", "nvfp4", "--json", says="out")
    assert tree(out) == before
    run_ok("quantize", model, out, "--format", "nvfp4", "--overwrite")
    assert tree(out) != before
    assert_fails(
        USAGE, "quantize", model, tmp_path / "x.safetensors", "--format", "nvfp4", says="directory"
    )


def test_a_quantized_source_is_refused(model, tmp_path):
    run_ok("quantize", model, tmp_path / "out", "--format", "int4-g128")
    assert_fails(
        UNSUPPORTED, "quantize", tmp_path / "out", tmp_path / "x", "--format", "nvfp4",
        says="already",
    )  # fmt: skip


def test_verify_finds_a_changed_tensor_a_missing_one_and_a_coarse_layer(model, tmp_path):
    out = tmp_path / "out"
    run_ok("quantize", model, out, "--format", "int4-g128")
    done = run("verify", out, "--against", model, "--max-error", "0.01", "--json")
    assert done.returncode == CHECK_FAILED
    assert len(json.loads(done.stdout)["problems"]) == 6
    assert "up_proj" in done.stderr

    changed = small_model()
    changed["model.layers.0.input_layernorm.weight"] = ("BF16", bf16(np.full(256, 2.0)))
    del changed["lm_head.weight"]
    changed["model.layers.0.mlp.up_proj.weight"] = ("BF16", bf16(np.ones((688, 128))))
    changed["extra.weight"] = ("BF16", bf16(np.ones(8)))
    other = write_model(tmp_path / "other", changed)
    done = run("verify", out, "--against", other)
    assert done.returncode == CHECK_FAILED
    for text in ("input_layernorm", "lm_head.weight is not in", "up_proj: its shape", "extra"):
        assert text in done.stderr, (text, done.stderr)


def test_verify_compares_two_quantized_checkpoints(model, tmp_path):
    run_ok("quantize", model, tmp_path / "a", "--format", "int4-g32", "--allow-short-group")
    run_ok("quantize", model, tmp_path / "b", "--format", "int8-channel")
    same = run_json("verify", tmp_path / "a", "--against", tmp_path / "a")
    assert all(entry["relative_error"] == 0 for entry in same["layers"])
    other = run_json("verify", tmp_path / "a", "--against", tmp_path / "b")
    assert all(0.03 < entry["relative_error"] < 0.2 for entry in other["layers"])


def test_files_that_are_missing_or_broken_have_their_own_exit_codes(model, tmp_path):
    assert_fails(IO, "inspect", tmp_path / "nothing", says="nothing")
    (tmp_path / "empty").mkdir()
    assert_fails(UNSUPPORTED, "inspect", tmp_path / "empty")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 64)
    assert_fails(CORRUPT, "inspect", broken, says="broken")
    whole = (model / "model.safetensors").read_bytes()
    broken.write_bytes(whole[:-100])
    assert_fails(CORRUPT, "inspect", broken)
    assert_fails(CORRUPT, "quantize", broken, tmp_path / "x", "--format", "nvfp4")
    assert_fails(IO, "verify", model, "--against", tmp_path / "nothing")


def test_names_from_files_cannot_drive_the_terminal(tmp_path):
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, {"a\x1b[2Jb.weight": ("F32", np.zeros((16, 32), np.float32))})
    assert "\x1b" not in run_ok("inspect", path).stdout
    assert json.loads(run_ok("inspect", path, "--json").stdout)["tensors"][0]["name"] == (
        "a\x1b[2Jb.weight"
    )


def write_sharded_model(folder, num_shards, layers_per_shard, n, k):
    """A model of num_shards files, each written once and then reused byte for byte as a copy."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    index = {}
    weight = bf16(rng.standard_normal((n, k)) * 0.02)
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        tensors = {}
        for i in range(layers_per_shard):
            tensor = f"model.layers.{shard * layers_per_shard + i}.mlp.up_proj.weight"
            tensors[tensor] = ("BF16", weight)
            index[tensor] = name
        if shard == 0:
            tensors["model.embed_tokens.weight"] = ("BF16", weight)
            index["model.embed_tokens.weight"] = name
        write_safetensors(folder / name, tensors)
    total = (num_shards * layers_per_shard + 1) * n * k * 2
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.returncode)
"""


@pytest.mark.skipif(SANITIZED, reason="sanitizers keep freed memory")
@pytest.mark.parametrize("name", ["int4-g128", "nvfp4"])
def test_peak_memory_depends_on_the_largest_tensor_not_on_the_model(name, tmp_path):
    """430 MB of weights in 4 files; the contract is 4 x the largest tensor + 300 MB."""
    n, k = 4096, 2048
    model = write_sharded_model(tmp_path / "model", 4, 6, n, k)
    size = sum(path.stat().st_size for path in model.iterdir())
    assert size > 400e6
    # A process of its own: the largest child so far would hide a smaller one.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, CLI, "quantize", model, tmp_path / "out", "--format", name],
        capture_output=True,
        text=True,
        check=True,
    )
    peak_kb, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    largest = n * k * 2
    assert peak_kb * 1024 <= 4 * largest + 300e6, f"{peak_kb / 1024:.0f} MiB"
    # The contract's constant would hide a small model kept whole: this one is far below its size.
    assert peak_kb * 1024 < 0.6 * size, f"{peak_kb / 1024:.0f} MiB of {size / 2**20:.0f} MiB"
    assert len(run_json("inspect", tmp_path / "out")["layers"]) == 24
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_quantize_leaves_the_old_output(number, tmp_path):
    model = write_sharded_model(tmp_path / "model", 2, 6, 2048, 2048)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("old")
    process = subprocess.Popen(
        [CLI, "quantize", model, out, "--format", "nvfp4", "--overwrite", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # The temporary directory appears beside the target once the work has begun.
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert tree(out) == {"precious.txt": b"old"}
    if number != signal.SIGKILL:
        assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    # What a killed run left does not stand in the way of the next one.
    run_ok("quantize", model, out, "--format", "nvfp4", "--overwrite")
    assert "precious.txt" not in tree(out)


def test_progress_appears_on_a_terminal_only(tmp_path):
    """A terminal is played by a pseudo-terminal; the work must take over a second."""
    pty = pytest.importorskip("pty")
    model = write_sharded_model(tmp_path / "model", 2, 8, 4096, 4096)
    main, child = pty.openpty()
    process = subprocess.Popen(
        [CLI, "quantize", model, tmp_path / "out", "--format", "nvfp4", "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=child,
    )
    os.close(child)
    shown = b""
    start = time.monotonic()
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    took = time.monotonic() - start
    os.close(main)
    assert process.wait() == 0
    if took > 2:
        assert re.search(rb"quantizing \[#*\.*\] +\d+ %  [\d.]+ M weights/s +[\d\w ]+left", shown)
        assert shown.rstrip().endswith(b"\x1b[K")  # and it is gone at the end
    else:
        pytest.skip(f"{took:.1f} s is too short for a progress bar")


# --- bench ----------------------------------------------------------------------------------------

BENCH_KEYS = (
    "format compute x_dtype isa m n k threads us_median us_p10 us_p90 weight_bytes weight_gbps "
    "gflops read_roof_gbps compute_roof_gflops share_of_read_roof share_of_compute_roof kernel"
).split()


def bench(*args):
    return [json.loads(line) for line in run_ok("bench", *args, "--json").stdout.splitlines()]


def test_bench_prints_one_object_a_case_with_every_key():
    cases = bench(
        "--device", "cpu", "--threads", 1, "--format", "int4-g128,nvfp4", "--compute", "exact,int8",
        "--x-dtype", "bf16,f32", "--k", 512, "--n", 1024, "--m", "1,3", "--seconds", 0.05,
    )  # fmt: skip
    combinations = {(c["format"], c["compute"], c["x_dtype"], c["m"]) for c in cases}
    assert len(cases) == len(combinations) == 16
    for case in cases:
        assert list(case)[: len(BENCH_KEYS)] == BENCH_KEYS
        assert case["us_p10"] <= case["us_median"] <= case["us_p90"]
        codes, groups = 1024 * 512 // 2, 1024 * 512 // (16 if case["format"] == "nvfp4" else 128)
        scale_bytes = 1 if case["format"] == "nvfp4" else 2
        assert case["weight_bytes"] == codes + groups * scale_bytes
        assert case["weight_gbps"] == pytest.approx(case["weight_bytes"] / case["us_median"] * 1e-3)
        assert case["gflops"] == pytest.approx(2e-3 * case["m"] * 512 * 1024 / case["us_median"])
        assert case["runs"] >= case["rounds"] and case["preempted_runs"] >= 0
        if case["rounds"] > 0:
            assert case["read_roof_gbps"] > 0 and case["compute_roof_gflops"] > 0
            assert 0 < case["share_of_compute_roof"] < 1.1
        cold = case["weight_copies"] * case["weight_bytes"]
        assert cold >= 3 * run_json("doctor")["cpu"]["l3_bytes"] * 0.99


def test_bench_takes_a_layout_an_isa_and_a_kernel():
    common = ["--k", 256, "--n", 64, "--m", 2, "--seconds", 0.02, "--format", "nf4-g64"]
    common += ["--compute", "exact", "--x-dtype", "f32"]
    (case,) = bench(*common, "--isa", "scalar", "--layout", "row_major")
    assert case["isa"] == "scalar" and case["layout"] == "row_major"
    (again,) = bench(*common, "--layout", "row_major", "--kernel", case["kernel"])
    assert again["kernel"] == case["kernel"]
    done = run("bench", *common, "--kernel", case["kernel"], "--layout", "cpu_panel16")
    assert done.returncode == UNSUPPORTED and "row_major" in done.stderr


def test_bench_table_has_a_row_a_case():
    text = run_ok(
        "bench", "--k", 256, "--n", 64, "--m", "1,2", "--seconds", 0.02, "--format", "int4-g64",
        "--compute", "int8", "--x-dtype", "bf16",
    ).stdout  # fmt: skip
    rows = [line for line in text.splitlines() if line.startswith("int4-g64")]
    assert len(rows) == 2
    assert text.splitlines()[1].split()[:4] == ["format", "compute", "x", "m"]

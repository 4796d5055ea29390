"""quantize, inspect and verify on checkpoints: results, refusals, interruption, memory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import (
    CHECK_FAILED,
    CLI,
    CORRUPT,
    IO,
    SANITIZED,
    UNSUPPORTED,
    USAGE,
    assert_fails,
    bf16,
    read_safetensors,
    run,
    run_json,
    run_ok,
    small_model,
    tree,
    write_model,
    write_safetensors,
)

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

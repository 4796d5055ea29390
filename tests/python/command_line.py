"""Running the command line and making small checkpoints for it."""

import json
import os
import pathlib
import re
import struct
import subprocess

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD_DIR", ROOT / "build"))
CLI = pathlib.Path(os.environ.get("NIBBLE_CLI", BUILD / "nibble"))
COMMANDS = ["quantize", "convert", "inspect", "verify", "plan", "kernels", "doctor", "bench"]
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


DTYPES = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}


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


def tree(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

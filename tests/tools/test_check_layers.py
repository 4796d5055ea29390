"""The include checker reports each kind of planted violation, and nothing else."""

import pathlib

import check_layers
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

VIOLATIONS = [
    # a stage sees one it may not
    ("src/core/format.cc", '#include "pack/layouts.h"'),
    ("src/core/format.cc", '#include "nibble/plan.h"'),
    ("include/nibble/core.h", '#include "nibble/pack.h"'),
    ("src/quantize/search.cc", '#include "pack/bands.h"'),
    ("src/pack/pack.cc", '#include "checkpoint/safetensors.h"'),
    ("src/checkpoint/gguf.cc", '#include "nibble/quantize.h"'),
    ("src/kernels/cpu/table.cc", '#include "plan/choose.h"'),
    ("src/plan/choose.cc", '#include "kernels/cpu/epilogue.h"'),
    ("src/plan/choose.cc", '#include "nibble/ops.h"'),
    ("src/ops/linear.cc", '#include "nibble/pack.h"'),
    ("src/ops/linear.cc", '#include "kernels/reference.h"'),
    ("src/models/pi05/model.cc", '#include "kernels/table.h"'),
    ("src/bench/roof.cc", '#include "nibble/ops.h"'),
    ("src/core/format.cc", '#include "nibble/c_api.h"'),
    ("src/core/format.cc", '#include "tests/support/data.h"'),
    # the two kernel backends see each other
    ("src/kernels/cpu/table.cc", '#include "kernels/cuda/launch.h"'),
    ("src/kernels/cuda/table.cc", '#include "kernels/cpu/epilogue.h"'),
    # outsiders see a private header
    ("frontends/cli/main.cc", '#include "core/names.h"'),
    ("examples/hello/main.cc", '#include "ops/linear.h"'),
    ("tests/api/linear_test.cc", '#include "core/names.h"'),
    ("src/capi/c_api.cc", '#include "core/names.h"'),
    ("frontends/cli/main.cc", '#include "../../src/core/names.h"'),
    ("frontends/python/module.cc", '#include "frontends/cli/text.h"'),
    # a third-party header outside its home
    ("src/plan/choose.cc", "#include <cuda_runtime.h>"),
    ("src/core/format.cc", "#include <immintrin.h>"),
    ("src/ops/linear.cc", "#include <nlohmann/json.hpp>"),
    ("src/checkpoint/safetensors.cc", "#include <fmt/core.h>"),
    ("src/core/format.cc", "#include <gtest/gtest.h>"),
    ("frontends/server/main.cc", "#include <CLI/CLI.hpp>"),
    ("frontends/cli/main.cc", "#include <NvInfer.h>"),
    ("frontends/python/module.cc", "#include <torch/extension.h>"),
    # kernels own nothing
    ("src/kernels/cpu/gemm_scalar.cc", "#include <vector>"),
    ("src/kernels/cpu/gemm_scalar.cc", "#include <mutex>"),
    ("src/kernels/cuda/gemv_sm80.cuh", "#include <string>"),
    # a file for one ISA brings in something that may leave an inline function
    ("src/kernels/cpu/gemm_avx2.cc", "#include <algorithm>"),
    ("src/kernels/cpu/gemm_avx512_vnni.cc", '#include "nibble/core.h"'),
    ("src/kernels/cpu/panel_avx512.h", '#include "kernels/table.h"'),
]

LEGAL = [
    ("src/core/format.cc", '#include "core/names.h"'),
    ("src/core/format.cc", "#include <vector>"),
    ("src/core/cpu_features.cc", "#include <cpuid.h>"),
    ("src/pack/pack.cc", '#include "nibble/core.h"'),
    ("src/kernels/args.h", '#include "nibble/types.h"'),
    ("src/kernels/table.h", "#include <span>"),
    ("src/kernels/table.cc", "#include <vector>"),
    ("src/kernels/reference.cc", "#include <vector>"),
    ("src/kernels/cpu/gemm_avx2.cc", "#include <immintrin.h>"),
    ("src/kernels/cpu/gemm_avx2.cc", '#include "kernels/cpu/epilogue.h"'),
    ("src/kernels/cuda/table.cc", "#include <cuda_runtime.h>"),
    ("src/plan/choose.cc", '#include "kernels/table.h"'),
    ("src/ops/linear.cc", '#include "nibble/plan.h"'),
    ("src/ops/cuda/device.cc", "#include <cuda_runtime.h>"),
    ("src/bench/roof.cc", '#include "kernels/table.h"'),
    ("src/checkpoint/safetensors.cc", "#include <nlohmann/json.hpp>"),
    ("src/checkpoint/safetensors_fuzz.cc", '#include "checkpoint/safetensors.h"'),
    ("src/core/format_test.cc", '#include "quantize/search.h"'),
    ("src/core/format_test.cc", "#include <gtest/gtest.h>"),
    ("tests/internal/rows_test.cc", '#include "kernels/table.h"'),
    ("tests/api/linear_test.cc", '#include "nibble/ops.h"'),
    ("frontends/cli/main.cc", '#include "frontends/cli/text.h"'),
    ("frontends/cli/main.cc", "#include <CLI/CLI.hpp>"),
    ("src/capi/c_api.cc", '#include "nibble/c_api.h"'),
    ("src/capi/c_api.cc", '#include "capi/handles.h"'),
]


@pytest.mark.parametrize("path,line", VIOLATIONS)
def test_reports_a_planted_violation(path, line):
    found = list(check_layers.errors(path, f"// a comment\n{line}\n"))
    assert len(found) >= 1
    assert found[0].startswith(f"{path}: ")


@pytest.mark.parametrize("path,line", LEGAL)
def test_accepts_a_legal_include(path, line):
    assert list(check_layers.errors(path, f"{line}\n")) == []


def test_finds_every_violation_of_a_file():
    text = '#include <vector>\n#  include "plan/choose.h"\n   #include <torch/all.h>\n'
    assert len(list(check_layers.errors("src/core/format.cc", text))) == 2


def test_a_header_beside_the_file_keeps_its_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("frontends/cli/text.h", "frontends/python/text.h"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    assert list(check_layers.errors("frontends/cli/main.cc", '#include "text.h"')) == []
    assert list(check_layers.errors("frontends/cli/main.cc", '#include "../python/text.h"')) != []


def test_exit_code_says_whether_the_tree_is_clean(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "src/core/format.cc"
    source.parent.mkdir(parents=True)
    source.write_text('#include "nibble/core.h"\n')
    assert check_layers.main([]) == 0
    source.write_text('#include "nibble/ops.h"\n')
    assert check_layers.main([]) == 1
    assert "core may not see nibble/ops.h" in capsys.readouterr().out


def test_this_repository_is_clean(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert check_layers.main([]) == 0

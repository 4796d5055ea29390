"""The command line as its users see it: help, exit codes, plans, and the bench."""

import json
import re
import subprocess

import pytest
from command_line import (
    CLI,
    COMMANDS,
    IO,
    ROOT,
    UNSUPPORTED,
    USAGE,
    assert_fails,
    run,
    run_json,
    run_ok,
)

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

#!/usr/bin/env python3
"""Makes the files of bench/results/ from the output of `nibble bench --json`.

report.py --collect CASES.jsonl --nibble build/nibble --command "..." --results bench/results
report.py RESULT.json          prints the table of a result
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output_of(*command) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_facts() -> dict:
    """Model, caches and memory as the system tells."""
    facts = {"machine": platform.machine(), "kernel": platform.release()}
    for line in output_of("lscpu").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"Model name", "CPU(s)", "CPU family", "Model", "L1d cache", "L2 cache",
                            "L3 cache", "Hypervisor vendor"}:  # fmt: skip
            facts[name.strip()] = value.strip()
    memory = pathlib.Path("/proc/meminfo")
    if memory.exists():
        facts["memory"] = memory.read_text().split("\n")[0].split(":")[1].strip()
    return facts


def compiler_of(nibble: pathlib.Path) -> str:
    """What the build folder of the program says; empty for a program from elsewhere."""
    cache = nibble.resolve().parent / "CMakeCache.txt"
    if not cache.exists():
        return ""
    found = dict(re.findall(r"^(CMAKE_\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    version = output_of(found.get("CMAKE_CXX_COMPILER", "c++"), "--version").split("\n")[0]
    return f"{version}, {found.get('CMAKE_BUILD_TYPE', '')}"


def collect(args) -> int:
    cases = [json.loads(line) for line in args.collect.read_text().splitlines() if line]
    if not cases:
        print("report.py: no case was measured", file=sys.stderr)
        return 1
    doctor = json.loads(output_of(str(args.nibble.resolve()), "doctor", "--json"))
    today = datetime.date.today().isoformat()
    result = {
        "date": today,
        "command": args.command,
        "commit": args.commit or output_of("git", "describe", "--always", "--dirty", "--exclude=*"),
        "load_average": round(os.getloadavg()[1], 1),
        "version": doctor["version"],
        "compiler": compiler_of(args.nibble),
        "cpu": {"name": doctor["cpu"]["name"], "isas": doctor["cpu"]["isas"], **cpu_facts()},
        "cases": cases,
    }
    name = re.sub(r"[^a-z0-9]+", "-", result["cpu"]["name"].lower()).strip("-")
    path = args.results / f"{today}-{name}.json"
    head = {key: value for key, value in result.items() if key != "cases"}
    lines = ",\n".join("    " + json.dumps(case) for case in cases)
    text = json.dumps(head, indent=2)[:-2] + ',\n  "cases": [\n' + lines + "\n  ]\n}\n"
    path.write_text(text)
    path.with_suffix(".md").write_text(page(result))
    print(f"{path} and {path.with_suffix('.md').name}")
    return 0


def percent(value) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def cell(case) -> str:
    """Time, the share of the limit that counts, and a mark where many rounds were dropped."""
    noisy = "*" if case["dropped_rounds"] > case["rounds"] else ""
    shares = f"{percent(case['share_of_read_roof'])} / {percent(case['share_of_compute_roof'])}"
    return f"{case['us_median']:.0f} us, {shares}{noisy}"


def page(result) -> str:
    cpu = result["cpu"]

    def fact(name):
        return cpu.get(name, "unknown")

    lines = [
        f"# {cpu['name']}, {result['date']}",
        "",
        f"* CPU: {cpu['name']} (family {fact('CPU family')}, model {fact('Model')}), "
        f"{fact('CPU(s)')} cores, L2 {fact('L2 cache')}, L3 {fact('L3 cache')}, hypervisor "
        f"{fact('Hypervisor vendor')}; {', '.join(cpu['isas'])}",
        f"* commit {result['commit']}, {result['compiler']}",
        f"* load average of the last five minutes: {result['load_average']} (the bench alone: its "
        "threads)",
        f"* `{result['command']}`",
        "",
        "Each cell: median time, then percent of the read roof / percent of the compute roof",
        "(medians of paired ratios). `*`: more rounds were dropped than kept. See",
        "docs/benchmarking.md.",
    ]
    groups = {}
    for case in result["cases"]:
        key = (case["threads"], case["k"], case["n"])
        groups.setdefault(key, []).append(case)
    for (threads, k, n), cases in groups.items():
        ms = sorted({case["m"] for case in cases})
        reads = sorted(c["read_roof_gbps"] for c in cases if c["read_roof_gbps"])
        roof = f"{reads[len(reads) // 2]:.1f} GB/s" if reads else "unknown"
        lines += [
            "",
            f"## K = {k}, N = {n}, {threads} thread{'s' if threads > 1 else ''} (read roof {roof})",
            "",
            "| format | compute | x | layout | " + " | ".join(f"M = {m}" for m in ms) + " |",
            "|---" * (4 + len(ms)) + "|",
        ]
        rows = {}
        for case in cases:
            key = (case["format"], case["compute"], case["x_dtype"], case["layout"])
            rows.setdefault(key, {})[case["m"]] = cell(case)
        for key, row in rows.items():
            cells = [row.get(m, "") for m in ms]
            lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", type=pathlib.Path)
    parser.add_argument("--collect", type=pathlib.Path, help="one JSON object a line")
    parser.add_argument("--nibble", type=pathlib.Path, default=ROOT / "build/nibble")
    parser.add_argument("--commit", help="of the program, when it is not the checkout's")
    parser.add_argument("--command", default="nibble bench", help="what was run")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench/results")
    args = parser.parse_args()
    if args.collect:
        return collect(args)
    if not args.result:
        parser.error("give a result or --collect")
    print(page(json.loads(args.result.read_text())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

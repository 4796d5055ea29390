#!/usr/bin/env python3
"""Fails when a file includes a stage, or a third-party header, that it may not know.

The rules are those of ARCHITECTURE.md, "Who may see whom". Run from the repository root, with
paths relative to it, or with none to check every source file.
"""

import pathlib
import posixpath
import re
import sys

KERNEL_API = {"core", "kernels/table.h", "kernels/args.h"}
# stage: what it may include besides its own headers ("stage/file" allows that one file)
MAY_SEE = {
    "core": set(),
    "checkpoint": {"core"},
    "quantize": {"core"},
    "pack": {"core"},
    "kernels": {"core"},
    "plan": KERNEL_API,
    "ops": KERNEL_API | {"plan"},
    "models": {"core", "checkpoint", "quantize", "pack", "ops"},
    "bench": KERNEL_API,
}
# public headers that belong to a stage of another name
HEADER_STAGE = {"types": "core", "policy": "models"}
# these see include/nibble/*.h and the files of their own folder, and nothing else of ours
PUBLIC_ONLY = ("frontends/", "compat/", "examples/", "tests/api/", "tests/consumer/", "src/capi/")
# these, and every *_test.cc, *_fuzz.cc and test_*.h beside its code, may include any stage
ANYTHING = ("tests/internal/", "tests/support/", "tests/fuzz/", "bench/")
HOMES = [  # third-party headers: the only folders that may include them
    (
        r"cuda|cublas|nvtx|cub/|cute/|cutlass/",
        (
            "src/kernels/cuda/",
            "src/ops/cuda/",
            "frontends/tensorrt/",
            "compat/",
            "codegen/tvm/generated/",
            "bench/",
            "tests/",
            "examples/",
        ),
    ),
    (
        r"\w*mmintrin\.h|\w*avx\w*intrin\.h|x86intrin\.h|cpuid\.h|arm_\w+\.h",
        ("src/kernels/cpu/", "src/core/cpu_features", "bench/"),
    ),
    (r"NvInfer", ("frontends/tensorrt/", "compat/")),
    (r"boost/|msgpack", ("frontends/server/",)),
    (r"Eigen/", ("src/quantize/",)),
    (r"protozero/", ("src/checkpoint/",)),
    (r"nlohmann/", ("src/checkpoint/", "frontends/", "tests/", "bench/", "examples/")),
    (r"CLI/", ("frontends/cli/",)),
    (r"fmt/", ("frontends/", "bench/")),
    (r"gtest/|gmock/", ("tests/",)),  # and every *_test.cc and test_*.h
    (r"sentencepiece", ("src/models/",)),
    (r"nanobind/|Python\.h|pybind11/", ("frontends/python/",)),
    (r"torch/|ATen/|c10/", ()),
]
KERNEL_FORBIDS = re.compile(
    r"(thread|mutex|atomic|future|iostream|fstream|filesystem|unordered_map|map|string|vector"
    r"|memory|stdexcept|cstdlib|stdlib\.h)$"
)
NO_KERNEL = re.compile(r"/(table|reference)\.")  # the list of kernels, and the tests' oracle
# One ISA per file: nothing that could leave an inline function compiled for it to the linker.
ISA_FILE = re.compile(r"src/kernels/cpu/.*_(avx\w*|neon\w*|sve\w*)\.(cc|h)$")
ISA_ALLOWS = re.compile(r"(immintrin|arm_\w+|stdint|stddef)\.h$")
ISA_RULE = "a file for one ISA includes intrinsics and plain data only"
OUR_PLAIN_DATA = re.compile(r"(include/nibble/types|src/kernels/args|src/kernels/cpu/\w+)\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.M)


def stage_of(path: str) -> str | None:
    """'src/kernels/cpu/a.cc' → 'kernels'; 'include/nibble/plan.h' → 'plan'; other paths → None."""
    parts = path.split("/")
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    if parts[:2] == ["include", "nibble"] and len(parts) == 3:
        name = parts[2].removesuffix(".h")
        return HEADER_STAGE.get(name, name)
    return None


def target_of(path: str, header: str) -> str | None:
    """The repository path of one of our headers, or None for a third-party header."""
    if header.startswith("nibble/"):
        return "include/" + header
    if "/" in header and header.split("/")[0] in (*MAY_SEE, "capi"):
        return "src/" + header
    if header.startswith(("src/", "tests/", "frontends/", "examples/")):
        return header
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(path), header))
    if header.startswith(".") or pathlib.Path(beside).is_file():
        return beside
    return None


def own_folder(path: str) -> str:
    """The folder whose files a public-only file may share: frontends/cli/, examples/x/, …"""
    parts = path.split("/")
    return "/".join(parts[:2]) + "/"


def third_party_errors(path: str, header: str, is_test: bool):
    for pattern, homes in HOMES:
        if not re.match(pattern, header) or path.startswith(homes):
            continue
        if is_test and re.match(r"gtest/|gmock/|nlohmann/", header):
            continue
        yield f"{path}: {header} has no home here"
    if stage_of(path) == "kernels" and not is_test:
        if KERNEL_FORBIDS.match(header) and not NO_KERNEL.search(path):
            yield f"{path}: kernels own nothing, so no <{header}>"
        if ISA_FILE.match(path) and not ISA_ALLOWS.match(header):
            yield f"{path}: {ISA_RULE}, not {header}"


def layer_errors(path: str, header: str, target: str):
    public = target.startswith("include/")
    if path.startswith(PUBLIC_ONLY):
        if not public and not target.startswith(own_folder(path)):
            yield f"{path}: only nibble/*.h is visible here, not {header}"
        return
    stage, other = stage_of(path), stage_of(target)
    if stage in MAY_SEE and other != stage:
        if other is None or (other not in MAY_SEE and not public):
            yield f"{path}: {header} is not part of a stage"
        elif other in MAY_SEE or other == "c_api":
            allowed = MAY_SEE[stage]
            if other not in allowed and f"{other}/{posixpath.basename(target)}" not in allowed:
                yield f"{path}: {stage} may not see {header}"
    sides = {side for side in ("cpu", "cuda") for p in (path, target) if f"/kernels/{side}/" in p}
    if len(sides) == 2:
        yield f"{path}: cpu and cuda kernels do not know each other ({header})"
    if ISA_FILE.match(path) and not OUR_PLAIN_DATA.match(target):
        yield f"{path}: {ISA_RULE}, not {header}"


def errors(path: str, text: str):
    """Every broken rule of one file, as a line of text."""
    is_test = path.endswith(("_test.cc", "_fuzz.cc")) or "/test_" in path
    sees_all = (is_test and not path.startswith(PUBLIC_ONLY)) or path.startswith(ANYTHING)
    for header in INCLUDE.findall(text):
        target = target_of(path, header)
        if target is None:
            yield from third_party_errors(path, header, is_test)
        elif not sees_all:
            yield from layer_errors(path, header, target)


def main(argv: list[str]) -> int:
    roots = ("src", "include", "frontends", "compat", "codegen", "examples", "tests", "bench")
    suffixes = {".h", ".c", ".cc", ".cu", ".cuh", ".inc"}
    files = argv or [
        path.as_posix()
        for root in roots
        for path in sorted(pathlib.Path(root).rglob("*"))
        if path.suffix in suffixes
    ]
    found = [e for f in files for e in errors(f, pathlib.Path(f).read_text(errors="replace"))]
    print("\n".join(found) if found else f"layers: {len(files)} files, clean")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
